#include "kernels/tflite/rms_norm_options.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>

namespace ai_edge_rms_norm {
namespace {

constexpr char kEpsilon[] = "epsilon";

// Types of FlexBuffers.
enum FlexType : unsigned {
  kNull = 0,
  kInt = 1,
  kUInt = 2,
  kFloat = 3,
  kKey = 4,
  kString = 5,
  kIndirectInt = 6,
  kIndirectUInt = 7,
  kIndirectFloat = 8,
  kMap = 9,
  kVector = 10,
  kLastFixedTypedVector = 24,
  kBlob = 25,
  kBool = 26,
  kBoolVector = 36,
};

// A type and the width of what it describes, in bytes.
struct PackedType {
  explicit PackedType(uint8_t packed)
      : type(packed >> 2), width(size_t{1} << (packed & 3)) {}
  unsigned type;
  size_t width;
};

bool IsNumber(unsigned type) {
  return (type >= kInt && type <= kFloat) ||
         (type >= kIndirectInt && type <= kIndirectFloat);
}

std::string TypeName(unsigned type) {
  if (IsNumber(type)) return "a number";
  if ((type >= kVector && type <= kLastFixedTypedVector) ||
      type == kBoolVector) {
    return "a vector";
  }
  switch (type) {
    case kNull:
      return "null";
    case kBool:
      return "a bool";
    case kKey:
    case kString:
      return "a string";
    case kBlob:
      return "a blob";
    case kMap:
      return "a map";
    default:
      return "a value of type " + std::to_string(type);
  }
}

bool IsWidth(uint64_t width) {
  return width == 1 || width == 2 || width == 4 || width == 8;
}

template <typename T>
T Load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

// Reads in a buffer; nothing outside of it.
class Reader {
 public:
  Reader(const void* data, size_t size)
      : data_(static_cast<const uint8_t*>(data)), size_(size) {}

  // The bytes at a position, or nullptr if they are not all in the buffer.
  const uint8_t* Bytes(size_t position, size_t count) const {
    return position <= size_ && count <= size_ - position ? data_ + position
                                                          : nullptr;
  }

  std::optional<uint64_t> UInt(size_t position, size_t width) const {
    const uint8_t* bytes = Bytes(position, width);
    if (bytes == nullptr) return std::nullopt;
    uint64_t value = 0;
    std::memcpy(&value, bytes, width);  // Both targets are little-endian.
    return value;
  }

  std::optional<size_t> Indirect(size_t position, size_t width) const {
    const std::optional<uint64_t> offset = UInt(position, width);
    if (!offset.has_value() || *offset > position) return std::nullopt;
    return position - static_cast<size_t>(*offset);
  }

  // Whether a key is there. Sets *name, as far as it goes, if it is not
  // epsilon.
  bool Key(size_t position, std::string* name) const {
    constexpr size_t kMaxName = 64;
    if (position >= size_) return false;
    const auto* text = reinterpret_cast<const char*>(data_ + position);
    const size_t left = size_ - position;
    const size_t length = strnlen(text, left < kMaxName ? left : kMaxName);
    name->assign(text, length);
    return length < left;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

std::optional<double> Int(const Reader& reader, size_t position, size_t width) {
  const std::optional<uint64_t> bits = reader.UInt(position, width);
  if (!bits.has_value()) return std::nullopt;
  const unsigned unused = static_cast<unsigned>(64 - 8 * width);
  return static_cast<double>(static_cast<int64_t>(*bits << unused) >> unused);
}

std::optional<double> Float(const Reader& reader, size_t position,
                            size_t width) {
  const uint8_t* bytes = reader.Bytes(position, width);
  if (bytes == nullptr || width < sizeof(float)) return std::nullopt;
  return width == sizeof(float) ? Load<float>(bytes) : Load<double>(bytes);
}

// The map of the root.
struct Map {
  size_t position = 0;
  size_t width = 0;
  size_t keys = 0;
  size_t keys_width = 0;
  uint64_t size = 0;
};

std::optional<Map> FindMap(const Reader& reader, size_t root, size_t root_width,
                           size_t width) {
  const std::optional<size_t> position = reader.Indirect(root, root_width);
  if (!position.has_value() || *position < 3 * width) return std::nullopt;
  const std::optional<uint64_t> size = reader.UInt(*position - width, width);
  const std::optional<uint64_t> keys_width =
      reader.UInt(*position - 2 * width, width);
  const std::optional<size_t> keys =
      reader.Indirect(*position - 3 * width, width);
  if (!size.has_value() || !keys_width.has_value() || !IsWidth(*keys_width) ||
      !keys.has_value() || *keys < *keys_width ||
      reader.UInt(*keys - *keys_width, *keys_width) != size) {
    return std::nullopt;
  }
  return Map{*position, width, *keys, static_cast<size_t>(*keys_width), *size};
}

std::string NotValid(size_t size) {
  return "options are not a valid FlexBuffer (" + std::to_string(size) +
         " bytes)";
}

// Returns what is wrong with the keys, or an empty string.
std::string CheckKeys(const Reader& reader, const Map& map, size_t size) {
  if (map.size == 0) return "option \"epsilon\" is missing";
  // Ends at the first key outside of the buffer, whatever their number is.
  for (uint64_t i = 0; i < map.size; ++i) {
    const std::optional<size_t> position = reader.Indirect(
        map.keys + static_cast<size_t>(i) * map.keys_width, map.keys_width);
    std::string name;
    if (!position.has_value() || !reader.Key(*position, &name)) {
      return NotValid(size);
    }
    if (name != kEpsilon) {
      return "unknown option \"" + name + "\", expected only \"epsilon\"";
    }
  }
  return map.size == 1 ? "" : "option \"epsilon\" is there more than once";
}

// The number of a type, of so many bytes, at a position.
std::optional<double> Number(const Reader& reader, unsigned type,
                             size_t position, size_t width) {
  switch (type) {
    case kInt:
    case kIndirectInt:
      return Int(reader, position, width);
    case kUInt:
    case kIndirectUInt:
      return reader.UInt(position, width);
    default:
      return Float(reader, position, width);
  }
}

// Returns what is wrong with the value, or an empty string.
std::string ReadEpsilon(const Reader& reader, const Map& map, size_t size,
                        double* epsilon) {
  const uint8_t* packed = reader.Bytes(map.position + map.width, 1);
  if (packed == nullptr) return NotValid(size);
  const PackedType type(*packed);
  if (!IsNumber(type.type)) {
    return "option \"epsilon\" must be a number, got " + TypeName(type.type);
  }
  const bool indirect = type.type >= kIndirectInt;
  std::optional<size_t> position = map.position;
  if (indirect) position = reader.Indirect(map.position, map.width);
  if (!position.has_value()) return NotValid(size);
  const std::optional<double> value =
      Number(reader, type.type, *position, indirect ? type.width : map.width);
  if (!value.has_value()) return NotValid(size);
  *epsilon = *value;
  return "";
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
  const Reader reader(data, size);
  const size_t root_width = *reader.Bytes(size - 1, 1);
  if (!IsWidth(root_width) || size < 2 + root_width) return NotValid(size);
  const PackedType root_type(*reader.Bytes(size - 2, 1));
  if (root_type.type != kMap) {
    return "options must be a FlexBuffers map, got " + TypeName(root_type.type);
  }
  const std::optional<Map> map =
      FindMap(reader, size - 2 - root_width, root_width, root_type.width);
  if (!map.has_value()) return NotValid(size);
  std::string error = CheckKeys(reader, *map, size);
  double epsilon = 0.0;
  if (error.empty()) error = ReadEpsilon(reader, *map, size, &epsilon);
  if (!error.empty()) return error;
  if (!std::isfinite(epsilon) || epsilon <= 0.0) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.17g", epsilon);
    return std::string("epsilon must be finite and > 0, got ") + text;
  }
  options->epsilon = epsilon;
  return "";
}

}  // namespace ai_edge_rms_norm
