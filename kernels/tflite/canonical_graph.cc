#include "kernels/tflite/canonical_graph.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <utility>

#include "kernels/rms_norm/element_types.h"
#include "kernels/tflite/int_array.h"
#include "kernels/tflite/rms_norm_node.h"

namespace ai_edge_rms_norm {
namespace {

constexpr int kNone = -1;

template <typename T>
T Load(const void* data) {
  T value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

bool IsBinary(int builtin) {
  return builtin == kTfLiteBuiltinAdd || builtin == kTfLiteBuiltinMul ||
         builtin == kTfLiteBuiltinDiv || builtin == kTfLiteBuiltinMaximum ||
         builtin == kTfLiteBuiltinPow;
}

bool HasTwoOperands(int builtin) {
  return IsBinary(builtin) || builtin == kTfLiteBuiltinBatchMatmul;
}

bool IsReduction(int builtin) {
  return builtin == kTfLiteBuiltinMean || builtin == kTfLiteBuiltinSum ||
         builtin == kTfLiteBuiltinReduceMax;
}

// An operator of the schema.
struct Builtin {
  int code;
  int num_operands;  // At least.
  Operator op;       // Unless its operands make it a more special one.
};

constexpr Builtin kBuiltins[] = {
    {kTfLiteBuiltinCast, 1, Operator::kCast},
    {kTfLiteBuiltinDequantize, 1, Operator::kCast},
    {kTfLiteBuiltinReshape, 1, Operator::kReshape},
    {kTfLiteBuiltinExpandDims, 2, Operator::kOnes},
    {kTfLiteBuiltinSqueeze, 1, Operator::kOnes},
    {kTfLiteBuiltinBroadcastTo, 2, Operator::kBroadcast},
    {kTfLiteBuiltinAbs, 1, Operator::kAbs},
    {kTfLiteBuiltinSquare, 1, Operator::kSquare},
    {kTfLiteBuiltinSqrt, 1, Operator::kSqrt},
    {kTfLiteBuiltinRsqrt, 1, Operator::kRsqrt},
    {kTfLiteBuiltinPow, 2, Operator::kOther},
    {kTfLiteBuiltinMean, 2, Operator::kMean},
    {kTfLiteBuiltinSum, 2, Operator::kSum},
    {kTfLiteBuiltinReduceMax, 2, Operator::kMax},
    {kTfLiteBuiltinBatchMatmul, 2, Operator::kDot},
    {kTfLiteBuiltinAdd, 2, Operator::kAdd},
    {kTfLiteBuiltinMul, 2, Operator::kMul},
    {kTfLiteBuiltinDiv, 2, Operator::kDiv},
    {kTfLiteBuiltinMaximum, 2, Operator::kMaximum},
};

const Builtin* FindBuiltin(int code) {
  const Builtin* end = std::end(kBuiltins);
  const Builtin* found = std::find_if(
      std::begin(kBuiltins), end,
      [=](const Builtin& builtin) { return builtin.code == code; });
  return found == end ? nullptr : found;
}

// Whether the operator applies a function to its result.
bool HasActivation(const TfLiteNode& node, int builtin) {
  if (builtin != kTfLiteBuiltinAdd && builtin != kTfLiteBuiltinMul &&
      builtin != kTfLiteBuiltinDiv) {
    return false;
  }
  return node.builtin_data == nullptr || Load<int>(node.builtin_data) != 0;
}

std::vector<int> WithoutLeadingOnes(const ShapeView& shape) {
  const int* begin = std::find_if(shape.begin(), shape.end(),
                                  [](int size) { return size != 1; });
  return std::vector<int>(begin, shape.end());
}

bool Equal(const ShapeView& a, const ShapeView& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

bool IsStatic(const ShapeView& shape) {
  return std::all_of(shape.begin(), shape.end(),
                     [](int size) { return size >= 0; });
}

// Which dimensions a SQUEEZE removes, all known to be of size 1.
std::optional<std::vector<bool>> SqueezedAxes(const TfLiteNode& node,
                                              const ShapeView& shape) {
  if (node.builtin_data == nullptr) return std::nullopt;
  const auto params = Load<TfLiteSqueezeParams>(node.builtin_data);
  constexpr int kMaxDimensions = sizeof(params.squeeze_dims) / sizeof(int);
  const int count = params.num_squeeze_dims;
  if (count < 0 || count > kMaxDimensions) return std::nullopt;
  std::vector<bool> squeezed(shape.rank);
  if (count == 0) {  // All of size 1.
    if (!IsStatic(shape)) return std::nullopt;
    std::transform(shape.begin(), shape.end(), squeezed.begin(),
                   [](int size) { return size == 1; });
  }
  for (int i = 0; i < count; ++i) {
    const int dim = params.squeeze_dims[i];
    const int axis = dim < 0 ? dim + shape.rank : dim;
    if (axis < 0 || axis >= shape.rank || shape[axis] != 1) return std::nullopt;
    squeezed[axis] = true;
  }
  return squeezed;
}

// -1 if a size is open, or if the number does not fit.
int64_t NumElements(const ShapeView& shape) {
  int64_t elements = 1;
  for (const int size : shape) {
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) {
      return -1;
    }
  }
  return elements;
}

}  // namespace

std::optional<std::vector<int>> FindOutputs(
    TfLiteContext* context, const std::vector<int>& node_indices) {
  const IntArray nodes = NewIntArray(node_indices.data(), node_indices.size());
  TfLiteDelegateParams* partitions = nullptr;
  int num_partitions = 0;
  if (nodes == nullptr ||
      context->PreviewDelegatePartitioning(context, nodes.get(), &partitions,
                                           &num_partitions) != kTfLiteOk) {
    return std::nullopt;
  }
  std::vector<int> outputs;
  for (int i = 0; i < num_partitions; ++i) {
    const TfLiteIntArray& array = *partitions[i].output_tensors;
    outputs.insert(outputs.end(), array.data, array.data + array.size);
  }
  return outputs;
}

CanonicalGraph::CanonicalGraph(TfLiteContext* context,
                               const std::vector<int>& node_indices,
                               const std::vector<int>& outputs)
    : context_(context),
      producers_(context->tensors_size, kNone),
      consumers_(context->tensors_size),
      sources_(context->tensors_size),
      outputs_(context->tensors_size),
      sound_(context->tensors_size, true) {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    sources_[i] = static_cast<int>(i);
  }
  for (const int output : outputs) {
    if (IsTensor(output)) outputs_[output] = true;
  }
  for (const int node_index : node_indices) AddNode(node_index);
  CheckOrder();
  for (CanonicalNode& node : nodes_) {
    Canonicalize(&node);
    if (KeepsValue(node)) sources_[node.output] = sources_[node.a];
  }
}

bool CanonicalGraph::IsTensor(int index) const {
  return index >= 0 && static_cast<std::size_t>(index) < producers_.size();
}

std::vector<int> CanonicalGraph::Inputs(int position) const {
  TfLiteNode* node = nullptr;
  TfLiteRegistration* registration = nullptr;
  std::vector<int> inputs;
  if (context_->GetNodeAndRegistration(context_, nodes_[position].index, &node,
                                       &registration) != kTfLiteOk) {
    return inputs;
  }
  for (int i = 0; i < node->inputs->size; ++i) {
    if (IsTensor(node->inputs->data[i]))
      inputs.push_back(node->inputs->data[i]);
  }
  return inputs;
}

void CanonicalGraph::AddNode(int node_index) {
  const int position = static_cast<int>(nodes_.size());
  nodes_.emplace_back().index = node_index;
  TfLiteNode* node = nullptr;
  TfLiteRegistration* registration = nullptr;
  if (context_->GetNodeAndRegistration(context_, node_index, &node,
                                       &registration) != kTfLiteOk) {
    return;
  }
  for (const int input : Inputs(position)) {
    std::vector<int>& consumers = consumers_[input];
    if (consumers.empty() || consumers.back() != position) {
      consumers.push_back(position);
    }
  }
  for (int i = 0; i < node->outputs->size; ++i) {
    const int output = node->outputs->data[i];
    if (!IsTensor(output)) continue;
    if (producers_[output] != kNone) sound_[output] = false;
    producers_[output] = position;
  }
}

void CanonicalGraph::CheckOrder() {
  // The runtime does not check the order of a file's nodes.
  for (std::size_t i = 0; i < producers_.size(); ++i) {
    if (!consumers_[i].empty() && consumers_[i].front() <= producers_[i]) {
      sound_[i] = false;
    }
  }
}

bool CanonicalGraph::IsFloat(int index) const {
  ElementType type;
  return ToElementType(tensor(index).type, &type);
}

bool CanonicalGraph::IsStored(int index) const {
  return tensor(index).allocation_type == kTfLiteMmapRo &&
         tensor(index).data != nullptr;
}

bool CanonicalGraph::ReadOperands(const TfLiteNode& node, int num_operands,
                                  CanonicalNode* canonical) const {
  if (node.inputs->size < num_operands || node.outputs->size != 1) return false;
  canonical->output = node.outputs->data[0];
  canonical->a = node.inputs->data[0];
  const int b = node.inputs->size > 1 ? node.inputs->data[1] : kNone;
  canonical->b = IsTensor(b) ? b : kNone;
  return IsTensor(canonical->output) && IsTensor(canonical->a) &&
         (canonical->b != kNone || num_operands < 2);
}

bool CanonicalGraph::HasSoundOperands(int builtin,
                                      const CanonicalNode& node) const {
  if (!IsSound(node.output) || !IsSound(node.a) ||
      (node.b != kNone && !IsSound(node.b))) {
    return false;
  }
  return IsFloat(node.a) && IsFloat(node.output) &&
         (!HasTwoOperands(builtin) || IsFloat(node.b)) &&
         tensor(node.output).allocation_type != kTfLiteMmapRo &&
         !tensor(node.output).is_variable;
}

void CanonicalGraph::Canonicalize(CanonicalNode* node) {
  TfLiteNode* read = nullptr;
  TfLiteRegistration* registration = nullptr;
  if (context_->GetNodeAndRegistration(context_, node->index, &read,
                                       &registration) != kTfLiteOk) {
    return;
  }
  const Builtin* builtin = FindBuiltin(registration->builtin_code);
  CanonicalNode canonical = *node;
  if (builtin == nullptr || HasActivation(*read, builtin->code) ||
      !ReadOperands(*read, builtin->num_operands, &canonical) ||
      !HasSoundOperands(builtin->code, canonical) ||
      !HasComputedType(builtin->code, canonical) ||
      !HasComputedShape(*read, builtin->code, canonical)) {
    return;
  }
  if (IsTimesOne(builtin->code, canonical.b, canonical.a) &&
      builtin->code == kTfLiteBuiltinMul) {
    std::swap(canonical.a, canonical.b);
  }
  canonical.op = SpecialOperator(builtin->code, canonical);
  if (canonical.op == Operator::kOther) canonical.op = builtin->op;
  if (canonical.op != Operator::kOther) *node = canonical;
}

// The operator that a node is because of its operands; or kOther.
Operator CanonicalGraph::SpecialOperator(int builtin,
                                         const CanonicalNode& node) const {
  if (builtin == kTfLiteBuiltinPow) return PowerOf(node);
  if (builtin == kTfLiteBuiltinMul && Source(node.a) == Source(node.b)) {
    return Operator::kSquare;
  }
  if (IsTimesOne(builtin, node.a, node.b)) return Operator::kIdentity;
  if (builtin == kTfLiteBuiltinDiv && Scalar(node.a) == 1.0) {
    return Operator::kReciprocal;
  }
  return Operator::kOther;
}

bool CanonicalGraph::IsTimesOne(int builtin, int a, int b) const {
  const bool divides = builtin == kTfLiteBuiltinDiv;
  return (divides || builtin == kTfLiteBuiltinMul) && Scalar(b) == 1.0 &&
         (divides || !Scalar(a).has_value());
}

Operator CanonicalGraph::PowerOf(const CanonicalNode& node) const {
  const std::optional<double> exponent = Scalar(node.b);
  if (exponent == 2.0) return Operator::kSquare;
  if (exponent == 0.5) return Operator::kSqrt;
  if (exponent == -0.5) return Operator::kRsqrt;
  if (exponent == -1.0) return Operator::kReciprocal;
  return Operator::kOther;
}

template <std::size_t n>
std::array<ShapeView, n> CanonicalGraph::Shapes(
    const std::array<int, n>& tensors) const {
  std::array<ShapeView, n> shapes;
  bool stated = true;
  for (std::size_t i = 0; i < n; ++i) {
    const TfLiteTensor& t = tensor(tensors[i]);
    const TfLiteIntArray* signature = t.dims_signature;
    if (IsStored(tensors[i])) signature = t.dims;
    stated &= signature != nullptr && signature->size == t.dims->size;
    if (stated) shapes[i] = {signature->size, signature->data};
  }
  if (stated) return shapes;
  for (std::size_t i = 0; i < n; ++i) {
    const TfLiteIntArray* dims = tensor(tensors[i]).dims;
    shapes[i] = {dims->size, dims->data};
  }
  return shapes;
}

int CanonicalGraph::LastDimension(int index) const {
  return Shapes<1>({index})[0].last();
}

int CanonicalGraph::VectorSize(int index) const {
  const ShapeView shape = Shapes<1>({index})[0];
  return shape[shape.rank - 2] * shape.last();
}

bool CanonicalGraph::SameShape(int a, int b) const {
  const auto [first, second] = Shapes<2>({a, b});
  return Equal(first, second);
}

bool CanonicalGraph::HasRowsOf(int index, int other, int last) const {
  const auto [shape, rows] = Shapes<2>({index, other});
  return shape.rank == rows.rank && shape.rank > 0 && shape.last() == last &&
         std::equal(shape.begin(), shape.end() - 1, rows.begin());
}

bool CanonicalGraph::HasComputedType(int builtin,
                                     const CanonicalNode& node) const {
  const TfLiteType type = tensor(node.output).type;
  switch (builtin) {
    case kTfLiteBuiltinCast:
      return true;
    case kTfLiteBuiltinDequantize:
      return type == kTfLiteFloat32;
    default:
      return tensor(node.a).type == type &&
             (!HasTwoOperands(builtin) || tensor(node.b).type == type);
  }
}

bool CanonicalGraph::HasComputedShape(const TfLiteNode& node, int builtin,
                                      const CanonicalNode& canonical) const {
  if (IsReduction(builtin)) return IsReduced(node, canonical);
  if (IsBinary(builtin)) return IsBroadcast(canonical);
  switch (builtin) {
    case kTfLiteBuiltinReshape:
      return IsReshaped(node, canonical);
    case kTfLiteBuiltinExpandDims:
      return IsExpanded(canonical);
    case kTfLiteBuiltinSqueeze:
      return IsSqueezed(node, canonical);
    case kTfLiteBuiltinBroadcastTo:
      return IsBroadcastTo(canonical);
    case kTfLiteBuiltinBatchMatmul:
      return IsDot(node, canonical);
    default:
      return SameShape(canonical.a, canonical.output);
  }
}

// Over the last axis, whatever the others are.
bool CanonicalGraph::IsReduced(const TfLiteNode& node,
                               const CanonicalNode& canonical) const {
  const auto [shape, output] = Shapes<2>({canonical.a, canonical.output});
  const std::optional<std::vector<int>> axes = Integers(canonical.b);
  const int rank = shape.rank;
  if (node.builtin_data == nullptr || rank == 0 || !axes.has_value() ||
      axes->empty() || !std::all_of(axes->begin(), axes->end(), [=](int axis) {
        return axis == -1 || axis == rank - 1;
      })) {
    return false;
  }
  const bool keep_dims = Load<TfLiteReducerParams>(node.builtin_data).keep_dims;
  return output.rank == (keep_dims ? rank : rank - 1) &&
         std::equal(shape.begin(), shape.end() - 1, output.begin()) &&
         (!keep_dims || output.last() == 1);
}

bool CanonicalGraph::IsBroadcast(const CanonicalNode& node) const {
  const auto [a, b, output] = Shapes<3>({node.a, node.b, node.output});
  if (output.rank != std::max(a.rank, b.rank)) return false;
  for (int i = 1; i <= output.rank; ++i) {
    const int first = i <= a.rank ? a[a.rank - i] : 1;
    const int second = i <= b.rank ? b[b.rank - i] : 1;
    const int size = first == 1 ? second : first;
    if ((second != 1 && second != size) || output[output.rank - i] != size) {
      return false;
    }
  }
  return true;
}

std::optional<std::vector<int>> CanonicalGraph::NewShape(
    const TfLiteNode& node, const CanonicalNode& canonical) const {
  if (node.inputs->size > 1) {
    return canonical.b != kNone && tensor(canonical.b).dims->size == 1
               ? Integers(canonical.b)
               : std::nullopt;
  }
  if (node.builtin_data == nullptr) return std::nullopt;
  const auto params = Load<TfLiteReshapeParams>(node.builtin_data);
  constexpr int kMaxDimensions = sizeof(params.shape) / sizeof(int);
  if (params.num_dimensions < 0 || params.num_dimensions > kMaxDimensions) {
    return std::nullopt;
  }
  return std::vector<int>(params.shape, params.shape + params.num_dimensions);
}

// With one open size at most, so that rows cannot change their places.
bool CanonicalGraph::IsReshaped(const TfLiteNode& node,
                                const CanonicalNode& canonical) const {
  const auto [shape, output] = Shapes<2>({canonical.a, canonical.output});
  const std::optional<std::vector<int>> sizes = NewShape(node, canonical);
  if (!sizes.has_value() ||
      sizes->size() != static_cast<std::size_t>(output.rank) ||
      std::count(sizes->begin(), sizes->end(), -1) > 1 ||
      std::count(output.begin(), output.end(), -1) > 1) {
    return false;
  }
  for (int i = 0; i < output.rank; ++i) {
    if ((*sizes)[i] != output[i] && (*sizes)[i] != -1) return false;
  }
  const int64_t elements = NumElements(output);
  return !IsStatic(output) || (elements >= 0 && NumElements(shape) == elements);
}

bool CanonicalGraph::IsExpanded(const CanonicalNode& node) const {
  const auto [shape, output] = Shapes<2>({node.a, node.output});
  const std::optional<std::vector<int>> axes = Integers(node.b);
  if (!axes.has_value() || axes->size() != 1 || output.rank != shape.rank + 1) {
    return false;
  }
  const int axis =
      axes->front() < 0 ? axes->front() + output.rank : axes->front();
  if (axis < 0 || axis >= output.rank || output[axis] != 1) return false;
  return std::equal(shape.begin(), shape.begin() + axis, output.begin()) &&
         std::equal(shape.begin() + axis, shape.end(),
                    output.begin() + axis + 1);
}

bool CanonicalGraph::IsSqueezed(const TfLiteNode& node,
                                const CanonicalNode& canonical) const {
  const auto [shape, output] = Shapes<2>({canonical.a, canonical.output});
  const std::optional<std::vector<bool>> squeezed = SqueezedAxes(node, shape);
  if (!squeezed.has_value()) return false;
  std::vector<int> left;
  for (int i = 0; i < shape.rank; ++i) {
    if (!(*squeezed)[i]) left.push_back(shape[i]);
  }
  return std::equal(left.begin(), left.end(), output.begin(), output.end());
}

// Of matrices [1, n] and [n, 1], one for each row.
bool CanonicalGraph::IsDot(const TfLiteNode& node,
                           const CanonicalNode& canonical) const {
  const auto [a, b, output] =
      Shapes<3>({canonical.a, canonical.b, canonical.output});
  const int rank = a.rank;
  if (node.builtin_data == nullptr || rank < 2 || b.rank != rank ||
      output.rank != rank) {
    return false;
  }
  const auto params = Load<TfLiteBatchMatMulParams>(node.builtin_data);
  auto [m, n] = std::pair(a[rank - 2], a[rank - 1]);
  auto [p, q] = std::pair(b[rank - 2], b[rank - 1]);
  if (params.adj_x) std::swap(m, n);
  if (params.adj_y) std::swap(p, q);
  return m == 1 && q == 1 && n == p &&
         std::equal(a.begin(), a.end() - 2, b.begin()) &&
         std::equal(a.begin(), a.end() - 2, output.begin()) &&
         output[rank - 2] == 1 && output[rank - 1] == 1;
}

bool CanonicalGraph::IsBroadcastTo(const CanonicalNode& node) const {
  const ShapeView output = Shapes<1>({node.output})[0];
  const std::optional<std::vector<int>> sizes = Integers(node.b);
  return sizes.has_value() &&
         std::equal(sizes->begin(), sizes->end(), output.begin(), output.end());
}

int64_t CanonicalGraph::StoredElements(int index, std::size_t size) const {
  const TfLiteTensor& t = tensor(index);
  const int64_t count = NumElements({t.dims->size, t.dims->data});
  return IsStored(index) && t.sparsity == nullptr && count >= 0 &&
                 t.bytes % size == 0 &&
                 t.bytes / size == static_cast<std::size_t>(count)
             ? count
             : -1;
}

std::optional<std::vector<int>> CanonicalGraph::Integers(int index) const {
  // More than any list of axes or sizes has.
  constexpr int64_t kMaxIntegers = 64;
  const TfLiteTensor& t = tensor(index);
  const std::size_t size = t.type == kTfLiteInt64 ? 8 : 4;
  const int64_t count = StoredElements(index, size);
  if ((t.type != kTfLiteInt32 && t.type != kTfLiteInt64) || count < 0 ||
      count > kMaxIntegers) {
    return std::nullopt;
  }
  std::vector<int> integers(count);
  const auto* data = static_cast<const uint8_t*>(t.data);
  for (std::size_t i = 0; i < integers.size(); ++i) {
    integers[i] = size == 4 ? Load<int32_t>(data + 4 * i)
                            : static_cast<int>(Load<int64_t>(data + 8 * i));
  }
  return integers;
}

std::optional<double> CanonicalGraph::Scalar(int index) const {
  const int node = producers_[index];
  const bool broadcast =
      node != kNone && nodes_[node].op == Operator::kBroadcast;
  const int source = Source(broadcast ? nodes_[node].a : index);
  const TfLiteTensor& t = tensor(source);
  ElementType type;
  if (!ToElementType(t.type, &type) ||
      StoredElements(source, SizeOf(type)) != 1) {
    return std::nullopt;
  }
  return WidenElement(t.data, type);
}

bool CanonicalGraph::KeepsValue(const CanonicalNode& node) const {
  if (node.op == Operator::kOther || tensor(node.a).is_variable) return false;
  if (node.op == Operator::kCast) {
    return tensor(node.output).type == tensor(node.a).type ||
           (tensor(node.a).type != kTfLiteFloat32 &&
            tensor(node.output).type == kTfLiteFloat32);
  }
  if (node.op != Operator::kReshape && node.op != Operator::kOnes &&
      node.op != Operator::kIdentity) {
    return false;
  }
  const auto [shape, output] = Shapes<2>({node.a, node.output});
  return WithoutLeadingOnes(shape) == WithoutLeadingOnes(output);
}

int CanonicalGraph::Before(int index) const {
  const int node = producers_[index];
  return node != kNone && KeepsValue(nodes_[node]) ? nodes_[node].a : kNone;
}

}  // namespace ai_edge_rms_norm
