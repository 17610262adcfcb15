// Chooses the kernels for this CPU and splits rows over threads.
#include "kernels/rms_norm/rms_norm.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/kernels.h"
#include "kernels/rms_norm/thread_pool.h"

namespace ai_edge_rms_norm {
namespace {

// Below this many bytes read and written per task a second thread does not pay.
constexpr std::size_t kMinBytesPerTask = std::size_t{64} << 10;
// More tasks than threads, so that a thread that is late or interrupted does
// not hold up the others by more than a fraction of its share.
constexpr std::size_t kTasksPerThread = 4;

// Outputs of at least this size are written past the caches. Measured with a
// consumer that reads the output afterwards: with 32 MiB of last-level cache,
// shared with others, that loses at 4.5 MiB and wins at 8 MiB; with 260 MiB it
// wins at 8 MiB where y is not in the cache, as between the other operators of
// a model, and loses in a loop that does nothing else. A constant, since what
// the system says about the size of its cache is wrong in virtual machines.
constexpr std::size_t kMinStreamedBytes = std::size_t{8} << 20;

struct Dispatch {
  const char* variant;
  Kernel kernels[2][3];  // by Op and ElementType
};

const char* ChooseVariant() {
  const char* best = nullptr;
  const char* wanted = std::getenv("AI_EDGE_RMS_NORM_VARIANT");
  if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
  bool known = false;
  for (const KernelInfo& info : AllKernels()) {
    if (wanted != nullptr && std::strcmp(info.isa, wanted) == 0) {
      if (info.supported()) return info.isa;
      known = true;
    }
    if (best == nullptr && info.supported() && info.preferred()) {
      best = info.isa;
    }
  }
  if (wanted != nullptr) {
    std::fprintf(
        stderr, "AI_EDGE_RMS_NORM_VARIANT=%s is not %s; using %s instead.\n",
        wanted, known ? "supported by this CPU" : "a known variant", best);
  }
  return best;
}

const Dispatch& GetDispatch() {
  static const Dispatch dispatch = [] {
    Dispatch d = {ChooseVariant(), {}};
    for (const KernelInfo& info : AllKernels()) {
      if (std::strcmp(info.isa, d.variant) == 0) {
        d.kernels[static_cast<int>(info.op)][static_cast<int>(info.type)] =
            info.kernel;
      }
    }
    return d;
  }();
  return dispatch;
}

std::size_t SizeOf(ElementType type) {
  return type == ElementType::kFloat32 ? 4 : 2;
}

const void* Offset(const void* pointer, std::size_t bytes) {
  return pointer == nullptr ? nullptr
                            : static_cast<const char*>(pointer) + bytes;
}

void* Offset(void* pointer, std::size_t bytes) {
  return pointer == nullptr ? nullptr : static_cast<char*>(pointer) + bytes;
}

struct Job {
  Kernel kernel;
  const KernelArgs* args;
  std::size_t row_bytes;
};

void RunRows(void* context, std::size_t begin, std::size_t end) {
  const Job& job = *static_cast<const Job*>(context);
  KernelArgs args = *job.args;
  const std::size_t offset = begin * job.row_bytes;
  args.rows = end - begin;
  args.x = Offset(args.x, offset);
  args.residual = Offset(args.residual, offset);
  args.sum = Offset(args.sum, offset);
  args.y = Offset(args.y, offset);
  job.kernel(args);
}

// Inlined into its two callers: a row of a small model takes 60 ns.
RMS_NORM_INLINE void Run(Op op, const RmsNormParams& params, const void* x,
                         const void* residual, const void* weight, void* sum,
                         void* y, ThreadPool* pool) {
  if (params.rows == 0 || params.hidden_size == 0) return;
  const Kernel kernel =
      GetDispatch()
          .kernels[static_cast<int>(op)][static_cast<int>(params.type)];
  const std::size_t row_bytes = params.hidden_size * SizeOf(params.type);
  const std::size_t y_bytes = params.rows * row_bytes;
  const KernelArgs args = {params.rows,
                           params.epsilon,
                           params.hidden_size,
                           x,
                           residual,
                           weight,
                           params.weight_type,
                           sum,
                           y,
                           y_bytes >= kMinStreamedBytes};
  if (pool != nullptr && params.rows > 1 && pool->num_threads() > 1) {
    const std::size_t bytes = y_bytes * (op == Op::kRmsNorm ? 2 : 4);
    const std::size_t tasks = std::min({params.rows, bytes / kMinBytesPerTask,
                                        kTasksPerThread * pool->num_threads()});
    if (tasks > 1) {
      Job job = {kernel, &args, row_bytes};
      return pool->ParallelFor(params.rows, tasks, RunRows, &job);
    }
  }
  kernel(args);
}

}  // namespace

void RmsNorm(const RmsNormParams& params, const void* x, const void* weight,
             void* y, ThreadPool* pool) {
  Run(Op::kRmsNorm, params, x, nullptr, weight, nullptr, y, pool);
}

void AddRmsNorm(const RmsNormParams& params, const void* x,
                const void* residual, const void* weight, void* sum, void* y,
                ThreadPool* pool) {
  Run(Op::kAddRmsNorm, params, x, residual, weight, sum, y, pool);
}

const char* RmsNormVariant() { return GetDispatch().variant; }

}  // namespace ai_edge_rms_norm
