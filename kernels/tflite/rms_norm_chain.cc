#include "kernels/tflite/rms_norm_chain.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/tflite/rms_norm_node.h"

namespace ai_edge_rms_norm {
namespace {

constexpr int kNone = -1;

class Graph {
 public:
  Graph(TfLiteContext* context, const std::vector<int>& node_indices)
      : context_(context),
        producers_(context->tensors_size, kNone),
        consumers_(context->tensors_size) {
    for (const int node_index : node_indices) {
      Node node;
      node.index = node_index;
      if (context->GetNodeAndRegistration(context, node_index, &node.node,
                                          &node.registration) != kTfLiteOk) {
        continue;
      }
      const int position = static_cast<int>(nodes_.size());
      nodes_.push_back(node);
      for (int i = 0; i < node.node->inputs->size; ++i) {
        const int input = node.node->inputs->data[i];
        if (!IsTensor(input)) continue;
        std::vector<int>& consumers = consumers_[input];
        if (consumers.empty() || consumers.back() != position) {
          consumers.push_back(position);
        }
      }
      for (int i = 0; i < node.node->outputs->size; ++i) {
        const int output = node.node->outputs->data[i];
        if (IsTensor(output)) producers_[output] = position;
      }
    }
    // The runtime does not check the order of a file's nodes; going back
    // through one that comes later might never end.
    for (std::size_t i = 0; i < producers_.size(); ++i) {
      if (!consumers_[i].empty() && consumers_[i].front() <= producers_[i]) {
        producers_[i] = kNone;
      }
    }
  }

  int size() const { return static_cast<int>(nodes_.size()); }

  // Matches the chain whose root the node computes.
  std::optional<RmsNormChain> Match(int root) const;

 private:
  struct Node {
    int index = kNone;
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
  };

  // What the nodes up to the root compute.
  struct Statistic {
    int factors[2] = {kNone, kNone};  // Their product is x^2.
    int square = kNone;               // The tensor x^2; it has the shape of x.
    double epsilon = 0.0;
    bool inverted = false;  // 1 / rms instead of rms.
    std::vector<int> nodes;
  };

  bool IsTensor(int index) const {
    return index >= 0 && static_cast<std::size_t>(index) < producers_.size();
  }

  const TfLiteTensor& tensor(int index) const {
    return context_->tensors[index];
  }

  int Builtin(int node) const {
    return nodes_[node].registration->builtin_code;
  }

  int NumInputs(int node) const { return nodes_[node].node->inputs->size; }

  int Input(int node, int i) const {
    const TfLiteIntArray& inputs = *nodes_[node].node->inputs;
    return i < inputs.size && IsTensor(inputs.data[i]) ? inputs.data[i] : kNone;
  }

  int Output(int node) const { return nodes_[node].node->outputs->data[0]; }

  bool IsFloat(int index) const {
    ElementType type;
    return index != kNone && ToElementType(tensor(index).type, &type);
  }

  bool IsConstant(int index) const {
    return tensor(index).allocation_type == kTfLiteMmapRo &&
           tensor(index).data != nullptr;
  }

  // Whether the node has one output, its first two inputs as far as it needs
  // them, and no fused activation.
  bool IsPlain(int node) const {
    if (nodes_[node].node->outputs->size != 1 || !IsTensor(Output(node)) ||
        Input(node, 0) == kNone) {
      return false;
    }
    switch (Builtin(node)) {
      case kTfLiteBuiltinAdd:
      case kTfLiteBuiltinMul:
      case kTfLiteBuiltinDiv: {
        // Their parameters begin with the activation; 0: none.
        int activation = 0;
        const void* params = nodes_[node].node->builtin_data;
        if (params == nullptr || NumInputs(node) != 2) return false;
        std::memcpy(&activation, params, sizeof(activation));
        return activation == 0 && Input(node, 1) != kNone;
      }
      case kTfLiteBuiltinMean:
      case kTfLiteBuiltinPow:
        return NumInputs(node) == 2 && Input(node, 1) != kNone;
      default:
        return true;
    }
  }

  // The node that produces a tensor, if it is a plain one of this kind.
  int ProducedBy(int index, int builtin) const {
    const int node = index == kNone ? kNone : producers_[index];
    return node != kNone && Builtin(node) == builtin && IsPlain(node) ? node
                                                                      : kNone;
  }

  // A constant of one element.
  template <typename T>
  bool ReadConstant(int index, TfLiteType type, T* value) const {
    if (!IsConstant(index) || tensor(index).type != type ||
        tensor(index).bytes != sizeof(T)) {
      return false;
    }
    std::memcpy(value, tensor(index).data, sizeof(T));
    return true;
  }

  bool IsScalar(int index, float expected) const {
    float value = 0.0f;
    return ReadConstant(index, kTfLiteFloat32, &value) && value == expected;
  }

  static bool IsReshape(int builtin) {
    return builtin == kTfLiteBuiltinReshape ||
           builtin == kTfLiteBuiltinExpandDims;
  }

  // Goes back through casts and, if wanted, reshapes.
  int SkipBack(int index, bool reshapes, std::vector<int>* nodes) const {
    while (index != kNone) {
      const int node = producers_[index];
      if (node == kNone || !IsPlain(node)) break;
      const int builtin = Builtin(node);
      if (builtin != kTfLiteBuiltinCast && !(reshapes && IsReshape(builtin))) {
        break;
      }
      const int before = Input(node, 0);
      if (!IsFloat(before)) break;
      nodes->push_back(node);
      index = before;
    }
    return index;
  }

  // The shapes of both, as far as known with -1 where a size may change.
  std::pair<const TfLiteIntArray*, const TfLiteIntArray*> Shapes(int a,
                                                                 int b) const {
    const TfLiteIntArray* shapes[2];
    const int indices[] = {a, b};
    for (int i = 0; i < 2; ++i) {
      const TfLiteTensor& t = tensor(indices[i]);
      shapes[i] = t.dims_signature;
      if (shapes[i] == nullptr || shapes[i]->size != t.dims->size) {
        return {tensor(a).dims, tensor(b).dims};
      }
    }
    return {shapes[0], shapes[1]};
  }

  // Whether the shapes differ at most in leading dimensions of 1.
  bool SameBesideLeadingOnes(int a, int b) const {
    const auto [a_dims, b_dims] = Shapes(a, b);
    const TfLiteIntArray* dims[] = {a_dims, b_dims};
    const int* begin[2];
    const int* end[2];
    for (int i = 0; i < 2; ++i) {
      end[i] = dims[i]->data + dims[i]->size;
      begin[i] = std::find_if(static_cast<const int*>(dims[i]->data), end[i],
                              [](int size) { return size != 1; });
    }
    return std::equal(begin[0], end[0], begin[1], end[1]);
  }

  // What a tensor was before it was cast to a wider type, or reshaped by
  // leading dimensions of 1, which converters leave out where an operator
  // broadcasts; or kNone.
  int Before(int index) const {
    int node = ProducedBy(index, kTfLiteBuiltinCast);
    if (node != kNone) {
      const int before = Input(node, 0);
      return IsFloat(before) && tensor(before).type != kTfLiteFloat32 ? before
                                                                      : kNone;
    }
    node = ProducedBy(index, kTfLiteBuiltinReshape);
    if (node == kNone) return kNone;
    const int before = Input(node, 0);
    return SameBesideLeadingOnes(before, index) ? before : kNone;
  }

  int Source(int index) const {
    for (int before; (before = Before(index)) != kNone;) index = before;
    return index;
  }

  // The node that computes the square of something; sets its factors.
  int Square(int index, int factors[2]) const {
    int node = ProducedBy(index, kTfLiteBuiltinSquare);
    if (node == kNone) {
      node = ProducedBy(index, kTfLiteBuiltinMul);
      if (node != kNone && Source(Input(node, 0)) != Source(Input(node, 1))) {
        return kNone;
      }
    }
    if (node == kNone) {
      node = ProducedBy(index, kTfLiteBuiltinPow);
      if (node != kNone && !IsScalar(Input(node, 1), 2.0f)) return kNone;
    }
    if (node == kNone) return kNone;
    factors[0] = Input(node, 0);
    factors[1] =
        Builtin(node) == kTfLiteBuiltinMul ? Input(node, 1) : factors[0];
    return node;
  }

  bool FindStatistic(int root, Statistic* statistic) const {
    if (!IsPlain(root)) return false;
    switch (Builtin(root)) {
      case kTfLiteBuiltinRsqrt:
        statistic->inverted = true;
        break;
      case kTfLiteBuiltinSqrt:
        break;
      case kTfLiteBuiltinPow:
        statistic->inverted = IsScalar(Input(root, 1), -0.5f);
        if (!statistic->inverted) return false;
        break;
      default:
        return false;
    }
    std::vector<int>& nodes = statistic->nodes;
    nodes = {root};
    const int add =
        ProducedBy(SkipBack(Input(root, 0), true, &nodes), kTfLiteBuiltinAdd);
    if (add == kNone) return false;
    nodes.push_back(add);
    int mean_square = Input(add, 0);
    int shift = Input(add, 1);
    if (IsConstant(mean_square)) std::swap(mean_square, shift);
    float epsilon = 0.0f;
    if (!ReadConstant(shift, kTfLiteFloat32, &epsilon) ||
        !std::isfinite(epsilon) || epsilon <= 0.0f) {
      return false;
    }
    statistic->epsilon = epsilon;
    const int mean =
        ProducedBy(SkipBack(mean_square, true, &nodes), kTfLiteBuiltinMean);
    if (mean == kNone) return false;
    nodes.push_back(mean);
    const int square =
        Square(SkipBack(Input(mean, 0), false, &nodes), statistic->factors);
    if (square == kNone) return false;
    nodes.push_back(square);
    statistic->square = Output(square);
    int32_t axis = 0;
    const int rank = tensor(statistic->square).dims->size;
    return rank > 0 && ReadConstant(Input(mean, 1), kTfLiteInt32, &axis) &&
           (axis == -1 || axis == rank - 1);
  }

  // Whether the shape is that of x, with `last` as the last dimension.
  bool HasRowsOf(int index, int x, int last) const {
    const auto [dims, x_dims] = Shapes(index, x);
    return dims->size == x_dims->size && dims->size > 0 &&
           LastDimension(index) == last &&
           std::equal(dims->data, dims->data + dims->size - 1, x_dims->data);
  }

  int LastDimension(int index) const {
    return tensor(index).dims->data[tensor(index).dims->size - 1];
  }

  bool IsWeight(int index, int x) const {
    const TfLiteIntArray& dims = *tensor(index).dims;
    return IsFloat(index) && IsConstant(index) &&
           tensor(index).sparsity == nullptr && dims.size > 0 &&
           dims.size <= tensor(x).dims->size &&
           dims.data[dims.size - 1] == LastDimension(x) &&
           std::all_of(dims.data, dims.data + dims.size - 1,
                       [](int size) { return size == 1; });
  }

  // The node that computes x * weight; sets *weight.
  int Scaled(int index, int source, int x, int* weight) const {
    const int node = ProducedBy(index, kTfLiteBuiltinMul);
    if (node == kNone) return kNone;
    for (int i = 0; i < 2; ++i) {
      const int other = Input(node, 1 - i);
      if (Source(Input(node, i)) == source && IsWeight(other, x)) {
        *weight = other;
        return node;
      }
    }
    return kNone;
  }

  // x in the type and shape of y, or kNone. Appends the nodes behind it, which
  // the chain then replaces, too: after them x may have no memory any more.
  int FindVariant(const Statistic& statistic, int y,
                  std::vector<int>* nodes) const {
    const std::size_t size = nodes->size();
    for (int x : statistic.factors) {
      nodes->resize(size);
      while (x != kNone) {
        if (tensor(x).type == tensor(y).type &&
            HasRowsOf(x, y, LastDimension(y))) {
          return x;
        }
        const int before = Before(x);
        if (before != kNone) nodes->push_back(producers_[x]);
        x = before;
      }
    }
    nodes->resize(size);
    return kNone;
  }

  // Whether only nodes of the chain use what the others in it compute.
  bool IsClosed(const std::vector<int>& nodes, int y) const {
    for (const int node : nodes) {
      if (Output(node) == y) continue;
      for (const int user : consumers_[Output(node)]) {
        if (std::find(nodes.begin(), nodes.end(), user) == nodes.end()) {
          return false;
        }
      }
    }
    return true;
  }

  TfLiteContext* const context_;
  std::vector<Node> nodes_;
  // By tensor: positions in nodes_.
  std::vector<int> producers_;
  std::vector<std::vector<int>> consumers_;
};

std::optional<RmsNormChain> Graph::Match(int root) const {
  Statistic statistic;
  if (!FindStatistic(root, &statistic)) return std::nullopt;
  const int x = statistic.square;  // As far as shapes are concerned.
  const int source = Source(statistic.factors[0]);
  if (!IsFloat(source) || tensor(source).is_variable) return std::nullopt;

  // Forward from the root, as long as there is one user; `best` is the longest
  // chain so far that is an RMSNorm.
  RmsNormChain best;
  std::vector<int> best_nodes;
  std::vector<int>& nodes = statistic.nodes;
  bool inverted = statistic.inverted;
  bool has_x = false;
  int weight = kNone;
  int index = Output(root);
  int last = root;
  while (consumers_[index].size() == 1) {
    const int user = consumers_[index][0];
    if (user <= last || !IsPlain(user) || !IsFloat(Output(user))) break;
    last = user;
    const int builtin = Builtin(user);
    if (IsReshape(builtin)) {
      if (has_x || weight != kNone) break;
    } else if (builtin == kTfLiteBuiltinDiv) {
      const int numerator = Input(user, 0);
      if (inverted || Input(user, 1) != index || numerator == index) break;
      inverted = true;
      if (Source(numerator) == source) {
        if (!HasRowsOf(index, x, 1)) break;
        has_x = true;
      } else if (!IsScalar(numerator, 1.0f)) {
        break;
      }
    } else if (builtin == kTfLiteBuiltinMul) {
      const int other = Input(user, Input(user, 0) == index ? 1 : 0);
      if (!inverted || other == index) break;
      if (!has_x &&
          !HasRowsOf(index, x, weight == kNone ? 1 : LastDimension(x))) {
        break;
      }
      int product = kNone;
      if (!has_x && Source(other) == source) {
        has_x = true;
      } else if (weight == kNone && IsWeight(other, x)) {
        weight = other;
      } else if (!has_x && weight == kNone &&
                 (product = Scaled(other, source, x, &weight)) != kNone) {
        nodes.push_back(product);
        has_x = true;
      } else {
        break;
      }
    } else if (builtin != kTfLiteBuiltinCast) {
      break;
    }
    nodes.push_back(user);
    index = Output(user);
    if (!has_x || !HasRowsOf(index, x, LastDimension(x))) continue;
    // Not copied by construction, for which GCC 11 needs a newer libstdc++ than
    // for all else.
    std::vector<int> candidate;
    candidate.assign(nodes.begin(), nodes.end());
    const int variant = FindVariant(statistic, index, &candidate);
    if (variant == kNone || !IsClosed(candidate, index) ||
        (weight != kNone && tensor(weight).type != tensor(index).type &&
         tensor(weight).type != kTfLiteFloat32)) {
      continue;
    }
    best.x = variant;
    best.weight = weight;
    best.y = index;
    best_nodes = std::move(candidate);
  }
  if (best_nodes.empty()) return std::nullopt;
  std::sort(best_nodes.begin(), best_nodes.end());
  best_nodes.erase(std::unique(best_nodes.begin(), best_nodes.end()),
                   best_nodes.end());
  // What follows y in the plan would not be in the same partition.
  if (Output(best_nodes.back()) != best.y) return std::nullopt;
  best.epsilon = statistic.epsilon;
  for (const int node : best_nodes) best.nodes.push_back(nodes_[node].index);
  return best;
}

}  // namespace

std::vector<RmsNormChain> FindRmsNormChains(
    TfLiteContext* context, const std::vector<int>& node_indices) {
  const Graph graph(context, node_indices);
  std::vector<RmsNormChain> chains;
  for (int node = 0; node < graph.size(); ++node) {
    std::optional<RmsNormChain> chain = graph.Match(node);
    if (chain.has_value()) chains.push_back(*std::move(chain));
  }
  return chains;
}

}  // namespace ai_edge_rms_norm
