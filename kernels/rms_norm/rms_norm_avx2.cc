// AVX2 + FMA + F16C variant.
#include "kernels/rms_norm/row_kernel.h"
#include "kernels/rms_norm/simd_avx2.h"

namespace ai_edge_rms_norm {

RMS_NORM_DEFINE_KERNELS(avx2, Avx2)

}  // namespace ai_edge_rms_norm
