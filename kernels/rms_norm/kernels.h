// The single-threaded kernels and the table of them.
#ifndef KERNELS_RMS_NORM_KERNELS_H_
#define KERNELS_RMS_NORM_KERNELS_H_

#include <cstddef>

#include "kernels/rms_norm/rms_norm.h"

namespace ai_edge_rms_norm {

// Arguments as in rms_norm.h. residual and sum are used by add_rms_norm only.
struct KernelArgs {
  std::size_t rows;
  double epsilon;
  std::size_t hidden_size;
  const void* x;
  const void* residual;
  const void* weight;
  ElementType weight_type;
  void* sum;
  void* y;
  bool stream;  // Write y past the caches where the kernel can.
};

using Kernel = void (*)(const KernelArgs& args);

#define RMS_NORM_KERNEL(op, type, isa) \
  void op##_##type##_##isa(const KernelArgs& args);
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
