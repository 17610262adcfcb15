// Recognizes decomposed RMSNorm, y = x / sqrt(mean(x²) + epsilon) * weight:
// written as a chain of operators.
#ifndef KERNELS_TFLITE_RMS_NORM_PATTERN_H_
#define KERNELS_TFLITE_RMS_NORM_PATTERN_H_

#include <vector>

#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

// The operators of one RMSNorm.
struct RmsNormMatch {
  // Node indices in execution order; the last one computes y. Nothing outside
  // of them reads what the others compute. Nodes that only prepare constants
  // or casts for the others are among them.
  std::vector<int> nodes;
  double epsilon = 0.0;
  int x = kTfLiteOptionalTensor;
  // Of shape [hidden size], which leading ones may precede; a constant may be
  // of another floating type than x where x is float32.
  int weight = kTfLiteOptionalTensor;
  int y = kTfLiteOptionalTensor;
  bool range_safe = false;
};

// Finds the RMSNorms among the nodes of a graph, given in execution order;
// outputs are the tensors that are read elsewhere, the outputs of the graph.
// Takes time linear in the number of nodes.
//
// A sweep gives every tensor a role, by one rule for each operator:
//
//   SQUARE            square(x)
//   SUM_SQUARE        sum(SQUARE) over the last axis, square(ROOT_SUM_SQUARE)
//   ROOT_SUM_SQUARE   sqrt(SUM_SQUARE)
//   MEAN_SQUARE       mean(SQUARE) over the last axis, SUM_SQUARE / hidden size
//   SHIFTED           MEAN_SQUARE + epsilon
//   RMS               sqrt(SHIFTED)
//   INVERSE_SHIFTED   1 / SHIFTED
//   INVERSE_RMS       rsqrt(SHIFTED), 1 / RMS, sqrt(INVERSE_SHIFTED); that
//   times
//                     weight, weight / RMS
//   SCALED_X          x * weight, which may stand for x below
//   NORM              x * INVERSE_RMS, x / RMS; that times weight
//
// and in the range-safe form, whose intermediates are within [-1, 1], with
// c = sqrt(epsilon):
//
//   ABS               abs(x)
//   MAX_ABS           max(ABS) over the last axis
//   ROW_SCALE         maximum(MAX_ABS, c)
//   INVERSE_ROW_SCALE 1 / ROW_SCALE
//   RANGE_SCALED_X    z = x / ROW_SCALE, which stands for x above
//   SHIFT_ROOT        c / ROW_SCALE
//   SCALED_SHIFT      square(SHIFT_ROOT)
//   SHIFTED           MEAN_SQUARE of z + SCALED_SHIFT
//
// A cast between floating types keeps the role, so do a reshape of what is one
// number per row and its broadcast along the row. How operators are written
// (POW(x, 2), MUL(x, x), ...) is for canonical_graph.h. A weight that is a
// constant of ones is none.
//
// Never reports an error: the runtime can run whatever is not found.
std::vector<RmsNormMatch> FindRmsNorms(TfLiteContext* context,
                                       const std::vector<int>& node_indices,
                                       const std::vector<int>& outputs);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_PATTERN_H_
