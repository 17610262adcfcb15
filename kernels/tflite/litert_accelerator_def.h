// The part of LiteRT's accelerator ABI that litert_accelerator.cc needs, as
// litert/c/internal/litert_accelerator_def.h and litert_runtime_context.h of
// LiteRT 2.3 define it: tables that start with their size and version.
// No package ships these headers.
#ifndef KERNELS_TFLITE_LITERT_ACCELERATOR_DEF_H_
#define KERNELS_TFLITE_LITERT_ACCELERATOR_DEF_H_

#include <cstddef>
#include <cstdint>

#include "kernels/tflite/tflite_c_api.h"

extern "C" {

enum LiteRtStatus : int {
  kLiteRtStatusOk = 0,
  kLiteRtStatusErrorUnsupported = 5,
};

// Bits of LiteRtHwAcceleratorSet.
enum LiteRtHwAccelerators : int {
  kLiteRtHwAcceleratorCpu = 1,
};

struct LiteRtApiVersion {
  int major, minor, patch;
};

struct LiteRtAbiHeader {
  std::uint16_t struct_size;
  std::uint16_t major_version;
  std::uint16_t minor_version;
  std::uint16_t reserved;
};

using LiteRtAccelerator = struct LiteRtAcceleratorT*;
using LiteRtDelegateWrapper = struct LiteRtDelegateWrapperT*;
using LiteRtEnvironment = struct LiteRtEnvironmentT*;
using LiteRtOptions = struct LiteRtOptionsT*;

// The runtime's functions for accelerators; only the one that is used has a
// name here.
struct LiteRtRuntimeContext {
  LiteRtAbiHeader abi_header;
  void* unused[17];
  // The runtime calls deleter when the compiled model ends.
  LiteRtStatus (*wrap_delegate)(TfLiteDelegate* delegate,
                                void (*deleter)(TfLiteDelegate*),
                                LiteRtDelegateWrapper* wrapper);
};

struct LiteRtAcceleratorDef {
  LiteRtAbiHeader abi_header;
  LiteRtStatus (*get_name)(LiteRtAccelerator accelerator, const char** name);
  LiteRtStatus (*get_version)(LiteRtAccelerator accelerator,
                              LiteRtApiVersion* version);
  LiteRtStatus (*get_hardware_support)(LiteRtAccelerator accelerator,
                                       int* supported_hardware);
  LiteRtStatus (*is_tflite_delegate_responsible_for_jit_compilation)(
      LiteRtAccelerator accelerator, bool* does_jit_compilation);
  LiteRtStatus (*create_delegate)(LiteRtRuntimeContext* runtime,
                                  LiteRtEnvironment environment,
                                  LiteRtAccelerator accelerator,
                                  LiteRtOptions options,
                                  LiteRtDelegateWrapper* wrapper);
  // Metrics and handlers of tensor buffers, which are left out.
  void* unused[19];
};

}  // extern "C"

#endif  // KERNELS_TFLITE_LITERT_ACCELERATOR_DEF_H_
