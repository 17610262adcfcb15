// NEON (AArch64) vector operations for row_kernel.h: 4 lanes.
//
// In an anonymous namespace: each file that includes this compiles it with
// instruction set flags of its own.
#ifndef KERNELS_RMS_NORM_SIMD_NEON_H_
#define KERNELS_RMS_NORM_SIMD_NEON_H_

#include <arm_neon.h>

#include <cstddef>
#include <type_traits>

#include "kernels/rms_norm/element_types.h"

namespace ai_edge_rms_norm {
namespace {

struct Neon {
  static constexpr std::size_t kLanes = 4;
  static constexpr int kAccumulators = 8;  // FMLA latency 4, two per cycle
  // STNP is only a hint and comes in pairs; no AArch64 machine was at hand to
  // measure whether it helps.
  static constexpr std::size_t kStreamAlignment = 0;
  using Vec = float32x4_t;

  static RMS_NORM_INLINE Vec Zero() { return vdupq_n_f32(0.0f); }
  static RMS_NORM_INLINE Vec Set(float a) { return vdupq_n_f32(a); }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static RMS_NORM_INLINE Vec Mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static RMS_NORM_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
    return vfmaq_f32(c, a, b);
  }
  static RMS_NORM_INLINE double MulAdd(double a, double b, double c) {
    return __builtin_fma(a, b, c);
  }

  using Quad = Vec;
  struct Quad64 {
    float64x2_t low, high;
  };
  static RMS_NORM_INLINE Quad Fold(Vec v) { return v; }
  static RMS_NORM_INLINE double ReduceAdd(Quad q) {
    return vpaddd_f64(AddHalves(q));
  }
  static RMS_NORM_INLINE Quad64 ReduceAdd(Quad a, Quad b, Quad c, Quad d) {
    return {vpaddq_f64(AddHalves(a), AddHalves(b)),
            vpaddq_f64(AddHalves(c), AddHalves(d))};
  }
  static RMS_NORM_INLINE float ReduceMax(Quad q) { return vmaxvq_f32(q); }
  static RMS_NORM_INLINE Quad ReduceMax(Quad a, Quad b, Quad c, Quad d) {
    return vpmaxq_f32(vpmaxq_f32(a, b), vpmaxq_f32(c, d));
  }
  static RMS_NORM_INLINE bool AnyAbove(Quad a, Quad64 b, double factor) {
    const uint64x2_t low =
        vcgtq_f64(vcvt_f64_f32(vget_low_f32(a)), vmulq_n_f64(b.low, factor));
    const uint64x2_t high =
        vcgtq_f64(vcvt_high_f64_f32(a), vmulq_n_f64(b.high, factor));
    return vmaxvq_u32(vreinterpretq_u32_u64(vorrq_u64(low, high))) != 0;
  }
  static RMS_NORM_INLINE Quad64 Load64(const double* p) {
    return {vld1q_f64(p), vld1q_f64(p + 2)};
  }
  static RMS_NORM_INLINE void Store(double* p, Quad64 q) {
    vst1q_f64(p, q.low);
    vst1q_f64(p + 2, q.high);
  }
  static RMS_NORM_INLINE Quad64 MulAdd(Quad64 a, double b, double c) {
    const float64x2_t factor = vdupq_n_f64(b);
    const float64x2_t summand = vdupq_n_f64(c);
    return {vfmaq_f64(summand, a.low, factor),
            vfmaq_f64(summand, a.high, factor)};
  }
  static RMS_NORM_INLINE bool AllWithin(Quad64 q, double min, double max) {
    const uint64x2_t low = vandq_u64(vcgeq_f64(q.low, vdupq_n_f64(min)),
                                     vcleq_f64(q.low, vdupq_n_f64(max)));
    const uint64x2_t high = vandq_u64(vcgeq_f64(q.high, vdupq_n_f64(min)),
                                      vcleq_f64(q.high, vdupq_n_f64(max)));
    return vminvq_u32(vreinterpretq_u32_u64(vandq_u64(low, high))) != 0;
  }

  static RMS_NORM_INLINE Vec Load(const float* p) { return vld1q_f32(p); }
  static RMS_NORM_INLINE void Store(float* p, Vec v) { vst1q_f32(p, v); }
  template <class T>
  using Summer = Neon;
  template <class T>
  using Scaler = Neon;
  static RMS_NORM_INLINE float ReciprocalSqrt(double a) {
    return static_cast<float>(1.0 / __builtin_sqrt(a));
  }
  static RMS_NORM_INLINE Quad ReciprocalSqrt(Quad64 a) {
    const float64x2_t one = vdupq_n_f64(1.0);
    return vcvt_high_f32_f64(vcvt_f32_f64(vdivq_f64(one, vsqrtq_f64(a.low))),
                             vdivq_f64(one, vsqrtq_f64(a.high)));
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
    return Widen<T>(vld1_u16(&p->bits));
  }
  template <class T>
  static RMS_NORM_INLINE void Store(T* p, Vec v) {
    vst1_u16(&p->bits, Narrow<T>(v));
  }

  // At most three elements are left: a buffer costs nothing that matters.
  template <class T>
  static RMS_NORM_INLINE Vec LoadPartial(const T* p, std::size_t n) {
    T buffer[kLanes] = {};
    for (std::size_t k = 0; k < n; ++k) buffer[k] = p[k];
    return Load(buffer);
  }
  template <class T>
  static RMS_NORM_INLINE void StorePartial(T* p, Vec v, std::size_t n) {
    T buffer[kLanes];
    Store(buffer, v);
    for (std::size_t k = 0; k < n; ++k) p[k] = buffer[k];
  }

 private:
  // q0 + q2, q1 + q3
  static RMS_NORM_INLINE float64x2_t AddHalves(Quad q) {
    return vaddq_f64(vcvt_f64_f32(vget_low_f32(q)), vcvt_high_f64_f32(q));
  }

  template <class T>
  static RMS_NORM_INLINE Vec Widen(uint16x4_t bits) {
    if constexpr (std::is_same_v<T, Float16>) {
      return vcvt_f32_f16(vreinterpret_f16_u16(bits));
    } else {
      // SHLL, one instruction. Clang makes it of two intrinsics and does not
      // take 16 for the shift of one; GCC 12 does not join the two.
#if defined(__clang__)
      return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(bits), 16));
#else
      return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
#endif
    }
  }

  template <class T>
  static RMS_NORM_INLINE uint16x4_t Narrow(Vec v) {
    if constexpr (std::is_same_v<T, Float16>) {
      return vreinterpret_u16_f16(vcvt_f16_f32(v));
    } else {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
      return vreinterpret_u16_bf16(vcvt_bf16_f32(v));  // BFCVTN
#else
      // As FromFloat<BFloat16>.
      const uint32x4_t bits = vreinterpretq_u32_f32(v);
      // Bit 16 is shifted to the top, and added from there.
      const uint32x4_t rounded = vsraq_n_u32(
          vaddq_u32(bits, vdupq_n_u32(0x7fff)), vshlq_n_u32(bits, 15), 31);
      const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
      const uint32x4_t ordered = vceqq_f32(v, v);
      return vshrn_n_u32(vbslq_u32(ordered, rounded, quiet), 16);
#endif
    }
  }
};

}  // namespace
}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_SIMD_NEON_H_
