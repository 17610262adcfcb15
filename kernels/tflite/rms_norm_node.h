// One RMSNorm of a TFLite graph: its tensors, checks and execution. Shared by
// the custom op and the delegate kernel.
#ifndef KERNELS_TFLITE_RMS_NORM_NODE_H_
#define KERNELS_TFLITE_RMS_NORM_NODE_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

// Custom codes of the operators.
//   kRmsNormName, kMlDriftRmsNormName: inputs x[, weight];           outputs y
//   kAddRmsNormName:                   inputs x, residual[, weight]; outputs
//                                      sum, y
inline constexpr char kRmsNormName[] = "ai_edge_torch.rms_norm";
inline constexpr char kAddRmsNormName[] = "ai_edge_torch.add_rms_norm";
// The name that LiteRT's GPU backend, ML Drift, runs as one kernel.
inline constexpr char kMlDriftRmsNormName[] = "custom_call.RmsNorm";

// The operator of each custom code.
inline constexpr std::pair<const char*, RmsNormOp> kRmsNormOps[] = {
    {kRmsNormName, RmsNormOp::kRmsNorm},
    {kAddRmsNormName, RmsNormOp::kAddRmsNorm},
    {kMlDriftRmsNormName, RmsNormOp::kRmsNorm},
};

// Threads beyond this would only cost memory.
inline constexpr int kMaxNumThreads = 256;

// Whether the kernel has the type; sets *element_type if so.
bool ToElementType(TfLiteType type, ElementType* element_type);

// "float32", "int8", ...
std::string TypeName(TfLiteType type);

// The value of a stored element.
float WidenElement(const void* element, ElementType type);

class RmsNormNode {
 public:
  RmsNormNode() = default;
  // name: a string literal, for messages.
  RmsNormNode(RmsNormOp op, const char* name, const RmsNormOptions& options);

  // Takes the tensor indices from a node of the graph. Reports an error if
  // their number does not fit the op.
  TfLiteStatus Bind(TfLiteContext* context, const TfLiteIntArray* inputs,
                    const TfLiteIntArray* outputs);

  // For an RMSNorm that is decomposed in the file: lets dimensions of 1 precede
  // the weight's own and a constant weight be of any floating type, but x have
  // no other rank and hidden size than those for which the operators are
  // RMSNorm.
  void SetDecomposed(int rank, int hidden_size);

  // Checks types and shapes and gives the outputs x's shape. Must be called
  // again after a shape has changed.
  TfLiteStatus Prepare(TfLiteContext* context);

  // Neither allocates nor blocks, except in the pool.
  TfLiteStatus Invoke(TfLiteContext* context, ThreadPool* pool) const;

  const char* name() const { return name_; }

  bool is_decomposed() const { return decomposed_rank_ > 0; }
  int x() const { return x_; }
  int weight() const { return weight_; }
  int y() const { return y_; }
  double epsilon() const { return params_.epsilon; }

 private:
  TfLiteStatus Error(TfLiteContext* context, const std::string& message) const;
  // Reports an error unless index names a tensor of the context.
  TfLiteStatus CheckIndex(TfLiteContext* context, int index,
                          const char* operand) const;
  TfLiteStatus CheckIndices(TfLiteContext* context) const;
  TfLiteStatus CheckCounts(TfLiteContext* context, int num_inputs,
                           int num_outputs) const;
  TfLiteStatus CheckDistinct(TfLiteContext* context) const;
  // How many bytes an operand takes.
  std::size_t Bytes(int index) const;
  // Reports an error unless the tensor is dense and as large as its shape says.
  TfLiteStatus CheckStorage(TfLiteContext* context, int index,
                            const char* operand) const;
  TfLiteStatus WrongBytes(TfLiteContext* context, int index,
                          const char* operand) const;
  // Reports the first operand that has no data or the wrong size.
  TfLiteStatus NotReady(TfLiteContext* context) const;
  TfLiteStatus PrepareX(TfLiteContext* context);
  TfLiteStatus PrepareResidual(TfLiteContext* context) const;
  TfLiteStatus PrepareWeight(TfLiteContext* context);
  // Whether the shape is the weight's for an x of this shape.
  bool IsShapeOfWeight(const TfLiteIntArray* shape, int hidden_size) const;
  // Whether the weight is a constant to be widened to float32.
  bool IsWidened(const TfLiteTensor& weight) const;
  TfLiteStatus PrepareOutput(TfLiteContext* context, int index,
                             const char* operand) const;

  RmsNormOp op_ = RmsNormOp::kRmsNorm;
  const char* name_ = kRmsNormName;
  RmsNormParams params_;
  int x_ = kTfLiteOptionalTensor;
  int residual_ = kTfLiteOptionalTensor;
  int weight_ = kTfLiteOptionalTensor;
  int sum_ = kTfLiteOptionalTensor;
  int y_ = kTfLiteOptionalTensor;
  // Of x in a decomposed RMSNorm; 0: any.
  int decomposed_rank_ = 0;
  int decomposed_hidden_size_ = 0;
  std::vector<float> widened_weight_;
};

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_NODE_H_
