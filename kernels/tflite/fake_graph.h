// A graph as a delegate sees it, for tests without a file and a runtime.
#ifndef KERNELS_TFLITE_FAKE_GRAPH_H_
#define KERNELS_TFLITE_FAKE_GRAPH_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <numeric>
#include <vector>

#include "kernels/tflite/int_array.h"
#include "kernels/tflite/rms_norm_pattern.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

class FakeGraph : public TfLiteContext {
 public:
  FakeGraph() : TfLiteContext() {
    GetNodeAndRegistration = [](TfLiteContext* context, int index,
                                TfLiteNode** node,
                                TfLiteRegistration** registration) {
      auto* self = static_cast<FakeGraph*>(context);
      if (index < 0 || index >= self->num_nodes()) {
        return kTfLiteError;
      }
      *node = &self->nodes_[index].node;
      *registration = &self->nodes_[index].registration;
      return kTfLiteOk;
    };
  }
  FakeGraph(const FakeGraph&) = delete;
  FakeGraph& operator=(const FakeGraph&) = delete;

  int Tensor(const std::vector<int>& shape, TfLiteType type = kTfLiteFloat32) {
    TfLiteTensor& tensor = tensors_.emplace_back();
    dims_.push_back(NewIntArray(shape.data(), shape.size()));
    tensor.type = type;
    tensor.dims = dims_.back().get();
    tensor.allocation_type = kTfLiteArenaRw;
    tensors = tensors_.data();
    tensors_size = tensors_.size();
    return static_cast<int>(tensors_size) - 1;
  }

  template <typename T>
  int Constant(const std::vector<int>& shape, const std::vector<T>& values,
               TfLiteType type) {
    const int index = Tensor(shape, type);
    const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
    data_.emplace_back(bytes, bytes + values.size() * sizeof(T));
    tensors_[index].data = data_.back().data();
    tensors_[index].bytes = data_.back().size();
    tensors_[index].allocation_type = kTfLiteMmapRo;
    return index;
  }

  int Node(int builtin, const std::vector<int>& inputs, int output,
           bool keep_dims = true) {
    FakeNode& node = nodes_.emplace_back();
    node.inputs = NewIntArray(inputs.data(), inputs.size());
    node.outputs = NewIntArray(&output, 1);
    node.node.inputs = node.inputs.get();
    node.node.outputs = node.outputs.get();
    if (builtin == kTfLiteBuiltinMean) node.params[0] = keep_dims;
    node.node.builtin_data = node.params;
    node.registration.builtin_code = builtin;
    return output;
  }

  int num_nodes() const { return static_cast<int>(nodes_.size()); }

  // Sets the first number of the options of the last node.
  void SetOption(int value) { nodes_.back().params[0] = value; }

  // x * rsqrt(mean(x * x) + 0.25); the tensors are those of the names.
  int Norm(int x) {
    square = Node(kTfLiteBuiltinMul, {x, x}, Tensor({2, 4}));
    axis = Constant<int32_t>({1}, {1}, kTfLiteInt32);
    mean = Node(kTfLiteBuiltinMean, {square, axis}, Tensor({2, 1}));
    epsilon = Constant<float>({}, {0.25f}, kTfLiteFloat32);
    shifted = Node(kTfLiteBuiltinAdd, {mean, epsilon}, Tensor({2, 1}));
    inverse = Node(kTfLiteBuiltinRsqrt, {shifted}, Tensor({2, 1}));
    return Node(kTfLiteBuiltinMul, {x, inverse}, Tensor({2, 4}));
  }

  std::vector<RmsNormMatch> Find(const std::vector<int>& outputs) {
    std::vector<int> nodes(nodes_.size());
    std::iota(nodes.begin(), nodes.end(), 0);
    return FindRmsNorms(this, nodes, outputs);
  }

  int square = -1, axis = -1, mean = -1, epsilon = -1, shifted = -1,
      inverse = -1;

 private:
  struct FakeNode {
    TfLiteNode node{};
    TfLiteRegistration registration{};
    IntArray inputs, outputs;
    int params[16] = {};
  };

  std::vector<TfLiteTensor> tensors_;
  std::deque<IntArray> dims_;
  std::deque<std::vector<uint8_t>> data_;
  std::deque<FakeNode> nodes_;
};

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_FAKE_GRAPH_H_
