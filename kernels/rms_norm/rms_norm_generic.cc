// Portable variant: 4 lanes of the compiler's vector extension, which becomes
// the instructions that every CPU of the architecture has.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/rms_norm/row_kernel.h"

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
  static RMS_NORM_INLINE float ReduceAdd(Vec a) {
    return (a[0] + a[2]) + (a[1] + a[3]);
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
        __builtin_shufflevector(halves, Halves{}, 0, 8, 1, 9, 2, 10, 3, 11));
  }
  static RMS_NORM_INLINE std::uint64_t ToMemory(Bits bits) {
    const auto pairs = internal::BitCast<Pairs>(bits);
    const auto joined = internal::BitCast<Bits>(pairs | pairs >> 16);
    return internal::BitCast<Pairs>(
        __builtin_shufflevector(joined, joined, 0, 2, 0, 2))[0];
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
