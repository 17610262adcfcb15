// AVX-512 variant with BF16 for CPUs that load and store 64 bytes at a time.
#include <type_traits>

#include "kernels/rms_norm/row_kernel.h"
#include "kernels/rms_norm/simd_avx512.h"
#include "kernels/rms_norm/simd_avx512_bf16.h"

namespace ai_edge_rms_norm {
namespace {

struct Avx512Bf16 : Avx512 {
  template <class T>
  using Summer = std::conditional_t<std::is_same_v<T, BFloat16>,
                                    Avx512BFloat16Sums, Avx512>;
  template <class T>
  using Scaler =
      std::conditional_t<std::is_same_v<T, BFloat16>, Avx512BFloat16, Avx512>;
};

}  // namespace

RMS_NORM_DEFINE_KERNELS(avx512_bf16, Avx512Bf16)

}  // namespace ai_edge_rms_norm
