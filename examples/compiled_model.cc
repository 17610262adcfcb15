// Registers the delegate with LiteRT's CompiledModel through the C API of
// LiteRT 2.3, and runs a model of one float32 input and output on ones:
//
//   compiled_model libLiteRt.so librms_norm_delegate.so model.tflite
//
// Prints whether the model is fully accelerated and the first output. A program
// that is built with LiteRT's own headers calls the same functions directly.
//
// Registered this way the delegate is applied after XNNPACK, since an
// environment brings XNNPACK with it: it runs `custom` and `ml_drift`, which
// XNNPACK leaves, but not `decomposed`. For all encodings put the library as
// libLiteRtGpuAccelerator.so into a folder and give that to the environment, as
// ai_edge_rms_norm.compiled_model.environment does.
#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "kernels/tflite/litert_accelerator_def.h"

namespace {

using Handle = void*;

// litert/c/litert_layout.h and litert_model_types.h.
struct RankedTensorType {
  std::int32_t element_type;
  unsigned int rank : 7;
  unsigned int has_strides : 1;
  std::int32_t dimensions[8];
  std::uint32_t strides[8];
};
enum LockMode : int { kRead = 0, kWrite = 1 };

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "compiled_model: %s failed\n", what);
  std::exit(1);
}

Handle Load(const char* path) {
  const Handle library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) Fail(dlerror());
  return library;
}

Handle litert = nullptr;

// Calls a function of LiteRT's C API that returns a status.
template <typename... Arguments>
void Call(const char* name, Arguments... arguments) {
  const Handle symbol = dlsym(litert, name);
  if (symbol == nullptr) Fail(name);
  const auto function =
      reinterpret_cast<LiteRtStatus (*)(Arguments...)>(symbol);
  if (function(arguments...) != kLiteRtStatusOk) Fail(name);
}

void RegisterDelegate(Handle environment, const LiteRtAcceleratorDef& def) {
  Handle accelerator = nullptr;
  Call("LiteRtCreateAccelerator", &accelerator);
  Call("LiteRtSetAcceleratorGetName", accelerator, def.get_name);
  Call("LiteRtSetAcceleratorGetVersion", accelerator, def.get_version);
  Call("LiteRtSetAcceleratorGetHardwareSupport", accelerator,
       def.get_hardware_support);
  Call("LiteRtSetIsAcceleratorDelegateResponsibleForJitCompilation",
       accelerator, def.is_tflite_delegate_responsible_for_jit_compilation);
  Call("LiteRtSetDelegateFunction", accelerator, def.create_delegate);
  using Release = void (*)(void*);
  // Now the environment owns the accelerator.
  Call("LiteRtRegisterAccelerator", environment, accelerator,
       static_cast<void*>(nullptr), static_cast<Release>(nullptr));
}

// Returns a buffer for the first input or output of the first signature.
Handle CreateBuffer(Handle environment, Handle model, Handle compiled,
                    const char* tensor_getter, const char* requirements_getter,
                    std::size_t* size) {
  const std::size_t first = 0;
  Handle signature = nullptr, tensor = nullptr;
  Handle requirements = nullptr, buffer = nullptr;
  RankedTensorType type{};
  Call("LiteRtGetModelSignature", model, first, &signature);
  Call(tensor_getter, signature, first, &tensor);
  Call("LiteRtGetRankedTensorType", tensor, &type);
  Call(requirements_getter, compiled, first, first, &requirements);
  Call("LiteRtCreateManagedTensorBufferFromRequirements", environment,
       static_cast<const RankedTensorType*>(&type), requirements, &buffer);
  Call("LiteRtGetTensorBufferPackedSize", buffer, size);
  return buffer;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s LIBLITERT DELEGATE MODEL\n", argv[0]);
    return 2;
  }
  litert = Load(argv[1]);
  const auto* def = static_cast<const LiteRtAcceleratorDef*>(
      dlsym(Load(argv[2]), "LiteRtAcceleratorImpl"));
  if (def == nullptr) Fail("LiteRtAcceleratorImpl");

  Handle environment = nullptr, model = nullptr, options = nullptr;
  Handle compiled = nullptr;
  Call("LiteRtCreateEnvironment", 0, static_cast<const void*>(nullptr),
       &environment);
  RegisterDelegate(environment, *def);
  Call("LiteRtCreateModelFromFile", environment,
       static_cast<const char*>(argv[3]), &model);
  Call("LiteRtCreateOptions", &options);
  Call("LiteRtSetOptionsHardwareAccelerators", options,
       static_cast<int>(kLiteRtHwAcceleratorCpu));
  Call("LiteRtCreateCompiledModel", environment, model, options, &compiled);
  bool is_fully_accelerated = false;
  Call("LiteRtCompiledModelIsFullyAccelerated", compiled,
       &is_fully_accelerated);

  std::size_t input_size = 0, output_size = 0;
  Handle input = CreateBuffer(
      environment, model, compiled, "LiteRtGetSignatureInputTensorByIndex",
      "LiteRtGetCompiledModelInputBufferRequirements", &input_size);
  Handle output = CreateBuffer(
      environment, model, compiled, "LiteRtGetSignatureOutputTensorByIndex",
      "LiteRtGetCompiledModelOutputBufferRequirements", &output_size);
  void* data = nullptr;
  Call("LiteRtLockTensorBuffer", input, &data, kWrite);
  std::fill_n(static_cast<float*>(data), input_size / sizeof(float), 1.0f);
  Call("LiteRtUnlockTensorBuffer", input);
  const std::size_t first = 0, one = 1;
  Call("LiteRtRunCompiledModel", compiled, first, one, &input, one, &output);
  Call("LiteRtLockTensorBuffer", output, &data, kRead);
  std::printf("fully_accelerated=%d y[0]=%.7g\n", is_fully_accelerated,
              static_cast<double>(*static_cast<const float*>(data)));
  Call("LiteRtUnlockTensorBuffer", output);
  return 0;
}
