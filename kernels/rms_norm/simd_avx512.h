// AVX-512 (F, DQ, BW, VL) vector operations for row_kernel.h: 16 lanes, tails
// by masked loads and stores.
//
// In an anonymous namespace: each file that includes this compiles it with
// instruction set flags of its own.
#ifndef KERNELS_RMS_NORM_SIMD_AVX512_H_
#define KERNELS_RMS_NORM_SIMD_AVX512_H_

#include <immintrin.h>

#include <cstddef>
#include <type_traits>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/simd_avx2.h"

namespace ai_edge_rms_norm {
namespace {

// Indices of VPERMW: words 1, 3, 5, ... to words 0, 1, 2, ..., and back.
alignas(64) constexpr short kFromOddWords[32] = {
    1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
alignas(64) constexpr short kToOddWords[32] = {
    0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
    0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};

struct Avx512 : X86Quads {
  static constexpr std::size_t kLanes = 16;
  static constexpr int kAccumulators = 8;  // FMA latency 4, two per cycle
  static constexpr std::size_t kStreamAlignment = 64;
  using Vec = __m512;

  static RMS_NORM_INLINE Vec Zero() { return _mm512_setzero_ps(); }
  static RMS_NORM_INLINE Vec Set(float a) { return _mm512_set1_ps(a); }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static RMS_NORM_INLINE Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static RMS_NORM_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  using X86Quads::MulAdd;
  static RMS_NORM_INLINE double MulAdd(double a, double b, double c) {
    return __builtin_fma(a, b, c);
  }
  static RMS_NORM_INLINE Quad Fold(Vec v) {
    return Avx2::Fold(
        _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
  }

  template <class T>
  using Summer = Avx512;
  template <class T>
  using Scaler = Avx512;

  // The estimate (relative error e <= 2^-14) and the first three terms of
  // 1 / sqrt(1 - e) = 1 + e / 2 + 3 / 8 e^2 + ...: half the latency of a square
  // root and a division, which every row of a short call waits for.
  static RMS_NORM_INLINE float ReciprocalSqrt(double a) {
    const __m128d v = _mm_set_sd(a);
    const __m128d y = _mm_rsqrt14_sd(v, v);
    const __m128d e = _mm_fnmadd_sd(_mm_mul_sd(v, y), y, _mm_set_sd(1.0));
    const __m128d c = _mm_fmadd_sd(e, _mm_set_sd(0.375), _mm_set_sd(0.5));
    return static_cast<float>(
        _mm_cvtsd_f64(_mm_fmadd_sd(_mm_mul_sd(y, e), c, y)));
  }
  static RMS_NORM_INLINE Quad ReciprocalSqrt(Quad64 a) {
    const __m256d y = _mm256_rsqrt14_pd(a);
    const __m256d e =
        _mm256_fnmadd_pd(_mm256_mul_pd(a, y), y, _mm256_set1_pd(1.0));
    const __m256d c =
        _mm256_fmadd_pd(e, _mm256_set1_pd(0.375), _mm256_set1_pd(0.5));
    return _mm256_cvtpd_ps(_mm256_fmadd_pd(_mm256_mul_pd(y, e), c, y));
  }

  using X86Quads::Store;
  static RMS_NORM_INLINE Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static RMS_NORM_INLINE Vec LoadPartial(const float* p, std::size_t n) {
    return _mm512_maskz_loadu_ps(Mask(n), p);
  }
  static RMS_NORM_INLINE void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static RMS_NORM_INLINE void StorePartial(float* p, Vec v, std::size_t n) {
    _mm512_mask_storeu_ps(p, Mask(n), v);
  }
  static RMS_NORM_INLINE void Stream(float* p, Vec v) {
    _mm512_stream_ps(p, v);
  }
  template <class T>
  static RMS_NORM_INLINE Vec Round(Vec v) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return v;
    } else {
      return Widen<T>(Narrow<T>(v));
    }
  }

  // 16-bit types.
  template <class T>
  static RMS_NORM_INLINE Vec Load(const T* p) {
    return Widen<T>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <class T>
  static RMS_NORM_INLINE Vec LoadPartial(const T* p, std::size_t n) {
    return Widen<T>(_mm256_maskz_loadu_epi16(Mask(n), p));
  }
  template <class T>
  static RMS_NORM_INLINE void Store(T* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Narrow<T>(v));
  }
  template <class T>
  static RMS_NORM_INLINE void StorePartial(T* p, Vec v, std::size_t n) {
    _mm256_mask_storeu_epi16(p, Mask(n), Narrow<T>(v));
  }
  template <class T>
  static RMS_NORM_INLINE void Stream(T* p, Vec v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), Narrow<T>(v));
  }
  static RMS_NORM_INLINE void StreamFence() { _mm_sfence(); }

  template <class T>
  static RMS_NORM_INLINE Vec Widen(__m256i bits) {
    if constexpr (std::is_same_v<T, Float16>) {
      return _mm512_cvtph_ps(bits);
    } else {
      // To the upper halves: one instruction instead of VPMOVZXWD and a shift.
      return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(
          0xaaaaaaaa, _mm512_loadu_si512(kToOddWords),
          _mm512_castsi256_si512(bits)));
    }
  }

  template <class T>
  static RMS_NORM_INLINE __m256i Narrow(Vec v) {
    if constexpr (std::is_same_v<T, Float16>) {
      return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    } else {
      // As FromFloat<BFloat16>.
      const __m512i bits = _mm512_castps_si512(v);
      const __mmask16 odd =
          _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x00010000));
      const __m512i rounded = _mm512_add_epi32(
          bits, _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff),
                                        _mm512_set1_epi32(0x8000)));
      // Replaces quiet (token 0) and signalling (1) NaN by the quiet NaN of v,
      // and nothing else.
      const __m512 result = _mm512_fixupimm_ps(_mm512_castsi512_ps(rounded), v,
                                               _mm512_set1_epi32(0x22), 0);
      // The upper halves: one instruction instead of a shift and a VPMOVDW.
      return _mm512_castsi512_si256(_mm512_permutexvar_epi16(
          _mm512_loadu_si512(kFromOddWords), _mm512_castps_si512(result)));
    }
  }

 private:
  static RMS_NORM_INLINE __mmask16 Mask(std::size_t n) {
    return static_cast<__mmask16>((1u << n) - 1u);
  }
};

}  // namespace
}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_SIMD_AVX512_H_
