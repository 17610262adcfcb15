// A small pool of worker threads that splits an index range.
#ifndef KERNELS_RMS_NORM_THREAD_POOL_H_
#define KERNELS_RMS_NORM_THREAD_POOL_H_

#include <cstddef>
#include <memory>

namespace ai_edge_rms_norm {

// Workers are started by the first ParallelFor that needs them, no more than
// there are CPUs for (AvailableCpus), and sleep after each job; where many came
// in quick succession, they spin for a short while before. When a second thread
// calls ParallelFor while one is running, it runs its job alone. In a forked
// child the pool starts workers of its own.
class ThreadPool {
 public:
  // num_threads counts the calling thread; values below 1 mean 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // As the constructor was told, even if there are fewer CPUs.
  int num_threads() const;

  // Calls task(context, begin, end) for a partition of [0, count) into at most
  // max_tasks contiguous ranges, on the calling thread and the workers, and
  // returns when all are done. The calling thread takes over what workers do
  // not get to. Without wake it works alone, unless many jobs came in quick
  // succession: for jobs that are shorter than waking a worker takes.
  void ParallelFor(std::size_t count, std::size_t max_tasks,
                   void (*task)(void* context, std::size_t begin,
                                std::size_t end),
                   void* context, bool wake = true);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_THREAD_POOL_H_
