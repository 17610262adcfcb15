// The single-threaded kernels and the table of them.
#ifndef KERNELS_RMS_NORM_KERNELS_H_
#define KERNELS_RMS_NORM_KERNELS_H_

#include <cstddef>

#include "kernels/rms_norm/rms_norm.h"

namespace ai_edge_rms_norm {

// What add_rms_norm adds to x, and where it stores the sum.
struct ResidualSum {
  const void* residual;
  void* sum;
};

// Outputs of at least this size are written past the caches. Measured together
// with a consumer that reads the output afterwards, both in a loop and with
// other data in between, as between the operators of a model (rms_norm_ratio
// --consumer --between). With 480 MiB of last-level cache that takes 40 to 70 %
// longer from 8 to 32 MiB, is even at 64 MiB and gains 10 to 20 % at 128 MiB;
// at 8 MiB it gains with 32 MiB of cache, and with 260 MiB if there is data in
// between. A constant, since what the system says about the size of its cache
// is wrong in virtual machines.
constexpr std::size_t kMinStreamedBytes = std::size_t{64} << 20;

// Normalizes params.rows > 0 rows on the calling thread. Arguments as in
// rms_norm.h; rms_norm does not look at residual. stream: write y past the
// caches where the kernel can. No more arguments than fit into registers, so
// that a row of a small model need not wait for them to pass through memory.
using KernelFunction = void(const RmsNormParams& params, const void* x,
                            const void* weight, void* y,
                            const ResidualSum* residual, bool stream);
using Kernel = KernelFunction*;

#define RMS_NORM_KERNEL(op, type, isa) KernelFunction op##_##type##_##isa;
#include "kernels/rms_norm/kernels.inc"
#undef RMS_NORM_KERNEL

enum class Op : unsigned char { kRmsNorm, kAddRmsNorm };

struct KernelInfo {
  const char* name;  // <op>_<type>_<isa>
  const char* isa;
  Op op;
  ElementType type;
  Kernel kernel;
  bool (*supported)();  // by the CPU that this runs on
  bool (*preferred)();  // by a CPU that supports it, to what follows it
};

// All kernels of this architecture in the order of kernels.inc.
struct KernelTable {
  const KernelInfo* first;
  const KernelInfo* last;
  const KernelInfo* begin() const { return first; }
  const KernelInfo* end() const { return last; }
};
KernelTable AllKernels();

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_KERNELS_H_
