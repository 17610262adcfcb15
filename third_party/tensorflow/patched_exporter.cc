// The surroundings of the lines that export_vhlo_custom_call.patch adds to
// tensorflow/compiler/mlir/lite/flatbuffer_export.cc, for
// patched_exporter_test. MLIR and VHLO come from TensorFlow's wheel, LLVM and
// FlatBuffers from the distribution; no package has TFLite's schema, so the
// names of it that are used stand here.
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/log/log.h"
#include "absl/strings/string_view.h"
#include "flatbuffers/flatbuffers.h"
#include "flatbuffers/flexbuffers.h"
#include "llvm/ADT/APFloat.h"
#include "llvm/Support/Casting.h"
#include "mlir/IR/Attributes.h"
#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/Operation.h"
#include "stablehlo/dialect/VhloOps.h"
#include "stablehlo/dialect/VhloTypes.h"

template <typename T>
using BufferOffset = flatbuffers::Offset<T>;

// In the order and with the types of the schema (tensorflow/compiler/mlir/lite/
// schema/schema.fbs): what the generated schema_generated.h would declare.
namespace tflite {

struct Operator;
struct StablehloCustomCallOptions;

enum BuiltinOperator { BuiltinOperator_STABLEHLO_CUSTOM_CALL = 173 };
enum BuiltinOptions : uint8_t { BuiltinOptions_NONE };
enum BuiltinOptions2 : uint8_t {
  BuiltinOptions2_StablehloCustomCallOptions = 5
};
enum CustomOptionsFormat : int8_t { CustomOptionsFormat_FLEXBUFFERS };

flatbuffers::Offset<StablehloCustomCallOptions>
CreateStablehloCustomCallOptions(
    flatbuffers::FlatBufferBuilder& builder,
    flatbuffers::Offset<flatbuffers::String> call_target_name,
    bool has_side_effect,
    flatbuffers::Offset<flatbuffers::String> backend_config,
    int32_t api_version,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>> called_computations,
    flatbuffers::Offset<flatbuffers::Vector<uint8_t>> custom_attributes);

flatbuffers::Offset<Operator> CreateOperator(
    flatbuffers::FlatBufferBuilder& builder, uint32_t opcode_index,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>> inputs,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>> outputs,
    BuiltinOptions builtin_options_type,
    flatbuffers::Offset<void> builtin_options,
    flatbuffers::Offset<flatbuffers::Vector<uint8_t>> custom_options,
    CustomOptionsFormat custom_options_format,
    flatbuffers::Offset<flatbuffers::Vector<uint8_t>> mutating_variable_inputs,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>> intermediates,
    uint64_t large_custom_options_offset, uint64_t large_custom_options_size,
    BuiltinOptions2 builtin_options_2_type,
    flatbuffers::Offset<void> builtin_options_2, int32_t debug_metadata_index);

}  // namespace tflite

#include "patch_hunk_0.inc"

class Translator {
 public:
  std::optional<BufferOffset<tflite::Operator>> BuildOperator(
      mlir::Operation* inst, const std::vector<int32_t>& operands,
      const std::vector<int32_t>& results);

 private:
  uint32_t GetOpcodeIndex(const std::string& op_name,
                          tflite::BuiltinOperator builtin);
  int32_t GetOperatorDebugMetadataIndex(mlir::Operation* inst);

  flatbuffers::FlatBufferBuilder builder_;
};

std::optional<BufferOffset<tflite::Operator>> Translator::BuildOperator(
    mlir::Operation* inst, const std::vector<int32_t>& operands,
    const std::vector<int32_t>& results) {
#include "patch_hunk_1.inc"
  return std::nullopt;
}
