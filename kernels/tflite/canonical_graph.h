// The nodes of a TFLite graph in a canonical form: one operator for each of the
// ways in which converters write it.
#ifndef KERNELS_TFLITE_CANONICAL_GRAPH_H_
#define KERNELS_TFLITE_CANONICAL_GRAPH_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

// The shape of a tensor, with -1 for a size that the file leaves open.
struct ShapeView {
  int rank = 0;
  const int* dims = nullptr;

  int operator[](int i) const { return dims[i]; }
  const int* begin() const { return dims; }
  const int* end() const { return dims + rank; }
  int last() const { return rank > 0 ? dims[rank - 1] : 0; }
};

enum class Operator : unsigned char {
  kOther,
  kCast,       // CAST between floating types, DEQUANTIZE of float16
  kReshape,    // RESHAPE
  kOnes,       // EXPAND_DIMS, SQUEEZE
  kIdentity,   // MUL(a, 1), DIV(a, 1)
  kBroadcast,  // BROADCAST_TO
  kAbs,
  kSquare,      // SQUARE, POW(a, 2), MUL(a, a)
  kSqrt,        // SQRT, POW(a, 0.5)
  kRsqrt,       // RSQRT, POW(a, -0.5)
  kReciprocal,  // DIV(1, a), POW(a, -1)
  kMean,        // these three over the last axis
  kSum,
  kMax,
  kDot,  // BATCH_MATMUL of matrices of one row and of one column
  kAdd,
  kMul,
  kDiv,
  kMaximum,
};

struct CanonicalNode {
  int index = -1;  // In the graph of the runtime.
  Operator op = Operator::kOther;
  int a = kTfLiteOptionalTensor;
  int b = kTfLiteOptionalTensor;  // Of kDot to kMaximum, and MUL(a, b) = a².
  int output = kTfLiteOptionalTensor;
};

// The outputs of a graph, given all its nodes, which the C interface does not
// name: those of the partition that they are. Nothing if the runtime does not
// tell. To be called from TfLiteDelegate::Prepare.
std::optional<std::vector<int>> FindOutputs(
    TfLiteContext* context, const std::vector<int>& node_indices);

// Reads nodes once, in time that is linear in their number.
//
// A node is kOther unless it has one output that holds no constant data, no
// fused activation, operands of float32, float16 or bfloat16, and the type and
// shape that the file states for its output are those that it computes. The
// same goes for nodes at a tensor that several nodes write, or that is read
// before it is written.
class CanonicalGraph {
 public:
  // outputs: tensors that are read outside of the nodes.
  CanonicalGraph(TfLiteContext* context, const std::vector<int>& node_indices,
                 const std::vector<int>& outputs);

  const std::vector<CanonicalNode>& nodes() const { return nodes_; }
  std::size_t num_tensors() const { return context_->tensors_size; }
  const TfLiteTensor& tensor(int index) const {
    return context_->tensors[index];
  }

  // The position in nodes() of the node that computes a tensor, or -1.
  int producer(int tensor) const { return producers_[tensor]; }
  // The positions of the nodes that read a tensor, each once.
  const std::vector<int>& consumers(int tensor) const {
    return consumers_[tensor];
  }
  // All tensors that a node reads, whatever the node is.
  std::vector<int> Inputs(int position) const;
  bool is_output(int tensor) const { return outputs_[tensor]; }

  bool IsFloat(int tensor) const;
  bool IsStored(int tensor) const;  // Whether it is a constant of the file.

  // The tensor before it was cast from a narrower type or leading
  // dimensions of 1 were added or removed, which converters leave out where an
  // operator broadcasts; itself if it was not.
  int Source(int tensor) const { return sources_[tensor]; }
  // The last of these steps alone; -1 if there is none.
  int Before(int tensor) const;

  // The value of a constant of one element.
  std::optional<double> Scalar(int tensor) const;

  // The size of the last dimension; -1 if it is not static, 0 for a scalar.
  int LastDimension(int tensor) const;
  // The size of a matrix of one row or one column, the last two dimensions; of
  // an operand of kDot.
  int VectorSize(int tensor) const;
  // Whether two tensors have the same shape, but for the last dimension, which
  // is `last` in the first one.
  bool HasRowsOf(int tensor, int other, int last) const;
  bool SameShape(int a, int b) const;

 private:
  bool IsTensor(int index) const;
  bool IsSound(int tensor) const { return sound_[tensor]; }
  void AddNode(int node_index);
  void CheckOrder();
  void Canonicalize(CanonicalNode* node);
  bool ReadOperands(const TfLiteNode& node, int num_operands,
                    CanonicalNode* canonical) const;
  bool HasSoundOperands(int builtin, const CanonicalNode& node) const;
  Operator SpecialOperator(int builtin, const CanonicalNode& node) const;
  // Whether a node is a times, or over, a constant 1 that is b.
  bool IsTimesOne(int builtin, int a, int b) const;
  Operator PowerOf(const CanonicalNode& node) const;
  bool HasComputedType(int builtin, const CanonicalNode& node) const;
  bool HasComputedShape(const TfLiteNode& node, int builtin,
                        const CanonicalNode& canonical) const;
  bool IsReduced(const TfLiteNode& node, const CanonicalNode& canonical) const;
  bool IsBroadcast(const CanonicalNode& canonical) const;
  bool IsReshaped(const TfLiteNode& node, const CanonicalNode& canonical) const;
  std::optional<std::vector<int>> NewShape(
      const TfLiteNode& node, const CanonicalNode& canonical) const;
  bool IsExpanded(const CanonicalNode& canonical) const;
  bool IsDot(const TfLiteNode& node, const CanonicalNode& canonical) const;
  bool IsSqueezed(const TfLiteNode& node, const CanonicalNode& canonical) const;
  bool IsBroadcastTo(const CanonicalNode& canonical) const;
  bool KeepsValue(const CanonicalNode& node) const;
  // The shapes as the file states them; as they are now where the file states
  // one of them only.
  template <std::size_t n>
  std::array<ShapeView, n> Shapes(const std::array<int, n>& tensors) const;
  // The number of elements, of this size, of a dense constant; -1 if it is none
  // or its data are not those of its shape.
  int64_t StoredElements(int tensor, std::size_t size) const;
  // The integers of a constant.
  std::optional<std::vector<int>> Integers(int tensor) const;

  TfLiteContext* const context_;
  std::vector<CanonicalNode> nodes_;
  // By tensor.
  std::vector<int> producers_;
  std::vector<std::vector<int>> consumers_;
  std::vector<int> sources_;
  std::vector<bool> outputs_;
  std::vector<bool> sound_;
};

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_CANONICAL_GRAPH_H_
