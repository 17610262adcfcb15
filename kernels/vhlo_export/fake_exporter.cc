// Stands in for libtensorflow_cc.so.2 in vhlo_export_test: has the function
// that vhlo_export interposes, and calls it through its dynamic symbol.
#include <string>

namespace mlir {
struct ModuleOp {
  void* operation;
};
}  // namespace mlir

namespace tflite {

struct FlatbufferExportOptions {};

__attribute__((visibility("default"))) bool MlirToFlatBufferTranslateFunction(
    mlir::ModuleOp, const FlatbufferExportOptions&,
    std::string* serialized_flatbuffer, bool serialize_stablehlo_ops) {
  *serialized_flatbuffer = serialize_stablehlo_ops ? "true" : "false";
  return false;
}

}  // namespace tflite

// Exports as the converter does; returns the value of serialize_stablehlo_ops
// that arrived, as text.
extern "C" __attribute__((visibility("default"))) const char* FakeConvert(
    bool serialize_stablehlo_ops) {
  static std::string flatbuffer;
  tflite::MlirToFlatBufferTranslateFunction(
      mlir::ModuleOp(), tflite::FlatbufferExportOptions(), &flatbuffer,
      serialize_stablehlo_ops);
  return flatbuffer.c_str();
}
