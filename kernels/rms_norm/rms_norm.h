// Fused RMSNorm for the CPU.
//
// RmsNorm computes, independently for every row r of a [rows, hidden_size]
// matrix,
//
//   y[r][i] = x[r][i] / sqrt(mean_j(x[r][j]^2) + epsilon) * weight[i]
//
// (Zhang and Sennrich, "Root Mean Square Layer Normalization",
// arXiv:1910.07467). AddRmsNorm first forms sum = x + residual, stores it, and
// normalizes the stored (rounded) sum, as a transformer's residual stream does.
//
// Layout. All matrices are row-major and contiguous; rows are hidden_size
// elements apart. weight has hidden_size elements and is used as it is (a model
// that scales by 1 + w passes 1 + w); nullptr means no scale. No alignment
// beyond that of the element type is required.
//
// Types. x, residual, sum and y have the same ElementType; weight has that type
// or kFloat32. Statistics and the product with weight are computed in at least
// float32 and rounded once to the output type.
//
// Aliasing. y may be exactly x (or residual, or sum), and sum may be exactly x
// or residual; partially overlapping buffers are not allowed.
//
// Numerics. A finite row never turns into zeros, infinities or NaN because its
// sum of squares over- or underflows. The product with weight may come before
// that with 1 / sqrt(...), if the latter is between 2^-16 and 2^16: results of
// magnitude 2^112 and more may then become infinite, and where x * weight is
// subnormal, the result has an error of up to 2^-134. Otherwise 1 / sqrt(...)
// comes first: where x / sqrt(...) is subnormal, the result has an error of up
// to |weight| * 2^-150. NaN and infinity in a row propagate as they do in the
// formula. The result does not depend on the number of threads.
//
// Accuracy. Squares are summed in float32 over 32 elements a lane (64 of
// bfloat16) and in float64 beyond; where one element makes up most of a float32
// row, the row is summed in float64. The relative error of a float32 row's sum
// is at most 38 * 2^-24 by analysis (33 squares with a tail, and five additions
// that join lanes) and was below 2e-7 in every row tried (up to 1e7 elements,
// constant, normal, of two magnitudes, with an outlier); the error of a result
// was below 3.0 units in the last place.
//
// Floating-point environment. Float32 arithmetic rounds as the calling thread
// does, and so may the rounding to 16 bits; sums that saturate under
// FE_TOWARDZERO are noticed. Threads of a pool round as the thread that started
// them. Where subnormals are flushed (FTZ, DAZ, FPCR.FZ), subnormal float32 and
// bfloat16 elements and weights, and products and results below 2^-126, may
// count as zero; nothing else changes.
#ifndef KERNELS_RMS_NORM_RMS_NORM_H_
#define KERNELS_RMS_NORM_RMS_NORM_H_

#include <cstddef>

namespace ai_edge_rms_norm {

class ThreadPool;

enum class RmsNormOp : unsigned char { kRmsNorm, kAddRmsNorm };

enum class ElementType : unsigned char { kFloat32, kFloat16, kBFloat16 };

// In bytes.
constexpr std::size_t SizeOf(ElementType type) {
  return type == ElementType::kFloat32 ? 4 : 2;
}

struct RmsNormParams {
  std::size_t rows = 0;         // 0 is allowed and does nothing.
  std::size_t hidden_size = 0;  // > 0
  double epsilon = 0.0;         // > 0 and finite
  ElementType type = ElementType::kFloat32;
  ElementType weight_type = ElementType::kFloat32;  // unused without a weight
};

// pool may be nullptr: everything then runs on the calling thread.
void RmsNorm(const RmsNormParams& params, const void* x, const void* weight,
             void* y, ThreadPool* pool = nullptr);

void AddRmsNorm(const RmsNormParams& params, const void* x,
                const void* residual, const void* weight, void* sum, void* y,
                ThreadPool* pool = nullptr);

// Name of the kernel variant that this process runs, one of variants.inc: the
// best one for the CPU, or the one that the environment variable
// AI_EDGE_RMS_NORM_VARIANT names, read once.
const char* RmsNormVariant();

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_RMS_NORM_H_
