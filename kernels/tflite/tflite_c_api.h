// The part of TensorFlow Lite's public C interface that a custom op and an
// external delegate need. No package ships these headers, and the runtime hands
// out the structs by pointer, so the layouts below are an ABI: they follow
//
//   tensorflow/lite/core/c/c_api_types.h      TfLiteStatus, TfLiteType
//   tensorflow/lite/core/c/common.h           everything else
//   tensorflow/lite/core/c/builtin_op_data.h  TfLiteStablehloCompositeParams
//
// of TensorFlow 2.21. Upstream only ever appends members; tflite_c_api_test.cc
// pins sizes and offsets. Members that are not used here keep their place but
// not their type.
//
// Never include this header together with TensorFlow Lite's own.
//
// Restated from TensorFlow, copyright The TensorFlow Authors, Apache-2.0.
#ifndef KERNELS_TFLITE_TFLITE_C_API_H_
#define KERNELS_TFLITE_TFLITE_C_API_H_

#include <cstddef>
#include <cstdint>

struct TfLiteContext;
struct TfLiteDelegate;

enum TfLiteStatus : int { kTfLiteOk = 0, kTfLiteError = 1 };

enum TfLiteType : int {
  kTfLiteNoType = 0,
  kTfLiteFloat32 = 1,
  kTfLiteInt32 = 2,
  kTfLiteUInt8 = 3,
  kTfLiteInt64 = 4,
  kTfLiteString = 5,
  kTfLiteBool = 6,
  kTfLiteInt16 = 7,
  kTfLiteComplex64 = 8,
  kTfLiteInt8 = 9,
  kTfLiteFloat16 = 10,
  kTfLiteFloat64 = 11,
  kTfLiteBFloat16 = 19,
};

enum TfLiteAllocationType : int {
  kTfLiteMemNone = 0,
  kTfLiteMmapRo = 1,
  kTfLiteArenaRw = 2,
  kTfLiteArenaRwPersistent = 3,
  kTfLiteDynamic = 4,
  kTfLitePersistentRo = 5,
  kTfLiteCustom = 6,
};

// Codes of the schema's BuiltinOperator enumeration.
enum TfLiteBuiltinOperator : int {
  kTfLiteBuiltinAdd = 0,
  kTfLiteBuiltinDequantize = 6,
  kTfLiteBuiltinMul = 18,
  kTfLiteBuiltinReshape = 22,
  kTfLiteBuiltinCustom = 32,
  kTfLiteBuiltinMean = 40,
  kTfLiteBuiltinDiv = 42,
  kTfLiteBuiltinSqueeze = 43,
  kTfLiteBuiltinCast = 53,
  kTfLiteBuiltinMaximum = 55,
  kTfLiteBuiltinExpandDims = 70,
  kTfLiteBuiltinSum = 74,
  kTfLiteBuiltinSqrt = 75,
  kTfLiteBuiltinRsqrt = 76,
  kTfLiteBuiltinPow = 78,
  kTfLiteBuiltinReduceMax = 82,
  kTfLiteBuiltinSquare = 92,
  kTfLiteBuiltinAbs = 101,
  kTfLiteBuiltinBatchMatmul = 126,
  kTfLiteBuiltinBroadcastTo = 130,
  kTfLiteBuiltinStablehloComposite = 206,
};

// Stands for an omitted input in TfLiteNode::inputs.
constexpr int kTfLiteOptionalTensor = -1;

struct TfLiteIntArray {
  int size;
  int data[];
};

struct TfLiteQuantizationParams {
  float scale;
  int32_t zero_point;
};

struct TfLiteQuantization {
  int type;
  void* params;
};

struct TfLiteTensor {
  TfLiteType type;
  void* data;  // Upstream: a union of pointers.
  TfLiteIntArray* dims;
  TfLiteQuantizationParams params;
  TfLiteAllocationType allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  TfLiteDelegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  TfLiteQuantization quantization;
  void* sparsity;
  const TfLiteIntArray* dims_signature;
};

struct TfLiteNode {
  TfLiteIntArray* inputs;
  TfLiteIntArray* outputs;
  TfLiteIntArray* intermediates;
  TfLiteIntArray* temporaries;  // Allocated with malloc, freed by the runtime.
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  TfLiteDelegate* delegate;
  bool might_have_side_effect;
};

struct TfLiteRegistration {
  void* (*init)(TfLiteContext* context, const char* buffer, size_t length);
  void (*free)(TfLiteContext* context, void* user_data);
  TfLiteStatus (*prepare)(TfLiteContext* context, TfLiteNode* node);
  TfLiteStatus (*invoke)(TfLiteContext* context, TfLiteNode* node);
  const char* (*profiling_string)(const TfLiteContext* context,
                                  const TfLiteNode* node);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* async_kernel;
  uint64_t inplace_operator;
};

struct TfLiteDelegateParams {
  TfLiteDelegate* delegate;
  TfLiteIntArray* nodes_to_replace;
  TfLiteIntArray* input_tensors;
  TfLiteIntArray* output_tensors;
};

struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(TfLiteContext* context,
                                   TfLiteIntArray** execution_plan);
  TfLiteTensor* tensors;
  void* impl_;
  // Takes ownership of new_size, which it frees with free().
  TfLiteStatus (*ResizeTensor)(TfLiteContext* context, TfLiteTensor* tensor,
                               TfLiteIntArray* new_size);
  void (*ReportError)(TfLiteContext* context, const char* format, ...);
  void* AddTensors;
  TfLiteStatus (*GetNodeAndRegistration)(TfLiteContext* context, int node_index,
                                         TfLiteNode** node,
                                         TfLiteRegistration** registration);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(
      TfLiteContext* context, TfLiteRegistration registration,
      const TfLiteIntArray* nodes_to_replace, TfLiteDelegate* delegate);
  int recommended_num_threads;  // -1: left to the implementation.
  void* GetExternalContext;
  void* SetExternalContext;
  bool allow_fp32_relax_to_fp16;
  void* profiler;
  void* AllocatePersistentBuffer;
  void* AllocateBufferForEval;
  void* RequestScratchBufferInArena;
  void* GetScratchBuffer;
  void* ResizeTensorExplicit;
  // The partitions that the runtime would make of nodes_to_replace. It keeps
  // the array.
  TfLiteStatus (*PreviewDelegatePartitioning)(
      TfLiteContext* context, const TfLiteIntArray* nodes_to_replace,
      TfLiteDelegateParams** partition_params_array, int* num_partitions);
  void* GetTensor;
  void* GetEvalTensor;
  void* GetModelMetadata;
  TfLiteStatus (*AcquireSubgraphContext)(TfLiteContext* context,
                                         int subgraph_index,
                                         TfLiteContext** acquired_context);
  TfLiteStatus (*ReleaseSubgraphContext)(TfLiteContext* context,
                                         int subgraph_index);
};

enum TfLiteDelegateFlags : int {
  kTfLiteDelegateFlagsNone = 0,
  kTfLiteDelegateFlagsAllowDynamicTensors = 1,
};

struct TfLiteDelegate {
  void* data_;
  TfLiteStatus (*Prepare)(TfLiteContext* context, TfLiteDelegate* delegate);
  void* CopyFromBufferHandle;
  void* CopyToBufferHandle;
  void* FreeBufferHandle;
  int64_t flags;
  void* opaque_delegate_builder;
};

// Parameters of builtin operators; those of ADD, MUL and DIV begin with the
// fused activation, an int that is 0 for none.
struct TfLiteReducerParams {
  bool keep_dims;
};

struct TfLiteBatchMatMulParams {
  bool adj_x;
  bool adj_y;
};

struct TfLiteReshapeParams {
  int shape[8];
  int num_dimensions;
};

struct TfLiteSqueezeParams {
  int squeeze_dims[8];
  int num_squeeze_dims;
};

struct TfLiteStablehloCompositeParams {
  const char* name;
  int32_t subgraph_index;
  int32_t version;
  const uint8_t* attributes;  // FlexBuffers map
  size_t attributes_size;
};

#endif  // KERNELS_TFLITE_TFLITE_C_API_H_
