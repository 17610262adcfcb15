// Rows whose float32 sum of squares cannot be trusted.
#ifndef KERNELS_RMS_NORM_EXCEPTIONAL_ROW_H_
#define KERNELS_RMS_NORM_EXCEPTIONAL_ROW_H_

#include <cstddef>

#include "kernels/rms_norm/rms_norm.h"

namespace ai_edge_rms_norm {

// Whether mean(x^2) + epsilon of n elements, with the mean summed in float32,
// is so large (the sum is infinite), so small or so wrong (NaN) that the row
// must be redone.
//
// The upper bound is one of the sum, since that ends at the largest float32
// instead of infinity when the rounding mode is FE_TOWARDZERO or FE_DOWNWARD.
//
// The lower bound: a square below 2^-126 may be lost entirely (subnormals may
// be flushed to zero), an absolute error of the mean of at most 2^-126. From
// 2^-100 on that is less than 2^-26 of the value. The reciprocal root of
// anything within the bounds is a normal float32.
inline __attribute__((always_inline)) bool IsExceptional(double mean_plus_eps,
                                                         std::size_t n) {
  return !(mean_plus_eps >= 0x1p-100 &&
           mean_plus_eps * static_cast<double>(n) <= 0x1p+126);
}

// Normalizes one row entirely in float64, where squares of float32 numbers can
// neither overflow nor underflow. Handles rows that really hold infinities or
// NaN, too. y may be exactly x.
void NormalizeExceptionalRow(ElementType type, std::size_t hidden_size,
                             double epsilon, const void* x, const void* weight,
                             ElementType weight_type, void* y);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_EXCEPTIONAL_ROW_H_
