// Graphs that are not well-formed, which a runtime may not survive. What
// well-formed ones mean is for rms_norm_delegate_test.py, beside the runtime.
#include "kernels/tflite/rms_norm_pattern.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/tflite/fake_graph.h"
#include "kernels/tflite/int_array.h"

namespace ai_edge_rms_norm {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using Ints = std::vector<int>;

TEST(RmsNormPatternTest, Match) {
  FakeGraph graph;
  const int x = graph.Tensor({2, 4});
  const int y = graph.Norm(x);
  const std::vector<RmsNormMatch> matches = graph.Find({y});
  ASSERT_THAT(matches, SizeIs(1));
  EXPECT_THAT(matches[0].nodes, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(matches[0].x, x);
  EXPECT_EQ(matches[0].weight, kTfLiteOptionalTensor);
  EXPECT_EQ(matches[0].y, y);
  EXPECT_EQ(matches[0].epsilon, 0.25);
  EXPECT_FALSE(matches[0].range_safe);
}

TEST(RmsNormPatternTest, EpsilonIsTheShortestDecimal) {
  for (const double epsilon : {1e-6, 1e-5, 1.1920929e-07, 0.1}) {
    FakeGraph graph;
    const int x = graph.Tensor({2, 4});
    const int y = graph.Norm(x);
    const float value = static_cast<float>(epsilon);
    std::memcpy(graph.tensors[graph.epsilon].data, &value, sizeof(value));
    ASSERT_THAT(graph.Find({y}), SizeIs(1));
    EXPECT_EQ(graph.Find({y})[0].epsilon, epsilon);
  }
}

TEST(RmsNormPatternTest, NoNodesAndNoTensors) {
  FakeGraph graph;
  EXPECT_THAT(graph.Find({}), IsEmpty());
  EXPECT_THAT(FindRmsNorms(&graph, {7, -1}, {-1, 99}), IsEmpty());
}

TEST(RmsNormPatternTest, IntermediateIsAnOutput) {
  FakeGraph graph;
  const int y = graph.Norm(graph.Tensor({2, 4}));
  EXPECT_THAT(graph.Find({y, graph.mean}), IsEmpty());
  EXPECT_THAT(graph.Find({y}), SizeIs(1));
}

// The runtime does not check the order of nodes.
TEST(RmsNormPatternTest, TensorIsReadBeforeItIsWritten) {
  FakeGraph graph;
  const int x = graph.Tensor({2, 4});
  const int other = graph.Tensor({2, 4});
  const int y = graph.Norm(x);
  graph.Node(kTfLiteBuiltinAbs, {other}, x);
  EXPECT_THAT(graph.Find({y}), IsEmpty());
}

TEST(RmsNormPatternTest, TensorIsWrittenTwice) {
  for (const bool statistic : {false, true}) {
    FakeGraph graph;
    const int x = graph.Tensor({2, 4});
    graph.Node(kTfLiteBuiltinAbs, {graph.Tensor({2, 4})}, x);
    const int y = graph.Norm(x);
    if (statistic) {
      graph.Node(kTfLiteBuiltinAbs, {graph.Tensor({2, 1})}, graph.mean);
    } else {
      graph.Node(kTfLiteBuiltinAbs, {graph.Tensor({2, 4})}, x);
    }
    EXPECT_THAT(graph.Find({y}), IsEmpty());
  }
}

TEST(RmsNormPatternTest, NodesInACircle) {
  FakeGraph graph;
  const int a = graph.Tensor({2, 4});
  const int b = graph.Tensor({2, 4});
  graph.Node(kTfLiteBuiltinCast, {a}, b);
  graph.Node(kTfLiteBuiltinCast, {b}, a);
  const std::vector<RmsNormMatch> matches = graph.Find({graph.Norm(b)});
  ASSERT_THAT(matches, SizeIs(1));
  EXPECT_EQ(matches[0].x, b);
  EXPECT_THAT(graph.Find({graph.Norm(a)}), SizeIs(1));
}

TEST(RmsNormPatternTest, OutputHoldsConstantData) {
  for (const bool last : {false, true}) {
    FakeGraph graph;
    const int y = graph.Norm(graph.Tensor({2, 4}));
    graph.tensors[last ? y : graph.mean].allocation_type = kTfLiteMmapRo;
    EXPECT_THAT(graph.Find({y}), IsEmpty());
  }
}

TEST(RmsNormPatternTest, XIsNotAnActivation) {
  FakeGraph graph;
  const int x = graph.Tensor({2, 4});
  const int y = graph.Norm(x);
  graph.tensors[x].is_variable = true;
  EXPECT_THAT(graph.Find({y}), IsEmpty());
  graph.tensors[x].is_variable = false;
  graph.tensors[x].type = kTfLiteInt8;
  EXPECT_THAT(graph.Find({y}), IsEmpty());
}

TEST(RmsNormPatternTest, LastDimensionIsNotStatic) {
  FakeGraph graph;
  const int x = graph.Tensor({2, 4});
  const int y = graph.Norm(x);
  const Ints open = {2, -1}, statistic = {2, 1};
  const IntArray signature = NewIntArray(open.data(), 2);
  const IntArray of_statistic = NewIntArray(statistic.data(), 2);
  for (const int tensor : {x, graph.square, y}) {
    graph.tensors[tensor].dims_signature = signature.get();
  }
  for (const int tensor : {graph.mean, graph.shifted, graph.inverse}) {
    graph.tensors[tensor].dims_signature = of_statistic.get();
  }
  EXPECT_THAT(graph.Find({y}), IsEmpty());
}

// A constant that stores less, or more, than its shape says is not read.
TEST(RmsNormPatternTest, ConstantsOfAnotherSize) {
  FakeGraph graph;
  const int y = graph.Norm(graph.Tensor({2, 4}));
  graph.tensors[graph.axis].bytes = 3;
  EXPECT_THAT(graph.Find({y}), IsEmpty());
  graph.tensors[graph.axis].bytes = std::size_t{1} << 40;
  EXPECT_THAT(graph.Find({y}), IsEmpty());
  graph.tensors[graph.axis].bytes = 4;
  const std::vector<float> short_weight(3, 1.0f);
  const int weight = graph.Constant({4}, short_weight, kTfLiteFloat32);
  const int scaled =
      graph.Node(kTfLiteBuiltinMul, {y, weight}, graph.Tensor({2, 4}));
  const std::vector<RmsNormMatch> matches = graph.Find({scaled});
  ASSERT_THAT(matches, SizeIs(1));
  EXPECT_EQ(matches[0].y, y);
}

// The product of the sizes does not fit into 64 bits, or only if two of them
// are negative.
TEST(RmsNormPatternTest, ShapesThatAreNotOfATensor) {
  for (const Ints& shape : {Ints{1 << 30, 1 << 30, 1 << 30}, Ints{-1, -4}}) {
    FakeGraph graph;
    const int y = graph.Norm(graph.Tensor({2, 4}));
    const int weight =
        graph.Constant<float>(shape, {1, 2, 3, 4}, kTfLiteFloat32);
    const int scaled =
        graph.Node(kTfLiteBuiltinMul, {y, weight}, graph.Tensor({2, 4}));
    const int sizes = graph.Constant<int32_t>({3}, shape, kTfLiteInt32);
    graph.Node(kTfLiteBuiltinReshape, {graph.Tensor(shape), sizes},
               graph.Tensor(shape));
    const std::vector<RmsNormMatch> matches = graph.Find({scaled});
    ASSERT_THAT(matches, SizeIs(1));
    EXPECT_EQ(matches[0].y, y);
  }
}

TEST(RmsNormPatternTest, OperandsThatAreNotTensors) {
  for (const Ints& inputs : {Ints{}, {0}, {0, -1}, {-1, 0}, {0, 1 << 30}}) {
    FakeGraph graph;
    const int x = graph.Tensor({2, 4});
    for (const int builtin :
         {kTfLiteBuiltinMul, kTfLiteBuiltinMean, kTfLiteBuiltinPow,
          kTfLiteBuiltinReshape, kTfLiteBuiltinExpandDims,
          kTfLiteBuiltinSqueeze, kTfLiteBuiltinBroadcastTo, kTfLiteBuiltinCast,
          kTfLiteBuiltinSquare, kTfLiteBuiltinAbs}) {
      graph.Node(builtin, inputs, graph.Tensor({2, 4}));
      graph.Node(builtin, {x, x}, -1);
      graph.Node(builtin, {x, x}, 1 << 30);
    }
    EXPECT_THAT(graph.Find({}), IsEmpty());
  }
}

// A chain of casts is as long as the file makes it; that is not recursive, and
// what is beyond all reason is not an RMSNorm.
TEST(RmsNormPatternTest, LongChains) {
  FakeGraph graph;
  int x = graph.Tensor({2, 4});
  for (int i = 0; i < 20000; ++i) {
    x = graph.Node(kTfLiteBuiltinCast, {x}, graph.Tensor({2, 4}));
  }
  int y = graph.Norm(x);
  const int norm = y;
  for (int i = 0; i < 20000; ++i) {
    y = graph.Node(kTfLiteBuiltinCast, {y}, graph.Tensor({2, 4}));
  }
  const std::vector<RmsNormMatch> matches = graph.Find({y});
  ASSERT_THAT(matches, SizeIs(1));
  EXPECT_GE(matches[0].y, norm);
  EXPECT_LT(matches[0].nodes.size(), 200u);
}

TEST(RmsNormPatternTest, ManyNorms) {
  FakeGraph graph;
  int x = graph.Tensor({2, 4});
  for (int i = 0; i < 2000; ++i) x = graph.Norm(x);
  EXPECT_THAT(graph.Find({x}), SizeIs(2000));
}

}  // namespace
}  // namespace ai_edge_rms_norm
