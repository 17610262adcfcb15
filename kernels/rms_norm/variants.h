// The single-threaded kernels and the table of them.
#ifndef KERNELS_RMS_NORM_VARIANTS_H_
#define KERNELS_RMS_NORM_VARIANTS_H_

#include <cstddef>

#include "kernels/rms_norm/rms_norm.h"

namespace ai_edge_rms_norm {

// The residual that add_rms_norm adds to x, and where it stores the sum.
struct ResidualSum {
  const void* residual;
  void* sum;
};

// Normalizes params.rows > 0 rows on the calling thread. Arguments as in
// rms_norm.h; rms_norm does not look at residual. stream: write y past the
// caches where the kernel can. No more arguments than fit into registers, so
// that a row of a small model need not wait for them to pass through memory.
using KernelFunction = void(const RmsNormParams& params, const void* x,
                            const void* weight, void* y,
                            const ResidualSum* residual, bool stream);
using Kernel = KernelFunction*;

// KERNEL(op, type, ...) for every operator and element type that a variant has
// a kernel for: a function named <op>_<type>_<isa>.
#define RMS_NORM_KERNELS(KERNEL, ...)    \
  KERNEL(rms_norm, f32, __VA_ARGS__)     \
  KERNEL(rms_norm, f16, __VA_ARGS__)     \
  KERNEL(rms_norm, bf16, __VA_ARGS__)    \
  KERNEL(add_rms_norm, f32, __VA_ARGS__) \
  KERNEL(add_rms_norm, f16, __VA_ARGS__) \
  KERNEL(add_rms_norm, bf16, __VA_ARGS__)

// The operators and element types by the names in RMS_NORM_KERNELS.
inline constexpr RmsNormOp kOp_rms_norm = RmsNormOp::kRmsNorm;
inline constexpr RmsNormOp kOp_add_rms_norm = RmsNormOp::kAddRmsNorm;
inline constexpr ElementType kType_f32 = ElementType::kFloat32;
inline constexpr ElementType kType_f16 = ElementType::kFloat16;
inline constexpr ElementType kType_bf16 = ElementType::kBFloat16;

#define RMS_NORM_DECLARE_KERNEL(op, type, isa) \
  KernelFunction op##_##type##_##isa;
#define RMS_NORM_VARIANT(isa, supported, preferred) \
  RMS_NORM_KERNELS(RMS_NORM_DECLARE_KERNEL, isa)
#include "kernels/rms_norm/variants.inc"
#undef RMS_NORM_VARIANT
#undef RMS_NORM_DECLARE_KERNEL

struct KernelInfo {
  const char* name;  // <op>_<type>_<isa>
  const char* isa;
  RmsNormOp op;
  ElementType type;
  Kernel kernel;
  bool (*supported)();  // by the CPU that this runs on
  bool (*preferred)();  // by a CPU that supports it, to what follows it
};

// All kernels of this architecture in the order of variants.inc.
struct KernelTable {
  const KernelInfo* first;
  const KernelInfo* last;
  const KernelInfo* begin() const { return first; }
  const KernelInfo* end() const { return last; }
};
KernelTable AllKernels();

// The names of this architecture's variants in that order: "avx2, generic".
const char* VariantNames();

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_VARIANTS_H_
