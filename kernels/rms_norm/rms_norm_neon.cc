// NEON variant, for every AArch64 CPU (Armv8.0).
#include "kernels/rms_norm/row_kernel.h"
#include "kernels/rms_norm/simd_neon.h"

namespace ai_edge_rms_norm {

RMS_NORM_DEFINE_KERNELS(neon, Neon)

}  // namespace ai_edge_rms_norm
