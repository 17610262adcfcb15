// NEON variant for CPUs with FEAT_BF16, which round to bfloat16 in one
// instruction.
#include "kernels/rms_norm/row_kernel.h"
#include "kernels/rms_norm/simd_neon.h"

#if !defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#error "variants.bzl has the flags of this file."
#endif

namespace ai_edge_rms_norm {

RMS_NORM_DEFINE_KERNELS(neon_bf16, Neon)

}  // namespace ai_edge_rms_norm
