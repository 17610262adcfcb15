// How many CPUs this process may use.
#ifndef KERNELS_RMS_NORM_AVAILABLE_CPUS_H_
#define KERNELS_RMS_NORM_AVAILABLE_CPUS_H_

#include <string>

namespace ai_edge_rms_norm {

// At least 1: the CPUs that the calling thread may run on (sched_getaffinity),
// or fewer if a control group allows less time than those have.
int AvailableCpus();

// The CPUs' worth of time that control groups allow, rounded up; 0 without a
// limit. root: where /proc and /sys are ("" for the system's own).
int CpuQuota(const std::string& root);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_AVAILABLE_CPUS_H_
