// Portable variant: plain C++ that a compiler may vectorize.
#include "kernels/rms_norm/row_kernel.h"

namespace ai_edge_rms_norm {
namespace {

struct Generic {
  static constexpr std::size_t kLanes = 4;
  static constexpr int kAccumulators = 4;
  static constexpr std::size_t kStreamAlignment = 0;
  struct Vec {
    float lane[kLanes];
  };

  static RMS_NORM_INLINE Vec Set(float a) { return {{a, a, a, a}}; }
  static RMS_NORM_INLINE Vec Zero() { return Set(0.0f); }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) {
    for (std::size_t k = 0; k < kLanes; ++k) a.lane[k] += b.lane[k];
    return a;
  }
  static RMS_NORM_INLINE Vec Mul(Vec a, Vec b) {
    for (std::size_t k = 0; k < kLanes; ++k) a.lane[k] *= b.lane[k];
    return a;
  }
  static RMS_NORM_INLINE Vec MulAdd(Vec a, Vec b, Vec c) {
    return Add(Mul(a, b), c);
  }
  static RMS_NORM_INLINE double MulAdd(double a, double b, double c) {
    return a * b + c;
  }
  static RMS_NORM_INLINE float ReduceAdd(Vec a) {
    return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]);
  }

  template <class T>
  using Scaler = Generic;
  static RMS_NORM_INLINE float ReciprocalSqrt(double a) {
    return static_cast<float>(1.0 / __builtin_sqrt(a));
  }

  template <class T>
  static RMS_NORM_INLINE Vec Load(const T* p) {
    return LoadPartial(p, kLanes);
  }
  template <class T>
  static RMS_NORM_INLINE Vec LoadPartial(const T* p, std::size_t n) {
    Vec v = Zero();
    for (std::size_t k = 0; k < n; ++k) v.lane[k] = ToFloat(p[k]);
    return v;
  }
  template <class T>
  static RMS_NORM_INLINE void Store(T* p, Vec v) {
    StorePartial(p, v, kLanes);
  }
  template <class T>
  static RMS_NORM_INLINE void StorePartial(T* p, Vec v, std::size_t n) {
    for (std::size_t k = 0; k < n; ++k) p[k] = FromFloat<T>(v.lane[k]);
  }
  template <class T>
  static RMS_NORM_INLINE Vec Round(Vec v) {
    for (float& lane : v.lane) lane = ToFloat(FromFloat<T>(lane));
    return v;
  }
};

}  // namespace

RMS_NORM_DEFINE_KERNELS(generic, Generic)

}  // namespace ai_edge_rms_norm
