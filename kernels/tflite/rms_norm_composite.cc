#include "kernels/tflite/rms_norm_composite.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <optional>
#include <vector>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/tflite/canonical_graph.h"
#include "kernels/tflite/delegate_kernel.h"
#include "kernels/tflite/rms_norm_node.h"
#include "kernels/tflite/rms_norm_pattern.h"

namespace ai_edge_rms_norm {
namespace {

// No decomposition of an RMSNorm is larger. Many composites may share one.
constexpr int kMaxNodes = 128;
constexpr std::size_t kMaxTensors = 1024;

bool IsTensor(const TfLiteContext& context, int index) {
  return index >= 0 && static_cast<std::size_t>(index) < context.tensors_size;
}

// The shape as the file states it, with -1 for open sizes.
const TfLiteIntArray& StatedShape(const TfLiteTensor& tensor) {
  const TfLiteIntArray* signature = tensor.dims_signature;
  return signature != nullptr && signature->size == tensor.dims->size
             ? *signature
             : *tensor.dims;
}

bool SameTypeAndShape(const TfLiteTensor& a, const TfLiteTensor& b) {
  const TfLiteIntArray& a_shape = StatedShape(a);
  const TfLiteIntArray& b_shape = StatedShape(b);
  return a.type == b.type &&
         std::equal(a_shape.data, a_shape.data + a_shape.size, b_shape.data,
                    b_shape.data + b_shape.size);
}

// The RMSNorm of a graph that this delegate has replaced as a whole already, as
// it does where a decomposition precedes the graph of the composite.
std::optional<RmsNormMatch> ReplacedNorm(TfLiteContext* context,
                                         int node_index) {
  TfLiteNode* node = nullptr;
  TfLiteRegistration* registration = nullptr;
  if (context->GetNodeAndRegistration(context, node_index, &node,
                                      &registration) != kTfLiteOk) {
    return std::nullopt;
  }
  const DelegateKernel* kernel = AsDelegateKernel(*node, *registration);
  if (kernel == nullptr || kernel->nodes.size() != 1 ||
      !kernel->nodes.front().is_decomposed()) {
    return std::nullopt;
  }
  const RmsNormNode& norm = kernel->nodes.front();
  RmsNormMatch match;
  match.nodes = {node_index};
  match.epsilon = norm.epsilon();
  match.x = norm.x();
  match.weight = norm.weight();
  match.y = norm.y();
  return match;
}

// The RMSNorm that a graph is as a whole.
std::optional<RmsNormMatch> WholeNorm(TfLiteContext* context) {
  TfLiteIntArray* plan = nullptr;
  if (context->tensors_size > kMaxTensors ||
      context->GetExecutionPlan(context, &plan) != kTfLiteOk ||
      plan->size < 1 || plan->size > kMaxNodes) {
    return std::nullopt;
  }
  // The plan is the runtime's, and calls below may free it.
  const std::vector<int> nodes(plan->data, plan->data + plan->size);
  const std::optional<std::vector<int>> outputs = FindOutputs(context, nodes);
  if (!outputs.has_value()) return std::nullopt;
  std::optional<RmsNormMatch> match = ReplacedNorm(context, nodes.front());
  if (!match.has_value()) {
    std::vector<RmsNormMatch> matches = FindRmsNorms(context, nodes, *outputs);
    if (matches.size() != 1) return std::nullopt;
    match = std::move(matches.front());
  }
  const bool whole = match->nodes.size() == nodes.size() &&
                     *outputs == std::vector<int>{match->y};
  return whole ? match : std::nullopt;
}

// The attribute and the constant, or its root, may each have been rounded to
// float32.
bool IsEpsilon(double constant, double attribute) {
  constexpr double kTolerance = 1.0 / (1 << 22);
  return std::fabs(constant - attribute) <=
         kTolerance * std::max(constant, attribute);
}

// Whether the operands of the composite have the types and shapes of those of
// its decomposition.
bool HasOperandsOf(const TfLiteContext& context, const TfLiteNode& node,
                   const TfLiteContext& decomposition,
                   const RmsNormMatch& match) {
  const TfLiteTensor& x = context.tensors[node.inputs->data[0]];
  const TfLiteTensor& y = context.tensors[node.outputs->data[0]];
  if (!SameTypeAndShape(x, decomposition.tensors[match.x]) ||
      !SameTypeAndShape(y, decomposition.tensors[match.y])) {
    return false;
  }
  return node.inputs->size < 2 || match.weight == kTfLiteOptionalTensor ||
         SameTypeAndShape(context.tensors[node.inputs->data[1]],
                          decomposition.tensors[match.weight]);
}

// Whether the weight of a norm with operands like these is the composite's.
bool HasWeightOf(const TfLiteContext& context, const TfLiteNode& node,
                 const TfLiteContext& decomposition,
                 const RmsNormMatch& match) {
  const bool has_weight = node.inputs->size == 2;
  if (has_weight != (match.weight != kTfLiteOptionalTensor)) return false;
  if (!has_weight) return true;
  const TfLiteTensor& weight = context.tensors[node.inputs->data[1]];
  const TfLiteTensor& inner = decomposition.tensors[match.weight];
  return inner.allocation_type != kTfLiteMmapRo && weight.dims->size == 1 &&
         weight.sparsity == nullptr;
}

bool HasOperands(const TfLiteContext& context, const TfLiteNode& node) {
  const TfLiteIntArray& inputs = *node.inputs;
  const TfLiteIntArray& outputs = *node.outputs;
  return (inputs.size == 1 || inputs.size == 2) && outputs.size == 1 &&
         std::all_of(inputs.data, inputs.data + inputs.size,
                     [&](int index) { return IsTensor(context, index); }) &&
         IsTensor(context, outputs.data[0]);
}

}  // namespace

Composite FindComposite(TfLiteContext* context, const TfLiteNode& node,
                        RmsNormOptions* options) {
  const auto* params =
      static_cast<const TfLiteStablehloCompositeParams*>(node.builtin_data);
  if (params == nullptr || params->name == nullptr ||
      std::strcmp(params->name, kRmsNormCompositeName) != 0 ||
      !ParseRmsNormOptions(params->attributes, params->attributes_size, options)
           .empty() ||
      !HasOperands(*context, node)) {
    return {};
  }
  TfLiteContext* decomposition = nullptr;
  if (context->AcquireSubgraphContext(context, params->subgraph_index,
                                      &decomposition) != kTfLiteOk) {
    return {};
  }
  // A composite of itself. Releasing the graph would end its partitioning.
  if (decomposition == context) return {};
  Composite composite;
  const std::optional<RmsNormMatch> match = WholeNorm(decomposition);
  if (match.has_value() &&
      !HasOperandsOf(*context, node, *decomposition, *match)) {
    composite = {CompositeKind::kOtherOperands, decomposition};
  } else if (match.has_value() && IsEpsilon(match->epsilon, options->epsilon) &&
             HasWeightOf(*context, node, *decomposition, *match) &&
             context->tensors[node.outputs->data[0]].allocation_type !=
                 kTfLiteMmapRo) {
    const int rank = context->tensors[node.inputs->data[0]].dims->size;
    composite.kind = node.inputs->size == 2 && rank == 1
                         ? CompositeKind::kRmsNormInside
                         : CompositeKind::kRmsNorm;
    composite.decomposition = decomposition;
  }
  context->ReleaseSubgraphContext(context, params->subgraph_index);
  return composite;
}

}  // namespace ai_edge_rms_norm
