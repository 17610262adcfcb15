// Whatever the bytes, the answer is an error or a valid epsilon.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "kernels/tflite/rms_norm_options.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ai_edge_rms_norm::RmsNormOptions options;
  const std::string error =
      ai_edge_rms_norm::ParseRmsNormOptions(data, size, &options);
  if (error.empty() &&
      !(std::isfinite(options.epsilon) && options.epsilon > 0.0)) {
    std::abort();
  }
  return 0;
}
