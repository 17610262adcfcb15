// Recognizes RMSNorm that is written as a chain of primitive operators.
#ifndef KERNELS_TFLITE_RMS_NORM_CHAIN_H_
#define KERNELS_TFLITE_RMS_NORM_CHAIN_H_

#include <vector>

#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

// An RMSNorm y = x / sqrt(mean(x^2) + epsilon) * weight of several nodes.
struct RmsNormChain {
  std::vector<int> nodes;  // Node indices in execution order; the last gives y.
  double epsilon = 0.0;
  int x = kTfLiteOptionalTensor;
  // A constant of shape [hidden size], which leading ones may precede; or none.
  int weight = kTfLiteOptionalTensor;
  int y = kTfLiteOptionalTensor;
};

// Finds the chains among the nodes of a graph, given in execution order.
//
//   x^2        MUL(x, x), SQUARE or POW(x, 2)
//   mean       MEAN over the last axis
//   + epsilon  ADD of a constant
//   1 / rms    RSQRT, POW(., -0.5), or SQRT with DIV(x, .) or DIV(1, .)
//   * x        MUL, before or after the weight
//   * weight   MUL of a constant; or absent
//
// with casts between floating types anywhere, and RESHAPE or EXPAND_DIMS of the
// row statistic. No intermediate is used by a node outside of the chain; but
// whether one is an output of the graph, the C interface does not tell here.
//
// Never reports an error: the runtime can always run what is not found.
std::vector<RmsNormChain> FindRmsNormChains(
    TfLiteContext* context, const std::vector<int>& node_indices);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_CHAIN_H_
