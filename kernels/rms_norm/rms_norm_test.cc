// Tests every kernel that this CPU supports against the float64 reference, and
// the library's dispatch and threading.
#include "kernels/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/rms_norm_reference.h"
#include "kernels/rms_norm/streaming.h"
#include "kernels/rms_norm/thread_pool.h"
#include "kernels/rms_norm/variants.h"

namespace ai_edge_rms_norm {

void PrintTo(const KernelInfo& info, std::ostream* os) { *os << info.name; }

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// A matrix of elements between guard bytes, `misalignment` elements away from
// a multiple of 64 bytes.
class Buffer {
 public:
  Buffer(ElementType type, std::size_t size, std::size_t misalignment = 0)
      : type_(type),
        size_(size),
        bytes_(size * SizeOf(type) + 3 * kGuard, kGuardByte) {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    begin_ = (kGuard - address % kGuard) + kGuard + misalignment * SizeOf(type);
    bytes_.resize(begin_ + size * SizeOf(type) + kGuard, kGuardByte);
  }
  Buffer(ElementType type, const std::vector<float>& values,
         std::size_t misalignment = 0)
      : Buffer(type, values.size(), misalignment) {
    for (std::size_t i = 0; i < size_; ++i) Set(i, values[i]);
  }
  Buffer(const Buffer&) = delete;  // a copy would be aligned differently
  Buffer(Buffer&&) = default;

  void* data() { return bytes_.data() + begin_; }
  const void* data() const { return bytes_.data() + begin_; }
  std::size_t size() const { return size_; }

  float operator[](std::size_t i) const {
    switch (type_) {
      case ElementType::kFloat32:
        return static_cast<const float*>(data())[i];
      case ElementType::kFloat16:
        return ToFloat(static_cast<const Float16*>(data())[i]);
      case ElementType::kBFloat16:
        return ToFloat(static_cast<const BFloat16*>(data())[i]);
    }
    return kNaN;
  }

  bool GuardsIntact() const {
    const auto is_guard = [](char c) { return c == kGuardByte; };
    return std::all_of(bytes_.begin(), bytes_.begin() + begin_, is_guard) &&
           std::all_of(bytes_.begin() + begin_ + size_ * SizeOf(type_),
                       bytes_.end(), is_guard);
  }

  bool SameBits(const Buffer& other) const {
    return size_ == other.size_ &&
           std::memcmp(data(), other.data(), size_ * SizeOf(type_)) == 0;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr char kGuardByte = '\xa5';

  void Set(std::size_t i, float value) {
    switch (type_) {
      case ElementType::kFloat32:
        static_cast<float*>(data())[i] = value;
        return;
      case ElementType::kFloat16:
        static_cast<Float16*>(data())[i] = FromFloat<Float16>(value);
        return;
      case ElementType::kBFloat16:
        static_cast<BFloat16*>(data())[i] = FromFloat<BFloat16>(value);
        return;
    }
  }

  ElementType type_;
  std::size_t size_;
  std::vector<char> bytes_;
  std::size_t begin_;
};

std::vector<float> Normal(std::size_t count, unsigned seed,
                          float magnitude = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = magnitude * normal(rng);
  return values;
}

// How far y may be from the reference: one rounding to the element type, the
// roundings of the scale and of the two products in float32, and what summing
// up to 32 squares per lane and then the lanes in float32 may have added. Where
// x * weight or x * scale is subnormal, its error is multiplied by the other
// factor; scales above 2^16 come second.
double Tolerance(const RmsNormParams& params, double expected) {
  const double float32 = 0x1p-24;
  const double unit = params.type == ElementType::kFloat32   ? 0x1p-24
                      : params.type == ElementType::kFloat16 ? 0x1p-11
                                                             : 0x1p-8;
  const double smallest = params.type == ElementType::kFloat32   ? 0x1p-149
                          : params.type == ElementType::kFloat16 ? 0x1p-24
                                                                 : 0x1p-133;
  const double sum = std::min<double>(params.hidden_size, 32.0) / 8.0;
  const double largest_scale = 1.0 / std::sqrt(params.epsilon);
  const double second_factor =
      largest_scale <= 0x1p16 ? std::max(largest_scale, 1.0) : 1.0;
  return std::abs(expected) * (unit + (3.0 + sum) * float32) +
         3.0 * std::max(smallest, 0x1p-149 * second_factor);
}

// The largest finite value plus half an ulp: what rounds to infinity.
double Overflow(ElementType type) {
  return type == ElementType::kFloat32   ? 0x1.ffffffp+127
         : type == ElementType::kFloat16 ? 65520.0
                                         : 0x1.ffp+127;
}

void ExpectNear(const RmsNormParams& params,
                const std::vector<double>& expected, const Buffer& actual,
                const std::string& what) {
  ASSERT_TRUE(actual.GuardsIntact()) << what;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double e = expected[i];
    const double a = actual[i];
    if (std::isnan(e)) {
      ASSERT_TRUE(std::isnan(a)) << what << " element " << i << ": " << a;
    } else if (std::abs(e) >= Overflow(params.type)) {
      ASSERT_EQ(a, std::copysign(HUGE_VAL, e)) << what << " element " << i;
    } else {
      ASSERT_LE(std::abs(a - e), Tolerance(params, e))
          << what << " element " << i << ": " << a << " instead of " << e;
    }
  }
}

double MaxUlp(const std::vector<double>& expected, const Buffer& actual) {
  double max = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const float rounded = std::abs(static_cast<float>(expected[i]));
    const double ulp = std::nextafter(rounded, kInfinity) - double{rounded};
    max = std::max(max, std::abs(actual[i] - expected[i]) / ulp);
  }
  return max;
}

class KernelTest : public testing::TestWithParam<KernelInfo> {
 protected:
  void SetUp() override {
    if (!GetParam().supported()) {
      GTEST_SKIP() << "this CPU does not support " << GetParam().isa;
    }
  }

  bool adds() const { return GetParam().op == RmsNormOp::kAddRmsNorm; }
  ElementType type() const { return GetParam().type; }

  RmsNormParams Params(std::size_t rows, std::size_t hidden_size,
                       double epsilon, ElementType weight_type) const {
    return {rows, hidden_size, epsilon, type(), weight_type};
  }

  void Run(const RmsNormParams& params, const void* x, const void* residual,
           const void* weight, void* sum, void* y, bool stream = false) const {
    const ResidualSum residual_sum = {residual, sum};
    GetParam().kernel(params, x, weight, y, &residual_sum, stream);
  }

  std::vector<double> Expected(const RmsNormParams& params, const Buffer& x,
                               const Buffer& residual, const Buffer* weight,
                               Buffer* sum) const {
    std::vector<double> y(params.rows * params.hidden_size);
    const void* w = weight == nullptr ? nullptr : weight->data();
    switch (GetParam().op) {
      case RmsNormOp::kRmsNorm:
        RmsNormReference(params, x.data(), w, y.data());
        break;
      case RmsNormOp::kAddRmsNorm:
        AddRmsNormReference(params, x.data(), residual.data(), w, sum->data(),
                            y.data());
        break;
    }
    return y;
  }

  // Runs the kernel on x (and residual, a permutation of x that makes the sum
  // of the same magnitude) and compares with the reference.
  void Check(std::size_t rows, std::size_t hidden_size,
             const std::vector<float>& values, double epsilon,
             const Buffer* weight, ElementType weight_type,
             std::size_t misalignment, const std::string& what) {
    const RmsNormParams params =
        Params(rows, hidden_size, epsilon, weight_type);
    const Buffer x(type(), values, misalignment);
    std::vector<float> rotated = values;
    for (std::size_t row = 0; row < rows; ++row) {
      const auto begin = rotated.begin() + row * hidden_size;
      std::rotate(begin, begin + hidden_size / 3, begin + hidden_size);
    }
    const Buffer residual(type(), rotated, misalignment);
    Buffer sum(type(), values.size(), misalignment);
    Buffer expected_sum(type(), values.size());
    Buffer y(type(), values.size(), misalignment);
    const std::vector<double> expected =
        Expected(params, x, residual, weight, &expected_sum);
    Run(params, x.data(), residual.data(),
        weight == nullptr ? nullptr : weight->data(), sum.data(), y.data());
    ExpectNear(params, expected, y, what);
    ASSERT_TRUE(sum.GuardsIntact()) << what;
    if (adds()) {
      for (std::size_t i = 0; i < sum.size(); ++i) {
        ASSERT_TRUE(sum[i] == expected_sum[i] ||
                    (std::isnan(sum[i]) && std::isnan(expected_sum[i])))
            << what << " sum " << i << ": " << sum[i] << " instead of "
            << expected_sum[i];
      }
    }
  }
};

// Four times the widest vector and three more, and the sizes around the blocks
// of the algorithm and of real models.
std::vector<std::size_t> HiddenSizes() {
  std::vector<std::size_t> sizes;
  for (std::size_t n = 1; n <= 4 * 32 + 3; ++n) sizes.push_back(n);
  for (std::size_t n : {128, 255, 256, 257, 319, 320, 512, 576, 640, 768, 1024,
                        1152, 1536, 2048, 2560, 3072, 4096, 4097, 8191}) {
    sizes.push_back(n);
  }
  return sizes;
}

TEST_P(KernelTest, MatchesReferenceForEverySizeWeightAndAlignment) {
  for (std::size_t n : HiddenSizes()) {
    for (std::size_t rows : {1, 3}) {
      const std::vector<float> values = Normal(rows * n, 1);
      const Buffer float_weight(ElementType::kFloat32, Normal(n, 2), n % 2);
      const Buffer own_weight(type(), Normal(n, 3), n % 2);
      for (std::size_t misalignment : {0, 1}) {
        const std::string what = std::to_string(rows) + "x" +
                                 std::to_string(n) + "+" +
                                 std::to_string(misalignment);
        Check(rows, n, values, 1e-6, nullptr, type(), misalignment,
              what + " without weight");
        Check(rows, n, values, 1e-6, &float_weight, ElementType::kFloat32,
              misalignment, what + " float32 weight");
        Check(rows, n, values, 1e-6, &own_weight, type(), misalignment,
              what + " weight of x's type");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(KernelTest, AllowsEveryAliasing) {
  for (std::size_t n : {5, 640, 2500}) {
    const RmsNormParams params = Params(5, n, 1e-6, ElementType::kFloat32);
    const std::vector<float> values = Normal(5 * n, 1);
    const Buffer weight(ElementType::kFloat32, Normal(n, 2));
    const auto run = [&](int sum_at, int y_at) {
      // Buffers 0 to 3: x, residual, another for sum, another for y.
      std::vector<Buffer> buffers;
      buffers.emplace_back(type(), values);
      buffers.emplace_back(type(), Normal(5 * n, 3));
      buffers.emplace_back(type(), values.size());
      buffers.emplace_back(type(), values.size());
      Run(params, buffers[0].data(), buffers[1].data(), weight.data(),
          buffers[sum_at].data(), buffers[y_at].data());
      return std::vector<Buffer>(std::make_move_iterator(buffers.begin()),
                                 std::make_move_iterator(buffers.end()));
    };
    const std::vector<Buffer> apart = run(2, 3);
    for (int y_at : {0, 1, 3}) {
      if (!adds() && y_at == 1) continue;
      for (int sum_at : {0, 1, 2}) {
        if (!adds() && sum_at != 2) continue;
        const std::vector<Buffer> aliased = run(sum_at, y_at);
        EXPECT_TRUE(aliased[y_at].SameBits(apart[3]))
            << "sum in buffer " << sum_at << ", y in buffer " << y_at;
        if (adds() && sum_at != y_at) {
          EXPECT_TRUE(aliased[sum_at].SameBits(apart[2]))
              << "sum in buffer " << sum_at << ", y in buffer " << y_at;
        }
      }
    }
    if (adds()) {  // y over sum: only y remains
      EXPECT_TRUE(run(2, 2)[2].SameBits(apart[3]));
    }
  }
}

TEST_P(KernelTest, RowsDoNotDependOnEachOtherOrOnStreaming) {
  // Sizes below and above those that the schedule changes at.
  for (std::size_t n : {3, 64, 100, 256, 512, 640, 1600, 2048, 3072, 4500}) {
    for (std::size_t rows : {2, 4, 7, 12, 70}) {
      const Buffer x(type(), Normal(rows * n, 1));
      const Buffer residual(type(), Normal(rows * n, 2));
      const Buffer weight(type(), Normal(n, 3));
      Buffer sum(type(), rows * n);
      Buffer y(type(), rows * n);
      Buffer streamed(type(), rows * n);
      Buffer one_by_one(type(), rows * n);
      RmsNormParams params = Params(rows, n, 1e-6, type());
      Run(params, x.data(), residual.data(), weight.data(), sum.data(),
          y.data());
      Run(params, x.data(), residual.data(), weight.data(), sum.data(),
          streamed.data(), /*stream=*/true);
      params.rows = 1;
      for (std::size_t row = 0; row < rows; ++row) {
        const std::size_t offset = row * n * SizeOf(type());
        Run(params, static_cast<const char*>(x.data()) + offset,
            static_cast<const char*>(residual.data()) + offset, weight.data(),
            static_cast<char*>(sum.data()) + offset,
            static_cast<char*>(one_by_one.data()) + offset);
      }
      EXPECT_TRUE(y.SameBits(one_by_one)) << rows << "x" << n;
      EXPECT_TRUE(y.SameBits(streamed)) << rows << "x" << n;
      EXPECT_TRUE(streamed.GuardsIntact()) << rows << "x" << n;
    }
  }
}

// Rows of every magnitude between ordinary ones: sums of squares that overflow
// or underflow float32 must not turn into zeros or infinities.
TEST_P(KernelTest, KeepsHugeAndTinyRows) {
  for (float magnitude : {1e18f, 1e19f, 1e25f, 1e30f, 1e37f, 1e38f, 60000.0f,
                          1e-15f, 1e-20f, 1e-30f, 1e-37f, 1e-42f}) {
    for (double epsilon : {1e-5, 1e-12, 1e-30, 1e-60}) {
      for (std::size_t n : {3, 100, 1152}) {
        const bool is_half = type() == ElementType::kFloat16;
        if (is_half && magnitude > 1e5f) continue;
        std::vector<float> values = Normal(3 * n, 1);
        for (std::size_t i = n; i < 2 * n; ++i) {
          // Halved, so that neither a normal deviate nor x + residual
          // overflows.
          values[i] = std::clamp(values[i], -1.5f, 1.5f) *
                      (is_half ? 0.25f : 0.5f) * magnitude;
        }
        const Buffer weight(ElementType::kFloat32, Normal(n, 2));
        Check(3, n, values, epsilon, &weight, ElementType::kFloat32, 0,
              "magnitude " + testing::PrintToString(magnitude) + " epsilon " +
                  testing::PrintToString(epsilon) + " n " + std::to_string(n));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// The product that comes first, with weight or with the scale, must not
// overflow where the result does not.
TEST_P(KernelTest, KeepsHugeAndTinyWeights) {
  for (float magnitude : {1e-3f, 1.0f, 1e4f, 1e25f}) {
    if (type() == ElementType::kFloat16 && magnitude > 1e4f) continue;
    for (float weight_magnitude : {1e-30f, 1e30f}) {
      for (std::size_t n : {3, 100, 1152}) {
        const Buffer weight(ElementType::kFloat32,
                            Normal(n, 2, weight_magnitude));
        Check(3, n, Normal(3 * n, 1, magnitude), 1e-6, &weight,
              ElementType::kFloat32, 0,
              "magnitude " + testing::PrintToString(magnitude) +
                  " weights of " + testing::PrintToString(weight_magnitude));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// An infinite weight gives infinities, even where x * scale is too small for
// float32 beside elements that are very large.
TEST_P(KernelTest, InfiniteWeightsGiveInfinities) {
  for (float largest : {1.0f, 6e4f, 1e18f, 1e30f}) {
    if (type() == ElementType::kFloat16 && largest > 6e4f) continue;
    for (std::size_t n : {5, 100}) {
      std::vector<float> values(4 * n, 1e-30f), weights(n, kInfinity);
      if (type() == ElementType::kFloat16) {
        std::fill(values.begin(), values.end(), 1e-4f);
      }
      for (std::size_t i = 0; i < values.size(); i += n) values[i] = largest;
      weights[1] = 1.0f;
      const Buffer weight(ElementType::kFloat32, weights);
      const RmsNormParams params = Params(4, n, 1e-6, ElementType::kFloat32);
      const Buffer x(type(), values);
      const Buffer residual(type(), std::vector<float>(values.size(), 0.0f));
      Buffer sum(type(), values.size());
      Buffer y(type(), values.size());
      Run(params, x.data(), residual.data(), weight.data(), sum.data(),
          y.data());
      for (std::size_t i = 0; i < y.size(); ++i) {
        if (i % n == 1) continue;
        ASSERT_EQ(y[i], kInfinity) << largest << " element " << i;
      }
    }
  }
}

// Sums that end at the largest float32 instead of infinity.
TEST_P(KernelTest, KeepsHugeRowsInEveryRoundingMode) {
  if (type() == ElementType::kFloat16) GTEST_SKIP() << "has no huge values";
  const int nearest = std::fegetround();
  for (int mode : {FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD}) {
    for (float magnitude : {1e19f, 1e25f, 1e30f, 1e37f}) {
      for (std::size_t n : {3, 128, 1152, 8191}) {
        const std::vector<float> values = Normal(4 * n, 1, magnitude);
        const RmsNormParams params = Params(4, n, 1e-6, type());
        const Buffer x(type(), values);
        const Buffer residual(type(), std::vector<float>(values.size(), 0.0f));
        Buffer sum(type(), values.size());
        Buffer y(type(), values.size());
        const std::vector<double> expected =
            Expected(params, x, residual, nullptr, &sum);
        std::fesetround(mode);
        Run(params, x.data(), residual.data(), nullptr, sum.data(), y.data());
        std::fesetround(nearest);
        for (std::size_t i = 0; i < y.size(); ++i) {
          // Roundings to one side do not average out.
          ASSERT_NEAR(y[i], expected[i], 1e-2 * std::abs(expected[i]) + 1e-30)
              << "mode " << mode << " magnitude " << magnitude << " n " << n;
        }
      }
    }
  }
}

#if defined(__x86_64__) || defined(__aarch64__)
// Treats subnormal float32 as zero, as operands and as results.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  FlushSubnormals() : before_(__builtin_ia32_stmxcsr()) {
    __builtin_ia32_ldmxcsr(before_ | 0x8040);  // FTZ, DAZ
  }
  ~FlushSubnormals() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#else
  FlushSubnormals() {
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before_));
    Set(before_ | 1 << 24);  // FZ
  }
  ~FlushSubnormals() { Set(before_); }

 private:
  void Set(std::uint64_t fpcr) {
    __asm__ __volatile__("msr fpcr, %0" : : "r"(fpcr));
  }
  std::uint64_t before_;
#endif
};

TEST_P(KernelTest, FlushedSubnormalsAreTheOnlyDifference) {
  constexpr double kSmallestNormal = std::numeric_limits<float>::min();
  for (float magnitude : {1e4f, 1.0f, 1e-15f, 1e-20f, 1e-30f, 1e-36f, 1e-39f}) {
    for (float weight_magnitude : {1.0f, 1e-30f}) {
      const std::size_t n = 700;
      std::vector<float> values = Normal(5 * n, 1, magnitude);
      values[n] = values[3 * n] = 0.01f;  // and rows of mixed magnitudes
      // Bfloat16 and float32 elements that count as zero.
      const bool half = type() == ElementType::kFloat16;
      const RmsNormParams params = Params(5, n, 1e-30, ElementType::kFloat32);
      const Buffer weight(ElementType::kFloat32,
                          Normal(n, 2, weight_magnitude));
      const Buffer x(type(), values);
      const Buffer residual(type(), std::vector<float>(values.size(), 0.0f));
      Buffer sum(type(), values.size());
      Buffer y(type(), values.size());
      const std::vector<double> expected =
          Expected(params, x, residual, &weight, &sum);
      {
        const FlushSubnormals flush;
        Run(params, x.data(), residual.data(), weight.data(), sum.data(),
            y.data());
      }
      for (std::size_t i = 0; i < y.size(); ++i) {
        // Lost: subnormal elements and weights, and products.
        const bool lost =
            (!half && std::abs(x[i]) < kSmallestNormal) ||
            std::abs(weight[i % n]) < kSmallestNormal ||
            std::abs(double{x[i]} * weight[i % n]) < kSmallestNormal ||
            std::abs(expected[i]) < kSmallestNormal;
        if (lost && y[i] == 0.0f) continue;
        ASSERT_LE(std::abs(y[i] - expected[i]), Tolerance(params, expected[i]))
            << "magnitude " << magnitude << " element " << i << " of x "
            << x[i];
      }
    }
  }
}
#endif

TEST_P(KernelTest, ZeroRowsStayZero) {
  for (double epsilon : {1e-6, 1e-300}) {
    for (std::size_t n : {1, 20, 640}) {
      Check(3, n, std::vector<float>(3 * n, -0.0f), epsilon, nullptr, type(), 0,
            "zeros");
    }
  }
}

TEST_P(KernelTest, PropagatesNaNAndInfinityWithinTheirRow) {
  for (std::size_t n : {1, 7, 64, 700}) {
    for (float special : {kNaN, kInfinity, -kInfinity}) {
      std::vector<float> values = Normal(3 * n, 1);
      values[n + n / 2] = special;
      Check(3, n, values, 1e-6, nullptr, type(), 0,
            "special value " + std::to_string(special));
    }
  }
}

// In a row of ones the weights come out, rounded. Every upper half of a float32
// occurs, with lower halves on and around where the rounding of 16-bit types
// changes.
TEST_P(KernelTest, RoundsAsFromFloat) {
  std::vector<std::uint32_t> bits;
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (std::uint32_t lower : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu,
                                0x8000u, 0x8001u, 0xffffu}) {
      bits.push_back(upper << 16 | lower);
    }
  }
  std::vector<float> values(bits.size());
  std::memcpy(values.data(), bits.data(), 4 * bits.size());
  const Buffer weight(ElementType::kFloat32, values);
  const Buffer rounded(type(), values);
  const Buffer x(type(), std::vector<float>(values.size(), 1.0f));
  const Buffer residual(type(), std::vector<float>(values.size(), 0.0f));
  Buffer sum(type(), values.size());
  Buffer y(type(), values.size());
  // 1 / sqrt(1 + 1e-300) is 1 in float64.
  Run(Params(1, values.size(), 1e-300, ElementType::kFloat32), x.data(),
      residual.data(), weight.data(), sum.data(), y.data());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) {
      ASSERT_TRUE(std::isnan(y[i])) << std::hex << bits[i];
    } else {
      ASSERT_EQ(y[i], rounded[i]) << std::hex << bits[i];
      ASSERT_EQ(std::signbit(y[i]), std::signbit(rounded[i]))
          << std::hex << bits[i];
    }
  }
}

// Instructions that narrow may flush them.
TEST_P(KernelTest, KeepsASubnormalInEveryPosition) {
  for (std::size_t n : {47, 256}) {
    for (std::size_t i = 0; i < n; ++i) {
      std::vector<float> values(n, 1.0f), x_values(n, 1.0f);
      values[i] = -0x1.8p-131f;
      // For add_rms_norm the sum is subnormal in another position.
      std::vector<float> residual_values(n, 0.0f);
      const std::size_t k = (i + n / 2) % n;
      if (adds() && type() != ElementType::kFloat16) {
        x_values[k] = 0x1.8p-126f;
        residual_values[k] = -0x1p-126f;
      }
      const Buffer weight(ElementType::kFloat32, values);
      const Buffer rounded(type(), values);
      const Buffer x(type(), x_values);
      const Buffer residual(type(), residual_values);
      Buffer sum(type(), n);
      Buffer y(type(), n);
      Run(Params(1, n, 1e-300, ElementType::kFloat32), x.data(),
          residual.data(), weight.data(), sum.data(), y.data());
      if (adds()) {
        ASSERT_EQ(sum[k], x[k] + residual[k]) << n << " " << k;
        continue;  // The scale is not 1.
      }
      ASSERT_EQ(y[i], rounded[i]) << n << " " << i;
    }
  }
}

TEST_P(KernelTest, NoRowsWriteNothing) {
  Buffer y(type(), Normal(8, 1));
  const Buffer before(type(), Normal(8, 1));
  RmsNormParams params = Params(0, 8, 1e-6, type());
  switch (GetParam().op) {
    case RmsNormOp::kRmsNorm:
      RmsNorm(params, nullptr, nullptr, y.data());
      break;
    case RmsNormOp::kAddRmsNorm:
      AddRmsNorm(params, nullptr, nullptr, nullptr, nullptr, y.data());
      break;
  }
  EXPECT_TRUE(y.SameBits(before));
}

// The relative error of a sum of squares that rms_norm.h states.
constexpr double kSumErrorBound = 2e-7;

// In 16-bit types the rounding of the result is all that shows.
class Float32KernelTest : public KernelTest {};

TEST_P(Float32KernelTest, KeepsItsAccuracyBounds) {
  struct Shape {
    std::size_t rows, hidden_size;
  };
  for (const Shape shape : {Shape{512, 4096}, Shape{2048, 8192}}) {
    const std::size_t n = shape.hidden_size;
    const RmsNormParams params = Params(shape.rows, n, 1e-6, type());
    const Buffer weight(type(), Normal(n, 2));
    const Buffer x(type(), Normal(shape.rows * n, 1));
    const Buffer residual(type(), Normal(shape.rows * n, 3));
    Buffer sum(type(), shape.rows * n);
    Buffer expected_sum(type(), shape.rows * n);
    Buffer y(type(), shape.rows * n);
    Run(params, x.data(), residual.data(), weight.data(), sum.data(), y.data());
    const double ulp =
        MaxUlp(Expected(params, x, residual, &weight, &expected_sum), y);
    RecordProperty(
        "max_ulp_" + std::to_string(shape.rows) + "x" + std::to_string(n),
        std::to_string(ulp));
    EXPECT_LE(ulp, 3.0) << shape.rows << "x" << n;
  }
  if (adds()) return;

  const auto relative_error = [&](const std::vector<float>& row,
                                  const char* name) {
    const Buffer constant(type(), row);
    const RmsNormParams one_row = Params(1, row.size(), 1e-6, type());
    Buffer out(type(), row.size());
    Run(one_row, constant.data(), nullptr, nullptr, nullptr, out.data());
    const std::vector<double> expected =
        Expected(one_row, constant, constant, nullptr, nullptr);
    double max = 0.0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      max =
          std::max(max, std::abs(out[i] - expected[i]) / std::abs(expected[i]));
    }
    RecordProperty(name, std::to_string(max * 1e9) + "e-9");
    return max;
  };
  for (std::size_t size : {640, 4096, 8192, 65536}) {
    std::vector<float> row(size, 0.1f);
    EXPECT_LE(relative_error(row, "relative_error_constant"), 1.5e-7) << size;
    row[size / 3] = 1e4f;
    EXPECT_LE(relative_error(row, "relative_error_outlier"), 1.5e-7) << size;
  }
}

// Rows of normal values with an element that has most of the row's sum.
TEST_P(Float32KernelTest, IsAccurateBesideAnOutlier) {
  for (std::size_t n : {64, 128, 256, 640, 1152, 2048, 4096}) {
    for (float outlier : {20.0f, 50.0f, 100.0f, 1e4f}) {
      const std::size_t rows = (1 << 18) / n;
      std::vector<float> values = Normal(rows * n, 1);
      std::mt19937 rng(2);
      for (std::size_t row = 0; row < rows; ++row) {
        values[row * n + rng() % n] = outlier;
      }
      const RmsNormParams params = Params(rows, n, 1e-6, type());
      const Buffer weight(type(), Normal(n, 3));
      const Buffer x(type(), values);
      const Buffer residual(type(), std::vector<float>(values.size(), 0.0f));
      Buffer sum(type(), values.size());
      Buffer y(type(), values.size());
      const std::vector<double> expected =
          Expected(params, x, residual, &weight, &sum);
      Run(params, x.data(), residual.data(), weight.data(), sum.data(),
          y.data());
      EXPECT_LE(MaxUlp(expected, y), 3.0)
          << "outlier " << outlier << " hidden size " << n;
    }
  }
}

// The relative error of a sum of squares, from the result, which its square
// root has half of.
TEST_P(Float32KernelTest, SumsLongRowsAccurately) {
  if (adds()) GTEST_SKIP() << "the same sum";
  for (std::size_t n : {std::size_t{100'000}, std::size_t{10'000'000}}) {
    std::vector<float> alternating(n), outlier = Normal(n, 1);
    for (std::size_t i = 0; i < n; ++i) alternating[i] = i % 7 ? 1e-3f : 1e3f;
    outlier[n / 2] = 1e4f;
    for (const std::vector<float>& row :
         {std::vector<float>(n, 0.1f), Normal(n, 2), alternating, outlier}) {
      double sum = 0.0;
      for (float value : row) sum += double{value} * value;
      const RmsNormParams params = Params(1, n, 1e-300, type());
      const Buffer x(type(), row);
      Buffer y(type(), n);
      Run(params, x.data(), nullptr, nullptr, nullptr, y.data());
      // x / y is the root of the mean, but for three roundings of y and scale;
      // the largest y has the most digits.
      const double root = std::sqrt(sum / static_cast<double>(n));
      double error = 0.0;
      for (std::size_t i = 0; i < n; i += 997) {
        error = std::max(error, std::abs(y[i] * root / row[i] - 1.0));
      }
      EXPECT_LE(2.0 * error, 2.0 * 0x1p-23 + kSumErrorBound) << n;
    }
  }
}

std::string Name(const testing::TestParamInfo<KernelInfo>& info) {
  return info.param.name;
}

std::vector<KernelInfo> Float32Kernels() {
  std::vector<KernelInfo> kernels;
  for (const KernelInfo& info : AllKernels()) {
    if (info.type == ElementType::kFloat32) kernels.push_back(info);
  }
  return kernels;
}

INSTANTIATE_TEST_SUITE_P(All, KernelTest,
                         testing::ValuesIn(AllKernels().begin(),
                                           AllKernels().end()),
                         Name);
INSTANTIATE_TEST_SUITE_P(All, Float32KernelTest,
                         testing::ValuesIn(Float32Kernels()), Name);

TEST(RmsNormTest, ResultDoesNotDependOnTheNumberOfThreads) {
  struct Shape {
    std::size_t rows, hidden_size;
  };
  for (const Shape shape : {Shape{1, 4096}, Shape{16, 2048}, Shape{129, 640},
                            Shape{257, 2304}, Shape{515, 4096}}) {
    const std::size_t size = shape.rows * shape.hidden_size;
    const ElementType type = ElementType::kFloat32;
    const RmsNormParams params = {shape.rows, shape.hidden_size, 1e-6};
    const Buffer x(type, Normal(size, 1));
    const Buffer residual(type, Normal(size, 2));
    const Buffer weight(type, Normal(shape.hidden_size, 3));
    Buffer y(type, size), sum(type, size), added(type, size);
    RmsNorm(params, x.data(), weight.data(), y.data());
    AddRmsNorm(params, x.data(), residual.data(), weight.data(), sum.data(),
               added.data());
    for (int threads : {1, 2, 3, 8}) {
      ThreadPool pool(threads);
      for (int repetition = 0; repetition < 3; ++repetition) {
        Buffer y2(type, size), sum2(type, size), added2(type, size);
        // The pool wakes its workers for many jobs in quick succession.
        for (int call = 0; call < 12; ++call) {
          RmsNorm(params, x.data(), weight.data(), y2.data(), &pool);
        }
        AddRmsNorm(params, x.data(), residual.data(), weight.data(),
                   sum2.data(), added2.data(), &pool);
        ASSERT_TRUE(y2.SameBits(y)) << threads << " threads";
        ASSERT_TRUE(sum2.SameBits(sum)) << threads << " threads";
        ASSERT_TRUE(added2.SameBits(added)) << threads << " threads";
        ASSERT_TRUE(y2.GuardsIntact() && added2.GuardsIntact());
      }
    }
  }
}

TEST(StreamingTest, StartsAtAQuarterOfTheCacheOrWhereAsked) {
  const std::size_t mib = std::size_t{1} << 20;
  EXPECT_EQ(ChooseMinStreamedBytes(nullptr, 32 * mib), 8 * mib);
  EXPECT_EQ(ChooseMinStreamedBytes("", 480 * mib), 120 * mib);
  EXPECT_EQ(ChooseMinStreamedBytes(nullptr, 0), 64 * mib);
  EXPECT_EQ(ChooseMinStreamedBytes("0", 32 * mib), 0u);
  EXPECT_EQ(ChooseMinStreamedBytes("123456", 32 * mib), 123456u);
  for (const char* wrong : {"8MiB", "-1", "many", "99999999999999999999"}) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(ChooseMinStreamedBytes(wrong, 32 * mib), 8 * mib);
    EXPECT_EQ(testing::internal::GetCapturedStderr(),
              std::string("AI_EDGE_RMS_NORM_MIN_STREAMED_BYTES=") + wrong +
                  " is not a number of bytes; it is ignored.\n");
  }
}

// Against what Linux made of the same registers.
TEST(StreamingTest, KnowsTheLastLevelCache) {
#if defined(__x86_64__)
  std::size_t expected = 0;
  for (int index = 0; index < 10; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" +
                       std::to_string(index) + "/size");
    std::size_t kib;
    if (file >> kib) expected = std::max(expected, kib << 10);
  }
  if (expected == 0) GTEST_SKIP() << "this system does not list its caches";
  EXPECT_EQ(LastLevelCacheBytes(), expected);
#else
  EXPECT_EQ(LastLevelCacheBytes(), 0u);
#endif
}

// Neither list can be made from the other: the compiler reads one, Bazel the
// other.
TEST(VariantsTest, AreTheSameInBothLists) {
#define RMS_NORM_STRING(...) #__VA_ARGS__
#define RMS_NORM_STRING_OF(...) RMS_NORM_STRING(__VA_ARGS__)
  std::string names = VariantNames();
  names.erase(std::remove(names.begin(), names.end(), ' '), names.end());
  EXPECT_EQ(names, RMS_NORM_STRING_OF(RMS_NORM_VARIANTS));
#undef RMS_NORM_STRING_OF
#undef RMS_NORM_STRING
}

TEST(RmsNormVariantDeathTest, IsChosenByTheEnvironmentVariable) {
  // The variant is chosen once per process; these tests run first, in forks.
  // "threadsafe" would start the program anew, which qemu-user cannot do.
  testing::FLAGS_gtest_death_test_style = "fast";
  const auto exit_unless_variant_is = [](const char* wanted,
                                         const std::string& expected) {
    setenv("AI_EDGE_RMS_NORM_VARIANT", wanted, 1);
    std::exit(RmsNormVariant() == expected ? 0 : 1);
  };
  std::string best;
  for (const KernelInfo& info : AllKernels()) {
    if (!info.supported()) continue;
    if (best.empty() && info.preferred()) best = info.isa;
    EXPECT_EXIT(exit_unless_variant_is(info.isa, info.isa),
                testing::ExitedWithCode(0), "^$");
  }
  EXPECT_EXIT(exit_unless_variant_is("", best), testing::ExitedWithCode(0),
              "^$");
  EXPECT_EXIT(
      exit_unless_variant_is("mmx", best), testing::ExitedWithCode(0),
      std::string("AI_EDGE_RMS_NORM_VARIANT=mmx is not one of the variants ") +
          VariantNames() + "; using " + best + " instead");
}

TEST(ElementTypesTest, ConvertsEveryFloat16) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 half = {static_cast<std::uint16_t>(bits)};
    const int exponent = (bits >> 10) & 31;
    const int mantissa = bits & 1023;
    const double sign = bits & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(ToFloat(half)));
      EXPECT_TRUE(std::isnan(ToFloat(FromFloat<Float16>(ToFloat(half)))));
      continue;
    }
    const double expected =
        exponent == 31  ? sign * HUGE_VAL
        : exponent == 0 ? sign * std::ldexp(mantissa, -24)
                        : sign * std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(ToFloat(half), expected) << bits;
    ASSERT_EQ(FromFloat<Float16>(ToFloat(half)).bits, bits);
    // Halfway to the next value rounds to the even one of the two.
    if ((bits & 0x7fff) < 0x7bff) {
      const Float16 next = {static_cast<std::uint16_t>(bits + 1)};
      const float middle = 0.5f * (ToFloat(half) + ToFloat(next));
      ASSERT_EQ(FromFloat<Float16>(middle).bits, bits + (bits & 1));
    }
  }
  EXPECT_EQ(FromFloat<Float16>(65519.0f).bits, 0x7bff);
  EXPECT_EQ(FromFloat<Float16>(65520.0f).bits, 0x7c00);
}

TEST(ElementTypesTest, RoundsBFloat16ToNearestEven) {
  EXPECT_EQ(FromFloat<BFloat16>(1.0f).bits, 0x3f80);
  EXPECT_EQ(FromFloat<BFloat16>(0x1.01p0f).bits, 0x3f80);  // tie, to even
  EXPECT_EQ(FromFloat<BFloat16>(0x1.03p0f).bits, 0x3f82);  // tie, to even
  EXPECT_EQ(FromFloat<BFloat16>(0x1.010002p0f).bits, 0x3f81);
  EXPECT_EQ(FromFloat<BFloat16>(std::numeric_limits<float>::max()).bits,
            0x7f80);
  EXPECT_TRUE(std::isnan(
      ToFloat(FromFloat<BFloat16>(internal::FloatFromBits(0x7f800001u)))));
}

}  // namespace
}  // namespace ai_edge_rms_norm
