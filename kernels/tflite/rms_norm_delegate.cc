// RMSNorm as an external delegate of TFLite and LiteRT: a shared library that
// any stock runtime loads, for example with load_delegate() in Python. It runs
//   CUSTOM ai_edge_torch.rms_norm and ai_edge_torch.add_rms_norm,
//   STABLEHLO_COMPOSITE odml.rms_norm, where its decomposition is RMSNorm,
// in every subgraph, and leaves all else to the runtime.
//
// Options: num_threads, 1 to 256; default is the interpreter's. One delegate
// may serve several interpreters, in several threads.
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <vector>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rms_norm/thread_pool.h"
#include "kernels/tflite/rms_norm_composite.h"
#include "kernels/tflite/rms_norm_node.h"
#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {
namespace {

struct Delegate {
  TfLiteDelegate base{};
  int num_threads = 0;  // 0: the interpreter's.
  std::mutex pool_mutex;
  std::unique_ptr<ThreadPool> pool;
};

// Nodes of one partition, in execution order.
struct DelegateKernel {
  ThreadPool* pool = nullptr;
  std::vector<RmsNormNode> nodes;
  // Outputs that nothing outside of the partition reads. The runtime does not
  // allocate them for the delegate's node unless they are its temporaries.
  std::vector<int> temporaries;
  bool valid = false;
};

// Whether the delegate runs the node. Sets *op, and *options for a composite.
bool Claims(TfLiteContext* context, const TfLiteNode& node,
            const TfLiteRegistration& registration, RmsNormOp* op,
            RmsNormOptions* options) {
  if (registration.builtin_code == kTfLiteBuiltinStablehloComposite) {
    *op = RmsNormOp::kRmsNorm;
    return IsRmsNormComposite(context, node, options);
  }
  if (registration.builtin_code != kTfLiteBuiltinCustom ||
      registration.custom_name == nullptr) {
    return false;
  }
  if (std::strcmp(registration.custom_name, kRmsNormName) == 0) {
    *op = RmsNormOp::kRmsNorm;
    return true;
  }
  *op = RmsNormOp::kAddRmsNorm;
  return std::strcmp(registration.custom_name, kAddRmsNormName) == 0;
}

TfLiteStatus AddNode(TfLiteContext* context, int node_index,
                     const TfLiteIntArray& partition_outputs,
                     DelegateKernel* kernel) {
  TfLiteNode* node = nullptr;
  TfLiteRegistration* registration = nullptr;
  if (context->GetNodeAndRegistration(context, node_index, &node,
                                      &registration) != kTfLiteOk) {
    return kTfLiteError;
  }
  RmsNormOp op;
  RmsNormOptions options;
  if (!Claims(context, *node, *registration, &op, &options)) {
    context->ReportError(context, "AiEdgeRmsNorm: node %d is no RMSNorm",
                         node_index);
    return kTfLiteError;
  }
  std::string error;
  if (registration->builtin_code == kTfLiteBuiltinCustom) {
    error = ParseRmsNormOptions(
        node->custom_initial_data,
        static_cast<std::size_t>(node->custom_initial_data_size), &options);
  }
  RmsNormNode& rms_norm = kernel->nodes.emplace_back(op, options);
  if (!error.empty()) {
    context->ReportError(context, "%s: %s", rms_norm.name(), error.c_str());
    return kTfLiteError;
  }
  const int* outputs_end = partition_outputs.data + partition_outputs.size;
  for (int i = 0; i < node->outputs->size; ++i) {
    const int output = node->outputs->data[i];
    if (std::find(partition_outputs.data, outputs_end, output) == outputs_end) {
      kernel->temporaries.push_back(output);
    }
  }
  return rms_norm.Bind(context, node->inputs, node->outputs);
}

void* KernelInit(TfLiteContext* context, const char* buffer, std::size_t) {
  const auto& params = *reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  auto kernel = std::make_unique<DelegateKernel>();
  kernel->pool = static_cast<Delegate*>(params.delegate->data_)->pool.get();
  kernel->valid = true;
  const TfLiteIntArray& nodes = *params.nodes_to_replace;
  for (int i = 0; i < nodes.size && kernel->valid; ++i) {
    kernel->valid = AddNode(context, nodes.data[i], *params.output_tensors,
                            kernel.get()) == kTfLiteOk;
  }
  return kernel.release();
}

void KernelFree(TfLiteContext*, void* user_data) {
  delete static_cast<DelegateKernel*>(user_data);
}

// Has the runtime allocate the kernel's own tensors while the node runs.
TfLiteStatus SetTemporaries(TfLiteNode* node, const std::vector<int>& indices) {
  if (node->temporaries->size == static_cast<int>(indices.size())) {
    return kTfLiteOk;
  }
  TfLiteIntArray* temporaries =
      NewIntArray(indices.data(), static_cast<int>(indices.size()));
  if (temporaries == nullptr) return kTfLiteError;
  std::free(node->temporaries);
  node->temporaries = temporaries;
  return kTfLiteOk;
}

TfLiteStatus KernelPrepare(TfLiteContext* context, TfLiteNode* node) {
  auto* kernel = static_cast<DelegateKernel*>(node->user_data);
  if (!kernel->valid) return kTfLiteError;  // KernelInit has reported why.
  for (RmsNormNode& rms_norm : kernel->nodes) {
    if (rms_norm.Prepare(context) != kTfLiteOk) return kTfLiteError;
  }
  return SetTemporaries(node, kernel->temporaries);
}

TfLiteStatus KernelInvoke(TfLiteContext* context, TfLiteNode* node) {
  const auto* kernel = static_cast<const DelegateKernel*>(node->user_data);
  for (const RmsNormNode& rms_norm : kernel->nodes) {
    if (rms_norm.Invoke(context, kernel->pool) != kTfLiteOk) {
      return kTfLiteError;
    }
  }
  return kTfLiteOk;
}

const char* KernelProfilingString(const TfLiteContext*,
                                  const TfLiteNode* node) {
  const auto* kernel = static_cast<const DelegateKernel*>(node->user_data);
  return kernel->nodes.empty() ? nullptr : kernel->nodes.front().name();
}

TfLiteStatus DelegatePrepare(TfLiteContext* context, TfLiteDelegate* base) {
  auto* delegate = static_cast<Delegate*>(base->data_);
  {
    const std::lock_guard<std::mutex> lock(delegate->pool_mutex);
    if (delegate->pool == nullptr) {
      delegate->pool = std::make_unique<ThreadPool>(
          delegate->num_threads > 0
              ? delegate->num_threads
              : std::min(context->recommended_num_threads, kMaxNumThreads));
    }
  }

  TfLiteIntArray* plan = nullptr;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) {
    return kTfLiteError;
  }
  // The plan is the runtime's, and calls below may free it.
  const std::vector<int> node_indices(plan->data, plan->data + plan->size);
  std::vector<int> claimed = {0};  // as a TfLiteIntArray: size, then indices
  for (const int node_index : node_indices) {
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
    if (context->GetNodeAndRegistration(context, node_index, &node,
                                        &registration) != kTfLiteOk) {
      return kTfLiteError;
    }
    RmsNormOp op;
    RmsNormOptions options;
    if (Claims(context, *node, *registration, &op, &options)) {
      claimed.push_back(node_index);
    }
  }
  claimed[0] = static_cast<int>(claimed.size()) - 1;

  TfLiteRegistration kernel{};
  kernel.init = KernelInit;
  kernel.free = KernelFree;
  kernel.prepare = KernelPrepare;
  kernel.invoke = KernelInvoke;
  kernel.profiling_string = KernelProfilingString;
  kernel.custom_name = "AiEdgeRmsNorm";
  kernel.version = 1;
  return context->ReplaceNodeSubsetsWithDelegateKernels(
      context, kernel, reinterpret_cast<const TfLiteIntArray*>(claimed.data()),
      base);
}

// Returns what is wrong with an option, or an empty string.
std::string SetOption(const char* key, const char* value, Delegate* delegate) {
  if (std::strcmp(key, "num_threads") != 0) {
    return std::string("unknown option \"") + key +
           "\", expected \"num_threads\"";
  }
  const char* end = value + std::strlen(value);
  const auto [parsed, error] =
      std::from_chars(value, end, delegate->num_threads);
  if (error != std::errc() || parsed != end || delegate->num_threads < 1 ||
      delegate->num_threads > kMaxNumThreads) {
    return std::string("option num_threads must be an integer from 1 to ") +
           std::to_string(kMaxNumThreads) + ", got \"" + value + "\"";
  }
  return "";
}

}  // namespace
}  // namespace ai_edge_rms_norm

#define AI_EDGE_RMS_NORM_EXPORT \
  extern "C" __attribute__((visibility("default")))

// The two functions of tensorflow/lite/delegates/external/
// external_delegate_interface.h.
AI_EDGE_RMS_NORM_EXPORT TfLiteDelegate* tflite_plugin_create_delegate(
    char** options_keys, char** options_values, std::size_t num_options,
    void (*report_error)(const char*)) {
  auto delegate = std::make_unique<ai_edge_rms_norm::Delegate>();
  for (std::size_t i = 0; i < num_options; ++i) {
    const std::string error = ai_edge_rms_norm::SetOption(
        options_keys[i], options_values[i], delegate.get());
    if (!error.empty()) {
      if (report_error != nullptr) {
        report_error(("AiEdgeRmsNorm: " + error).c_str());
      }
      return nullptr;
    }
  }
  delegate->base.data_ = delegate.get();
  delegate->base.Prepare = ai_edge_rms_norm::DelegatePrepare;
  delegate->base.flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  return &delegate.release()->base;
}

AI_EDGE_RMS_NORM_EXPORT void tflite_plugin_destroy_delegate(
    TfLiteDelegate* delegate) {
  if (delegate == nullptr) return;
  delete static_cast<ai_edge_rms_norm::Delegate*>(delegate->data_);
}

// The kernel variant in use; see RmsNormVariant(). For ctypes.
AI_EDGE_RMS_NORM_EXPORT const char* ai_edge_rms_norm_variant() {
  return ai_edge_rms_norm::RmsNormVariant();
}
