// NEON (AArch64, Armv8.0) variant: 4 lanes.
#include <arm_neon.h>

#include "kernels/rms_norm/row_kernel.h"

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
  static RMS_NORM_INLINE float ReduceAdd(Vec v) { return vaddvq_f32(v); }

  static RMS_NORM_INLINE Vec Load(const float* p) { return vld1q_f32(p); }
  static RMS_NORM_INLINE void Store(float* p, Vec v) { vst1q_f32(p, v); }
  template <class T>
  using Scaler = Neon;
  static RMS_NORM_INLINE float ReciprocalSqrt(double a) {
    return static_cast<float>(1.0 / __builtin_sqrt(a));
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
  template <class T>
  static RMS_NORM_INLINE Vec Widen(uint16x4_t bits) {
    if constexpr (std::is_same_v<T, Float16>) {
      return vcvt_f32_f16(vreinterpret_f16_u16(bits));
    } else {
      return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(bits), 16));
    }
  }

  template <class T>
  static RMS_NORM_INLINE uint16x4_t Narrow(Vec v) {
    if constexpr (std::is_same_v<T, Float16>) {
      return vreinterpret_u16_f16(vcvt_f16_f32(v));
    } else {
      // As FromFloat<BFloat16>; BFCVTN is Armv8.6.
      const uint32x4_t bits = vreinterpretq_u32_f32(v);
      const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
      const uint32x4_t rounded =
          vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
      const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
      const uint32x4_t ordered = vceqq_f32(v, v);
      return vshrn_n_u32(vbslq_u32(ordered, rounded, quiet), 16);
    }
  }
};

}  // namespace

RMS_NORM_DEFINE_KERNELS(neon, Neon)

}  // namespace ai_edge_rms_norm
