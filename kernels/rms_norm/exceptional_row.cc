#include "kernels/rms_norm/exceptional_row.h"

#include <cmath>

#include "kernels/rms_norm/element_types.h"

namespace ai_edge_rms_norm {
namespace {

template <class T, class Weight>
void Normalize(std::size_t hidden_size, double epsilon, const T* x,
               const Weight* weight, T* y) {
  double sum = 0.0;
  for (std::size_t i = 0; i < hidden_size; ++i) {
    const double value = ToFloat(x[i]);
    sum += value * value;
  }
  const double scale =
      1.0 / std::sqrt(sum / static_cast<double>(hidden_size) + epsilon);
  for (std::size_t i = 0; i < hidden_size; ++i) {
    double value = ToFloat(x[i]) * scale;
    if (weight != nullptr) value *= ToFloat(weight[i]);
    y[i] = FromFloat<T>(static_cast<float>(value));
  }
}

template <class T>
void Normalize(std::size_t hidden_size, double epsilon, const void* x,
               const void* weight, ElementType weight_type, void* y) {
  if (weight_type == ElementType::kFloat32) {
    Normalize(hidden_size, epsilon, static_cast<const T*>(x),
              static_cast<const float*>(weight), static_cast<T*>(y));
  } else {
    Normalize(hidden_size, epsilon, static_cast<const T*>(x),
              static_cast<const T*>(weight), static_cast<T*>(y));
  }
}

}  // namespace

void NormalizeExceptionalRow(ElementType type, std::size_t hidden_size,
                             double epsilon, const void* x, const void* weight,
                             ElementType weight_type, void* y) {
  switch (type) {
    case ElementType::kFloat32:
      return Normalize<float>(hidden_size, epsilon, x, weight, weight_type, y);
    case ElementType::kFloat16:
      return Normalize<Float16>(hidden_size, epsilon, x, weight, weight_type,
                                y);
    case ElementType::kBFloat16:
      return Normalize<BFloat16>(hidden_size, epsilon, x, weight, weight_type,
                                 y);
  }
}

}  // namespace ai_edge_rms_norm
