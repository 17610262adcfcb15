// The custom ops against a small stand-in for the interpreter's context.
#include "kernels/tflite/rms_norm_op.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "flatbuffers/flexbuffers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/tflite/int_array.h"
#include "kernels/tflite/rms_norm_node.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::FloatEq;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

using Shape = std::vector<int>;

class FakeContext : public TfLiteContext {
 public:
  FakeContext() : TfLiteContext() {
    ReportError = Report;
    ResizeTensor = [](TfLiteContext* context, TfLiteTensor* tensor,
                      TfLiteIntArray* shape) {
      auto* self = static_cast<FakeContext*>(context);
      ++self->num_resizes;
      std::free(tensor->dims);
      tensor->dims = shape;
      self->Allocate(tensor);
      return kTfLiteOk;
    };
    recommended_num_threads = -1;
  }
  FakeContext(const FakeContext&) = delete;
  FakeContext& operator=(const FakeContext&) = delete;
  ~FakeContext() {
    for (TfLiteTensor& tensor : tensors_) std::free(tensor.dims);
  }

  int AddTensor(TfLiteType type, const Shape& shape,
                const std::vector<float>& values = {}) {
    TfLiteTensor& tensor = tensors_.emplace_back();
    tensor.type = type;
    tensor.dims = NewIntArray(shape.data(), shape.size()).release();
    tensor.allocation_type = kTfLiteArenaRw;
    tensors = tensors_.data();
    tensors_size = tensors_.size();
    const int index = static_cast<int>(tensors_size) - 1;
    Allocate(&tensor);
    std::copy(values.begin(), values.end(), static_cast<float*>(tensor.data));
    return index;
  }

  Shape shape(int index) const {
    const TfLiteIntArray* dims = tensors[index].dims;
    return Shape(dims->data, dims->data + dims->size);
  }

  std::vector<float> values(int index) const {
    const auto* data = static_cast<const float*>(tensors[index].data);
    return std::vector<float>(data,
                              data + tensors[index].bytes / sizeof(float));
  }

  std::string errors;
  int num_resizes = 0;

 private:
  static void Report(TfLiteContext* context, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    static_cast<FakeContext*>(context)->errors += text;
  }

  void Allocate(TfLiteTensor* tensor) {
    std::vector<double>& buffer = buffers_[tensor - tensors_.data()];
    const int* dims = tensor->dims->data;
    const std::size_t size = tensor->type == kTfLiteFloat32 ? 4 : 2;
    tensor->bytes = std::accumulate(dims, dims + tensor->dims->size, size,
                                    std::multiplies<std::size_t>());
    buffer.assign(tensor->bytes / sizeof(double) + 1, 0.0);
    tensor->data = buffer.data();
  }

  std::vector<TfLiteTensor> tensors_;
  std::map<std::ptrdiff_t, std::vector<double>> buffers_;
};

std::vector<uint8_t> Options(double epsilon) {
  flexbuffers::Builder builder;
  builder.Map([&] { builder.Double("epsilon", epsilon); });
  builder.Finish();
  return builder.GetBuffer();
}

// A node with the life that an interpreter gives it.
class Node {
 public:
  Node(FakeContext* context, const TfLiteRegistration* registration,
       const Shape& inputs, const Shape& outputs,
       const std::vector<uint8_t>& options = Options(1e-6))
      : context_(context), registration_(registration) {
    node_.inputs = NewIntArray(inputs.data(), inputs.size()).release();
    node_.outputs = NewIntArray(outputs.data(), outputs.size()).release();
    node_.user_data = registration->init(
        context, reinterpret_cast<const char*>(options.data()), options.size());
  }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node() {
    registration_->free(context_, node_.user_data);
    std::free(node_.inputs);
    std::free(node_.outputs);
  }

  TfLiteStatus Prepare() { return registration_->prepare(context_, &node_); }
  TfLiteStatus Invoke() { return registration_->invoke(context_, &node_); }

 private:
  FakeContext* context_;
  const TfLiteRegistration* registration_;
  TfLiteNode node_{};
};

std::string PrepareError(FakeContext* context,
                         const TfLiteRegistration* registration,
                         const Shape& inputs, const Shape& outputs) {
  context->errors.clear();
  Node node(context, registration, inputs, outputs);
  EXPECT_EQ(node.Prepare(), kTfLiteError);
  return context->errors;
}

std::string RmsNormError(FakeContext* context, const Shape& inputs,
                         const Shape& outputs) {
  return PrepareError(context, Register_RMS_NORM(), inputs, outputs);
}

TEST(RegistrationTest, Resolver) {
  struct Resolver {
    void AddCustom(const char* name, const TfLiteRegistration* registration) {
      EXPECT_STREQ(registration->custom_name, name);
      EXPECT_EQ(registration->builtin_code, kTfLiteBuiltinCustom);
      names.push_back(name);
    }
    std::vector<std::string> names;
  } resolver;
  RegisterRmsNormOps(&resolver);
  std::vector<std::string> names;
  for (const auto& [name, op] : kRmsNormOps) names.push_back(name);
  EXPECT_EQ(resolver.names, names);
}

TEST(RmsNormOpTest, Computes) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 2}, {3, 4, -6, 8});
  const int weight = context.AddTensor(kTfLiteFloat32, {2}, {1, 2});
  const int y = context.AddTensor(kTfLiteFloat32, {1});
  Node node(&context, Register_RMS_NORM(), {x, weight}, {y}, Options(0.5));
  ASSERT_EQ(node.Prepare(), kTfLiteOk) << context.errors;
  EXPECT_THAT(context.shape(y), ElementsAre(2, 2));
  ASSERT_EQ(node.Invoke(), kTfLiteOk) << context.errors;
  const float first = std::sqrt(12.5f + 0.5f);
  const float second = std::sqrt(50.0f + 0.5f);
  const std::vector<float> values = context.values(y);
  EXPECT_FLOAT_EQ(values[0], 3 / first);
  EXPECT_FLOAT_EQ(values[1], 8 / first);
  EXPECT_FLOAT_EQ(values[2], -6 / second);
  EXPECT_FLOAT_EQ(values[3], 16 / second);
}

TEST(RmsNormOpTest, TheNameOfMlDriftComputesTheSame) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {1, 2}, {3, 4});
  const int weight = context.AddTensor(kTfLiteFloat32, {2}, {1, 2});
  const int y = context.AddTensor(kTfLiteFloat32, {1});
  Node node(&context, Register_ML_DRIFT_RMS_NORM(), {x, weight}, {y},
            Options(0.5));
  ASSERT_EQ(node.Prepare(), kTfLiteOk) << context.errors;
  ASSERT_EQ(node.Invoke(), kTfLiteOk) << context.errors;
  const float root = std::sqrt(12.5f + 0.5f);
  EXPECT_THAT(context.values(y),
              ElementsAre(FloatEq(3 / root), FloatEq(8 / root)));
}

TEST(RmsNormOpTest, AddComputesSumThenNorm) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {1, 2}, {1, 2});
  const int residual = context.AddTensor(kTfLiteFloat32, {1, 2}, {2, 2});
  const int sum = context.AddTensor(kTfLiteFloat32, {1, 2});
  const int y = context.AddTensor(kTfLiteFloat32, {1, 2});
  Node node(&context, Register_ADD_RMS_NORM(),
            {x, residual, kTfLiteOptionalTensor}, {sum, y}, Options(0.5));
  ASSERT_EQ(node.Prepare(), kTfLiteOk) << context.errors;
  ASSERT_EQ(node.Invoke(), kTfLiteOk) << context.errors;
  EXPECT_THAT(context.values(sum), ElementsAre(3, 4));
  EXPECT_FLOAT_EQ(context.values(y)[0], 3 / std::sqrt(13.0f));
  EXPECT_FLOAT_EQ(context.values(y)[1], 4 / std::sqrt(13.0f));
}

TEST(RmsNormOpTest, ResizesOnlyWhenTheShapeChanges) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  Node node(&context, Register_RMS_NORM(), {x}, {y});
  ASSERT_EQ(node.Prepare(), kTfLiteOk);
  EXPECT_EQ(context.num_resizes, 0);
  const Shape shape = {3, 1, 8};
  context.ResizeTensor(&context, &context.tensors[x],
                       NewIntArray(shape.data(), 3).release());
  ASSERT_EQ(node.Prepare(), kTfLiteOk);
  EXPECT_EQ(context.num_resizes, 2);
  EXPECT_THAT(context.shape(y), ElementsAreArray(shape));
  ASSERT_EQ(node.Prepare(), kTfLiteOk);
  EXPECT_EQ(context.num_resizes, 2);
}

TEST(RmsNormOpTest, NoRows) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {0, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {1, 4});
  Node node(&context, Register_RMS_NORM(), {x}, {y});
  ASSERT_EQ(node.Prepare(), kTfLiteOk);
  EXPECT_EQ(node.Invoke(), kTfLiteOk);
}

TEST(RmsNormOpTest, BadOptions) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  Node node(&context, Register_RMS_NORM(), {x}, {y}, Options(-1.0));
  EXPECT_EQ(context.errors,
            "ai_edge_torch.rms_norm: epsilon must be finite and > 0, got -1");
  EXPECT_EQ(node.Prepare(), kTfLiteError);
}

TEST(RmsNormOpTest, NumberOfOperands) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  EXPECT_THAT(RmsNormError(&context, {}, {y}), HasSubstr("got 0 inputs"));
  EXPECT_THAT(RmsNormError(&context, {x, x, x}, {y}),
              HasSubstr("expected inputs x[, weight], got 3 inputs"));
  EXPECT_THAT(RmsNormError(&context, {x}, {}), HasSubstr("got 0 outputs"));
  EXPECT_THAT(PrepareError(&context, Register_ADD_RMS_NORM(), {x}, {x, y}),
              HasSubstr("inputs x, residual[, weight], got 1 inputs"));
  EXPECT_THAT(PrepareError(&context, Register_ADD_RMS_NORM(), {x, x}, {y}),
              HasSubstr("outputs sum, y, got 1 outputs"));
}

TEST(RmsNormOpTest, TensorIndices) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  EXPECT_THAT(RmsNormError(&context, {-1}, {y}),
              HasSubstr("x must be a tensor, got index -1"));
  EXPECT_THAT(RmsNormError(&context, {x}, {2}),
              HasSubstr("y must be a tensor, got index 2"));
  EXPECT_THAT(RmsNormError(&context, {x, 77}, {y}),
              HasSubstr("weight must be a tensor, got index 77"));
  EXPECT_THAT(RmsNormError(&context, {x}, {x}),
              HasSubstr("tensor 0 is both an input and an output"));
  EXPECT_THAT(PrepareError(&context, Register_ADD_RMS_NORM(), {x, x}, {y, y}),
              HasSubstr("sum and y are the same tensor 1"));
}

TEST(RmsNormOpTest, Types) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int integers = context.AddTensor(kTfLiteInt8, {2, 4});
  const int halves = context.AddTensor(kTfLiteFloat16, {2, 4});
  const int half_weight = context.AddTensor(kTfLiteFloat16, {4});
  const int sum = context.AddTensor(kTfLiteFloat32, {2, 4});
  EXPECT_THAT(RmsNormError(&context, {integers}, {y}),
              HasSubstr("float32, float16 or bfloat16, got int8"));
  EXPECT_THAT(RmsNormError(&context, {x}, {halves}),
              HasSubstr("y must have the type of x, float32, got float16"));
  EXPECT_THAT(RmsNormError(&context, {x, half_weight}, {y}),
              HasSubstr("weight must be float32 or of x's type"));
  EXPECT_THAT(
      PrepareError(&context, Register_ADD_RMS_NORM(), {x, halves}, {sum, y}),
      HasSubstr("residual must have the type and shape of x"));
}

TEST(RmsNormOpTest, Shapes) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int scalar = context.AddTensor(kTfLiteFloat32, {});
  const int long_weight = context.AddTensor(kTfLiteFloat32, {5});
  const int flat_weight = context.AddTensor(kTfLiteFloat32, {1, 4});
  EXPECT_THAT(RmsNormError(&context, {scalar}, {y}), HasSubstr("got shape []"));
  EXPECT_THAT(RmsNormError(&context, {x, long_weight}, {y}),
              HasSubstr("weight must have shape [4], the last dimension of x "
                        "[2, 4], got [5]"));
  EXPECT_THAT(RmsNormError(&context, {x, flat_weight}, {y}),
              HasSubstr("got [1, 4]"));
}

TEST(RmsNormOpTest, ConstantOutputAndWrongSize) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  context.tensors[y].allocation_type = kTfLiteMmapRo;
  EXPECT_THAT(RmsNormError(&context, {x}, {y}),
              HasSubstr("y is a constant tensor"));
  context.tensors[x].bytes = 31;
  EXPECT_THAT(RmsNormError(&context, {x}, {y}),
              HasSubstr("must have 32 bytes, got 31"));
}

// As inside of an IF, where inputs get their memory after Prepare.
TEST(RmsNormOpTest, SizeIsCheckedAgainByInvoke) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  Node node(&context, Register_RMS_NORM(), {x}, {y});
  context.tensors[x].bytes = 0;
  ASSERT_EQ(node.Prepare(), kTfLiteOk);
  EXPECT_EQ(node.Invoke(), kTfLiteError);
  EXPECT_THAT(context.errors, HasSubstr("must have 32 bytes, got 0"));
  context.tensors[x].bytes = 32;
  EXPECT_EQ(node.Invoke(), kTfLiteOk);
}

TEST(RmsNormOpTest, EmptyRows) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 0});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 3});
  Node node(&context, Register_RMS_NORM(), {x}, {y});
  ASSERT_EQ(node.Prepare(), kTfLiteOk);
  EXPECT_EQ(node.Invoke(), kTfLiteOk);
  EXPECT_EQ(context.shape(y), Shape({2, 0}));
}

// The runtime accepts constants that store less than their shape says if they
// are sparse.
TEST(RmsNormOpTest, OperandsOfAnotherSizeAreNotRead) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int residual = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int weight = context.AddTensor(kTfLiteFloat32, {4});
  const int sum = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  int sparsity = 0;
  for (const auto& [operand, name] :
       {std::pair(x, "x"), {residual, "residual"}, {weight, "weight"}}) {
    TfLiteTensor& tensor = context.tensors[operand];
    for (const bool sparse : {false, true}) {
      Node node(&context, Register_ADD_RMS_NORM(), {x, residual, weight},
                {sum, y});
      context.errors.clear();
      const std::size_t bytes = tensor.bytes;
      tensor.sparsity = sparse ? &sparsity : nullptr;
      if (!sparse) tensor.bytes -= 4;
      EXPECT_EQ(node.Prepare(), kTfLiteError);
      EXPECT_THAT(context.errors, HasSubstr(std::string(name) + " "));
      EXPECT_THAT(context.errors,
                  HasSubstr(sparse ? "must be dense" : "bytes, got"));
      tensor.sparsity = nullptr;
      tensor.bytes = bytes;
    }
  }
}

TEST(RmsNormOpTest, InvokeWithoutData) {
  FakeContext context;
  const int x = context.AddTensor(kTfLiteFloat32, {2, 4});
  const int y = context.AddTensor(kTfLiteFloat32, {2, 4});
  Node node(&context, Register_RMS_NORM(), {x}, {y});
  ASSERT_EQ(node.Prepare(), kTfLiteOk);
  context.tensors[y].data = nullptr;
  EXPECT_EQ(node.Invoke(), kTfLiteError);
  EXPECT_THAT(context.errors, HasSubstr("y has no data"));
}

TEST(RmsNormOpTest, ThreadsDoNotChangeTheResult) {
  std::vector<float> values(256 * 1024);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = std::sin(static_cast<float>(i));
  }
  std::vector<std::vector<float>> results;
  for (const int num_threads : {-1, 1, 2, 3}) {
    FakeContext context;
    context.recommended_num_threads = num_threads;
    const int x = context.AddTensor(kTfLiteFloat32, {256, 1024}, values);
    const int y = context.AddTensor(kTfLiteFloat32, {256, 1024});
    Node node(&context, Register_RMS_NORM(), {x}, {y});
    ASSERT_EQ(node.Prepare(), kTfLiteOk);
    ASSERT_EQ(node.Invoke(), kTfLiteOk);
    results.push_back(context.values(y));
    EXPECT_EQ(results.back(), results.front());
  }
  EXPECT_THAT(results.front(), Not(IsEmpty()));
}

}  // namespace
}  // namespace ai_edge_rms_norm
