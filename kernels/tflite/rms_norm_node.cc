#include "kernels/tflite/rms_norm_node.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/thread_pool.h"
#include "kernels/tflite/int_array.h"

namespace ai_edge_rms_norm {
namespace {

std::string ShapeName(const TfLiteIntArray* dims) {
  std::string name = "[";
  for (int i = 0; i < dims->size; ++i) {
    if (i > 0) name += ", ";
    name += std::to_string(dims->data[i]);
  }
  return name + "]";
}

// The operands of an operator.
struct Operands {
  int num_inputs;  // without the weight
  const char* inputs;
  int num_outputs;
  const char* outputs;
};

Operands OperandsOf(RmsNormOp op) {
  switch (op) {
    case RmsNormOp::kRmsNorm:
      return {1, "x[, weight]", 1, "output y"};
    case RmsNormOp::kAddRmsNorm:
      return {2, "x, residual[, weight]", 2, "outputs sum, y"};
  }
  __builtin_unreachable();
}

bool IsReady(const TfLiteTensor& tensor, std::size_t bytes) {
  return tensor.data != nullptr && tensor.bytes == bytes;
}

bool SameShape(const TfLiteIntArray* a, const TfLiteIntArray* b) {
  return a->size == b->size && std::equal(a->data, a->data + a->size, b->data);
}

}  // namespace

bool ToElementType(TfLiteType type, ElementType* element_type) {
  switch (type) {
    case kTfLiteFloat32:
      *element_type = ElementType::kFloat32;
      return true;
    case kTfLiteFloat16:
      *element_type = ElementType::kFloat16;
      return true;
    case kTfLiteBFloat16:
      *element_type = ElementType::kBFloat16;
      return true;
    default:
      return false;
  }
}

std::string TypeName(TfLiteType type) {
  switch (type) {
    case kTfLiteFloat32:
      return "float32";
    case kTfLiteInt32:
      return "int32";
    case kTfLiteUInt8:
      return "uint8";
    case kTfLiteInt64:
      return "int64";
    case kTfLiteInt16:
      return "int16";
    case kTfLiteInt8:
      return "int8";
    case kTfLiteFloat16:
      return "float16";
    case kTfLiteFloat64:
      return "float64";
    case kTfLiteBFloat16:
      return "bfloat16";
    default:
      return "TfLiteType " + std::to_string(type);
  }
}

float WidenElement(const void* element, ElementType type) {
  if (type == ElementType::kFloat32) {
    float value;
    std::memcpy(&value, element, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, element, sizeof(bits));
  return type == ElementType::kFloat16 ? ToFloat(Float16{bits})
                                       : ToFloat(BFloat16{bits});
}

RmsNormNode::RmsNormNode(RmsNormOp op, const char* name,
                         const RmsNormOptions& options)
    : op_(op), name_(name) {
  params_.epsilon = options.epsilon;
}

void RmsNormNode::SetDecomposed(int rank, int hidden_size) {
  decomposed_rank_ = rank;
  decomposed_hidden_size_ = hidden_size;
}

TfLiteStatus RmsNormNode::Error(TfLiteContext* context,
                                const std::string& message) const {
  context->ReportError(context, "%s: %s", name(), message.c_str());
  return kTfLiteError;
}

TfLiteStatus RmsNormNode::CheckIndex(TfLiteContext* context, int index,
                                     const char* operand) const {
  if (index >= 0 && static_cast<std::size_t>(index) < context->tensors_size) {
    return kTfLiteOk;
  }
  return Error(context, std::string(operand) + " must be a tensor, got index " +
                            std::to_string(index));
}

TfLiteStatus RmsNormNode::CheckCounts(TfLiteContext* context, int num_inputs,
                                      int num_outputs) const {
  const Operands expected = OperandsOf(op_);
  if (num_inputs != expected.num_inputs &&
      num_inputs != expected.num_inputs + 1) {
    return Error(context, std::string("expected inputs ") + expected.inputs +
                              ", got " + std::to_string(num_inputs) +
                              " inputs");
  }
  if (num_outputs != expected.num_outputs) {
    return Error(context, std::string("expected ") + expected.outputs +
                              ", got " + std::to_string(num_outputs) +
                              " outputs");
  }
  return kTfLiteOk;
}

TfLiteStatus RmsNormNode::Bind(TfLiteContext* context,
                               const TfLiteIntArray* inputs,
                               const TfLiteIntArray* outputs) {
  if (CheckCounts(context, inputs->size, outputs->size) != kTfLiteOk) {
    return kTfLiteError;
  }
  const bool add = op_ == RmsNormOp::kAddRmsNorm;
  const int min_inputs = OperandsOf(op_).num_inputs;
  x_ = inputs->data[0];
  residual_ = add ? inputs->data[1] : kTfLiteOptionalTensor;
  weight_ = inputs->size > min_inputs ? inputs->data[min_inputs]
                                      : kTfLiteOptionalTensor;
  sum_ = add ? outputs->data[0] : kTfLiteOptionalTensor;
  y_ = outputs->data[outputs->size - 1];

  return CheckDistinct(context);
}

TfLiteStatus RmsNormNode::CheckDistinct(TfLiteContext* context) const {
  for (const int output : {sum_, y_}) {
    if (output == kTfLiteOptionalTensor) continue;
    if (output == x_ || output == residual_ || output == weight_) {
      return Error(context, "tensor " + std::to_string(output) +
                                " is both an input and an output");
    }
  }
  if (op_ == RmsNormOp::kAddRmsNorm && sum_ == y_) {
    return Error(context,
                 "sum and y are the same tensor " + std::to_string(y_));
  }
  return kTfLiteOk;
}

TfLiteStatus RmsNormNode::PrepareOutput(TfLiteContext* context, int index,
                                        const char* operand) const {
  const TfLiteTensor& x = context->tensors[x_];
  TfLiteTensor& output = context->tensors[index];
  if (output.type != x.type) {
    return Error(context, std::string(operand) + " must have the type of x, " +
                              TypeName(x.type) + ", got " +
                              TypeName(output.type));
  }
  if (output.allocation_type == kTfLiteMmapRo) {
    return Error(context, std::string(operand) + " is a constant tensor");
  }
  if (SameShape(output.dims, x.dims)) return kTfLiteOk;
  IntArray shape = NewIntArray(x.dims->data, x.dims->size);
  if (shape == nullptr) return Error(context, "out of memory");
  return context->ResizeTensor(context, &output, shape.release());
}

std::size_t RmsNormNode::Bytes(int index) const {
  const std::size_t elements =
      params_.hidden_size * (index == weight_ ? 1 : params_.rows);
  return elements *
         SizeOf(index == weight_ ? params_.weight_type : params_.type);
}

TfLiteStatus RmsNormNode::CheckStorage(TfLiteContext* context, int index,
                                       const char* operand) const {
  const TfLiteTensor& tensor = context->tensors[index];
  if (tensor.sparsity != nullptr) {
    return Error(context,
                 std::string(operand) + " must be dense, it is sparse");
  }
  // The branch of an IF and the inside of a composite are prepared before their
  // inputs have memory; Invoke looks again.
  return tensor.bytes == 0 || tensor.bytes == Bytes(index)
             ? kTfLiteOk
             : WrongBytes(context, index, operand);
}

TfLiteStatus RmsNormNode::WrongBytes(TfLiteContext* context, int index,
                                     const char* operand) const {
  const TfLiteTensor& tensor = context->tensors[index];
  return Error(context, std::string(operand) + " of shape " +
                            ShapeName(tensor.dims) + " and type " +
                            TypeName(tensor.type) + " must have " +
                            std::to_string(Bytes(index)) + " bytes, got " +
                            std::to_string(tensor.bytes));
}

TfLiteStatus RmsNormNode::PrepareX(TfLiteContext* context) {
  const TfLiteTensor& x = context->tensors[x_];
  if (!ToElementType(x.type, &params_.type)) {
    return Error(context, "x must be float32, float16 or bfloat16, got " +
                              TypeName(x.type));
  }
  const int rank = x.dims->size;
  const bool negative = std::any_of(x.dims->data, x.dims->data + rank,
                                    [](int dim) { return dim < 0; });
  if (rank < 1 || negative) {
    return Error(context, "x must have at least one dimension, got shape " +
                              ShapeName(x.dims));
  }
  const int hidden_size = x.dims->data[rank - 1];
  if (decomposed_rank_ > 0 &&
      (rank != decomposed_rank_ || hidden_size != decomposed_hidden_size_)) {
    return Error(context, "x must have " + std::to_string(decomposed_rank_) +
                              " dimensions, the last one of size " +
                              std::to_string(decomposed_hidden_size_) +
                              ", as in the decomposed RMSNorm, got shape " +
                              ShapeName(x.dims));
  }
  params_.hidden_size = static_cast<std::size_t>(hidden_size);
  params_.rows = 1;
  for (int i = 0; i < rank - 1; ++i) {
    params_.rows *= static_cast<std::size_t>(x.dims->data[i]);
  }
  return CheckStorage(context, x_, "x");
}

TfLiteStatus RmsNormNode::PrepareResidual(TfLiteContext* context) const {
  const TfLiteTensor& x = context->tensors[x_];
  const TfLiteTensor& residual = context->tensors[residual_];
  if (residual.type != x.type || !SameShape(residual.dims, x.dims)) {
    return Error(context, "residual must have the type and shape of x, " +
                              TypeName(x.type) + " " + ShapeName(x.dims) +
                              ", got " + TypeName(residual.type) + " " +
                              ShapeName(residual.dims));
  }
  return CheckStorage(context, residual_, "residual");
}

bool RmsNormNode::IsShapeOfWeight(const TfLiteIntArray* shape,
                                  int hidden_size) const {
  const int rank = shape->size;
  const bool has_rank =
      rank == 1 || (decomposed_rank_ > 0 && rank > 1 &&
                    std::all_of(shape->data, shape->data + rank - 1,
                                [](int dim) { return dim == 1; }));
  return has_rank && shape->data[rank - 1] == hidden_size;
}

bool RmsNormNode::IsWidened(const TfLiteTensor& weight) const {
  ElementType type;
  return decomposed_rank_ > 0 && weight.allocation_type == kTfLiteMmapRo &&
         params_.type == ElementType::kFloat32 &&
         ToElementType(weight.type, &type) && type != ElementType::kFloat32;
}

TfLiteStatus RmsNormNode::PrepareWeight(TfLiteContext* context) {
  const TfLiteTensor& x = context->tensors[x_];
  const TfLiteTensor& weight = context->tensors[weight_];
  const bool widened = IsWidened(weight);
  if (weight.type != x.type && weight.type != kTfLiteFloat32 && !widened) {
    return Error(context, "weight must be float32 or of x's type, " +
                              TypeName(x.type) + ", got " +
                              TypeName(weight.type));
  }
  ToElementType(weight.type, &params_.weight_type);
  if (!IsShapeOfWeight(weight.dims, x.dims->data[x.dims->size - 1])) {
    return Error(context, "weight must have shape [" +
                              std::to_string(params_.hidden_size) +
                              "], the last dimension of x " +
                              ShapeName(x.dims) + ", got " +
                              ShapeName(weight.dims));
  }
  if (CheckStorage(context, weight_, "weight") != kTfLiteOk) {
    return kTfLiteError;
  }
  if (!widened) return kTfLiteOk;
  const ElementType stored = params_.weight_type;
  params_.weight_type = ElementType::kFloat32;
  if (weight.data == nullptr || weight.bytes == 0) {
    return Error(context, "weight has no data");
  }
  widened_weight_.resize(params_.hidden_size);
  const auto* data = static_cast<const uint8_t*>(weight.data);
  for (std::size_t i = 0; i < widened_weight_.size(); ++i) {
    widened_weight_[i] = WidenElement(data + i * SizeOf(stored), stored);
  }
  return kTfLiteOk;
}

TfLiteStatus RmsNormNode::CheckIndices(TfLiteContext* context) const {
  if (CheckIndex(context, x_, "x") != kTfLiteOk ||
      CheckIndex(context, y_, "y") != kTfLiteOk) {
    return kTfLiteError;
  }
  if (op_ == RmsNormOp::kAddRmsNorm &&
      (CheckIndex(context, residual_, "residual") != kTfLiteOk ||
       CheckIndex(context, sum_, "sum") != kTfLiteOk)) {
    return kTfLiteError;
  }
  return weight_ == kTfLiteOptionalTensor
             ? kTfLiteOk
             : CheckIndex(context, weight_, "weight");
}

TfLiteStatus RmsNormNode::Prepare(TfLiteContext* context) {
  const bool add = op_ == RmsNormOp::kAddRmsNorm;
  if (CheckIndices(context) != kTfLiteOk || PrepareX(context) != kTfLiteOk ||
      (add && PrepareResidual(context) != kTfLiteOk) ||
      (weight_ != kTfLiteOptionalTensor &&
       PrepareWeight(context) != kTfLiteOk) ||
      (add && PrepareOutput(context, sum_, "sum") != kTfLiteOk)) {
    return kTfLiteError;
  }
  return PrepareOutput(context, y_, "y");
}

TfLiteStatus RmsNormNode::NotReady(TfLiteContext* context) const {
  const std::pair<const char*, int> operands[] = {{"x", x_},
                                                  {"residual", residual_},
                                                  {"weight", weight_},
                                                  {"sum", sum_},
                                                  {"y", y_}};
  for (const auto& [operand, index] : operands) {
    const bool widened = index == weight_ && !widened_weight_.empty();
    if (index == kTfLiteOptionalTensor || widened) continue;
    if (context->tensors[index].data == nullptr) {
      return Error(context, std::string(operand) +
                                " has no data; were the tensors allocated?");
    }
    if (context->tensors[index].bytes != Bytes(index)) {
      return WrongBytes(context, index, operand);
    }
  }
  return kTfLiteError;
}

TfLiteStatus RmsNormNode::Invoke(TfLiteContext* context,
                                 ThreadPool* pool) const {
  if (params_.rows == 0 || params_.hidden_size == 0) return kTfLiteOk;
  const TfLiteTensor* tensors = context->tensors;
  const TfLiteTensor& x = tensors[x_];
  const TfLiteTensor& y = tensors[y_];
  const std::size_t bytes = Bytes(x_);
  bool ready = IsReady(x, bytes) && IsReady(y, bytes);
  const void* weight = nullptr;
  if (!widened_weight_.empty()) {
    weight = widened_weight_.data();
  } else if (weight_ != kTfLiteOptionalTensor) {
    weight = tensors[weight_].data;
    ready &= IsReady(tensors[weight_], Bytes(weight_));
  }
  switch (op_) {
    case RmsNormOp::kRmsNorm:
      if (!ready) return NotReady(context);
      RmsNorm(params_, x.data, weight, y.data, pool);
      return kTfLiteOk;
    case RmsNormOp::kAddRmsNorm: {
      const TfLiteTensor& residual = tensors[residual_];
      const TfLiteTensor& sum = tensors[sum_];
      if (!ready || !IsReady(residual, bytes) || !IsReady(sum, bytes)) {
        return NotReady(context);
      }
      AddRmsNorm(params_, x.data, residual.data, weight, sum.data, y.data,
                 pool);
      return kTfLiteOk;
    }
  }
  __builtin_unreachable();
}

}  // namespace ai_edge_rms_norm
