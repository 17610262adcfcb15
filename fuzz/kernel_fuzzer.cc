// Every variant that this CPU supports, against the formula of rms_norm.h in
// long double: sizes, types, magnitudes, weights, epsilon, alignment and
// aliasing as libFuzzer chooses. Buffers end where they must, for
// AddressSanitizer to see.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/variants.h"

namespace ai_edge_rms_norm {
namespace {

// Elements in memory of exactly their size, `offset` elements after its start.
class Elements {
 public:
  Elements(ElementType type, std::size_t count, std::size_t offset)
      : type_(type),
        count_(count),
        bytes_(new char[(offset + count) * SizeOf(type)]),
        begin_(bytes_.get() + offset * SizeOf(type)) {}

  void* data() { return begin_; }

  float Get(std::size_t i) const {
    switch (type_) {
      case ElementType::kFloat32:
        return Load<float>(i);
      case ElementType::kFloat16:
        return Load<Float16>(i);
      case ElementType::kBFloat16:
        return Load<BFloat16>(i);
    }
    std::abort();
  }

  void Set(std::size_t i, float value) {
    switch (type_) {
      case ElementType::kFloat32:
        return Store<float>(i, value);
      case ElementType::kFloat16:
        return Store<Float16>(i, value);
      case ElementType::kBFloat16:
        return Store<BFloat16>(i, value);
    }
  }

  // Finite numbers of either sign, their exponents spread around `exponent`.
  void Fill(std::mt19937& rng, int exponent, int spread) {
    std::uniform_real_distribution<float> mantissa(-1.0f, 1.0f);
    const float largest =
        type_ == ElementType::kFloat16 ? 65504.0f : 0x1.fep127f;
    for (std::size_t i = 0; i < count_; ++i) {
      const int shift = spread == 0 ? 0 : static_cast<int>(rng() % spread);
      const float value = std::ldexp(mantissa(rng), exponent - shift);
      Set(i, std::clamp(value, -largest, largest));
    }
  }

 private:
  template <class T>
  float Load(std::size_t i) const {
    T element;
    std::memcpy(&element, begin_ + i * sizeof(T), sizeof(T));
    return ToFloat(element);
  }
  template <class T>
  void Store(std::size_t i, float value) {
    const T element = FromFloat<T>(value);
    std::memcpy(begin_ + i * sizeof(T), &element, sizeof(T));
  }

  ElementType type_;
  std::size_t count_;
  std::unique_ptr<char[]> bytes_;
  char* begin_;
};

// The error that rms_norm.h allows, with the margin of rms_norm_test.cc.
long double Tolerance(const RmsNormParams& params, long double expected,
                      long double weight) {
  const bool is_float32 = params.type == ElementType::kFloat32;
  const bool is_float16 = params.type == ElementType::kFloat16;
  const long double unit = is_float32   ? 0x1p-24L
                           : is_float16 ? 0x1p-11L
                                        : 0x1p-8L;
  const long double smallest = is_float32   ? 0x1p-149L
                               : is_float16 ? 0x1p-24L
                                            : 0x1p-133L;
  const long double sum =
      std::min<long double>(params.hidden_size, 32.0L) / 8.0L;
  return std::abs(expected) * (unit + (3.0L + sum) * 0x1p-24L) +
         3.0L * std::max(smallest, 0x1p-133L) + std::abs(weight) * 0x1p-149L;
}

void Check(const KernelInfo& info, const RmsNormParams& params,
           const Elements& x, const Elements* weight, const Elements& y) {
  const long double overflow =
      params.type == ElementType::kFloat16 ? 65504.0L : 0x1p112L;
  const std::size_t n = params.hidden_size;
  for (std::size_t row = 0; row < params.rows; ++row) {
    long double sum = 0.0L;
    for (std::size_t i = 0; i < n; ++i) {
      const long double value = x.Get(row * n + i);
      sum += value * value;
    }
    const long double root = std::sqrt(sum / n + params.epsilon);
    for (std::size_t i = 0; i < n; ++i) {
      const long double w = weight == nullptr ? 1.0L : weight->Get(i);
      const long double element = x.Get(row * n + i);
      const long double expected = element / root * w;
      if (std::abs(expected) >= overflow || std::abs(element * w) >= 0x1p112L)
        continue;
      const long double actual = y.Get(row * n + i);
      if (std::abs(actual - expected) <= Tolerance(params, expected, w))
        continue;
      std::fprintf(stderr,
                   "%s: row %zu, element %zu of %zu: %La instead of %La\n",
                   info.name, row, i, n, actual, expected);
      std::abort();
    }
  }
}

// The choices that a fuzzer's input stands for; zeros where it ends.
struct Choices {
  std::uint16_t hidden_size;
  std::uint8_t rows, flags, x_offset, weight_offset, y_offset, spread;
  std::int8_t x_exponent, weight_exponent, epsilon_exponent;
  std::uint8_t alias;
  std::uint32_t seed;
};

void Run(const KernelInfo& info, const Choices& c) {
  const bool adds = info.op == RmsNormOp::kAddRmsNorm;
  const ElementType weight_type =
      c.flags & 1 ? info.type : ElementType::kFloat32;
  const RmsNormParams params = {c.rows % 4u + 1, c.hidden_size % 700u + 1,
                                std::ldexp(1.0, c.epsilon_exponent), info.type,
                                weight_type};
  const std::size_t count = params.rows * params.hidden_size;
  std::mt19937 rng(c.seed);
  Elements x(info.type, count, c.x_offset % 32), residual(info.type, count, 0);
  Elements own_sum(info.type, count, c.x_offset % 5);
  Elements weight(weight_type, params.hidden_size, c.weight_offset % 32);
  Elements own_y(info.type, count, c.y_offset % 32);
  x.Fill(rng, c.x_exponent, c.spread % 64);
  residual.Fill(rng, c.x_exponent, c.spread % 64);
  weight.Fill(rng, c.weight_exponent / 4, c.spread % 8);
  Elements input(info.type, count,
                 0);  // what is normalized, before it is replaced
  for (std::size_t i = 0; i < count; ++i) {
    input.Set(i, adds ? x.Get(i) + residual.Get(i) : x.Get(i));
    if (!std::isfinite(input.Get(i))) return;  // rms_norm_test has these
  }
  Elements* const sums[] = {&own_sum, &x, &residual};
  Elements* const sum = sums[c.alias % 3];
  Elements* const outputs[] = {&own_y, &x, adds ? &residual : &x,
                               adds ? sum : &x};
  Elements* const y = outputs[c.alias / 3 % 4];
  const ResidualSum residual_sum = {residual.data(), sum->data()};
  const bool has_weight = (c.flags & 2) != 0;
  info.kernel(params, x.data(), has_weight ? weight.data() : nullptr, y->data(),
              &residual_sum, (c.flags & 4) != 0);
  if (adds && y != sum) {
    for (std::size_t i = 0; i < count; ++i) {
      if (sum->Get(i) != input.Get(i)) std::abort();
    }
  }
  Check(info, params, input, has_weight ? &weight : nullptr, *y);
}

}  // namespace
}  // namespace ai_edge_rms_norm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ai_edge_rms_norm::Choices choices = {};
  std::memcpy(&choices, data, std::min(size, sizeof(choices)));
  for (const ai_edge_rms_norm::KernelInfo& info :
       ai_edge_rms_norm::AllKernels()) {
    if (info.supported()) ai_edge_rms_norm::Run(info, choices);
  }
  return 0;
}
