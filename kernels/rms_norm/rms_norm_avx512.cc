// AVX-512 variant for CPUs that load and store 64 bytes at a time.
#include "kernels/rms_norm/row_kernel.h"
#include "kernels/rms_norm/simd_avx512.h"

namespace ai_edge_rms_norm {

RMS_NORM_DEFINE_KERNELS(avx512, Avx512)

}  // namespace ai_edge_rms_norm
