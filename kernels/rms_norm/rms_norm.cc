// Chooses the kernels for this CPU and splits rows over threads.
#include "kernels/rms_norm/rms_norm.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/streaming.h"
#include "kernels/rms_norm/thread_pool.h"
#include "kernels/rms_norm/variants.h"

namespace ai_edge_rms_norm {
namespace {

// Below this many bytes read and written per task a second thread does not pay.
constexpr std::size_t kMinBytesPerTask = std::size_t{64} << 10;
// Below this many, sleeping threads are not woken: that takes longer than it
// saves, and the application's own threads want the CPU next. Measured far
// below; where exactly it starts to pay is not known (docs/models.md).
constexpr std::size_t kMinBytesToWake = std::size_t{16} << 20;
// More tasks than threads, so that a thread that is late or interrupted does
// not hold up the others by more than a fraction of its share.
constexpr std::size_t kTasksPerThread = 4;

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
    const std::string reason =
        known ? "supported by this CPU"
              : std::string("one of the variants ") + VariantNames();
    std::fprintf(stderr,
                 "AI_EDGE_RMS_NORM_VARIANT=%s is not %s; using %s instead.\n",
                 wanted, reason.c_str(), best);
  }
  return best;
}

template <RmsNormOp op, ElementType type>
void ResolveKernel(const RmsNormParams& params, const void* x,
                   const void* weight, void* y, const ResidualSum* residual,
                   bool stream);

// By ElementType. Each entry replaces itself when it is called first: no later
// call pays for asking whether the variant has been chosen.
template <RmsNormOp op>
std::atomic<Kernel> kernels[] = {ResolveKernel<op, ElementType::kFloat32>,
                                 ResolveKernel<op, ElementType::kFloat16>,
                                 ResolveKernel<op, ElementType::kBFloat16>};

template <RmsNormOp op>
std::atomic<Kernel>& KernelOf(ElementType type) {
  return kernels<op>[static_cast<int>(type)];
}

template <RmsNormOp op, ElementType type>
void ResolveKernel(const RmsNormParams& params, const void* x,
                   const void* weight, void* y, const ResidualSum* residual,
                   bool stream) {
  const KernelTable table = AllKernels();
  const KernelInfo* info =
      std::find_if(table.begin(), table.end(), [](const KernelInfo& info) {
        return info.op == op && info.type == type &&
               std::strcmp(info.isa, RmsNormVariant()) == 0;
      });
  // Whoever sees the new value needs nothing else that was written before.
  KernelOf<op>(type).store(info->kernel, std::memory_order_relaxed);
  info->kernel(params, x, weight, y, residual, stream);
}

const void* Offset(const void* pointer, std::size_t bytes) {
  return static_cast<const char*>(pointer) + bytes;
}

void* Offset(void* pointer, std::size_t bytes) {
  return static_cast<char*>(pointer) + bytes;
}

struct Job {
  Kernel kernel;
  const RmsNormParams& params;
  const void* x;
  const void* weight;
  void* y;
  const ResidualSum* residual;
  bool stream;
};

void NormalizeRange(void* context, std::size_t begin, std::size_t end) {
  const Job& job = *static_cast<const Job*>(context);
  RmsNormParams params = job.params;
  params.rows = end - begin;
  const std::size_t offset = begin * params.hidden_size * SizeOf(params.type);
  ResidualSum residual = {};
  if (job.residual != nullptr) {
    residual = {Offset(job.residual->residual, offset),
                Offset(job.residual->sum, offset)};
  }
  job.kernel(params, Offset(job.x, offset), job.weight, Offset(job.y, offset),
             &residual, job.stream);
}

void SplitOverThreads(Kernel kernel, const RmsNormParams& params, const void* x,
                      const void* weight, void* y, const ResidualSum* residual,
                      ThreadPool* pool) {
  const std::size_t y_bytes =
      params.rows * params.hidden_size * SizeOf(params.type);
  const bool stream = y_bytes >= MinStreamedBytes();
  if (pool != nullptr && pool->num_threads() > 1) {
    const std::size_t bytes = y_bytes * (residual == nullptr ? 2 : 4);
    const std::size_t tasks = std::min({params.rows, bytes / kMinBytesPerTask,
                                        kTasksPerThread * pool->num_threads()});
    if (tasks > 1) {
      Job job = {kernel, params, x, weight, y, residual, stream};
      return pool->ParallelFor(params.rows, tasks, NormalizeRange, &job,
                               bytes >= kMinBytesToWake);
    }
  }
  kernel(params, x, weight, y, residual, stream);
}

// Inlined into its two callers, with nothing between a single row and its
// kernel: a row of a small model takes 30 ns.
template <RmsNormOp op>
RMS_NORM_INLINE void DispatchOnType(const RmsNormParams& params, const void* x,
                                    const void* weight, void* y,
                                    const ResidualSum* residual,
                                    ThreadPool* pool) {
  if (params.rows == 0 || params.hidden_size == 0) return;
  const Kernel kernel =
      KernelOf<op>(params.type).load(std::memory_order_relaxed);
  if (params.rows == 1) return kernel(params, x, weight, y, residual, false);
  SplitOverThreads(kernel, params, x, weight, y, residual, pool);
}

}  // namespace

void RmsNorm(const RmsNormParams& params, const void* x, const void* weight,
             void* y, ThreadPool* pool) {
  DispatchOnType<RmsNormOp::kRmsNorm>(params, x, weight, y, nullptr, pool);
}

void AddRmsNorm(const RmsNormParams& params, const void* x,
                const void* residual, const void* weight, void* sum, void* y,
                ThreadPool* pool) {
  const ResidualSum residual_sum = {residual, sum};
  DispatchOnType<RmsNormOp::kAddRmsNorm>(params, x, weight, y, &residual_sum,
                                         pool);
}

const char* RmsNormVariant() {
  static const char* const variant = ChooseVariant();
  return variant;
}

}  // namespace ai_edge_rms_norm
