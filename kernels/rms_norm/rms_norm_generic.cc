// Portable variant: 4 lanes of the compiler's vector extension, which becomes
// the instructions that every CPU of the architecture has.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/rms_norm/row_kernel.h"

// GCC has Clang's function from version 12 on.
#if defined(__clang__)
#define RMS_NORM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RMS_NORM_SHUFFLE(a, b, ...) \
  __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

namespace ai_edge_rms_norm {
namespace {

struct Generic {
  static constexpr std::size_t kLanes = 4;
  static constexpr int kAccumulators = 4;
  static constexpr std::size_t kStreamAlignment = 0;
  typedef float Vec __attribute__((vector_size(16)));

  static RMS_NORM_INLINE Vec Set(float a) { return Vec{a, a, a, a}; }
  static RMS_NORM_INLINE Vec Zero() { return Vec{}; }
  static RMS_NORM_INLINE Vec Add(Vec a, Vec b) { return a + b; }
  static RMS_NORM_INLINE Vec Mul(Vec a, Vec b) { return a * b; }
  static RMS_NORM_INLINE Vec MulAdd(Vec a, Vec b, Vec c) { return a * b + c; }
  static RMS_NORM_INLINE double MulAdd(double a, double b, double c) {
    return a * b + c;
  }

  using Quad = Vec;
  struct Quad64 {
    double lane[4];
  };
  static RMS_NORM_INLINE Quad Fold(Vec v) { return v; }
  static RMS_NORM_INLINE double ReduceAdd(Quad q) {
    return (double{q[0]} + double{q[2]}) + (double{q[1]} + double{q[3]});
  }
  static RMS_NORM_INLINE Quad64 ReduceAdd(Quad a, Quad b, Quad c, Quad d) {
    return {{ReduceAdd(a), ReduceAdd(b), ReduceAdd(c), ReduceAdd(d)}};
  }
  static RMS_NORM_INLINE float ReduceMax(Quad q) {
    float max = q[0];
    for (int k = 1; k < 4; ++k) max = max < q[k] ? q[k] : max;
    return max;
  }
  static RMS_NORM_INLINE Quad ReduceMax(Quad a, Quad b, Quad c, Quad d) {
    return Quad{ReduceMax(a), ReduceMax(b), ReduceMax(c), ReduceMax(d)};
  }
  static RMS_NORM_INLINE bool AnyAbove(Quad a, const Quad64& b, double factor) {
    bool above = false;
    for (int k = 0; k < 4; ++k) above |= a[k] > b.lane[k] * factor;
    return above;
  }
  static RMS_NORM_INLINE Quad64 Load64(const double* p) {
    return {{p[0], p[1], p[2], p[3]}};
  }
  static RMS_NORM_INLINE void Store(double* p, const Quad64& q) {
    std::memcpy(p, &q, sizeof(q));
  }
  static RMS_NORM_INLINE Quad64 MulAdd(Quad64 a, double b, double c) {
    for (double& lane : a.lane) lane = lane * b + c;
    return a;
  }
  static RMS_NORM_INLINE bool AllWithin(const Quad64& q, double min,
                                        double max) {
    bool within = true;
    for (double lane : q.lane) within &= lane >= min && lane <= max;
    return within;
  }

  template <class T>
  using Summer = Generic;
  template <class T>
  using Scaler = Generic;
  static RMS_NORM_INLINE float ReciprocalSqrt(double a) {
    return static_cast<float>(1.0 / __builtin_sqrt(a));
  }
  static RMS_NORM_INLINE Quad ReciprocalSqrt(const Quad64& a) {
    return Quad{ReciprocalSqrt(a.lane[0]), ReciprocalSqrt(a.lane[1]),
                ReciprocalSqrt(a.lane[2]), ReciprocalSqrt(a.lane[3])};
  }

  template <class T>
  static RMS_NORM_INLINE Vec Load(const T* p) {
    return LoadPartial(p, kLanes);
  }
  template <class T>
  static RMS_NORM_INLINE Vec LoadPartial(const T* p, std::size_t n) {
    Memory<T> elements = {};
    std::memcpy(&elements, p, n * sizeof(T));
    if constexpr (std::is_same_v<T, float>) {
      return elements;
    } else {
      return Widen<T>(FromMemory(elements));
    }
  }
  template <class T>
  static RMS_NORM_INLINE void Store(T* p, Vec v) {
    StorePartial(p, v, kLanes);
  }
  template <class T>
  static RMS_NORM_INLINE void StorePartial(T* p, Vec v, std::size_t n) {
    Memory<T> elements;
    if constexpr (std::is_same_v<T, float>) {
      elements = v;
    } else {
      elements = ToMemory(Narrow<T>(v));
    }
    std::memcpy(p, &elements, n * sizeof(T));
  }
  template <class T>
  static RMS_NORM_INLINE Vec Round(Vec v) {
    if constexpr (std::is_same_v<T, float>) {
      return v;
    } else {
      return Widen<T>(Narrow<T>(v));
    }
  }

 private:
  typedef std::uint32_t Bits __attribute__((vector_size(16)));
  typedef std::uint64_t Pairs __attribute__((vector_size(16)));
  typedef std::uint16_t Halves __attribute__((vector_size(16)));
  // kLanes elements. Not a vector of 16-bit types: for vectors of 8 bytes, and
  // for what converts to them, GCC 12 makes long sequences.
  template <class T>
  using Memory =
      std::conditional_t<std::is_same_v<T, float>, Vec, std::uint64_t>;
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

  static RMS_NORM_INLINE Bits FromMemory(std::uint64_t elements) {
    const auto halves = internal::BitCast<Halves>(Pairs{elements, 0});
    return internal::BitCast<Bits>(
        RMS_NORM_SHUFFLE(halves, Halves{}, 0, 8, 1, 9, 2, 10, 3, 11));
  }
  static RMS_NORM_INLINE std::uint64_t ToMemory(Bits bits) {
    const auto pairs = internal::BitCast<Pairs>(bits);
    const auto joined = internal::BitCast<Bits>(pairs | pairs >> 16);
    return internal::BitCast<Pairs>(
        RMS_NORM_SHUFFLE(joined, joined, 0, 2, 0, 2))[0];
  }

  template <class T>
  static RMS_NORM_INLINE Vec Widen(Bits bits) {
    return std::is_same_v<T, Float16> ? internal::WidenFloat16<Vec>(bits)
                                      : internal::WidenBFloat16<Vec>(bits);
  }
  template <class T>
  static RMS_NORM_INLINE Bits Narrow(Vec v) {
    return std::is_same_v<T, Float16> ? internal::NarrowToFloat16<Bits>(v)
                                      : internal::NarrowToBFloat16<Bits>(v);
  }
};

}  // namespace

RMS_NORM_DEFINE_KERNELS(generic, Generic)

}  // namespace ai_edge_rms_norm
