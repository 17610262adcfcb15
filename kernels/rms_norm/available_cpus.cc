#include "kernels/rms_norm/available_cpus.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sched.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <string>

namespace ai_edge_rms_norm {
namespace {

// The path of this process in a hierarchy of control groups: of version 2, or
// of the version 1 controller "cpu". Lines read "0::/a/b" and
// "4:cpu,cpuacct:/a/b".
std::string GroupPath(const std::string& root, bool version_2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers =
        "," + line.substr(first + 1, second - first - 1) + ",";
    if (version_2 ? controllers == ",,"
                  : controllers.find(",cpu,") != std::string::npos) {
      return line.substr(second + 1);
    }
  }
  return "/";
}

// Microseconds of CPU time per period over its length; 0 if there is no limit.
double Version2Limit(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");  // "max 100000" or "150000 100000"
  std::string quota;
  double period;
  if (!(file >> quota >> period) || quota == "max" || period <= 0.0) return 0.0;
  return std::strtod(quota.c_str(), nullptr) / period;
}

double Version1Limit(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");  // -1: no limit
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  double quota, period;
  if (!(quota_file >> quota) || !(period_file >> period)) return 0.0;
  return quota > 0.0 && period > 0.0 ? quota / period : 0.0;
}

// The smallest limit of a group and of those that it is in. In a container the
// path may not exist below its own root, which then has the container's limit.
double SmallestLimit(const std::string& mount, std::string path,
                     double (*limit_of)(const std::string& folder)) {
  double smallest = 0.0;
  for (;;) {
    const double limit = limit_of(mount + path);
    if (limit > 0.0)
      smallest = smallest > 0.0 ? std::min(smallest, limit) : limit;
    const std::size_t slash = path.find_last_of('/');
    if (path.empty() || slash == std::string::npos) return smallest;
    path.resize(slash);
  }
}

// The CPUs that the system lets this process use; 1024 if it does not tell.
int AffinityCpus() {
#if defined(__APPLE__)
  // There is no affinity; these are the CPUs in the current power mode.
  int count = 0;
  std::size_t size = sizeof(count);
  const bool known =
      sysctlbyname("hw.activecpu", &count, &size, nullptr, 0) == 0 && count > 0;
  return known ? count : 1024;
#else
  // Fails where the system has more than 1024 CPUs: then it is not a limit.
  cpu_set_t set;
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1024;
#endif
}

}  // namespace

int CpuQuota(const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup";
  double limit =
      SmallestLimit(mount, GroupPath(root, /*version_2=*/true), Version2Limit);
  if (limit == 0.0) {
    limit = SmallestLimit(mount + "/cpu", GroupPath(root, /*version_2=*/false),
                          Version1Limit);
  }
  return static_cast<int>(std::ceil(std::min(limit, 1e6)));
}

int AvailableCpus() {
  const int affinity = AffinityCpus();
  const int quota = CpuQuota("");
  return std::max(quota > 0 ? std::min(affinity, quota) : affinity, 1);
}

}  // namespace ai_edge_rms_norm
