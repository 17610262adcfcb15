// The formula of rms_norm.h, evaluated in float64 one element after the other.
// The reference that the kernels are tested against; not fast.
#ifndef KERNELS_RMS_NORM_RMS_NORM_REFERENCE_H_
#define KERNELS_RMS_NORM_RMS_NORM_REFERENCE_H_

#include "kernels/rms_norm/rms_norm.h"

namespace ai_edge_rms_norm {

// Shapes, types and weight as for RmsNorm; y has rows * hidden_size elements
// and is not rounded to the element type.
void RmsNormReference(const RmsNormParams& params, const void* x,
                      const void* weight, double* y);

// sum is rounded to the element type before it is normalized.
void AddRmsNormReference(const RmsNormParams& params, const void* x,
                         const void* residual, const void* weight, void* sum,
                         double* y);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_RMS_NORM_REFERENCE_H_
