// The kernel as a peer of benchmarks/compare.py, which describes the function:
// called as the other peers are, without an interpreter.
#include <cstddef>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rms_norm/thread_pool.h"

extern "C" __attribute__((visibility("default"))) int rms_norm_peer(
    const float* x, const float* weight, float* y, std::size_t rows,
    std::size_t hidden_size, float epsilon, int num_threads) {
  // One process measures one number of threads.
  static ai_edge_rms_norm::ThreadPool pool(num_threads);
  ai_edge_rms_norm::RmsNormParams params;
  params.rows = rows;
  params.hidden_size = hidden_size;
  params.epsilon = epsilon;
  ai_edge_rms_norm::RmsNorm(params, x, weight, y, &pool);
  return 0;
}
