#include "kernels/rms_norm/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

// A test builds the other implementation on Linux, too.
#if defined(__linux__) && !defined(RMS_NORM_WITHOUT_FUTEX)
#define RMS_NORM_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <vector>

#include "kernels/rms_norm/available_cpus.h"

namespace ai_edge_rms_norm {
namespace {

using Clock = std::chrono::steady_clock;

// How long an idle worker spins before it sleeps: about what waking it costs.
constexpr auto kSpinTime = std::chrono::microseconds(50);

// After so many jobs, each within kSpinTime of the one before, more are
// expected. Models have fewer norms side by side, of queries and keys.
constexpr int kQuickJobs = 8;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb" ::: "memory");
#endif
}

// Calls done() until it is true or for kSpinTime; returns the last answer.
template <class Done>
bool SpinUntil(Done done) {
  const Clock::time_point deadline = Clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      Pause();
    }
  } while (Clock::now() < deadline);
  return false;
}

// A half-open interval of task numbers. The owner takes tasks from the front,
// other threads from the back.
class alignas(64) TaskQueue {
 public:
  void Reset(std::uint32_t begin, std::uint32_t end) {
    interval_.store(std::uint64_t{end} << 32 | begin,
                    std::memory_order_release);
  }

  bool Take(bool from_front, std::uint32_t* task) {
    std::uint64_t interval = interval_.load(std::memory_order_relaxed);
    for (;;) {
      const auto begin = static_cast<std::uint32_t>(interval);
      const auto end = static_cast<std::uint32_t>(interval >> 32);
      if (begin >= end) return false;
      const std::uint64_t rest =
          from_front ? interval + 1 : interval - (std::uint64_t{1} << 32);
      // Acquire: a task that was taken makes the job that it belongs to
      // visible. That the interval may by now be that of a later job with the
      // same numbers does no harm, since the job is read after this.
      if (interval_.compare_exchange_weak(interval, rest,
                                          std::memory_order_acquire,
                                          std::memory_order_relaxed)) {
        *task = from_front ? begin : end - 1;
        return true;
      }
    }
  }

 private:
  std::atomic<std::uint64_t> interval_{0};
};

// A counter that threads sleep on until it changes.
class Epoch {
 public:
  std::uint32_t Load(std::memory_order order) const {
    return value_.load(order);
  }

  void Increment() { value_.fetch_add(1, std::memory_order_seq_cst); }

#if defined(RMS_NORM_FUTEX)
  // There is no mutex: one that a fork found locked would stay so.
  void Wait(std::uint32_t seen) {
    while (Load(std::memory_order_seq_cst) == seen) {
      syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr,
              0);
    }
  }

  void WakeAll() {
    syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr,
            0);
  }

  void ResetAfterFork() {}

 private:
#else
  void Wait(std::uint32_t seen) {
    pthread_mutex_lock(&mutex_);
    while (Load(std::memory_order_seq_cst) == seen) {
      pthread_cond_wait(&changed_, &mutex_);
    }
    pthread_mutex_unlock(&mutex_);
  }

  void WakeAll() {
    pthread_mutex_lock(&mutex_);
    pthread_cond_broadcast(&changed_);
    pthread_mutex_unlock(&mutex_);
  }

  // The parent's threads may have locked the mutex, and wait in its copy.
  void ResetAfterFork() {
    mutex_ = PTHREAD_MUTEX_INITIALIZER;
    changed_ = PTHREAD_COND_INITIALIZER;
  }

 private:
  // Not destroyed: that would wait for sleepers that a forked child lacks.
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t changed_ = PTHREAD_COND_INITIALIZER;
#endif
  std::atomic<std::uint32_t> value_{0};
};

// Counts the forks of this process: a child has none of its parent's threads.
std::atomic<unsigned> fork_count{0};

unsigned ForkCount() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    fork_count.fetch_add(1, std::memory_order_relaxed);
  });
  static_cast<void>(registered);
  return fork_count.load(std::memory_order_relaxed);
}

}  // namespace

struct ThreadPool::State {
  explicit State(int num_threads)
      : num_threads(num_threads), queues(num_threads) {}

  const int num_threads;
  // How many of these work, the caller among them; 0 before the first job. No
  // more than there are CPUs: one that spins would take the CPU of another that
  // has a task, and one that sleeps would have to be woken for nothing.
  int num_working = 0;
  std::vector<TaskQueue> queues;  // one per thread, the caller's first

  // The job: written by the caller before it fills the queues, read by whoever
  // took a task. Beside the epoch, so that the cache line that tells a worker
  // of a job brings it along.
  alignas(64) void (*task)(void*, std::size_t, std::size_t) = nullptr;
  void* context = nullptr;
  std::size_t count = 0;
  std::uint32_t num_tasks = 0;
  // Whether an idle worker spins, since more jobs are expected. Otherwise it
  // would only take the CPU of what the application runs next.
  std::atomic<bool> spin{false};
  Epoch epoch;  // Incremented for every job and on destruction.
  std::atomic<bool> stop{false};

  alignas(64) std::atomic<std::uint32_t> tasks_left{0};
  alignas(64) std::atomic<int> sleepers{0};

  // While a job runs, 1 + ForkCount(): one that a fork cut off does not count.
  std::atomic<unsigned> busy{0};
  unsigned forks = 0;          // ForkCount() when the workers were started
  Clock::time_point last_job;  // when it ended
  int quick_jobs = 0;          // that ended just before the next one came
  std::vector<pthread_t> workers;

  struct WorkerStart {
    State* state;
    int index;
    std::uint32_t epoch;
  };

  void StartWorkers();
  void JoinWorkers();
  void WakeWorkers();
  void WorkerLoop(int index, std::uint32_t seen);
  void WorkOn(int index);
  bool ExpectMoreJobs();
  void EndJob();
};

void ThreadPool::State::WorkOn(int index) {
  for (int k = 0; k < num_working; ++k) {
    TaskQueue& queue = queues[(index + k) % num_working];
    std::uint32_t t;
    std::uint32_t done = 0;
    for (; queue.Take(k == 0, &t); ++done) {
      const std::uint64_t n = num_tasks;
      task(context, count * t / n, count * (t + 1) / n);
    }
    // Once for a queue: every thread writes this.
    if (done != 0) tasks_left.fetch_sub(done, std::memory_order_release);
  }
}

// Whether jobs come in quick succession, the one that begins included.
bool ThreadPool::State::ExpectMoreJobs() {
  const bool quick = Clock::now() - last_job < kSpinTime;
  quick_jobs = quick ? std::min(quick_jobs + 1, kQuickJobs) : 0;
  return quick_jobs == kQuickJobs;
}

void ThreadPool::State::EndJob() {
  last_job = Clock::now();
  busy.store(0, std::memory_order_release);
}

void ThreadPool::State::WakeWorkers() {
  // Sequentially consistent against WorkerLoop: either the worker sees the new
  // epoch before it sleeps or this thread sees the sleeper.
  epoch.Increment();
  if (sleepers.load(std::memory_order_seq_cst) > 0) epoch.WakeAll();
}

void ThreadPool::State::WorkerLoop(int index, std::uint32_t seen) {
  for (;;) {
    const auto called = [&] {
      return epoch.Load(std::memory_order_acquire) != seen;
    };
    if (!spin.load(std::memory_order_relaxed) || !SpinUntil(called)) {
      sleepers.fetch_add(1, std::memory_order_seq_cst);
      epoch.Wait(seen);
      sleepers.fetch_sub(1, std::memory_order_relaxed);
    }
    seen = epoch.Load(std::memory_order_acquire);
    if (stop.load(std::memory_order_relaxed)) return;
    WorkOn(index);
  }
}

void ThreadPool::State::StartWorkers() {
  num_working = std::min(num_threads, AvailableCpus());
  // Signals are the application's: block them in the workers.
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  for (int i = 1; i < num_working; ++i) {
    auto* start =
        new WorkerStart{this, i, epoch.Load(std::memory_order_seq_cst)};
    pthread_t thread;
    const int error = pthread_create(
        &thread, nullptr,
        [](void* argument) -> void* {
          const WorkerStart start = *static_cast<WorkerStart*>(argument);
          delete static_cast<WorkerStart*>(argument);
          start.state->WorkerLoop(start.index, start.epoch);
          return nullptr;
        },
        start);
    if (error != 0) {  // fewer workers: the others take over their tasks
      delete start;
      break;
    }
    workers.push_back(thread);
  }
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

void ThreadPool::State::JoinWorkers() {
  if (forks == ForkCount()) {
    stop.store(true, std::memory_order_relaxed);
    WakeWorkers();
    for (pthread_t worker : workers) pthread_join(worker, nullptr);
  }
  workers.clear();
}

ThreadPool::ThreadPool(int num_threads)
    : state_(new State(std::max(num_threads, 1))) {}

ThreadPool::~ThreadPool() { state_->JoinWorkers(); }

int ThreadPool::num_threads() const { return state_->num_threads; }

void ThreadPool::ParallelFor(std::size_t count, std::size_t max_tasks,
                             void (*task)(void*, std::size_t, std::size_t),
                             void* context, bool wake) {
  State& s = *state_;
  const auto tasks = static_cast<std::uint32_t>(
      std::min({count, max_tasks, std::size_t{UINT32_MAX}}));
  const unsigned forks = ForkCount();
  // A second caller at the same time works alone.
  if (tasks < 2 || s.num_threads < 2 ||
      s.busy.exchange(forks + 1, std::memory_order_acquire) == forks + 1) {
    if (count > 0) task(context, 0, count);
    return;
  }
  const bool expect_more = s.ExpectMoreJobs();
  if (!expect_more && !wake) {
    task(context, 0, count);
    s.EndJob();
    return;
  }
  if (s.num_working == 0 || s.forks != forks) {
    s.workers.clear();
    s.forks = forks;
    s.sleepers.store(0);
    s.epoch.ResetAfterFork();
    s.StartWorkers();
  }
  if (s.num_working == 1) {
    task(context, 0, count);
    s.EndJob();
    return;
  }

  s.spin.store(expect_more, std::memory_order_relaxed);
  s.task = task;
  s.context = context;
  s.count = count;
  s.num_tasks = tasks;
  s.tasks_left.store(tasks, std::memory_order_relaxed);
  const std::uint64_t n = s.num_working;
  for (std::uint64_t i = 0; i < n; ++i) {
    s.queues[i].Reset(static_cast<std::uint32_t>(tasks * i / n),
                      static_cast<std::uint32_t>(tasks * (i + 1) / n));
  }
  s.WakeWorkers();
  s.WorkOn(0);
  const auto finished = [&] {
    return s.tasks_left.load(std::memory_order_acquire) == 0;
  };
  // A worker that is still busy after the spin may be waiting for this CPU.
  while (!SpinUntil(finished)) sched_yield();
  s.EndJob();
}

}  // namespace ai_edge_rms_norm
