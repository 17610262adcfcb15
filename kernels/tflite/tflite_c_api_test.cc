// Pins the layouts of tflite_c_api.h to those of TensorFlow Lite's headers on
// 64-bit targets. That the runtimes agree is what rms_norm_delegate_test.py
// shows.
#include "kernels/tflite/tflite_c_api.h"

#include <cstddef>

#include "gtest/gtest.h"

namespace {

static_assert(sizeof(void*) == 8, "The offsets below are those of LP64.");

#define EXPECT_OFFSET(type, member, offset) \
  EXPECT_EQ(offsetof(type, member), size_t{offset})

TEST(TfLiteCApiTest, Enumerations) {
  EXPECT_EQ(sizeof(TfLiteStatus), 4u);
  EXPECT_EQ(sizeof(TfLiteType), 4u);
  EXPECT_EQ(sizeof(TfLiteAllocationType), 4u);
}

TEST(TfLiteCApiTest, Tensor) {
  EXPECT_EQ(sizeof(TfLiteTensor), 112u);
  EXPECT_OFFSET(TfLiteTensor, type, 0);
  EXPECT_OFFSET(TfLiteTensor, data, 8);
  EXPECT_OFFSET(TfLiteTensor, dims, 16);
  EXPECT_OFFSET(TfLiteTensor, params, 24);
  EXPECT_OFFSET(TfLiteTensor, allocation_type, 32);
  EXPECT_OFFSET(TfLiteTensor, bytes, 40);
  EXPECT_OFFSET(TfLiteTensor, allocation, 48);
  EXPECT_OFFSET(TfLiteTensor, name, 56);
  EXPECT_OFFSET(TfLiteTensor, delegate, 64);
  EXPECT_OFFSET(TfLiteTensor, buffer_handle, 72);
  EXPECT_OFFSET(TfLiteTensor, data_is_stale, 76);
  EXPECT_OFFSET(TfLiteTensor, is_variable, 77);
  EXPECT_OFFSET(TfLiteTensor, quantization, 80);
  EXPECT_OFFSET(TfLiteTensor, sparsity, 96);
  EXPECT_OFFSET(TfLiteTensor, dims_signature, 104);
}

TEST(TfLiteCApiTest, Node) {
  EXPECT_EQ(sizeof(TfLiteNode), 80u);
  EXPECT_OFFSET(TfLiteNode, inputs, 0);
  EXPECT_OFFSET(TfLiteNode, outputs, 8);
  EXPECT_OFFSET(TfLiteNode, temporaries, 24);
  EXPECT_OFFSET(TfLiteNode, user_data, 32);
  EXPECT_OFFSET(TfLiteNode, builtin_data, 40);
  EXPECT_OFFSET(TfLiteNode, custom_initial_data, 48);
  EXPECT_OFFSET(TfLiteNode, custom_initial_data_size, 56);
  EXPECT_OFFSET(TfLiteNode, delegate, 64);
  EXPECT_OFFSET(TfLiteNode, might_have_side_effect, 72);
}

TEST(TfLiteCApiTest, Registration) {
  EXPECT_EQ(sizeof(TfLiteRegistration), 88u);
  EXPECT_OFFSET(TfLiteRegistration, init, 0);
  EXPECT_OFFSET(TfLiteRegistration, free, 8);
  EXPECT_OFFSET(TfLiteRegistration, prepare, 16);
  EXPECT_OFFSET(TfLiteRegistration, invoke, 24);
  EXPECT_OFFSET(TfLiteRegistration, profiling_string, 32);
  EXPECT_OFFSET(TfLiteRegistration, builtin_code, 40);
  EXPECT_OFFSET(TfLiteRegistration, custom_name, 48);
  EXPECT_OFFSET(TfLiteRegistration, version, 56);
  EXPECT_OFFSET(TfLiteRegistration, registration_external, 64);
  EXPECT_OFFSET(TfLiteRegistration, async_kernel, 72);
  EXPECT_OFFSET(TfLiteRegistration, inplace_operator, 80);
}

TEST(TfLiteCApiTest, Context) {
  EXPECT_EQ(sizeof(TfLiteContext), 200u);
  EXPECT_OFFSET(TfLiteContext, tensors_size, 0);
  EXPECT_OFFSET(TfLiteContext, GetExecutionPlan, 8);
  EXPECT_OFFSET(TfLiteContext, tensors, 16);
  EXPECT_OFFSET(TfLiteContext, impl_, 24);
  EXPECT_OFFSET(TfLiteContext, ResizeTensor, 32);
  EXPECT_OFFSET(TfLiteContext, ReportError, 40);
  EXPECT_OFFSET(TfLiteContext, GetNodeAndRegistration, 56);
  EXPECT_OFFSET(TfLiteContext, ReplaceNodeSubsetsWithDelegateKernels, 64);
  EXPECT_OFFSET(TfLiteContext, recommended_num_threads, 72);
  EXPECT_OFFSET(TfLiteContext, profiler, 104);
  EXPECT_OFFSET(TfLiteContext, PreviewDelegatePartitioning, 152);
  EXPECT_OFFSET(TfLiteContext, AcquireSubgraphContext, 184);
  EXPECT_OFFSET(TfLiteContext, ReleaseSubgraphContext, 192);
}

TEST(TfLiteCApiTest, Delegate) {
  EXPECT_EQ(sizeof(TfLiteDelegate), 56u);
  EXPECT_OFFSET(TfLiteDelegate, data_, 0);
  EXPECT_OFFSET(TfLiteDelegate, Prepare, 8);
  EXPECT_OFFSET(TfLiteDelegate, flags, 40);
  EXPECT_OFFSET(TfLiteDelegate, opaque_delegate_builder, 48);
  EXPECT_EQ(sizeof(TfLiteDelegateParams), 32u);
  EXPECT_OFFSET(TfLiteDelegateParams, nodes_to_replace, 8);
  EXPECT_OFFSET(TfLiteDelegateParams, output_tensors, 24);
}

TEST(TfLiteCApiTest, BatchMatMulParams) {
  EXPECT_OFFSET(TfLiteBatchMatMulParams, adj_x, 0);
  EXPECT_OFFSET(TfLiteBatchMatMulParams, adj_y, 1);
}

TEST(TfLiteCApiTest, CompositeParams) {
  EXPECT_EQ(sizeof(TfLiteStablehloCompositeParams), 32u);
  EXPECT_OFFSET(TfLiteStablehloCompositeParams, name, 0);
  EXPECT_OFFSET(TfLiteStablehloCompositeParams, subgraph_index, 8);
  EXPECT_OFFSET(TfLiteStablehloCompositeParams, attributes, 16);
  EXPECT_OFFSET(TfLiteStablehloCompositeParams, attributes_size, 24);
}

}  // namespace
