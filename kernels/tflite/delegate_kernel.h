// The node that the delegate puts in the place of a partition.
#ifndef KERNELS_TFLITE_DELEGATE_KERNEL_H_
#define KERNELS_TFLITE_DELEGATE_KERNEL_H_

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/rms_norm/thread_pool.h"
#include "kernels/tflite/rms_norm_node.h"
#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

// One operator that the delegate runs in the place of nodes of the graph.
struct Claim {
  RmsNormOp op = RmsNormOp::kRmsNorm;
  const char* name = kRmsNormName;
  RmsNormOptions options;
  std::string error;  // The error in the options of the file, or empty.
  // In execution order; it runs in the last one's place.
  std::vector<int> nodes;
  std::vector<int> inputs;
  std::vector<int> outputs;
  // Of x, if the file has a decomposed RMSNorm; otherwise 0.
  int decomposed_rank = 0;
  int decomposed_hidden_size = 0;
};

// The claims in one graph.
struct Claims {
  std::vector<Claim> claims;
  std::unordered_map<int, std::size_t> by_node;
};

struct DelegateKernel {
  ThreadPool* pool = nullptr;
  std::vector<RmsNormNode> nodes;  // In execution order.
  // Outputs that nothing outside of the partition reads. The runtime does not
  // allocate them for the delegate's node unless they are its temporaries.
  std::vector<int> temporaries;
  bool valid = false;
};

// Makes the kernel of a partition of claimed nodes. Reports what is wrong with
// a claim; the kernel is not valid then.
std::unique_ptr<DelegateKernel> MakeDelegateKernel(
    TfLiteContext* context, const TfLiteDelegateParams& partition,
    const Claims& claims, ThreadPool* pool);

// A registration of the kernel with the given init, which returns one.
TfLiteRegistration DelegateKernelRegistration(void* (*init)(TfLiteContext*,
                                                            const char*,
                                                            size_t));

// The kernel of a node, or nullptr if it is not one.
const DelegateKernel* AsDelegateKernel(const TfLiteNode& node,
                                       const TfLiteRegistration& registration);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_DELEGATE_KERNEL_H_
