// AVX-512 variant for Zen 4, which executes 512-bit instructions in two halves.
#include <type_traits>

#include "kernels/rms_norm/row_kernel.h"
#include "kernels/rms_norm/simd_avx2.h"
#include "kernels/rms_norm/simd_avx512.h"
#include "kernels/rms_norm/simd_avx512_bf16.h"

namespace ai_edge_rms_norm {
namespace {

// Eight float16 at a time, which is faster than 16 (docs/benchmarks.md); tails
// by masked loads and stores.
struct Zen4Float16 : Avx2 {
  using Avx2::LoadPartial;
  static RMS_NORM_INLINE Vec LoadPartial(const Float16* p, std::size_t n) {
    return _mm256_cvtph_ps(_mm_maskz_loadu_epi16(Mask(n), p));
  }
  using Avx2::StorePartial;
  static RMS_NORM_INLINE void StorePartial(Float16* p, Vec v, std::size_t n) {
    _mm_mask_storeu_epi16(p, Mask(n),
                          _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

 private:
  static RMS_NORM_INLINE __mmask8 Mask(std::size_t n) {
    return static_cast<__mmask8>((1u << n) - 1u);
  }
};

struct Zen4 : Avx512 {
  static constexpr int kAccumulators = 4;  // FMA latency 4, one per cycle
  template <class T>
  using Summer = std::conditional_t<
      std::is_same_v<T, BFloat16>, Avx512BFloat16Sums,
      std::conditional_t<std::is_same_v<T, Float16>, Zen4Float16, Zen4>>;
  // 64-byte stores of float32 are no faster than 32-byte ones while the first
  // level cache holds the output, and slower beyond it.
  template <class T>
  using Scaler = std::conditional_t<
      std::is_same_v<T, BFloat16>, Avx512BFloat16,
      std::conditional_t<std::is_same_v<T, Float16>, Zen4Float16, Avx2>>;
};

}  // namespace

RMS_NORM_DEFINE_KERNELS(avx512_zen4, Zen4)

}  // namespace ai_edge_rms_norm
