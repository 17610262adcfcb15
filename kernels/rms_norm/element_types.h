// Storage formats of the 16-bit element types and their scalar conversions.
//
// Everything here is forced inline: the header is compiled into files with
// different instruction set flags, and a shared out-of-line copy could be the
// one that needs an instruction which the running CPU lacks.
#ifndef KERNELS_RMS_NORM_ELEMENT_TYPES_H_
#define KERNELS_RMS_NORM_ELEMENT_TYPES_H_

#include <cstdint>
#include <cstring>

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

namespace internal {

RMS_NORM_INLINE std::uint32_t FloatBits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

RMS_NORM_INLINE float FloatFromBits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace internal

RMS_NORM_INLINE float ToFloat(float value) { return value; }

RMS_NORM_INLINE float ToFloat(BFloat16 value) {
  return internal::FloatFromBits(std::uint32_t{value.bits} << 16);
}

RMS_NORM_INLINE float ToFloat(Float16 value) {
  const std::uint32_t sign = std::uint32_t{value.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  float result;
  if (magnitude < 0x0400u) {
    // Subnormal: an integer times 2^-24. Unlike the usual trick with a
    // subnormal float32 this also holds while denormals are flushed to zero.
    result = static_cast<float>(magnitude) * 0x1p-24f;
  } else {
    // Rebias the exponent by 127 - 15; that of infinity and NaN twice.
    const std::uint32_t rebias = magnitude < 0x7c00u ? 112u : 224u;
    result = internal::FloatFromBits((magnitude << 13) + (rebias << 23));
  }
  return internal::FloatFromBits(internal::FloatBits(result) | sign);
}

// The conversions below round to the nearest value, ties to even, and keep NaN
// a (quiet) NaN.
template <class T>
T FromFloat(float value);

template <>
RMS_NORM_INLINE float FromFloat<float>(float value) {
  return value;
}

template <>
RMS_NORM_INLINE BFloat16 FromFloat<BFloat16>(float value) {
  const std::uint32_t bits = internal::FloatBits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const std::uint32_t result = nan ? bits | 0x00400000u : rounded;
  return {static_cast<std::uint16_t>(result >> 16)};
}

template <>
RMS_NORM_INLINE Float16 FromFloat<Float16>(float value) {
  const std::uint32_t bits = internal::FloatBits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520, rounds to infinity
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // 2^-14, the smallest normal
    // Adding 0.5, whose last bit is 2^-24, leaves the rounded multiple of
    // 2^-24 in the mantissa.
    result = internal::FloatBits(internal::FloatFromBits(magnitude) + 0.5f) -
             0x3f000000u;
  } else {
    result =
        (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | result)};
}

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_ELEMENT_TYPES_H_
