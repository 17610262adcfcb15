// AVX-512 variant for Zen 4, which executes 512-bit instructions in two halves.
#include <type_traits>

#include "kernels/rms_norm/row_kernel.h"
#include "kernels/rms_norm/simd_avx2.h"
#include "kernels/rms_norm/simd_avx512.h"
#include "kernels/rms_norm/simd_avx512_bf16.h"

namespace ai_edge_rms_norm {
namespace {

struct Zen4 : Avx512 {
  static constexpr int kAccumulators = 4;  // FMA latency 4, one per cycle
  template <class T>
  using Summer =
      std::conditional_t<std::is_same_v<T, BFloat16>, Avx512BFloat16Sums, Zen4>;
  // 64-byte stores of float32 are no faster than 32-byte ones while the first
  // level cache holds the output, and slower beyond it. Masks for the tail of a
  // row of 16-bit elements are worth more than that.
  template <class T>
  using Scaler = std::conditional_t<
      std::is_same_v<T, BFloat16>, Avx512BFloat16,
      std::conditional_t<std::is_same_v<T, float>, Avx2, Avx512>>;
};

}  // namespace

RMS_NORM_DEFINE_KERNELS(avx512_zen4, Zen4)

}  // namespace ai_edge_rms_norm
