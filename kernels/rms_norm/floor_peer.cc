// The floor as a peer of benchmarks/compare.py, which describes the function.
#include <cstddef>

#include "kernels/rms_norm/floor.h"

extern "C" __attribute__((visibility("default"))) int rms_norm_peer(
    const float* x, const float* weight, float* y, std::size_t rows,
    std::size_t hidden_size, float /*epsilon*/, int /*num_threads*/) {
  if (!ai_edge_rms_norm::HasFloor()) return 1;
  const std::size_t row_bytes = hidden_size * sizeof(float);
  ai_edge_rms_norm::Floor(x, weight, y, rows, row_bytes, row_bytes);
  return 0;
}
