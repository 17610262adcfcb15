// Runs the lines that export_vhlo_custom_call.patch adds, with the MLIR of the
// stock libtensorflow_cc.so.2, on one custom call per case. Prints a JSON
// object per case: the options that were written, or the error.
//
// The library hides VHLO's symbols. The wheel has their generated definitions,
// which are compiled here. They need functions of sources that the wheel does
// not have (parsers, printers, verifiers); the lines under test do not call
// them, so empty ones stand in.
#include <cstdint>
#include <iostream>
#include <string>
#include <tuple>
#include <vector>

#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/TypeSwitch.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/DialectImplementation.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/IR/OpImplementation.h"
#include "patched_exporter.cc"  // NOLINT: the frame of the lines under test.
#include "stablehlo/dialect/AssemblyFormat.h"

#define UNUSED_PARSER(name)  \
  template <typename... T>   \
  ParseResult name(T&&...) { \
    return failure();        \
  }
#define UNUSED_PRINTER(name) \
  template <typename... T>   \
  void name(T&&...) {}
#define UNUSED_VERIFIER(name)  \
  template <typename... T>     \
  LogicalResult name(T&&...) { \
    return success();          \
  }

namespace mlir::vhlo {
namespace {

UNUSED_PARSER(parseAttributeArray)
UNUSED_PARSER(parseAttributeDictionary)
UNUSED_PARSER(parseEncoding)
UNUSED_PARSER(parseEscapedString)
UNUSED_PARSER(parseShape)
UNUSED_PARSER(parseTypeArray)
UNUSED_PRINTER(printAttributeArray)
UNUSED_PRINTER(printAttributeDictionary)
UNUSED_PRINTER(printEncoding)
UNUSED_PRINTER(printEscapedString)
UNUSED_PRINTER(printShape)
UNUSED_PRINTER(printTypeArray)
UNUSED_VERIFIER(__mlir_ods_local_attr_constraint_VhloOps1)
UNUSED_VERIFIER(__mlir_ods_local_type_constraint_VhloOps2)

template <typename T>
bool isFromVhlo(T) {
  return true;
}
template <typename T>
bool allFromVhlo(T) {
  return true;
}

}  // namespace
}  // namespace mlir::vhlo

namespace mlir::hlo {

FailureOr<SmallVector<int64_t>> parseDimSizes(AsmParser&) { return failure(); }
void printDimSizes(AsmPrinter&, ArrayRef<int64_t>) {}

}  // namespace mlir::hlo

// The generated code is written for the namespaces of VhloOps.cpp.
using namespace mlir;        // NOLINT
using namespace mlir::vhlo;  // NOLINT

#include "stablehlo/dialect/VhloAttrInterfaces.cpp.inc"
#include "stablehlo/dialect/VhloEnums.cpp.inc"
#include "stablehlo/dialect/VhloOpInterfaces.cpp.inc"
#include "stablehlo/dialect/VhloTypeInterfaces.cpp.inc"
#define GET_ATTRDEF_CLASSES
#include "stablehlo/dialect/VhloAttrs.cpp.inc"
#define GET_TYPEDEF_CLASSES
#include "stablehlo/dialect/VhloTypeDefs.cpp.inc"
// The part of VhloOps.cpp.inc for this one operator.
#include "custom_call_v1.inc"

namespace mlir::vhlo {

VhloDialect::VhloDialect(MLIRContext* context)
    : Dialect(getDialectNamespace(), context, TypeID::get<VhloDialect>()) {
  addAttributes<ArrayV1Attr, BooleanV1Attr, CustomCallApiVersionV1Attr,
                DictionaryV1Attr, FloatV1Attr, IntegerV1Attr, StringV1Attr>();
  addTypes<FloatF32V1Type, IntegerSI64V1Type, IntegerUI64V1Type>();
  addOperations<CustomCallOpV1>();
}

Type VhloDialect::parseType(DialectAsmParser&) const { return {}; }
void VhloDialect::printType(Type, DialectAsmPrinter&) const {}
Attribute VhloDialect::parseAttribute(DialectAsmParser&, Type) const {
  return {};
}
void VhloDialect::printAttribute(Attribute, DialectAsmPrinter&) const {}
Attribute IntegerV1Attr::parse(AsmParser&, Type) { return {}; }
void IntegerV1Attr::print(AsmPrinter&) const {}
Attribute TensorV1Attr::parse(AsmParser&, Type) { return {}; }
void TensorV1Attr::print(AsmPrinter&) const {}
LogicalResult CustomCallOpV1::validateConstraint(Operation*, Version) {
  return success();
}

}  // namespace mlir::vhlo

namespace {

// The options in the flatbuffer, as members of a JSON object.
std::string written;

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

// The object at an offset in a buffer that is still being built.
template <typename T>
const T* At(const flatbuffers::FlatBufferBuilder& builder,
            flatbuffers::Offset<T> offset) {
  return reinterpret_cast<const T*>(builder.GetCurrentBufferPointer() +
                                    builder.GetSize() - offset.o);
}

template <typename T>
std::string List(const flatbuffers::Vector<T>* values) {
  std::string list;
  for (auto value : *values) {
    list += (list.empty() ? "" : ", ") + std::to_string(value);
  }
  return "[" + list + "]";
}

}  // namespace

// In place of schema_generated.h and the rest of flatbuffer_export.cc.
flatbuffers::Offset<tflite::StablehloCustomCallOptions>
tflite::CreateStablehloCustomCallOptions(
    flatbuffers::FlatBufferBuilder& builder,
    flatbuffers::Offset<flatbuffers::String> call_target_name,
    bool has_side_effect,
    flatbuffers::Offset<flatbuffers::String> backend_config,
    int32_t api_version,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>> called_computations,
    flatbuffers::Offset<flatbuffers::Vector<uint8_t>> custom_attributes) {
  written =
      "\"call_target_name\": " + Quoted(At(builder, call_target_name)->str()) +
      ", \"has_side_effect\": " + (has_side_effect ? "true" : "false") +
      ", \"backend_config\": " + Quoted(At(builder, backend_config)->str()) +
      ", \"api_version\": " + std::to_string(api_version) +
      ", \"called_computations\": " +
      (called_computations.IsNull() ? "null"
                                    : List(At(builder, called_computations))) +
      ", \"custom_attributes\": " + List(At(builder, custom_attributes));
  return 1;
}

flatbuffers::Offset<tflite::Operator> tflite::CreateOperator(
    flatbuffers::FlatBufferBuilder& builder, uint32_t opcode_index,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>> inputs,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>> outputs, BuiltinOptions,
    flatbuffers::Offset<void>,
    flatbuffers::Offset<flatbuffers::Vector<uint8_t>>, CustomOptionsFormat,
    flatbuffers::Offset<flatbuffers::Vector<uint8_t>>,
    flatbuffers::Offset<flatbuffers::Vector<int32_t>>, uint64_t, uint64_t,
    BuiltinOptions2 builtin_options_2_type,
    flatbuffers::Offset<void> builtin_options_2, int32_t debug_metadata_index) {
  written +=
      ", \"opcode_index\": " + std::to_string(opcode_index) +
      ", \"inputs\": " + List(At(builder, inputs)) +
      ", \"outputs\": " + List(At(builder, outputs)) +
      ", \"builtin_options_2_type\": " +
      std::to_string(builtin_options_2_type) + ", \"has_builtin_options_2\": " +
      (builtin_options_2.IsNull() ? "false" : "true") +
      ", \"debug_metadata_index\": " + std::to_string(debug_metadata_index);
  return 1;
}

uint32_t Translator::GetOpcodeIndex(const std::string& op_name,
                                    tflite::BuiltinOperator builtin) {
  return op_name == "vhlo.custom_call_v1" ? builtin : 0;
}

int32_t Translator::GetOperatorDebugMetadataIndex(mlir::Operation*) {
  return 5;
}

int main() {
  MLIRContext context;
  context.getOrLoadDialect<VhloDialect>();
  OpBuilder builder(&context);

  auto string = [&](StringRef value) {
    return StringV1Attr::get(&context, value);
  };
  auto array = [&](ArrayRef<Attribute> values) {
    return ArrayV1Attr::get(&context, values);
  };
  const Attribute dictionary = DictionaryV1Attr::get(&context, {});
  const llvm::APInt minus_three(64, -3, /*isSigned=*/true);
  const std::vector<std::tuple<std::string, std::string, Attribute>> cases = {
      // Name of the case, attribute that is set or replaced, its value.
      {"plain", "", {}},
      {"vhlo_bool", "extra", BooleanV1Attr::get(&context, true)},
      {"vhlo_string", "extra", string("text")},
      {"vhlo_integer", "extra",
       IntegerV1Attr::get(&context, IntegerSI64V1Type::get(&context),
                          minus_three)},
      {"vhlo_unsigned", "extra",
       IntegerV1Attr::get(&context, IntegerUI64V1Type::get(&context),
                          minus_three)},
      {"vhlo_float", "extra",
       FloatV1Attr::get(&context, FloatF32V1Type::get(&context),
                        llvm::APFloat(0.1f))},
      {"bool", "extra", builder.getBoolAttr(true)},
      {"string", "extra", builder.getStringAttr("text")},
      {"integer", "extra", builder.getI32IntegerAttr(-7)},
      {"unsigned", "extra",
       IntegerAttr::get(IntegerType::get(&context, 64, IntegerType::Unsigned),
                        minus_three)},
      {"float", "extra", builder.getF64FloatAttr(1e-6)},
      {"wide_integer", "extra",
       IntegerAttr::get(builder.getIntegerType(128), llvm::APInt(128, 1))},
      {"wide_float", "extra",
       FloatAttr::get(Float128Type::get(&context),
                      llvm::APFloat(llvm::APFloat::IEEEquad(), "0.1"))},
      {"vhlo_dictionary", "extra", dictionary},
      {"frontend_attributes", "mhlo.frontend_attributes",
       builder.getDictionaryAttr({})},
      {"call_target_name", "call_target_name", dictionary},
      {"backend_config", "backend_config", dictionary},
      {"called_computations", "called_computations", array({string("f")})},
      {"operand_layouts", "operand_layouts", array({string("layout")})},
      {"result_layouts", "result_layouts", array({string("layout")})},
      {"output_operand_aliases", "output_operand_aliases",
       array({string("alias")})},
  };

  for (const auto& [name, attribute, value] : cases) {
    NamedAttrList attributes;
    attributes.set("call_target_name", string("test.call"));
    attributes.set("has_side_effect", BooleanV1Attr::get(&context, true));
    attributes.set("backend_config", string("{\"epsilon\": 1e-06}"));
    attributes.set(
        "api_version",
        CustomCallApiVersionV1Attr::get(
            &context, CustomCallApiVersionV1::API_VERSION_STATUS_RETURNING));
    for (const char* empty : {"called_computations", "operand_layouts",
                              "result_layouts", "output_operand_aliases"}) {
      attributes.set(empty, array({}));
    }
    if (!attribute.empty()) attributes.set(attribute, value);
    OperationState state(builder.getUnknownLoc(), "vhlo.custom_call_v1");
    state.addAttributes(attributes);
    Operation* operation = Operation::create(state);

    std::string error;
    ScopedDiagnosticHandler handler(&context, [&](Diagnostic& diagnostic) {
      error = diagnostic.str();
      return success();
    });
    written.clear();
    const bool built = Translator()
                           .BuildOperator(operation, /*operands=*/{3, 1},
                                          /*results=*/{4})
                           .has_value();
    std::cout << "{\"case\": " << Quoted(name) << ", "
              << (built ? written : "\"error\": " + Quoted(error)) << "}\n";
    operation->destroy();
  }
}
