// Reads option buffers from standard input, each after its size in 4 bytes, and
// prints a line per buffer: epsilon in hexadecimal, or "error: " and what is
// wrong. Python's reader is compared with it (tests/tflite/op_options_test.py).
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/tflite/rms_norm_options.h"

int main() {
  uint32_t size = 0;
  while (std::fread(&size, sizeof(size), 1, stdin) == 1) {
    std::vector<uint8_t> buffer(size);
    if (size != 0 && std::fread(buffer.data(), size, 1, stdin) != 1) return 1;
    ai_edge_rms_norm::RmsNormOptions options;
    const std::string error = ai_edge_rms_norm::ParseRmsNormOptions(
        buffer.data(), buffer.size(), &options);
    if (error.empty()) {
      std::printf("%a\n", options.epsilon);
    } else {
      std::printf("error: %s\n", error.c_str());
    }
  }
  return 0;
}
