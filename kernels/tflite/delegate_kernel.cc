#include "kernels/tflite/delegate_kernel.h"

#include <cstdlib>
#include <unordered_set>

#include "kernels/tflite/int_array.h"

namespace ai_edge_rms_norm {
namespace {

TfLiteStatus AddClaim(TfLiteContext* context, const Claim& claim,
                      const std::unordered_set<int>& partition_outputs,
                      DelegateKernel* kernel) {
  RmsNormNode& node =
      kernel->nodes.emplace_back(claim.op, claim.name, claim.options);
  if (!claim.error.empty()) {
    context->ReportError(context, "%s: %s", claim.name, claim.error.c_str());
    return kTfLiteError;
  }
  if (claim.decomposed_rank > 0) {
    node.SetDecomposed(claim.decomposed_rank, claim.decomposed_hidden_size);
  }
  for (const int output : claim.outputs) {
    if (partition_outputs.count(output) == 0) {
      kernel->temporaries.push_back(output);
    }
  }
  const IntArray inputs = NewIntArray(claim.inputs.data(), claim.inputs.size());
  const IntArray outputs =
      NewIntArray(claim.outputs.data(), claim.outputs.size());
  if (inputs == nullptr || outputs == nullptr) return kTfLiteError;
  return node.Bind(context, inputs.get(), outputs.get());
}

TfLiteStatus AddNode(TfLiteContext* context, int node_index,
                     const Claims& claims,
                     const std::unordered_set<int>& partition_outputs,
                     DelegateKernel* kernel) {
  const auto found = claims.by_node.find(node_index);
  if (found == claims.by_node.end()) {
    context->ReportError(context, "AiEdgeRmsNorm: node %d is not an RMSNorm",
                         node_index);
    return kTfLiteError;
  }
  const Claim& claim = claims.claims[found->second];
  return node_index == claim.nodes.back()
             ? AddClaim(context, claim, partition_outputs, kernel)
             : kTfLiteOk;
}

void Free(TfLiteContext*, void* user_data) {
  delete static_cast<DelegateKernel*>(user_data);
}

// Has the runtime allocate the kernel's own tensors while the node runs.
TfLiteStatus SetTemporaries(TfLiteNode* node, const std::vector<int>& indices) {
  if (node->temporaries->size == static_cast<int>(indices.size())) {
    return kTfLiteOk;
  }
  IntArray temporaries = NewIntArray(indices.data(), indices.size());
  if (temporaries == nullptr) return kTfLiteError;
  std::free(node->temporaries);
  node->temporaries = temporaries.release();
  return kTfLiteOk;
}

TfLiteStatus Prepare(TfLiteContext* context, TfLiteNode* node) {
  auto* kernel = static_cast<DelegateKernel*>(node->user_data);
  if (!kernel->valid) return kTfLiteError;  // Init has reported why.
  for (RmsNormNode& rms_norm : kernel->nodes) {
    if (rms_norm.Prepare(context) != kTfLiteOk) return kTfLiteError;
  }
  return SetTemporaries(node, kernel->temporaries);
}

TfLiteStatus Invoke(TfLiteContext* context, TfLiteNode* node) {
  const auto* kernel = static_cast<const DelegateKernel*>(node->user_data);
  for (const RmsNormNode& rms_norm : kernel->nodes) {
    if (rms_norm.Invoke(context, kernel->pool) != kTfLiteOk) {
      return kTfLiteError;
    }
  }
  return kTfLiteOk;
}

const char* ProfilingString(const TfLiteContext*, const TfLiteNode* node) {
  const auto* kernel = static_cast<const DelegateKernel*>(node->user_data);
  return kernel->nodes.empty() ? nullptr : kernel->nodes.front().name();
}

}  // namespace

std::unique_ptr<DelegateKernel> MakeDelegateKernel(
    TfLiteContext* context, const TfLiteDelegateParams& partition,
    const Claims& claims, ThreadPool* pool) {
  auto kernel = std::make_unique<DelegateKernel>();
  kernel->pool = pool;
  kernel->valid = true;
  const TfLiteIntArray& outputs = *partition.output_tensors;
  const std::unordered_set<int> partition_outputs(outputs.data,
                                                  outputs.data + outputs.size);
  const TfLiteIntArray& nodes = *partition.nodes_to_replace;
  for (int i = 0; i < nodes.size && kernel->valid; ++i) {
    kernel->valid = AddNode(context, nodes.data[i], claims, partition_outputs,
                            kernel.get()) == kTfLiteOk;
  }
  return kernel;
}

TfLiteRegistration DelegateKernelRegistration(void* (*init)(TfLiteContext*,
                                                            const char*,
                                                            size_t)) {
  TfLiteRegistration registration{};
  registration.init = init;
  registration.free = Free;
  registration.prepare = Prepare;
  registration.invoke = Invoke;
  registration.profiling_string = ProfilingString;
  registration.custom_name = "AiEdgeRmsNorm";
  registration.version = 1;
  return registration;
}

const DelegateKernel* AsDelegateKernel(const TfLiteNode& node,
                                       const TfLiteRegistration& registration) {
  return registration.free == Free
             ? static_cast<const DelegateKernel*>(node.user_data)
             : nullptr;
}

}  // namespace ai_edge_rms_norm
