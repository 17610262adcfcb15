#include "kernels/tflite/rms_norm_delegate.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/rms_norm/thread_pool.h"
#include "kernels/tflite/canonical_graph.h"
#include "kernels/tflite/delegate_kernel.h"
#include "kernels/tflite/int_array.h"
#include "kernels/tflite/rms_norm_composite.h"
#include "kernels/tflite/rms_norm_node.h"
#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/rms_norm_pattern.h"

namespace ai_edge_rms_norm {
namespace {

// Which decomposed norms of a graph are claimed.
enum class Decomposed : unsigned char { kNone, kRangeSafe, kAll };

struct Delegate {
  TfLiteDelegate base{};
  RmsNormDelegateOptions options;
  std::mutex mutex;  // Of what follows.
  std::unique_ptr<ThreadPool> pool;
  // The claims in the graphs that the runtime is having replaced, for
  // KernelInit, which it calls meanwhile.
  std::map<const TfLiteContext*, const Claims*> claims;
  // Which decomposed norms are claimed in decompositions of composites.
  std::map<const TfLiteContext*, Decomposed> decompositions;
};

std::vector<int> ToVector(const TfLiteIntArray& array) {
  return std::vector<int>(array.data, array.data + array.size);
}

// The operator of a CUSTOM node, if the delegate runs it.
bool FindCustomOp(const char* custom_name, Claim* claim) {
  for (const auto& [name, op] : kRmsNormOps) {
    if (custom_name == nullptr || std::strcmp(custom_name, name) != 0) continue;
    claim->name = name;
    claim->op = op;
    return true;
  }
  return false;
}

// Notes what is claimed in the decomposition of a composite that is not.
void NoteDecomposition(const Composite& composite, Delegate* delegate) {
  if (composite.decomposition == nullptr) return;
  const Decomposed decomposed = composite.kind == CompositeKind::kRmsNormInside
                                    ? Decomposed::kAll
                                    : Decomposed::kNone;
  const std::lock_guard<std::mutex> lock(delegate->mutex);
  const auto [noted, is_new] =
      delegate->decompositions.emplace(composite.decomposition, decomposed);
  // Several composites may share it: what none of them forbids.
  if (!is_new) noted->second = std::min(noted->second, decomposed);
}

// The claim of a node that is an RMSNorm by itself.
std::optional<Claim> ClaimNode(TfLiteContext* context, int node_index,
                               const TfLiteNode& node,
                               const TfLiteRegistration& registration,
                               Delegate* delegate) {
  Claim claim;
  if (registration.builtin_code == kTfLiteBuiltinStablehloComposite) {
    const Composite composite = FindComposite(context, node, &claim.options);
    if (composite.kind != CompositeKind::kRmsNorm) {
      NoteDecomposition(composite, delegate);
      return std::nullopt;
    }
    const TfLiteIntArray& shape = *context->tensors[node.inputs->data[0]].dims;
    claim.name = kRmsNormCompositeName;
    claim.decomposed_rank = shape.size;
    claim.decomposed_hidden_size = shape.data[shape.size - 1];
  } else if (registration.builtin_code == kTfLiteBuiltinCustom &&
             FindCustomOp(registration.custom_name, &claim)) {
    claim.error = ParseRmsNormOptions(
        node.custom_initial_data,
        static_cast<std::size_t>(node.custom_initial_data_size),
        &claim.options);
  } else {
    return std::nullopt;
  }
  claim.nodes = {node_index};
  claim.inputs = ToVector(*node.inputs);
  claim.outputs = ToVector(*node.outputs);
  return claim;
}

Claim ClaimMatch(const TfLiteContext& context, const RmsNormMatch& match) {
  Claim claim;
  const TfLiteIntArray& shape = *context.tensors[match.x].dims;
  claim.options.epsilon = match.epsilon;
  claim.nodes = match.nodes;
  claim.inputs = {match.x, match.weight};
  claim.outputs = {match.y};
  claim.decomposed_rank = shape.size;
  claim.decomposed_hidden_size = shape.data[shape.size - 1];
  return claim;
}

// The nodes of all claims, in execution order.
IntArray ClaimedNodes(const std::vector<int>& node_indices,
                      const Claims& claims) {
  std::vector<int> nodes;
  for (const int node_index : node_indices) {
    if (claims.by_node.count(node_index) > 0) nodes.push_back(node_index);
  }
  return NewIntArray(nodes.data(), nodes.size());
}

void IndexNodes(Claims* claims) {
  claims->by_node.clear();
  for (std::size_t i = 0; i < claims->claims.size(); ++i) {
    for (const int node : claims->claims[i].nodes) claims->by_node[node] = i;
  }
}

// Drops the claims of several nodes that the runtime would not replace
// together. Sets *dropped to whether there are any.
TfLiteStatus DropDivided(TfLiteContext* context,
                         const std::vector<int>& node_indices, Claims* claims,
                         bool* dropped) {
  const IntArray nodes = ClaimedNodes(node_indices, *claims);
  TfLiteDelegateParams* partitions = nullptr;
  int num_partitions = 0;
  if (nodes == nullptr ||
      context->PreviewDelegatePartitioning(context, nodes.get(), &partitions,
                                           &num_partitions) != kTfLiteOk) {
    return kTfLiteError;
  }
  std::unordered_map<int, int> partition_of;
  for (int i = 0; i < num_partitions; ++i) {
    for (const int node : ToVector(*partitions[i].nodes_to_replace)) {
      partition_of[node] = i;
    }
  }
  const auto is_divided = [&](const Claim& claim) {
    return claim.nodes.size() > 1 &&
           std::any_of(claim.nodes.begin(), claim.nodes.end(), [&](int node) {
             return partition_of.count(node) == 0 ||
                    partition_of[node] != partition_of[claim.nodes.front()];
           });
  };
  const auto end =
      std::remove_if(claims->claims.begin(), claims->claims.end(), is_divided);
  *dropped = end != claims->claims.end();
  claims->claims.erase(end, claims->claims.end());
  IndexNodes(claims);
  return kTfLiteOk;
}

// Claims decomposed RMSNorm, as far as the runtime replaces it with what is
// claimed already.
TfLiteStatus ClaimDecomposed(TfLiteContext* context,
                             const std::vector<int>& node_indices,
                             Decomposed decomposed, Claims* claims) {
  IndexNodes(claims);
  if (decomposed == Decomposed::kNone) return kTfLiteOk;
  // Without knowing them, it is not known what must stay.
  const std::optional<std::vector<int>> outputs =
      FindOutputs(context, node_indices);
  if (!outputs.has_value()) return kTfLiteOk;
  const std::size_t num_single = claims->claims.size();
  for (const RmsNormMatch& match :
       FindRmsNorms(context, node_indices, *outputs)) {
    if (match.range_safe || decomposed == Decomposed::kAll) {
      claims->claims.push_back(ClaimMatch(*context, match));
    }
  }
  IndexNodes(claims);
  // Dropping a claim changes the partitions, so look again; but not forever.
  constexpr int kMaxRounds = 8;
  bool dropped = claims->claims.size() > num_single;
  for (int round = 0; dropped && round < kMaxRounds; ++round) {
    if (DropDivided(context, node_indices, claims, &dropped) != kTfLiteOk) {
      return kTfLiteError;
    }
  }
  if (dropped) {
    claims->claims.resize(num_single);
    IndexNodes(claims);
  }
  return kTfLiteOk;
}

TfLiteStatus FindClaims(TfLiteContext* context,
                        const std::vector<int>& node_indices,
                        Decomposed decomposed, Delegate* delegate,
                        Claims* claims) {
  for (const int node_index : node_indices) {
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
    if (context->GetNodeAndRegistration(context, node_index, &node,
                                        &registration) != kTfLiteOk) {
      return kTfLiteError;
    }
    std::optional<Claim> claim =
        ClaimNode(context, node_index, *node, *registration, delegate);
    if (claim.has_value()) claims->claims.push_back(*std::move(claim));
  }
  return ClaimDecomposed(context, node_indices, decomposed, claims);
}

void* KernelInit(TfLiteContext* context, const char* buffer, std::size_t) {
  const auto& partition =
      *reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  auto* delegate = static_cast<Delegate*>(partition.delegate->data_);
  const Claims* claims = nullptr;
  {
    const std::lock_guard<std::mutex> lock(delegate->mutex);
    claims = delegate->claims.at(context);
  }
  return MakeDelegateKernel(context, partition, *claims, delegate->pool.get())
      .release();
}

// Has the runtime replace the claimed nodes.
TfLiteStatus Replace(TfLiteContext* context,
                     const std::vector<int>& node_indices, const Claims& claims,
                     Delegate* delegate) {
  const IntArray nodes = ClaimedNodes(node_indices, claims);
  if (nodes == nullptr) return kTfLiteError;
  {
    const std::lock_guard<std::mutex> lock(delegate->mutex);
    delegate->claims[context] = &claims;
  }
  const TfLiteStatus status = context->ReplaceNodeSubsetsWithDelegateKernels(
      context, DelegateKernelRegistration(KernelInit), nodes.get(),
      &delegate->base);
  const std::lock_guard<std::mutex> lock(delegate->mutex);
  delegate->claims.erase(context);
  return status;
}

TfLiteStatus Prepare(TfLiteContext* context, TfLiteDelegate* base) {
  auto* delegate = static_cast<Delegate*>(base->data_);
  Decomposed decomposed = delegate->options.fuse_decomposed
                              ? Decomposed::kAll
                              : Decomposed::kRangeSafe;
  {
    const std::lock_guard<std::mutex> lock(delegate->mutex);
    const auto noted = delegate->decompositions.find(context);
    if (noted != delegate->decompositions.end()) {
      decomposed = noted->second;
      delegate->decompositions.erase(noted);
    }
    if (delegate->pool == nullptr) {
      delegate->pool = std::make_unique<ThreadPool>(
          delegate->options.num_threads > 0
              ? delegate->options.num_threads
              : std::min(context->recommended_num_threads, kMaxNumThreads));
    }
  }
  TfLiteIntArray* plan = nullptr;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) {
    return kTfLiteError;
  }
  // The plan is the runtime's, and calls below may free it.
  const std::vector<int> node_indices = ToVector(*plan);
  Claims claims;
  if (FindClaims(context, node_indices, decomposed, delegate, &claims) !=
      kTfLiteOk) {
    return kTfLiteError;
  }
  return Replace(context, node_indices, claims, delegate);
}

}  // namespace

TfLiteDelegate* CreateRmsNormDelegate(const RmsNormDelegateOptions& options) {
  auto delegate = std::make_unique<Delegate>();
  delegate->options = options;
  delegate->base.data_ = delegate.get();
  delegate->base.Prepare = Prepare;
  delegate->base.flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  return &delegate.release()->base;
}

void DeleteRmsNormDelegate(TfLiteDelegate* delegate) {
  if (delegate == nullptr) return;
  delete static_cast<Delegate*>(delegate->data_);
}

}  // namespace ai_edge_rms_norm
