// The test double of a TensorFlow with export_vhlo_custom_call.patch applied:
// lets a stock TensorFlow export vhlo.custom_call_v1 as STABLEHLO_CUSTOM_CALL.
//
// TensorFlow's flatbuffer exporter can write the operator, but rejects it
// unless its last argument, serialize_stablehlo_ops, is true, and the converter
// passes false for every model that also has TFLite operators.
// libtensorflow_cc.so.2 calls the exporter through its dynamic symbol, so the
// definition below takes its place in a process that loads this library before
// TensorFlow, with global visibility. It calls the original with true.
//
// Unlike with the patch, other VHLO operators that are left over are exported,
// too. ELF only. Needs none of TensorFlow's headers: see the declarations.
#include <dlfcn.h>

#include <cstdio>
#include <string>

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

}  // namespace

bool tflite::MlirToFlatBufferTranslateFunction(
    mlir::ModuleOp module, const FlatbufferExportOptions& options,
    std::string* serialized_flatbuffer, bool /*serialize_stablehlo_ops*/) {
  // TensorFlow is loaded: it made this call. Closing gives back the reference.
  void* library = dlopen(kLibrary, RTLD_LAZY | RTLD_NOLOAD);
  const auto original =
      library == nullptr ? nullptr
                         : reinterpret_cast<Exporter>(dlsym(library, kSymbol));
  if (library != nullptr) dlclose(library);
  if (original == nullptr) {
    std::fprintf(stderr, "interposed_exporter: %s does not define %s\n",
                 kLibrary, kSymbol);
    return true;  // The exporter's failure.
  }
  return original(module, options, serialized_flatbuffer,
                  /*serialize_stablehlo_ops=*/true);
}
