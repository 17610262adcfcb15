// One RMSNorm of a TFLite graph: its tensors, checks and execution. Shared by
// the custom op and the delegate kernel.
#ifndef KERNELS_TFLITE_RMS_NORM_NODE_H_
#define KERNELS_TFLITE_RMS_NORM_NODE_H_

#include <cstddef>
#include <string>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

// Custom codes of the operators.
//   kRmsNormName:    inputs x[, weight];           outputs y
//   kAddRmsNormName: inputs x, residual[, weight]; outputs sum, y
inline constexpr char kRmsNormName[] = "ai_edge_torch.rms_norm";
inline constexpr char kAddRmsNormName[] = "ai_edge_torch.add_rms_norm";

// Threads beyond this would only cost memory.
inline constexpr int kMaxNumThreads = 256;

// Whether the kernel has the type; sets *element_type if so.
bool ToElementType(TfLiteType type, ElementType* element_type);

// "float32", "int8", ...
std::string TypeName(TfLiteType type);

// A copy that the runtime may take over: it frees with free(). nullptr if there
// is no memory.
TfLiteIntArray* NewIntArray(const int* data, int size);

class RmsNormNode {
 public:
  RmsNormNode() = default;
  RmsNormNode(RmsNormOp op, const RmsNormOptions& options);

  // Takes the tensor indices from a node of the graph. Reports an error if
  // their number does not fit the op.
  TfLiteStatus Bind(TfLiteContext* context, const TfLiteIntArray* inputs,
                    const TfLiteIntArray* outputs);

  // Lets dimensions of 1 precede the weight's own.
  void AllowLeadingOnesOfWeight() { leading_ones_of_weight_ = true; }

  // Checks types and shapes and gives the outputs x's shape. Must be called
  // again after a shape has changed.
  TfLiteStatus Prepare(TfLiteContext* context);

  // Neither allocates nor blocks, except in the pool.
  TfLiteStatus Invoke(TfLiteContext* context, ThreadPool* pool) const;

  const char* name() const;

 private:
  TfLiteStatus Error(TfLiteContext* context, const std::string& message) const;
  // Reports an error unless index names a tensor of the context.
  TfLiteStatus CheckIndex(TfLiteContext* context, int index,
                          const char* operand) const;
  // How many bytes an operand takes.
  std::size_t Bytes(int index) const;
  // Reports an error unless the tensor is dense and as large as its shape says.
  TfLiteStatus CheckStorage(TfLiteContext* context, int index,
                            const char* operand) const;
  TfLiteStatus WrongBytes(TfLiteContext* context, int index,
                          const char* operand) const;
  // Reports the first operand that has no data or the wrong size.
  TfLiteStatus NotReady(TfLiteContext* context) const;
  TfLiteStatus PrepareOutput(TfLiteContext* context, int index,
                             const char* operand) const;

  RmsNormOp op_ = RmsNormOp::kRmsNorm;
  RmsNormParams params_;
  int x_ = kTfLiteOptionalTensor;
  int residual_ = kTfLiteOptionalTensor;
  int weight_ = kTfLiteOptionalTensor;
  int sum_ = kTfLiteOptionalTensor;
  int y_ = kTfLiteOptionalTensor;
  bool leading_ones_of_weight_ = false;
};

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_NODE_H_
