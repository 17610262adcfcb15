#include "kernels/rms_norm/rms_norm_reference.h"

#include <cmath>
#include <cstddef>

#include "kernels/rms_norm/element_types.h"

namespace ai_edge_rms_norm {
namespace {

double Get(ElementType type, const void* data, std::size_t i) {
  switch (type) {
    case ElementType::kFloat32:
      return static_cast<const float*>(data)[i];
    case ElementType::kFloat16:
      return ToFloat(static_cast<const Float16*>(data)[i]);
    case ElementType::kBFloat16:
      return ToFloat(static_cast<const BFloat16*>(data)[i]);
  }
  __builtin_unreachable();
}

// The float64 sum of two elements is exact or, in float32, rounds like a
// float32 addition: float64 has more than twice the digits.
void Set(ElementType type, void* data, std::size_t i, double value) {
  const float rounded = static_cast<float>(value);
  switch (type) {
    case ElementType::kFloat32:
      static_cast<float*>(data)[i] = rounded;
      return;
    case ElementType::kFloat16:
      static_cast<Float16*>(data)[i] = FromFloat<Float16>(rounded);
      return;
    case ElementType::kBFloat16:
      static_cast<BFloat16*>(data)[i] = FromFloat<BFloat16>(rounded);
      return;
  }
}

}  // namespace

void RmsNormReference(const RmsNormParams& params, const void* x,
                      const void* weight, double* y) {
  const std::size_t n = params.hidden_size;
  for (std::size_t row = 0; row < params.rows; ++row) {
    const std::size_t first = row * n;
    double sum_of_squares = 0.0;
    for (std::size_t i = 0; i < n; ++i) {
      const double value = Get(params.type, x, first + i);
      sum_of_squares += value * value;
    }
    const double root =
        std::sqrt(sum_of_squares / static_cast<double>(n) + params.epsilon);
    for (std::size_t i = 0; i < n; ++i) {
      y[first + i] = Get(params.type, x, first + i) / root;
      if (weight != nullptr) y[first + i] *= Get(params.weight_type, weight, i);
    }
  }
}

void AddRmsNormReference(const RmsNormParams& params, const void* x,
                         const void* residual, const void* weight, void* sum,
                         double* y) {
  for (std::size_t i = 0; i < params.rows * params.hidden_size; ++i) {
    Set(params.type, sum, i,
        Get(params.type, x, i) + Get(params.type, residual, i));
  }
  RmsNormReference(params, sum, weight, y);
}

}  // namespace ai_edge_rms_norm
