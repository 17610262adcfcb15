#include "kernels/rms_norm/thread_pool.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "kernels/rms_norm/available_cpus.h"

// GCC and Clang. ThreadSanitizer ends a forked child that starts threads unless
// it is told not to.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }

namespace ai_edge_rms_norm {
namespace {

using Counts = std::vector<std::atomic<int>>;

void Count(void* context, std::size_t begin, std::size_t end) {
  Counts& counts = *static_cast<Counts*>(context);
  for (std::size_t i = begin; i < end; ++i) {
    counts[i].fetch_add(1, std::memory_order_relaxed);
  }
}

void ExpectEveryIndexOnce(ThreadPool& pool, std::size_t count,
                          std::size_t max_tasks) {
  Counts counts(count);
  pool.ParallelFor(count, max_tasks, Count, &counts);
  for (std::size_t i = 0; i < count; ++i) {
    ASSERT_EQ(counts[i].load(), 1)
        << i << " of " << count << ", " << max_tasks << " tasks";
  }
}

TEST(ThreadPoolTest, RunsEveryIndexExactlyOnce) {
  for (int threads : {-1, 0, 1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads < 1 ? 1 : threads);
    for (std::size_t count : {0, 1, 2, 3, 16, 1000}) {
      for (std::size_t max_tasks : {1, 2, 3, 7, 2000}) {
        ExpectEveryIndexOnce(pool, count, max_tasks);
      }
    }
  }
}

TEST(ThreadPoolTest, MakesNoMoreTasksThanAskedFor) {
  struct Tasks {
    std::mutex mutex;
    int count = 0;
  } tasks;
  ThreadPool pool(4);
  pool.ParallelFor(
      100, 7,
      [](void* context, std::size_t begin, std::size_t end) {
        EXPECT_LT(begin, end);
        auto* tasks = static_cast<Tasks*>(context);
        const std::lock_guard<std::mutex> lock(tasks->mutex);
        ++tasks->count;
      },
      &tasks);
  EXPECT_EQ(tasks.count, 7);
}

// How many threads work on two tasks that wait for each other, or give up after
// ten seconds.
std::size_t NumThreadsUsed(ThreadPool& pool) {
  struct Ids {
    std::mutex mutex;
    std::set<std::thread::id> ids;
  } ids;
  pool.ParallelFor(
      2, 2,
      [](void* context, std::size_t, std::size_t) {
        auto* ids = static_cast<Ids*>(context);
        for (int i = 0; i < 10000; ++i) {
          {
            const std::lock_guard<std::mutex> lock(ids->mutex);
            ids->ids.insert(std::this_thread::get_id());
            if (ids->ids.size() == 2) return;
          }
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      },
      &ids);
  return ids.ids.size();
}

TEST(ThreadPoolTest, UsesItsWorkers) {
  if (AvailableCpus() < 2) GTEST_SKIP() << "there is one CPU";
  ThreadPool pool(2);
  EXPECT_EQ(NumThreadsUsed(pool), 2u);
}

// The threads that a job of many tasks runs on, without waking any.
std::set<std::thread::id> ThreadsOfJobThatWakesNone(ThreadPool& pool) {
  struct Ids {
    std::mutex mutex;
    std::set<std::thread::id> ids;
  } ids;
  pool.ParallelFor(
      64, 64,
      [](void* context, std::size_t, std::size_t) {
        auto* ids = static_cast<Ids*>(context);
        const std::lock_guard<std::mutex> lock(ids->mutex);
        ids->ids.insert(std::this_thread::get_id());
      },
      &ids, /*wake=*/false);
  return ids.ids;
}

TEST(ThreadPoolTest, WakesNoWorkerForAJobThatComesAlone) {
  ThreadPool pool(2);
  const std::set<std::thread::id> caller = {std::this_thread::get_id()};
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(ThreadsOfJobThatWakesNone(pool), caller);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(ThreadPoolTest, UsesItsWorkersForJobsInQuickSuccession) {
  if (AvailableCpus() < 2) GTEST_SKIP() << "there is one CPU";
  ThreadPool pool(2);
  std::set<std::thread::id> ids;
  for (int i = 0; i < 10000000 && ids.size() < 2; ++i) {
    ids.merge(ThreadsOfJobThatWakesNone(pool));
  }
  EXPECT_EQ(ids.size(), 2u);
}

// Threads of this process.
int CountThreads() {
  int count = 0;
  DIR* directory = opendir("/proc/self/task");
  while (const dirent* entry = readdir(directory)) {
    count += entry->d_name[0] != '.';
  }
  closedir(directory);
  return count;
}

TEST(ThreadPoolTest, HasNoMoreThreadsThanCpus) {
  cpu_set_t all, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  const int before = CountThreads();
  {
    ThreadPool pool(AvailableCpus() + 3);
    ExpectEveryIndexOnce(pool, 100, 12);
    EXPECT_EQ(CountThreads(), before + AvailableCpus() - 1);
    EXPECT_EQ(pool.num_threads(), AvailableCpus() + 3);
  }
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(AvailableCpus(), 1);
  {
    ThreadPool pool(4);
    ExpectEveryIndexOnce(pool, 100, 12);
    ExpectEveryIndexOnce(pool, 100, 12);
    EXPECT_EQ(CountThreads(), before);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
}

TEST(AvailableCpusTest, ReadsTheQuotaOfControlGroups) {
  const std::filesystem::path root =
      std::filesystem::path(testing::TempDir()) / "available_cpus";
  const auto write = [&](const char* path, const char* text) {
    const std::filesystem::path file = root / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  };
  const auto quota = [&] {
    const int result = CpuQuota(root.string());
    std::filesystem::remove_all(root);
    return result;
  };
  EXPECT_EQ(quota(), 0);  // nothing is there

  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), 0);

  // The group that this one is in allows less.
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  write("sys/fs/cgroup/a/b/cpu.max", "300000 100000\n");
  EXPECT_EQ(quota(), 2);

  // A container whose own root is mounted.
  write("proc/self/cgroup", "0::/outside/container\n");
  write("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(quota(), 1);

  write("proc/self/cgroup", "3:cpuset:/c\n2:cpuacct,cpu:/c\n0::/\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "400000\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 4);

  write("proc/self/cgroup", "2:cpu:/c\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 0);
}

// Jobs that find the workers spinning, falling asleep and asleep.
TEST(ThreadPoolTest, SurvivesPausesOfAnyLength) {
  ThreadPool pool(3);
  for (int i = 0; i < 3000; ++i) {
    ExpectEveryIndexOnce(pool, 64, 12);
    if (i % 3 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(i % 150));
    }
  }
}

TEST(ThreadPoolTest, SerializesConcurrentCallers) {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&pool] {
      for (int i = 0; i < 1000; ++i) ExpectEveryIndexOnce(pool, 30, 6);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(ThreadPoolTest, IdleWorkersDoNotBurnTheCpu) {
  ThreadPool pool(2);
  ExpectEveryIndexOnce(pool, 10, 10);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::clock_t before = std::clock();  // CPU time of all threads
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  const double seconds =
      static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 0.1);
}

TEST(ThreadPoolTest, WorksInAForkedChild) {
  ThreadPool pool(3);
  ExpectEveryIndexOnce(pool, 100, 12);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // Jobs with workers of the child's own, and the destruction of a pool whose
    // threads are not there.
    alarm(20);
    {
      ThreadPool* inherited = &pool;
      ExpectEveryIndexOnce(*inherited, 100, 12);
      ThreadPool own(2);
      ExpectEveryIndexOnce(own, 100, 12);
    }
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  ExpectEveryIndexOnce(pool, 100, 12);
}

TEST(ThreadPoolTest, UsesItsWorkersInAChildForkedDuringAJob) {
  if (AvailableCpus() < 2) GTEST_SKIP() << "there is one CPU";
  ThreadPool pool(2);
  std::atomic<bool> started{false}, finish{false};
  struct Flags {
    std::atomic<bool>&started, &finish;
  } flags = {started, finish};
  std::thread caller([&] {
    pool.ParallelFor(
        2, 2,
        [](void* context, std::size_t, std::size_t) {
          auto* flags = static_cast<Flags*>(context);
          flags->started = true;
          while (!flags->finish) std::this_thread::yield();
        },
        &flags);
  });
  while (!started) std::this_thread::yield();
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(NumThreadsUsed(pool) == 2 ? 0 : 1);
  }
  finish = true;
  caller.join();
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(ThreadPoolTest, IsDestroyedInAForkedChild) {
  auto* pool = new ThreadPool(3);
  ExpectEveryIndexOnce(*pool, 100, 12);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    delete pool;
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  delete pool;
}

}  // namespace
}  // namespace ai_edge_rms_norm
