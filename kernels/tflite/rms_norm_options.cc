#include "kernels/tflite/rms_norm_options.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "flatbuffers/flexbuffers.h"

namespace ai_edge_rms_norm {
namespace {

std::string TypeName(const flexbuffers::Reference& value) {
  if (value.IsNull()) return "null";
  if (value.IsBool()) return "a bool";
  if (value.IsNumeric()) return "a number";
  if (value.IsString() || value.IsKey()) return "a string";
  if (value.IsBlob()) return "a blob";
  if (value.IsMap()) return "a map";
  if (value.IsAnyVector()) return "a vector";
  return "a value of type " + std::to_string(value.GetType());
}

}  // namespace

std::string ParseRmsNormOptions(const void* data, size_t size,
                                RmsNormOptions* options) {
  // Shortest buffer: one value, its type, the width of the root.
  constexpr size_t kMinSize = 3;
  if (data == nullptr || size < kMinSize) {
    return "options must be a FlexBuffers map {\"epsilon\": number}, got " +
           std::to_string(data == nullptr ? 0 : size) + " bytes";
  }
  // A copy is aligned for the widest scalar, which bytes inside a model need
  // not be, and has a terminator: the verifier of FlatBuffers 2 does not check
  // that the last key ends inside the buffer.
  const auto* bytes = static_cast<const uint8_t*>(data);
  std::vector<uint8_t> buffer(bytes, bytes + size);
  buffer.push_back('\0');
  std::vector<uint8_t> reuse_tracker;
  if (!flexbuffers::VerifyBuffer(buffer.data(), size, &reuse_tracker)) {
    return "options are not a valid FlexBuffer (" + std::to_string(size) +
           " bytes)";
  }
  const flexbuffers::Reference root = flexbuffers::GetRoot(buffer.data(), size);
  if (!root.IsMap()) {
    return "options must be a FlexBuffers map, got " + TypeName(root);
  }

  const flexbuffers::Map map = root.AsMap();
  const flexbuffers::TypedVector keys = map.Keys();
  bool has_epsilon = false;
  for (size_t i = 0; i < keys.size(); ++i) {
    const char* key = keys[i].AsKey();
    if (std::strcmp(key, "epsilon") != 0) {
      return std::string("unknown option \"") + key +
             "\", expected only \"epsilon\"";
    }
    has_epsilon = true;
  }
  if (!has_epsilon) return "option \"epsilon\" is missing";

  const flexbuffers::Reference value = map["epsilon"];
  if (!value.IsNumeric()) {
    return "option \"epsilon\" must be a number, got " + TypeName(value);
  }
  const double epsilon = value.AsDouble();
  if (!std::isfinite(epsilon) || epsilon <= 0.0) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.17g", epsilon);
    return std::string("epsilon must be finite and > 0, got ") + text;
  }
  options->epsilon = epsilon;
  return "";
}

}  // namespace ai_edge_rms_norm
