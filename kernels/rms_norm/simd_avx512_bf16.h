// AVX-512 BF16 for rows of bfloat16: 32 elements at a time.
//
// In an anonymous namespace: each file that includes this compiles it with
// instruction set flags of its own.
#ifndef KERNELS_RMS_NORM_SIMD_AVX512_BF16_H_
#define KERNELS_RMS_NORM_SIMD_AVX512_BF16_H_

#include <immintrin.h>

#include <cstddef>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/simd_avx512.h"

namespace ai_edge_rms_norm {
namespace {

// Pairs of float32 vectors, which scale rows.
struct Avx512BFloat16 {
  static constexpr std::size_t kLanes = 32;
  struct Vec {
    __m512 low, high;
  };

  static RMS_NORM_INLINE Vec Set(float a) {
    return {_mm512_set1_ps(a), _mm512_set1_ps(a)};
  }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) {
    return {_mm512_add_ps(a.low, b.low), _mm512_add_ps(a.high, b.high)};
  }
  static RMS_NORM_INLINE Vec Mul(Vec a, Vec b) {
    return {_mm512_mul_ps(a.low, b.low), _mm512_mul_ps(a.high, b.high)};
  }

  static RMS_NORM_INLINE __mmask32 Mask(std::size_t n) {
    return (__mmask32{1} << n) - 1;
  }

  static RMS_NORM_INLINE Vec Load(const BFloat16* p) {
    return {Avx512::Load(p), Avx512::Load(p + Avx512::kLanes)};
  }
  static RMS_NORM_INLINE Vec LoadPartial(const BFloat16* p, std::size_t n) {
    return Widen(_mm512_maskz_loadu_epi16(Mask(n), p));
  }
  static RMS_NORM_INLINE void Store(BFloat16* p, Vec v) {
    _mm512_storeu_si512(p, Narrow(v));
  }
  static RMS_NORM_INLINE void StorePartial(BFloat16* p, Vec v, std::size_t n) {
    _mm512_mask_storeu_epi16(p, Mask(n), Narrow(v));
  }
  static RMS_NORM_INLINE void Stream(BFloat16* p, Vec v) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), Narrow(v));
  }

  // A float32 weight.
  static RMS_NORM_INLINE Vec Load(const float* p) {
    return {Avx512::Load(p), Avx512::Load(p + Avx512::kLanes)};
  }
  static RMS_NORM_INLINE Vec LoadPartial(const float* p, std::size_t n) {
    const __mmask32 mask = Mask(n);
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p),
            _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16),
                                  p + Avx512::kLanes)};
  }

  static RMS_NORM_INLINE Vec Widen(__m512i bits) {
    return {Avx512::Widen<BFloat16>(_mm512_castsi512_si256(bits)),
            Avx512::Widen<BFloat16>(_mm512_extracti64x4_epi64(bits, 1))};
  }

  // As FromFloat<BFloat16>. The instruction takes subnormals for zeros, and
  // does all others right in every mode.
  static RMS_NORM_INLINE __m512i Narrow(Vec v) {
    constexpr int kSubnormal = 0x20;
    const __mmask16 low = _mm512_fpclass_ps_mask(v.low, kSubnormal);
    const __mmask16 high = _mm512_fpclass_ps_mask(v.high, kSubnormal);
    if (__builtin_expect((low | high) != 0, 0)) return NarrowSubnormals(v);
    return internal::BitCast<__m512i>(_mm512_cvtne2ps_pbh(v.high, v.low));
  }

 private:
  static RMS_NORM_INLINE __m512i NarrowSubnormals(Vec v) {
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(Avx512::Narrow<BFloat16>(v.low)),
        Avx512::Narrow<BFloat16>(v.high), 1);
  }
};

// Sums their squares, two per lane and instruction, without widening them:
// 64 per lane in a block instead of 32. The instruction flushes subnormals and
// rounds to nearest in every mode; a row where that could show is exceptional.
struct Avx512BFloat16Sums {
  static constexpr std::size_t kLanes = 32;
  static constexpr int kAccumulators = 4;
  using Vec = __m512;
  struct Elements {
    __m512i bits;
  };

  static RMS_NORM_INLINE Vec Zero() { return _mm512_setzero_ps(); }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static RMS_NORM_INLINE __m128 Fold(Vec v) { return Avx512::Fold(v); }
  static RMS_NORM_INLINE Vec MulAdd(Elements a, Elements b, Vec c) {
    return _mm512_dpbf16_ps(c, internal::BitCast<__m512bh>(a.bits),
                            internal::BitCast<__m512bh>(b.bits));
  }

  static RMS_NORM_INLINE Elements Load(const BFloat16* p) {
    return {_mm512_loadu_si512(p)};
  }
  static RMS_NORM_INLINE Elements LoadPartial(const BFloat16* p,
                                              std::size_t n) {
    return {_mm512_maskz_loadu_epi16(Avx512BFloat16::Mask(n), p)};
  }
  static RMS_NORM_INLINE void Store(BFloat16* p, Elements v) {
    _mm512_storeu_si512(p, v.bits);
  }
  static RMS_NORM_INLINE void StorePartial(BFloat16* p, Elements v,
                                           std::size_t n) {
    _mm512_mask_storeu_epi16(p, Avx512BFloat16::Mask(n), v.bits);
  }

  static RMS_NORM_INLINE Avx512BFloat16::Vec Add(Elements a, Elements b) {
    return Avx512BFloat16::Add(Avx512BFloat16::Widen(a.bits),
                               Avx512BFloat16::Widen(b.bits));
  }
  template <class T>
  static RMS_NORM_INLINE Elements Round(Avx512BFloat16::Vec v) {
    return {Avx512BFloat16::Narrow(v)};
  }
};

}  // namespace
}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_SIMD_AVX512_BF16_H_
