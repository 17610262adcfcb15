// AVX2 + FMA + F16C vector operations for row_kernel.h: 8 lanes.
//
// In an anonymous namespace: each file that includes this compiles it with
// instruction set flags of its own.
#ifndef KERNELS_RMS_NORM_SIMD_AVX2_H_
#define KERNELS_RMS_NORM_SIMD_AVX2_H_

#include <immintrin.h>

#include <cstddef>
#include <type_traits>

#include "kernels/rms_norm/element_types.h"

namespace ai_edge_rms_norm {
namespace {

// Loading 8 of these from position 8 - n gives a mask of n leading lanes.
alignas(64) constexpr int kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                        0,  0,  0,  0,  0,  0,  0,  0};

// The sums of four lanes, of which four make one vector; AVX-512 has the same.
struct X86Quads {
  using Quad = __m128;
  using Quad64 = __m256d;

  static RMS_NORM_INLINE double ReduceAdd(Quad q) {
    const __m128d v2 =
        _mm_add_pd(_mm_cvtps_pd(q), _mm_cvtps_pd(_mm_movehl_ps(q, q)));
    return _mm_cvtsd_f64(_mm_add_sd(v2, _mm_unpackhi_pd(v2, v2)));
  }
  static RMS_NORM_INLINE Quad64 ReduceAdd(Quad a, Quad b, Quad c, Quad d) {
    const Halves ac = HalvesOf(a, c);
    const Halves bd = HalvesOf(b, d);
    return _mm256_hadd_pd(_mm256_add_pd(ac.low, ac.high),
                          _mm256_add_pd(bd.low, bd.high));
  }
  static RMS_NORM_INLINE float ReduceMax(Quad q) {
    const __m128 v2 = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)));
  }
  static RMS_NORM_INLINE Quad64 ReduceMax(Quad a, Quad b, Quad c, Quad d) {
    // The compiler finds that ReduceAdd needs the same halves.
    const Halves ac = HalvesOf(a, c);
    const Halves bd = HalvesOf(b, d);
    const __m256d ac2 = _mm256_max_pd(ac.low, ac.high);
    const __m256d bd2 = _mm256_max_pd(bd.low, bd.high);
    return _mm256_max_pd(_mm256_unpacklo_pd(ac2, bd2),
                         _mm256_unpackhi_pd(ac2, bd2));
  }
  static RMS_NORM_INLINE bool AnyAbove(Quad64 a, Quad64 b, double factor) {
    return _mm256_movemask_pd(_mm256_cmp_pd(
               a, _mm256_mul_pd(b, _mm256_set1_pd(factor)), _CMP_GT_OQ)) != 0;
  }
  static RMS_NORM_INLINE void Store(float* p, Quad q) { _mm_storeu_ps(p, q); }

  static RMS_NORM_INLINE Quad64 Load64(const double* p) {
    return _mm256_loadu_pd(p);
  }
  static RMS_NORM_INLINE void Store(double* p, Quad64 q) {
    _mm256_storeu_pd(p, q);
  }
  static RMS_NORM_INLINE Quad64 MulAdd(Quad64 a, double b, double c) {
    return _mm256_fmadd_pd(a, _mm256_set1_pd(b), _mm256_set1_pd(c));
  }
  static RMS_NORM_INLINE bool AllWithin(Quad64 q, double min, double max) {
    return _mm256_movemask_pd(_mm256_and_pd(
               _mm256_cmp_pd(q, _mm256_set1_pd(min), _CMP_GE_OQ),
               _mm256_cmp_pd(q, _mm256_set1_pd(max), _CMP_LE_OQ))) == 15;
  }

 private:
  struct Halves {
    __m256d low, high;  // a0, a1, b0, b1 and a2, a3, b2, b3
  };
  static RMS_NORM_INLINE Halves HalvesOf(Quad a, Quad b) {
    return {_mm256_cvtps_pd(_mm_movelh_ps(a, b)),
            _mm256_cvtps_pd(_mm_movehl_ps(b, a))};
  }
};

struct Avx2EvenOdd;

struct Avx2 : X86Quads {
  static constexpr std::size_t kLanes = 8;
  static constexpr int kAccumulators = 8;  // FMA latency 4, two per cycle
  static constexpr std::size_t kStreamAlignment = 32;
  using Vec = __m256;

  static RMS_NORM_INLINE Vec Zero() { return _mm256_setzero_ps(); }
  static RMS_NORM_INLINE Vec Set(float a) { return _mm256_set1_ps(a); }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static RMS_NORM_INLINE Vec Mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static RMS_NORM_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  using X86Quads::MulAdd;
  static RMS_NORM_INLINE double MulAdd(double a, double b, double c) {
    return __builtin_fma(a, b, c);
  }
  static RMS_NORM_INLINE Quad Fold(Vec v) {
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  }

  template <class T>
  using Summer =
      std::conditional_t<std::is_same_v<T, BFloat16>, Avx2EvenOdd, Avx2>;
  template <class T>
  using Scaler = Summer<T>;
  static RMS_NORM_INLINE float ReciprocalSqrt(double a) {
    return static_cast<float>(1.0 / __builtin_sqrt(a));
  }
  static RMS_NORM_INLINE Quad ReciprocalSqrt(Quad64 a) {
    return _mm256_cvtpd_ps(
        _mm256_div_pd(_mm256_set1_pd(1.0), _mm256_sqrt_pd(a)));
  }

  using X86Quads::Store;
  static RMS_NORM_INLINE Vec Load(const float* p) { return _mm256_loadu_ps(p); }
  // n leading lanes.
  static RMS_NORM_INLINE __m256i Mask(std::size_t n) {
    return _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(kMasks + kLanes - n));
  }
  static RMS_NORM_INLINE Vec LoadPartial(const float* p, std::size_t n) {
    return _mm256_maskload_ps(p, Mask(n));
  }
  static RMS_NORM_INLINE void Store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static RMS_NORM_INLINE void StorePartial(float* p, Vec v, std::size_t n) {
    _mm256_maskstore_ps(p, Mask(n), v);
  }
  static RMS_NORM_INLINE void Stream(float* p, Vec v) {
    _mm256_stream_ps(p, v);
  }
  template <class T>
  static RMS_NORM_INLINE Vec Round(Vec v) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return v;
    } else {
      return Widen<T>(Narrow<T>(v));
    }
  }

  // 16-bit types. There are no masked 16-bit moves before AVX-512BW: partial
  // vectors go through a buffer.
  template <class T>
  static RMS_NORM_INLINE Vec Load(const T* p) {
    return Widen<T>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <class T>
  static RMS_NORM_INLINE Vec LoadPartial(const T* p, std::size_t n) {
    T buffer[kLanes] = {};
    for (std::size_t k = 0; k < n; ++k) buffer[k] = p[k];
    return Load(buffer);
  }
  template <class T>
  static RMS_NORM_INLINE void Store(T* p, Vec v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), Narrow<T>(v));
  }
  template <class T>
  static RMS_NORM_INLINE void StorePartial(T* p, Vec v, std::size_t n) {
    T buffer[kLanes];
    Store(buffer, v);
    for (std::size_t k = 0; k < n; ++k) p[k] = buffer[k];
  }
  template <class T>
  static RMS_NORM_INLINE void Stream(T* p, Vec v) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), Narrow<T>(v));
  }
  static RMS_NORM_INLINE void StreamFence() { _mm_sfence(); }

 private:
  template <class T>
  static RMS_NORM_INLINE Vec Widen(__m128i bits) {
    if constexpr (std::is_same_v<T, Float16>) {
      return _mm256_cvtph_ps(bits);
    } else {
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
  }

  template <class T>
  static RMS_NORM_INLINE __m128i Narrow(Vec v) {
    if constexpr (std::is_same_v<T, Float16>) {
      return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    } else {
      // As FromFloat<BFloat16>.
      const __m256i bits = _mm256_castps_si256(v);
      const __m256i odd =
          _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      const __m256i rounded = _mm256_add_epi32(
          _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
      const __m256i quiet =
          _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
      const __m256i nan =
          _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
      const __m256i result =
          _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
      return _mm_packus_epi32(_mm256_castsi256_si128(result),
                              _mm256_extracti128_si256(result, 1));
    }
  }
};

// Pairs of vectors with the even and the odd of 16 elements, for bfloat16: a
// shift or a mask widens them, and no instruction has to cross the halves of a
// register.
struct Avx2EvenOdd {
  static constexpr std::size_t kLanes = 16;
  static constexpr int kAccumulators = 4;  // of two vectors each
  struct Vec {
    __m256 even, odd;
  };

  static RMS_NORM_INLINE Vec Zero() { return Set(0.0f); }
  static RMS_NORM_INLINE Vec Set(float a) {
    return {_mm256_set1_ps(a), _mm256_set1_ps(a)};
  }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) {
    return {_mm256_add_ps(a.even, b.even), _mm256_add_ps(a.odd, b.odd)};
  }
  static RMS_NORM_INLINE Vec Mul(Vec a, Vec b) {
    return {_mm256_mul_ps(a.even, b.even), _mm256_mul_ps(a.odd, b.odd)};
  }
  static RMS_NORM_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.even, b.even, c.even),
            _mm256_fmadd_ps(a.odd, b.odd, c.odd)};
  }
  static RMS_NORM_INLINE __m128 Fold(Vec v) {
    return Avx2::Fold(_mm256_add_ps(v.even, v.odd));
  }

  static RMS_NORM_INLINE Vec Load(const BFloat16* p) {
    return Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static RMS_NORM_INLINE void Store(BFloat16* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Narrow(v));
  }
  static RMS_NORM_INLINE void Stream(BFloat16* p, Vec v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), Narrow(v));
  }
  // Of sums of bfloat16, whose NaN have no bits that a carry could come from.
  template <class T>
  static RMS_NORM_INLINE Vec Round(Vec v) {
    static_assert(std::is_same_v<T, BFloat16>);
    return {
        _mm256_and_ps(RoundNumbers(v.even), _mm256_castsi256_ps(UpperHalves())),
        _mm256_and_ps(RoundNumbers(v.odd), _mm256_castsi256_ps(UpperHalves()))};
  }

  // A float32 weight.
  static RMS_NORM_INLINE Vec Load(const float* p) {
    return Split(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
  }

  // Eight elements, the most common rest, are half a vector. Otherwise words of
  // two elements are masked, and a single last element comes after them.
  static RMS_NORM_INLINE Vec LoadPartial(const BFloat16* p, std::size_t n) {
    if (n == 8) {
      return Widen(_mm256_inserti128_si256(
          _mm256_setzero_si256(),
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), 0));
    }
    const std::size_t words = n / 2;
    __m256i bits = _mm256_maskload_epi32(reinterpret_cast<const int*>(p),
                                         Avx2::Mask(words));
    if (n % 2 != 0) {
      const __m256i lane =
          _mm256_andnot_si256(Avx2::Mask(words), Avx2::Mask(words + 1));
      bits = _mm256_or_si256(
          bits, _mm256_and_si256(lane, _mm256_set1_epi32(p[n - 1].bits)));
    }
    return Widen(bits);
  }
  static RMS_NORM_INLINE void StorePartial(BFloat16* p, Vec v, std::size_t n) {
    const __m256i bits = Narrow(v);
    if (n == 8) {
      return _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                              _mm256_castsi256_si128(bits));
    }
    const std::size_t words = n / 2;
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), Avx2::Mask(words), bits);
    if (n % 2 != 0) {
      const __m256i last = _mm256_permutevar8x32_epi32(
          bits, _mm256_set1_epi32(static_cast<int>(words)));
      p[n - 1].bits = static_cast<std::uint16_t>(
          _mm_cvtsi128_si32(_mm256_castsi256_si128(last)));
    }
  }
  static RMS_NORM_INLINE Vec LoadPartial(const float* p, std::size_t n) {
    if (n <= 8) return Split(Avx2::LoadPartial(p, n), _mm256_setzero_ps());
    return Split(_mm256_loadu_ps(p), Avx2::LoadPartial(p + 8, n - 8));
  }

 private:
  static RMS_NORM_INLINE __m256i UpperHalves() {
    return _mm256_set1_epi32(static_cast<int>(0xffff0000));
  }
  static RMS_NORM_INLINE Vec Widen(__m256i bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(bits, UpperHalves()))};
  }
  // The even and the odd of 16 elements.
  static RMS_NORM_INLINE Vec Split(__m256 low, __m256 high) {
    const __m256 a = _mm256_permute2f128_ps(low, high, 0x20);
    const __m256 b = _mm256_permute2f128_ps(low, high, 0x31);
    return {_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)),
            _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1))};
  }

  // As FromFloat<BFloat16>, but for the lower half; the carry may turn a NaN
  // into something else.
  static RMS_NORM_INLINE __m256 RoundNumbers(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd =
        _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd));
  }

  static RMS_NORM_INLINE __m256 Quiet(__m256 v, __m256 rounded) {
    const __m256 quiet =
        _mm256_or_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x00400000)));
    return _mm256_blendv_ps(rounded, quiet, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }

  static RMS_NORM_INLINE __m256i Narrow(Vec v) {
    __m256 even = RoundNumbers(v.even);
    __m256 odd = RoundNumbers(v.odd);
    const __m256 unordered = _mm256_cmp_ps(v.even, v.odd, _CMP_UNORD_Q);
    if (__builtin_expect(!_mm256_testz_ps(unordered, unordered), 0)) {
      even = Quiet(v.even, even);
      odd = Quiet(v.odd, odd);
    }
    return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(even), 16),
                              _mm256_castps_si256(odd), 0xaa);
  }
};

}  // namespace
}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_SIMD_AVX2_H_
