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

// What Python's flexbuffers.Dumps({"epsilon": 1e-6}) writes.
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
