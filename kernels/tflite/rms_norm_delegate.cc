// RMSNorm as an external delegate of TFLite and LiteRT: a shared library that
// any stock runtime loads, for example with load_delegate() in Python. It runs
//   CUSTOM ai_edge_torch.rms_norm and ai_edge_torch.add_rms_norm,
//   STABLEHLO_COMPOSITE odml.rms_norm, where its decomposition is RMSNorm,
// in every subgraph, and leaves all else to the runtime.
//
// Options:
//   num_threads      1 to 256; default is what the first interpreter has.
//   fuse_primitives  0 or 1; default 0. Whether RMSNorm that is written as
//                    primitive operators is run, too (rms_norm_chain.h).
//
// One delegate may serve several interpreters, in several threads.
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
#include "kernels/tflite/rms_norm_chain.h"
#include "kernels/tflite/rms_norm_composite.h"
#include "kernels/tflite/rms_norm_node.h"
#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {
namespace {

struct Delegate {
  TfLiteDelegate base{};
  int num_threads = 0;  // 0: the first interpreter's.
  int fuse_primitives = 0;
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

// The chains that this thread is having the runtime replace: for KernelInit,
// which the runtime calls meanwhile.
thread_local const std::vector<RmsNormChain>* chains_to_replace = nullptr;

// The chain that a node belongs to, or nullptr.
const RmsNormChain* FindChain(const std::vector<RmsNormChain>* chains,
                              int node_index) {
  if (chains == nullptr) return nullptr;
  for (const RmsNormChain& chain : *chains) {
    if (std::binary_search(chain.nodes.begin(), chain.nodes.end(),
                           node_index)) {
      return &chain;
    }
  }
  return nullptr;
}

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

bool Contains(const TfLiteIntArray& array, int value) {
  const int* end = array.data + array.size;
  return std::find(array.data, end, value) != end;
}

// Adds the RMSNorm of a chain.
TfLiteStatus AddChain(TfLiteContext* context, const RmsNormChain& chain,
                      const TfLiteIntArray& partition_outputs,
                      DelegateKernel* kernel) {
  RmsNormOptions options;
  options.epsilon = chain.epsilon;
  RmsNormNode& rms_norm =
      kernel->nodes.emplace_back(RmsNormOp::kRmsNorm, options);
  rms_norm.AllowLeadingOnesOfWeight();
  if (!Contains(partition_outputs, chain.y)) {
    kernel->temporaries.push_back(chain.y);
  }
  // As TfLiteIntArrays: size, then indices.
  const int inputs[] = {2, chain.x, chain.weight};
  const int outputs[] = {1, chain.y};
  return rms_norm.Bind(context, reinterpret_cast<const TfLiteIntArray*>(inputs),
                       reinterpret_cast<const TfLiteIntArray*>(outputs));
}

TfLiteStatus AddNode(TfLiteContext* context, int node_index,
                     const TfLiteIntArray& partition_outputs,
                     DelegateKernel* kernel) {
  if (const RmsNormChain* chain = FindChain(chains_to_replace, node_index)) {
    return node_index == chain->nodes.back()
               ? AddChain(context, *chain, partition_outputs, kernel)
               : kTfLiteOk;
  }
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
  for (int i = 0; i < node->outputs->size; ++i) {
    const int output = node->outputs->data[i];
    if (!Contains(partition_outputs, output)) {
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

// Whether a partition of the runtime holds the whole chain and nothing outside
// of it reads an intermediate; outputs of the graph count as read.
bool IsReplaceable(TfLiteContext* context, const RmsNormChain& chain,
                   const TfLiteDelegateParams& partition) {
  for (const int node_index : chain.nodes) {
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
    if (!Contains(*partition.nodes_to_replace, node_index) ||
        context->GetNodeAndRegistration(context, node_index, &node,
                                        &registration) != kTfLiteOk) {
      return false;
    }
    const int output = node->outputs->data[0];
    if (output != chain.y && Contains(*partition.output_tensors, output)) {
      return false;
    }
  }
  return true;
}

// The nodes to claim as a TfLiteIntArray: size, then indices.
std::vector<int> ClaimedNodes(const std::vector<int>& node_indices,
                              const std::vector<int>& single_nodes,
                              const std::vector<RmsNormChain>& chains) {
  std::vector<int> claimed = {0};
  for (const int node_index : node_indices) {
    if (std::find(single_nodes.begin(), single_nodes.end(), node_index) !=
            single_nodes.end() ||
        FindChain(&chains, node_index) != nullptr) {
      claimed.push_back(node_index);
    }
  }
  claimed[0] = static_cast<int>(claimed.size()) - 1;
  return claimed;
}

// Finds the chains that the runtime can replace together with single_nodes.
TfLiteStatus FindChains(TfLiteContext* context,
                        const std::vector<int>& node_indices,
                        const std::vector<int>& single_nodes,
                        std::vector<RmsNormChain>* chains) {
  *chains = FindRmsNormChains(context, node_indices);
  // Leaving one out changes the partitions, so look again.
  while (!chains->empty()) {
    const std::vector<int> claimed =
        ClaimedNodes(node_indices, single_nodes, *chains);
    TfLiteDelegateParams* partitions = nullptr;
    int num_partitions = 0;
    if (context->PreviewDelegatePartitioning(
            context, reinterpret_cast<const TfLiteIntArray*>(claimed.data()),
            &partitions, &num_partitions) != kTfLiteOk) {
      return kTfLiteError;
    }
    const auto is_kept = [=](const RmsNormChain& chain) {
      return std::any_of(partitions, partitions + num_partitions,
                         [&](const TfLiteDelegateParams& partition) {
                           return IsReplaceable(context, chain, partition);
                         });
    };
    const auto end =
        std::stable_partition(chains->begin(), chains->end(), is_kept);
    if (end == chains->end()) break;
    chains->erase(end, chains->end());
  }
  return kTfLiteOk;
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
  std::vector<int> single_nodes;
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
      single_nodes.push_back(node_index);
    }
  }
  std::vector<RmsNormChain> chains;
  if (delegate->fuse_primitives != 0 &&
      FindChains(context, node_indices, single_nodes, &chains) != kTfLiteOk) {
    return kTfLiteError;
  }
  const std::vector<int> claimed =
      ClaimedNodes(node_indices, single_nodes, chains);

  TfLiteRegistration kernel{};
  kernel.init = KernelInit;
  kernel.free = KernelFree;
  kernel.prepare = KernelPrepare;
  kernel.invoke = KernelInvoke;
  kernel.profiling_string = KernelProfilingString;
  kernel.custom_name = "AiEdgeRmsNorm";
  kernel.version = 1;
  chains_to_replace = &chains;
  const TfLiteStatus status = context->ReplaceNodeSubsetsWithDelegateKernels(
      context, kernel, reinterpret_cast<const TfLiteIntArray*>(claimed.data()),
      base);
  chains_to_replace = nullptr;
  return status;
}

// Returns what is wrong with an option, or an empty string.
std::string SetOption(const char* key, const char* value, Delegate* delegate) {
  struct Option {
    const char* name;
    int min, max;
    int* field;
  };
  const Option options[] = {
      {"num_threads", 1, kMaxNumThreads, &delegate->num_threads},
      {"fuse_primitives", 0, 1, &delegate->fuse_primitives},
  };
  for (const Option& option : options) {
    if (std::strcmp(key, option.name) != 0) continue;
    const char* end = value + std::strlen(value);
    const auto [parsed, error] = std::from_chars(value, end, *option.field);
    if (error == std::errc() && parsed == end && *option.field >= option.min &&
        *option.field <= option.max) {
      return "";
    }
    return std::string("option ") + key + " must be an integer from " +
           std::to_string(option.min) + " to " + std::to_string(option.max) +
           ", got \"" + value + "\"";
  }
  return std::string("unknown option \"") + key +
         "\", expected \"num_threads\" or \"fuse_primitives\"";
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
