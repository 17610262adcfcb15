#include "kernels/rms_norm/kernels.h"

namespace ai_edge_rms_norm {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports also asks the operating system (XGETBV).
bool Supports_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool Supports_avx512() {
  return __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && Supports_avx2();
}
bool Supports_avx512_zen4() { return Supports_avx512(); }
#endif

#if defined(__aarch64__)
bool Supports_neon() { return true; }  // part of Armv8.0-A
#endif

bool Supports_generic() { return true; }

#if defined(__x86_64__)
// Zen 3 and Zen 4 are AMD's family 19h; of these only Zen 4 has AVX-512.
bool Prefers_avx512_zen4() { return __builtin_cpu_is("amdfam19h"); }
constexpr auto Prefers_avx512 = Supports_avx512;
constexpr auto Prefers_avx2 = Supports_avx2;
#endif
#if defined(__aarch64__)
constexpr auto Prefers_neon = Supports_neon;
#endif
constexpr auto Prefers_generic = Supports_generic;

constexpr Op kOp_rms_norm = Op::kRmsNorm;
constexpr Op kOp_add_rms_norm = Op::kAddRmsNorm;
constexpr ElementType kType_f32 = ElementType::kFloat32;
constexpr ElementType kType_f16 = ElementType::kFloat16;
constexpr ElementType kType_bf16 = ElementType::kBFloat16;

constexpr KernelInfo kKernels[] = {
#define RMS_NORM_KERNEL(op, type, isa)                                 \
  {#op "_" #type "_" #isa, #isa,           kOp_##op,     kType_##type, \
   op##_##type##_##isa,    Supports_##isa, Prefers_##isa},
#include "kernels/rms_norm/kernels.inc"
#undef RMS_NORM_KERNEL
};

}  // namespace

KernelTable AllKernels() {
  return {kKernels, kKernels + sizeof(kKernels) / sizeof(kKernels[0])};
}

}  // namespace ai_edge_rms_norm
