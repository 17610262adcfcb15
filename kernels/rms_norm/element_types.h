// Storage formats of the 16-bit element types and their scalar conversions.
//
// Everything here is forced inline: the header is compiled into files with
// different instruction set flags, and a shared out-of-line copy could be the
// one that needs an instruction which the running CPU lacks.
#ifndef KERNELS_RMS_NORM_ELEMENT_TYPES_H_
#define KERNELS_RMS_NORM_ELEMENT_TYPES_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/rms_norm/rms_norm.h"

#define RMS_NORM_INLINE inline __attribute__((always_inline))

namespace ai_edge_rms_norm {

struct Float16 {  // IEEE 754 binary16
  std::uint16_t bits;
};
struct BFloat16 {  // the upper half of a binary32
  std::uint16_t bits;
};

template <class T>
inline constexpr ElementType kElementType = ElementType::kFloat32;
template <>
inline constexpr ElementType kElementType<Float16> = ElementType::kFloat16;
template <>
inline constexpr ElementType kElementType<BFloat16> = ElementType::kBFloat16;

// The conversions, of one number (Float: float, Bits: std::uint32_t) or of a
// vector (of the compiler's vector extension) of them. None has a branch.
namespace internal {

template <class To, class From>
RMS_NORM_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

RMS_NORM_INLINE float FloatFromBits(std::uint32_t bits) {
  return BitCast<float>(bits);
}

// Exact for what is below 2^24.
template <class Float, class Bits>
RMS_NORM_INLINE Float FloatFromInteger(Bits integer) {
  if constexpr (std::is_same_v<Float, float>) {
    return static_cast<float>(static_cast<std::int32_t>(integer));
  } else {
    using Signed = decltype(integer > integer);
    return __builtin_convertvector(BitCast<Signed>(integer), Float);
  }
}

// Of numbers below 2^31: SSE2 compares signed ones only.
template <class Bits>
RMS_NORM_INLINE auto IsAbove(Bits magnitude, std::uint32_t bound) {
  if constexpr (std::is_same_v<Bits, std::uint32_t>) {
    return magnitude > bound;
  } else {
    using Signed = decltype(magnitude > bound);
    return BitCast<Signed>(magnitude) > static_cast<std::int32_t>(bound);
  }
}

// 16 bits to float32; the upper half of bits is 0.
template <class Float, class Bits>
RMS_NORM_INLINE Float WidenBFloat16(Bits bits) {
  return BitCast<Float>(bits << 16);
}

template <class Float, class Bits>
RMS_NORM_INLINE Float WidenFloat16(Bits bits) {
  const Bits zero = {};
  const Bits sign = (bits & 0x8000u) << 16;
  const Bits magnitude = bits & 0x7fffu;
  // Subnormal: an integer times 2^-24. Unlike the usual trick with a subnormal
  // float32 this also holds while denormals are flushed to zero.
  const Bits subnormal =
      BitCast<Bits>(FloatFromInteger<Float>(magnitude) * 0x1p-24f);
  // Rebias the exponent by 127 - 15; that of infinity and NaN twice.
  const Bits rebias =
      IsAbove(magnitude, 0x7bffu) ? zero + (224u << 23) : zero + (112u << 23);
  const Bits normal = (magnitude << 13) + rebias;
  return BitCast<Float>((IsAbove(magnitude, 0x03ffu) ? normal : subnormal) |
                        sign);
}

// float32 to 16 bits, to the nearest value, ties to even; NaN stays a (quiet)
// NaN.
template <class Bits, class Float>
RMS_NORM_INLINE Bits NarrowToBFloat16(Float value) {
  const Bits bits = BitCast<Bits>(value);
  const Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Bits quiet = bits | 0x00400000u;
  return (value == value ? rounded : quiet) >> 16;
}

template <class Bits, class Float>
RMS_NORM_INLINE Bits NarrowToFloat16(Float value) {
  const Bits zero = {};
  const Bits bits = BitCast<Bits>(value);
  const Bits sign = (bits >> 16) & 0x8000u;
  const Bits magnitude = bits & 0x7fffffffu;
  // Adding 0.5, whose last bit is 2^-24, leaves the rounded multiple of 2^-24
  // in the mantissa.
  const Bits subnormal =
      BitCast<Bits>(BitCast<Float>(magnitude) + 0.5f) - 0x3f000000u;
  const Bits normal =
      (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const Bits quiet = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  // Normal from 2^-14 on; 65520 and more round to infinity.
  const Bits finite = IsAbove(magnitude, 0x387fffffu) ? normal : subnormal;
  const Bits number = IsAbove(magnitude, 0x477fefffu) ? zero + 0x7c00u : finite;
  return (value == value ? number : quiet) | sign;
}

}  // namespace internal

RMS_NORM_INLINE float ToFloat(float value) { return value; }

RMS_NORM_INLINE float ToFloat(BFloat16 value) {
  return internal::WidenBFloat16<float>(std::uint32_t{value.bits});
}

RMS_NORM_INLINE float ToFloat(Float16 value) {
  return internal::WidenFloat16<float>(std::uint32_t{value.bits});
}

template <class T>
T FromFloat(float value);

template <>
RMS_NORM_INLINE float FromFloat<float>(float value) {
  return value;
}

template <>
RMS_NORM_INLINE BFloat16 FromFloat<BFloat16>(float value) {
  return {static_cast<std::uint16_t>(
      internal::NarrowToBFloat16<std::uint32_t>(value))};
}

template <>
RMS_NORM_INLINE Float16 FromFloat<Float16>(float value) {
  return {static_cast<std::uint16_t>(
      internal::NarrowToFloat16<std::uint32_t>(value))};
}

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_ELEMENT_TYPES_H_
