#include "kernels/rms_norm/variants.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ai_edge_rms_norm {
namespace {

bool Always() { return true; }

#if defined(__x86_64__)
// Clang 14 has no name for it in __builtin_cpu_supports.
bool HasF16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// __builtin_cpu_supports also asks the operating system (XGETBV) about the
// registers, which for F16C are those of AVX.
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         HasF16c();
}

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && HasAvx2();
}

bool HasAvx512Bf16() {
  return HasAvx512() && __builtin_cpu_supports("avx512bf16");
}

// Zen 3 and Zen 4 are AMD's family 19h; of these only Zen 4 has AVX-512.
bool IsZen4() { return HasAvx512() && __builtin_cpu_is("amdfam19h"); }
#endif  // __x86_64__

#if defined(__aarch64__)
bool HasNeonBf16() {
#if defined(__APPLE__)
  int has = 0;
  std::size_t size = sizeof(has);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) ==
             0 &&
         has != 0;
#else
  return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#endif
}
#endif  // __aarch64__

constexpr KernelInfo kKernels[] = {
#define RMS_NORM_INFO(op, type, isa, supported, preferred)    \
  {#op "_" #type "_" #isa, #isa,      kOp_##op, kType_##type, \
   op##_##type##_##isa,    supported, preferred},
#define RMS_NORM_VARIANT(isa, supported, preferred) \
  RMS_NORM_KERNELS(RMS_NORM_INFO, isa, supported, preferred)
#include "kernels/rms_norm/variants.inc"
#undef RMS_NORM_VARIANT
#undef RMS_NORM_INFO
};

constexpr char kVariantNames[] =
#define RMS_NORM_VARIANT(isa, supported, preferred) ", " #isa
#include "kernels/rms_norm/variants.inc"
#undef RMS_NORM_VARIANT
    ;

}  // namespace

KernelTable AllKernels() {
  return {kKernels, kKernels + sizeof(kKernels) / sizeof(kKernels[0])};
}

const char* VariantNames() { return kVariantNames + 2; }

}  // namespace ai_edge_rms_norm
