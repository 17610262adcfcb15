// Lets a stock TensorFlow export vhlo.custom_call_v1 as STABLEHLO_CUSTOM_CALL.
//
// TensorFlow's flatbuffer exporter can write the operator, but rejects it
// unless its last argument, serialize_stablehlo_ops, is true, and the converter
// passes false for every model that also has TFLite operators.
// libtensorflow_cc.so.2 calls the exporter through its dynamic symbol, so a
// definition in a library that was loaded before it with global visibility
// takes its place: the one below, which calls the original with true inside a
// scope that the caller opens and is transparent outside of it.
//
// The scope belongs to the thread that opens it. The interface is C, for
// ctypes. ELF only. Needs none of TensorFlow's headers: see the declarations.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <string>

#include "kernels/glibc_symbol_version.h"

#ifdef OLD_GLIBC_VERSION
__asm__(".symver dlopen, dlopen@" OLD_GLIBC_VERSION);
__asm__(".symver dlsym, dlsym@" OLD_GLIBC_VERSION);
__asm__(".symver dlclose, dlclose@" OLD_GLIBC_VERSION);
#endif

// As tensorflow/compiler/mlir/lite/flatbuffer_export.h declares them. Passing
// them on takes no more than the calling convention: a ModuleOp is one pointer,
// trivially copyable; the others are references and pointers to opaque types.
namespace mlir {
struct ModuleOp {
  void* operation;
};
}  // namespace mlir
namespace tflite {
struct FlatbufferExportOptions;
__attribute__((visibility("default"))) bool MlirToFlatBufferTranslateFunction(
    mlir::ModuleOp module, const FlatbufferExportOptions& options,
    std::string* serialized_flatbuffer, bool serialize_stablehlo_ops);
}  // namespace tflite

namespace {

constexpr char kLibrary[] = "libtensorflow_cc.so.2";
// The function above as the Itanium C++ ABI mangles it.
constexpr char kSymbol[] =
    "_ZN6tflite33MlirToFlatBufferTranslateFunctionEN4mlir8ModuleOpE"
    "RKNS_23FlatbufferExportOptionsE"
    "PNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEb";

using Exporter = decltype(&tflite::MlirToFlatBufferTranslateFunction);

thread_local bool scope_is_open = false;
thread_local int exports_in_scope = 0;

// nullptr as long as TensorFlow is not loaded or has no such function.
Exporter OriginalExporter() {
  static std::atomic<Exporter> original{nullptr};
  if (Exporter found = original.load()) return found;
  void* library = dlopen(kLibrary, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  auto found = reinterpret_cast<Exporter>(dlsym(library, kSymbol));
  dlclose(library);  // Gives back the reference only; TensorFlow stays loaded.
  original.store(found);
  return found;
}

}  // namespace

bool tflite::MlirToFlatBufferTranslateFunction(
    mlir::ModuleOp module, const FlatbufferExportOptions& options,
    std::string* serialized_flatbuffer, bool serialize_stablehlo_ops) {
  const Exporter original = OriginalExporter();
  if (original == nullptr) {
    std::fprintf(stderr, "vhlo_export: %s does not define %s\n", kLibrary,
                 kSymbol);
    return true;  // The exporter's failure.
  }
  if (scope_is_open) {
    serialize_stablehlo_ops = true;
    ++exports_in_scope;
  }
  return original(module, options, serialized_flatbuffer,
                  serialize_stablehlo_ops);
}

extern "C" {

// Whether TensorFlow is loaded in this process.
__attribute__((visibility("default"))) bool VhloExportTensorFlowIsLoaded() {
  void* library = dlopen(kLibrary, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return false;
  dlclose(library);
  return true;
}

// Whether the TensorFlow that is loaded has the function that we stand in for.
__attribute__((visibility("default"))) bool VhloExportSymbolIsPresent() {
  return OriginalExporter() != nullptr;
}

// From here on, exports of this thread let custom calls through.
__attribute__((visibility("default"))) void VhloExportOpenScope() {
  scope_is_open = true;
  exports_in_scope = 0;
}

// Ends that; returns how many exports there were. 0 after a conversion means
// that TensorFlow did not call us.
__attribute__((visibility("default"))) int VhloExportCloseScope() {
  scope_is_open = false;
  return exports_in_scope;
}

}  // extern "C"
