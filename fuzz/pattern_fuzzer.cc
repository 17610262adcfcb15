// Graphs of operators, shapes, types and constants that libFuzzer chooses,
// through what the delegate recognizes norms with. Constants end where they
// must, for AddressSanitizer to see; a match has to name what is in the graph.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/tflite/fake_graph.h"

namespace ai_edge_rms_norm {
namespace {

constexpr int kMaxNodes = 48;

constexpr int kBuiltins[] = {kTfLiteBuiltinAdd,
                             kTfLiteBuiltinDequantize,
                             kTfLiteBuiltinMul,
                             kTfLiteBuiltinReshape,
                             kTfLiteBuiltinCustom,
                             kTfLiteBuiltinMean,
                             kTfLiteBuiltinDiv,
                             kTfLiteBuiltinSqueeze,
                             kTfLiteBuiltinCast,
                             kTfLiteBuiltinMaximum,
                             kTfLiteBuiltinExpandDims,
                             kTfLiteBuiltinSum,
                             kTfLiteBuiltinSqrt,
                             kTfLiteBuiltinRsqrt,
                             kTfLiteBuiltinPow,
                             kTfLiteBuiltinReduceMax,
                             kTfLiteBuiltinSquare,
                             kTfLiteBuiltinAbs,
                             kTfLiteBuiltinBatchMatmul,
                             kTfLiteBuiltinBroadcastTo,
                             kTfLiteBuiltinStablehloComposite};

constexpr float kNumbers[] = {0.0f, 1.0f,  -1.0f, 2.0f,  -0.5f,
                              0.5f, 0.25f, 1e-6f, 1e38f, NAN};

class Chooser {
 public:
  Chooser(const std::uint8_t* data, std::size_t size)
      : data_(data), end_(data + size) {}

  bool empty() const { return data_ == end_; }
  // 0 when all bytes are used.
  int Next(int count) { return empty() ? 0 : *data_++ % count; }
  template <class T, std::size_t count>
  T Of(const T (&values)[count]) {
    return values[Next(count)];
  }

 private:
  const std::uint8_t* data_;
  const std::uint8_t* end_;
};

class RandomGraph {
 public:
  RandomGraph(const std::uint8_t* data, std::size_t size)
      : choose_(data, size) {
    AddTensor();
    for (int i = 0; i < kMaxNodes && !choose_.empty(); ++i) AddNode();
    Damage();
  }

  void Check() {
    std::vector<int> outputs = {static_cast<int>(graph_.tensors_size) - 1};
    if (choose_.Next(4) == 1) outputs.push_back(ATensor());
    for (const RmsNormMatch& match : graph_.Find(outputs)) {
      const bool ordered =
          !match.nodes.empty() &&
          std::is_sorted(match.nodes.begin(), match.nodes.end()) &&
          match.nodes.front() >= 0 && match.nodes.back() < graph_.num_nodes();
      const bool named =
          IsTensor(match.x) && IsTensor(match.y) &&
          (match.weight == kTfLiteOptionalTensor || IsTensor(match.weight));
      if (!ordered || !named || !(match.epsilon > 0) ||
          !std::isfinite(match.epsilon)) {
        std::fprintf(stderr, "x %d weight %d y %d epsilon %g, %zu nodes\n",
                     match.x, match.weight, match.y, match.epsilon,
                     match.nodes.size());
        std::abort();
      }
    }
  }

 private:
  bool IsTensor(int index) const {
    return index >= 0 && index < static_cast<int>(graph_.tensors_size);
  }
  int ATensor() { return choose_.Next(static_cast<int>(graph_.tensors_size)); }

  // Of any tensor, one number for each of its rows, or anything.
  std::vector<int> AShape() {
    static constexpr int kSizes[] = {4, 2, 1, 0, -1, 1 << 30};
    std::vector<int> shape;
    switch (choose_.Next(4)) {
      case 0:
        return {2, 4};
      case 1:
        return {2, 1};
      case 2:
        return {4};
      default:
        shape.resize(choose_.Next(6));
        for (int& size : shape) size = choose_.Of(kSizes);
        return shape;
    }
  }

  int AddTensor() {
    static constexpr TfLiteType kTypes[] = {kTfLiteFloat32, kTfLiteFloat32,
                                            kTfLiteFloat16, kTfLiteBFloat16,
                                            kTfLiteInt32,   kTfLiteInt8};
    return graph_.Tensor(AShape(), choose_.Of(kTypes));
  }

  int AddConstant() {
    switch (choose_.Next(3)) {
      case 0:
        return graph_.Constant<float>({}, {choose_.Of(kNumbers)},
                                      kTfLiteFloat32);
      case 1: {
        std::vector<float> values(choose_.Next(6));
        for (float& value : values) value = choose_.Of(kNumbers);
        return graph_.Constant(AShape(), values, kTfLiteFloat32);
      }
      default: {
        std::vector<int32_t> values(choose_.Next(6));
        for (int32_t& value : values) value = choose_.Next(5) - 2;
        return graph_.Constant({static_cast<int>(values.size())}, values,
                               kTfLiteInt32);
      }
    }
  }

  int AnOperand() {
    switch (choose_.Next(8)) {
      case 0:
        return AddConstant();
      case 1:
        return AddTensor();
      case 2:
        return choose_.Next(2) == 0 ? kTfLiteOptionalTensor : 1 << 30;
      case 3:
      case 4:
        return ATensor();
      default:
        return last_;
    }
  }

  void AddNode() {
    if (choose_.Next(8) == 0) {
      last_ = graph_.Norm(last_);
      return;
    }
    const int builtin = choose_.Of(kBuiltins);
    std::vector<int> inputs(choose_.Next(4));
    for (int& input : inputs) input = AnOperand();
    const int output = choose_.Next(16) == 1 ? AnOperand() : AddTensor();
    graph_.Node(builtin, inputs, output);
    // A runtime's options hold no other booleans than these; BATCH_MATMUL has
    // several.
    graph_.SetOption(builtin == kTfLiteBuiltinBatchMatmul
                         ? choose_.Next(2) + (choose_.Next(2) << 8)
                         : choose_.Next(2));
    if (IsTensor(output)) last_ = output;
  }

  // What a file may say of a tensor that is not so.
  void Damage() {
    for (int i = choose_.Next(4); i > 0; --i) {
      TfLiteTensor& tensor = graph_.tensors[ATensor()];
      switch (choose_.Next(4)) {
        case 0:
          // Never more than there is: the runtime sees to that.
          tensor.bytes = std::min<std::size_t>(tensor.bytes, choose_.Next(8));
          break;
        case 1:
          tensor.is_variable = true;
          break;
        case 2:
          tensor.type = choose_.Next(2) == 0 ? kTfLiteFloat16 : kTfLiteInt8;
          break;
        default:
          tensor.data = nullptr;
          break;
      }
    }
  }

  Chooser choose_;
  FakeGraph graph_;
  int last_ = 0;
};

}  // namespace
}  // namespace ai_edge_rms_norm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  ai_edge_rms_norm::RandomGraph(data, size).Check();
  return 0;
}
