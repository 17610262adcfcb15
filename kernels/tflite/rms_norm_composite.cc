#include "kernels/tflite/rms_norm_composite.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/tflite/rms_norm_node.h"

namespace ai_edge_rms_norm {
namespace {

// What a tensor of the decomposition holds.
enum class Value : unsigned char {
  kOther,
  kX,
  kWeight,
  kSquare,             // x²
  kMeanSquare,         // mean(x²) over the last dimension
  kShiftedMeanSquare,  // mean(x²) + epsilon
  kRms,                // its square root
  kInverseRms,
  kNormalized,  // x / rms
  kScaled,      // x / rms * weight
};

int LastDimension(const TfLiteTensor& tensor) {
  return tensor.dims->size > 0 ? tensor.dims->data[tensor.dims->size - 1] : 0;
}

bool IsConstant(const TfLiteTensor& tensor) {
  return tensor.allocation_type == kTfLiteMmapRo;
}

// Reads a constant of one element.
template <typename T>
bool ReadConstant(const TfLiteTensor& tensor, TfLiteType type, T* value) {
  const bool one_element =
      tensor.dims->size == 0 ||
      (tensor.dims->size == 1 && tensor.dims->data[0] == 1);
  if (!IsConstant(tensor) || tensor.type != type || !one_element ||
      tensor.data == nullptr || tensor.bytes != sizeof(T)) {
    return false;
  }
  std::memcpy(value, tensor.data, sizeof(T));
  return true;
}

// Parameters of ADD, MUL and DIV begin with their fused activation; 0: none.
bool HasActivation(const TfLiteNode& node) {
  int activation = 0;
  if (node.builtin_data == nullptr) return true;
  std::memcpy(&activation, node.builtin_data, sizeof(activation));
  return activation != 0;
}

bool SameTypeAndRank(const TfLiteTensor& a, const TfLiteTensor& b) {
  return a.type == b.type && a.dims->size == b.dims->size;
}

// Whether all dimensions but the last are the same.
bool SameRows(const TfLiteTensor& a, const TfLiteTensor& b) {
  return a.dims->size == b.dims->size && a.dims->size > 0 &&
         std::equal(a.dims->data, a.dims->data + a.dims->size - 1,
                    b.dims->data);
}

// Follows the values through the nodes of a decomposition.
class Decomposition {
 public:
  Decomposition(TfLiteContext* context, double epsilon)
      : context_(context),
        epsilon_(static_cast<float>(epsilon)),
        values_(context->tensors_size, Value::kOther) {}

  // Whether the one output is RMSNorm of the inputs x[, weight], given as the
  // composite node has them; weight may be nullptr. (The runtime hands their
  // shapes, of whatever rank, on to the decomposition.)
  bool IsRmsNorm(const TfLiteTensor& x, const TfLiteTensor* weight) {
    TfLiteIntArray* plan = nullptr;
    if (context_->GetExecutionPlan(context_, &plan) != kTfLiteOk) return false;
    const std::vector<int> node_indices(plan->data, plan->data + plan->size);
    std::vector<bool> produced(values_.size());
    std::vector<bool> consumed(values_.size());
    for (const int node_index : node_indices) {
      TfLiteNode* node = nullptr;
      TfLiteRegistration* registration = nullptr;
      if (context_->GetNodeAndRegistration(context_, node_index, &node,
                                           &registration) != kTfLiteOk) {
        return false;
      }
      for (int i = 0; i < node->inputs->size; ++i) {
        const int input = node->inputs->data[i];
        if (!IsTensor(input)) return false;
        if (!consumed[input] && !produced[input] && !AddSource(input)) {
          return false;
        }
        consumed[input] = true;
      }
      if (node->outputs->size != 1 || !IsTensor(node->outputs->data[0])) {
        return false;
      }
      const int output = node->outputs->data[0];
      values_[output] = Result(*node, registration->builtin_code);
      produced[output] = true;
    }
    // The C interface does not name a subgraph's output: it is what is left.
    int num_results = 0;
    std::size_t result = 0;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      if (!produced[i] || consumed[i]) continue;
      ++num_results;
      result = i;
    }
    if (num_results != 1 || x_ < 0 || !SameTypeAndRank(x, tensor(x_)) ||
        !SameTypeAndRank(x, tensor(result)) ||
        !SameRows(tensor(x_), tensor(result)) ||
        (weight_ >= 0) != (weight != nullptr)) {
      return false;
    }
    if (weight == nullptr) return values_[result] == Value::kNormalized;
    return values_[result] == Value::kScaled &&
           SameTypeAndRank(*weight, tensor(weight_));
  }

 private:
  bool IsTensor(int index) const {
    return index >= 0 && static_cast<std::size_t>(index) < values_.size();
  }

  const TfLiteTensor& tensor(int index) const {
    return context_->tensors[index];
  }

  // The C interface does not name a subgraph's inputs either: they are what is
  // neither constant nor produced by a node; converters number them in order.
  bool AddSource(int index) {
    if (IsConstant(tensor(index))) return true;
    if (x_ < 0) {
      x_ = index;
      values_[index] = Value::kX;
      return true;
    }
    if (weight_ >= 0 || index < x_ || tensor(index).dims->size != 1) {
      return false;
    }
    weight_ = index;
    values_[index] = Value::kWeight;
    return true;
  }

  Value Result(const TfLiteNode& node, int builtin_code) const {
    const int lhs = node.inputs->size > 0 ? node.inputs->data[0] : -1;
    const int rhs = node.inputs->size > 1 ? node.inputs->data[1] : -1;
    if (lhs < 0) return Value::kOther;
    const Value a = values_[lhs];
    const Value b = rhs >= 0 ? values_[rhs] : Value::kOther;
    const TfLiteTensor& output = tensor(node.outputs->data[0]);
    ElementType type;
    if (!ToElementType(output.type, &type)) return Value::kOther;

    switch (builtin_code) {
      case kTfLiteBuiltinCast:
        return a;
      case kTfLiteBuiltinReshape:
        return KeepsMeaning(a, output) ? a : Value::kOther;
      case kTfLiteBuiltinSquare:
        return a == Value::kX ? Value::kSquare : Value::kOther;
      case kTfLiteBuiltinMean:
        return a == Value::kSquare && IsLastAxis(rhs) ? Value::kMeanSquare
                                                      : Value::kOther;
      case kTfLiteBuiltinSqrt:
        return a == Value::kShiftedMeanSquare ? Value::kRms : Value::kOther;
      case kTfLiteBuiltinRsqrt:
        return a == Value::kShiftedMeanSquare ? Value::kInverseRms
                                              : Value::kOther;
      case kTfLiteBuiltinAdd:
      case kTfLiteBuiltinMul:
      case kTfLiteBuiltinDiv:
        return rhs < 0 || HasActivation(node)
                   ? Value::kOther
                   : BinaryResult(builtin_code, lhs, rhs, a, b);
      default:
        return Value::kOther;
    }
  }

  Value BinaryResult(int builtin_code, int lhs, int rhs, Value a,
                     Value b) const {
    if (builtin_code == kTfLiteBuiltinAdd) {
      return (a == Value::kMeanSquare && IsEpsilon(rhs)) ||
                     (b == Value::kMeanSquare && IsEpsilon(lhs))
                 ? Value::kShiftedMeanSquare
                 : Value::kOther;
    }
    if (builtin_code == kTfLiteBuiltinDiv) {
      return a == Value::kX && b == Value::kRms && IsPerRow(rhs)
                 ? Value::kNormalized
                 : Value::kOther;
    }
    if (a == Value::kX && b == Value::kX) return Value::kSquare;
    if ((a == Value::kX && b == Value::kInverseRms && IsPerRow(rhs)) ||
        (b == Value::kX && a == Value::kInverseRms && IsPerRow(lhs))) {
      return Value::kNormalized;
    }
    if ((a == Value::kNormalized && b == Value::kWeight) ||
        (b == Value::kNormalized && a == Value::kWeight)) {
      return Value::kScaled;
    }
    return Value::kOther;
  }

  // A reshape may give row statistics their last dimension of 1 back, or the
  // weight leading dimensions of 1.
  bool KeepsMeaning(Value value, const TfLiteTensor& output) const {
    switch (value) {
      case Value::kMeanSquare:
      case Value::kShiftedMeanSquare:
      case Value::kRms:
      case Value::kInverseRms:
        return LastDimension(output) == 1;
      case Value::kWeight:
        return LastDimension(output) == LastDimension(tensor(weight_));
      default:
        return false;
    }
  }

  // Whether a row statistic broadcasts along the rows of x.
  bool IsPerRow(int index) const {
    return SameRows(tensor(index), tensor(x_)) &&
           LastDimension(tensor(index)) == 1;
  }

  bool IsLastAxis(int index) const {
    int32_t axis = 0;
    return index >= 0 && ReadConstant(tensor(index), kTfLiteInt32, &axis) &&
           (axis == -1 || axis == tensor(x_).dims->size - 1);
  }

  // The attribute and the constant may each have been rounded to float32.
  bool IsEpsilon(int index) const {
    float value = 0.0f;
    return ReadConstant(tensor(index), kTfLiteFloat32, &value) &&
           std::fabs(value - epsilon_) <= 1e-6f * epsilon_;
  }

  TfLiteContext* const context_;
  const float epsilon_;
  std::vector<Value> values_;
  int x_ = -1;
  int weight_ = -1;
};

bool HasKernel(const TfLiteContext& context, const TfLiteNode& node) {
  const auto is_tensor = [&context](int index) {
    return index >= 0 && static_cast<std::size_t>(index) < context.tensors_size;
  };
  const TfLiteIntArray& inputs = *node.inputs;
  const TfLiteIntArray& outputs = *node.outputs;
  if ((inputs.size != 1 && inputs.size != 2) || outputs.size != 1 ||
      !is_tensor(inputs.data[0]) || !is_tensor(outputs.data[0])) {
    return false;
  }
  const TfLiteTensor& x = context.tensors[inputs.data[0]];
  ElementType type;
  if (!ToElementType(x.type, &type) ||
      context.tensors[outputs.data[0]].type != x.type) {
    return false;
  }
  if (inputs.size == 1) return true;
  if (!is_tensor(inputs.data[1])) return false;
  const TfLiteTensor& weight = context.tensors[inputs.data[1]];
  return (weight.type == x.type || weight.type == kTfLiteFloat32) &&
         weight.dims->size == 1 && LastDimension(weight) == LastDimension(x);
}

}  // namespace

bool IsRmsNormComposite(TfLiteContext* context, const TfLiteNode& node,
                        RmsNormOptions* options) {
  const auto* params =
      static_cast<const TfLiteStablehloCompositeParams*>(node.builtin_data);
  if (params == nullptr || params->name == nullptr ||
      std::strcmp(params->name, kRmsNormCompositeName) != 0 ||
      !ParseRmsNormOptions(params->attributes, params->attributes_size, options)
           .empty() ||
      !HasKernel(*context, node)) {
    return false;
  }
  TfLiteContext* decomposition = nullptr;
  if (context->AcquireSubgraphContext(context, params->subgraph_index,
                                      &decomposition) != kTfLiteOk) {
    return false;
  }
  const int* inputs = node.inputs->data;
  const bool is_rms_norm =
      decomposition != context &&
      Decomposition(decomposition, options->epsilon)
          .IsRmsNorm(
              context->tensors[inputs[0]],
              node.inputs->size == 2 ? &context->tensors[inputs[1]] : nullptr);
  context->ReleaseSubgraphContext(context, params->subgraph_index);
  return is_rms_norm;
}

}  // namespace ai_edge_rms_norm
