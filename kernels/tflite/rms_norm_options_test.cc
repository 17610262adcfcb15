#include "kernels/tflite/rms_norm_options.h"

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "flatbuffers/flexbuffers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ai_edge_rms_norm {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Bytes = std::vector<uint8_t>;

template <typename Fill>
Bytes Map(Fill fill) {
  flexbuffers::Builder builder;
  builder.Map([&] { fill(builder); });
  builder.Finish();
  return builder.GetBuffer();
}

Bytes Epsilon(double epsilon) {
  return Map([&](auto& builder) { builder.Double("epsilon", epsilon); });
}

std::string Parse(const Bytes& bytes, RmsNormOptions* options) {
  return ParseRmsNormOptions(bytes.data(), bytes.size(), options);
}

std::string Error(const Bytes& bytes) {
  RmsNormOptions options;
  return Parse(bytes, &options);
}

TEST(RmsNormOptionsTest, EpsilonIsExact) {
  for (const double epsilon : {1e-6, 1e-5, 0.1, 1e-60, 1.0, 1e300,
                               std::numeric_limits<double>::denorm_min()}) {
    RmsNormOptions options;
    EXPECT_THAT(Parse(Epsilon(epsilon), &options), IsEmpty());
    EXPECT_EQ(options.epsilon, epsilon);
  }
}

// The bytes of Python's flexbuffers.Dumps({"epsilon": 1e-6}).
TEST(RmsNormOptionsTest, BytesOfThePythonWriter) {
  const Bytes bytes = {
      'e',  'p',  's',  'i',  'l',  'o',  'n',  0,     // key
      1,    9,    0,    0,    0,    0,    0,    0,     // keys
      7,    0,    0,    0,    0,    0,    0,    0,     //
      1,    0,    0,    0,    0,    0,    0,    0,     // width of the keys
      1,    0,    0,    0,    0,    0,    0,    0,     // number of values
      0x8d, 0xed, 0xb5, 0xa0, 0xf7, 0xc6, 0xb0, 0x3e,  // 1e-6
      0x0f, 0x09, 0x27, 1};
  RmsNormOptions options;
  EXPECT_THAT(Parse(bytes, &options), IsEmpty());
  EXPECT_EQ(options.epsilon, 1e-6);
}

TEST(RmsNormOptionsTest, AcceptsOtherNumbers) {
  RmsNormOptions options;
  EXPECT_THAT(Parse(Map([](auto& b) { b.Float("epsilon", 0.5f); }), &options),
              IsEmpty());
  EXPECT_EQ(options.epsilon, 0.5);
  EXPECT_THAT(Parse(Map([](auto& b) { b.Int("epsilon", 2); }), &options),
              IsEmpty());
  EXPECT_EQ(options.epsilon, 2.0);
}

TEST(RmsNormOptionsTest, EveryTypeAndWidthOfNumber) {
  RmsNormOptions options;
  const auto expect = [&](const Bytes& bytes, double epsilon) {
    EXPECT_THAT(Parse(bytes, &options), IsEmpty());
    EXPECT_EQ(options.epsilon, epsilon);
  };
  for (const uint64_t value :
       {uint64_t{7}, uint64_t{1} << 15, uint64_t{1} << 31, uint64_t{1} << 62}) {
    const auto expected = static_cast<double>(value);
    const auto number = static_cast<int64_t>(value);
    expect(Map([=](auto& b) { b.Int("epsilon", number); }), expected);
    expect(Map([=](auto& b) { b.UInt("epsilon", value); }), expected);
    expect(Map([=](auto& b) { b.IndirectInt("epsilon", number); }), expected);
    expect(Map([=](auto& b) { b.IndirectUInt("epsilon", value); }), expected);
  }
  expect(Map([](auto& b) { b.UInt("epsilon", UINT64_MAX); }), 0x1p64);
  expect(Map([](auto& b) { b.IndirectFloat("epsilon", 0.5f); }), 0.5);
  expect(Map([](auto& b) { b.IndirectDouble("epsilon", 1e-6); }), 1e-6);
  EXPECT_THAT(Error(Map([](auto& b) { b.Int("epsilon", -3); })),
              HasSubstr("> 0, got -3"));
  EXPECT_THAT(Error(Map([](auto& b) { b.IndirectInt("epsilon", -300); })),
              HasSubstr("> 0, got -300"));
}

// Alignment is a matter of the writer, and a model keeps no promise of it.
TEST(RmsNormOptionsTest, Unaligned) {
  const Bytes valid = Epsilon(1e-6);
  for (std::size_t offset = 0; offset < 8; ++offset) {
    Bytes buffer(offset, 0xff);
    buffer.insert(buffer.end(), valid.begin(), valid.end());
    RmsNormOptions options;
    EXPECT_THAT(
        ParseRmsNormOptions(buffer.data() + offset, valid.size(), &options),
        IsEmpty());
    EXPECT_EQ(options.epsilon, 1e-6);
  }
}

// {"epsilon": value} by hand, of one-byte widths; `packed` is the value's type.
Bytes SmallMap(uint8_t value, uint8_t packed, int copies = 1) {
  const std::string key("epsilon", 8);
  Bytes bytes(key.begin(), key.end());
  const auto count = static_cast<uint8_t>(copies);
  bytes.push_back(count);
  for (int i = 0; i < copies; ++i) {
    bytes.push_back(static_cast<uint8_t>(bytes.size()));
  }
  bytes.push_back(count);  // The keys are `copies` bytes before this.
  bytes.push_back(1);
  bytes.push_back(count);
  bytes.insert(bytes.end(), copies, value);
  bytes.insert(bytes.end(), copies, packed);
  bytes.push_back(static_cast<uint8_t>(2 * copies));
  bytes.push_back(9 << 2);
  bytes.push_back(1);
  return bytes;
}

TEST(RmsNormOptionsTest, ByHand) {
  RmsNormOptions options;
  EXPECT_THAT(Parse(SmallMap(5, 1 << 2), &options), IsEmpty());
  EXPECT_EQ(options.epsilon, 5.0);
  EXPECT_THAT(Error(SmallMap(5, 1 << 2, 2)), HasSubstr("more than once"));
  EXPECT_THAT(Error(SmallMap(5, 0 << 2)), HasSubstr("a number, got null"));
  EXPECT_THAT(Error(SmallMap(5, 26 << 2)), HasSubstr("a number, got a bool"));
  EXPECT_THAT(Error(SmallMap(5, 10 << 2)), HasSubstr("a number, got a vector"));
  EXPECT_THAT(Error(SmallMap(5, 63 << 2)), HasSubstr("a value of type 63"));
  // There is no float of one byte; and an offset to before the buffer.
  EXPECT_THAT(Error(SmallMap(5, 3 << 2)), HasSubstr("not a valid FlexBuffer"));
  EXPECT_THAT(Error(SmallMap(99, 6 << 2)), HasSubstr("not a valid FlexBuffer"));
}

// 16^8 leaves, if one went into each of them.
TEST(RmsNormOptionsTest, SharedNestedVectorsAreNotRead) {
  flexbuffers::Builder builder;
  builder.Map([&] {
    flexbuffers::Builder::Value inner;
    const std::size_t first = builder.StartVector("epsilon");
    for (int i = 0; i < 16; ++i) builder.Int(i);
    builder.EndVector(first, false, false);
    inner = builder.LastValue();
    for (int depth = 0; depth < 7; ++depth) {
      builder.Key(std::string("nested") + std::to_string(depth));
      const std::size_t start = builder.StartVector();
      for (int i = 0; i < 16; ++i) builder.ReuseValue(inner);
      builder.EndVector(start, false, false);
      inner = builder.LastValue();
    }
  });
  builder.Finish();
  EXPECT_THAT(Error(builder.GetBuffer()), HasSubstr("unknown option \"nested"));
}

TEST(RmsNormOptionsTest, RejectsBadEpsilon) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_THAT(Error(Epsilon(0.0)), HasSubstr("> 0, got 0"));
  EXPECT_THAT(Error(Epsilon(-1e-6)), HasSubstr("> 0, got -"));
  EXPECT_THAT(Error(Epsilon(kInfinity)), HasSubstr("finite"));
  EXPECT_THAT(Error(Epsilon(std::numeric_limits<double>::quiet_NaN())),
              HasSubstr("finite"));
}

TEST(RmsNormOptionsTest, RejectsOtherContent) {
  EXPECT_THAT(Error({}), HasSubstr("got 0 bytes"));
  EXPECT_THAT(Error({0, 0}), HasSubstr("got 2 bytes"));
  EXPECT_THAT(Error(Bytes(64, 0xff)), HasSubstr("not a valid FlexBuffer"));
  EXPECT_THAT(Error(Map([](auto&) {})), HasSubstr("\"epsilon\" is missing"));
  EXPECT_THAT(Error(Map([](auto& b) { b.String("epsilon", "1e-6"); })),
              HasSubstr("must be a number, got a string"));
  EXPECT_THAT(Error(Map([](auto& b) { b.Bool("epsilon", true); })),
              HasSubstr("must be a number, got a bool"));
  EXPECT_THAT(Error(Map([](auto& b) {
                b.Double("epsilon", 1e-6);
                b.Int("axis", 1);
              })),
              HasSubstr("unknown option \"axis\""));
  flexbuffers::Builder number;
  number.Double(1e-6);
  number.Finish();
  EXPECT_THAT(Error(number.GetBuffer()),
              HasSubstr("must be a FlexBuffers map, got a number"));
}

// Whatever the bytes, the answer is an error or a valid epsilon. (Reads outside
// of the buffer are for AddressSanitizer to see.)
void ExpectErrorOrValid(const Bytes& bytes) {
  RmsNormOptions options;
  if (Parse(bytes, &options).empty()) {
    EXPECT_GT(options.epsilon, 0.0);
    EXPECT_LE(options.epsilon, std::numeric_limits<double>::max());
  }
}

TEST(RmsNormOptionsTest, SurvivesDamagedBuffers) {
  for (const Bytes& valid : {Epsilon(1e-6), Map([](auto& b) {
                               b.Double("epsilon", 1e-6);
                               b.String("name", "a text");
                               b.Vector("vector", [&] { b.Int(1 << 20); });
                             })}) {
    for (std::size_t size = 0; size < valid.size(); ++size) {
      ExpectErrorOrValid(Bytes(valid.begin(), valid.begin() + size));
      ExpectErrorOrValid(Bytes(valid.begin() + size, valid.end()));
    }
    for (std::size_t i = 0; i < valid.size(); ++i) {
      for (int value = 0; value < 256; ++value) {
        Bytes damaged = valid;
        damaged[i] = static_cast<uint8_t>(value);
        ExpectErrorOrValid(damaged);
        // A second damage, in the bytes that say what the root is.
        for (std::size_t j = valid.size() - 3; j < valid.size(); ++j) {
          Bytes twice = damaged;
          twice[j] ^= static_cast<uint8_t>(1 + value % 40);
          ExpectErrorOrValid(twice);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ai_edge_rms_norm
