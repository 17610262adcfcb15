// The delegate inside LiteRT's CompiledModel: the shared library of the
// delegate is an accelerator library as well. The runtime looks for one under
// the name libLiteRtGpuAccelerator.so in the runtime_path of an environment,
// and takes its definition from the symbol LiteRtAcceleratorImpl. This one says
// that it supports the CPU, so that a model compiled for the CPU gets it; it is
// registered before XNNPACK and hence applied first. An environment that has it
// has no GPU.
#include "kernels/tflite/litert_accelerator_def.h"
#include "kernels/tflite/rms_norm_delegate.h"
#include "kernels/tflite/rms_norm_node.h"

namespace ai_edge_rms_norm {
namespace {

// 0: as many as the model's first graph has.
int num_threads = 0;

LiteRtStatus GetName(LiteRtAccelerator, const char** name) {
  *name = "AiEdgeRmsNorm";
  return kLiteRtStatusOk;
}

LiteRtStatus GetVersion(LiteRtAccelerator, LiteRtApiVersion* version) {
  *version = {1, 0, 0};
  return kLiteRtStatusOk;
}

LiteRtStatus GetHardwareSupport(LiteRtAccelerator, int* supported_hardware) {
  *supported_hardware = kLiteRtHwAcceleratorCpu;
  return kLiteRtStatusOk;
}

LiteRtStatus DoesJitCompilation(LiteRtAccelerator, bool* does_jit_compilation) {
  // So that it is applied without being asked for.
  *does_jit_compilation = true;
  return kLiteRtStatusOk;
}

LiteRtStatus CreateDelegate(LiteRtRuntimeContext* runtime, LiteRtEnvironment,
                            LiteRtAccelerator, LiteRtOptions,
                            LiteRtDelegateWrapper* wrapper) {
  // LiteRT 2.1 has another table.
  if (runtime->abi_header.major_version != 1 ||
      runtime->abi_header.struct_size < sizeof(LiteRtRuntimeContext)) {
    return kLiteRtStatusErrorUnsupported;
  }
  RmsNormDelegateOptions options;
  options.num_threads = num_threads;
  return runtime->wrap_delegate(CreateRmsNormDelegate(options),
                                DeleteRmsNormDelegate, wrapper);
}

}  // namespace
}  // namespace ai_edge_rms_norm

#define AI_EDGE_RMS_NORM_EXPORT \
  extern "C" __attribute__((visibility("default")))

AI_EDGE_RMS_NORM_EXPORT const LiteRtAcceleratorDef LiteRtAcceleratorImpl = {
    {sizeof(LiteRtAcceleratorDef), /*major_version=*/1, /*minor_version=*/0, 0},
    ai_edge_rms_norm::GetName,
    ai_edge_rms_norm::GetVersion,
    ai_edge_rms_norm::GetHardwareSupport,
    ai_edge_rms_norm::DoesJitCompilation,
    ai_edge_rms_norm::CreateDelegate,
    {},
};

// Sets the number of threads of models compiled from now on, 1 to 256; returns
// whether it is one of these.
AI_EDGE_RMS_NORM_EXPORT bool ai_edge_rms_norm_set_num_threads(int value) {
  if (value < 1 || value > ai_edge_rms_norm::kMaxNumThreads) return false;
  ai_edge_rms_norm::num_threads = value;
  return true;
}
