// Options of an RMSNorm operator in a TFLite model.
#ifndef KERNELS_TFLITE_RMS_NORM_OPTIONS_H_
#define KERNELS_TFLITE_RMS_NORM_OPTIONS_H_

#include <cstddef>
#include <string>

namespace ai_edge_rms_norm {

struct RmsNormOptions {
  double epsilon = 0.0;
};

// Parses the FlexBuffers map {"epsilon": number} that a CUSTOM operator has as
// custom_options and a composite as attributes. The bytes are not trusted.
//
// Returns an empty string and sets *options, or returns what is wrong: not a
// FlexBuffers map, epsilon missing, not a number, not finite or not > 0, or an
// entry other than epsilon (ignoring it could change the result).
std::string ParseRmsNormOptions(const void* data, size_t size,
                                RmsNormOptions* options);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_OPTIONS_H_
