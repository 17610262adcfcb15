// The algorithm of every variant, as a template over its vector operations.
//
// A per-ISA file defines a class Simd in an anonymous namespace (so that no
// code compiled with its instruction set flags is shared with other files) and
// defines its kernels with RMS_NORM_DEFINE_KERNELS. Simd provides
//
//   Vec                        float32 vector of kLanes lanes
//   kAccumulators              how many sums hide the latency of MulAdd
//   Zero(), Set(float)
//   Add(a, b), Mul(a, b), MulAdd(a, b, c) = a * b + c
//   Summer<T>, Scaler<T>       the classes whose vectors sum and scale rows of
//                              T: their lanes may have any order, as long as
//                              Load and Store have the same. A Summer may load,
//                              add and round other types than Vec
//
//   Quad, Quad64               vectors of 4 float32 or float64 lanes
//   Fold(Vec)                  pairwise sums of lanes until four are left
//   ReduceAdd(Quad), ReduceMax(Quad)
//                              the sum of the lanes, in float64, and the
//                              largest
//   ReduceAdd(a, b, c, d), ReduceMax(a, b, c, d)
//                              the same of four, as Quad64 and as either
//   AnyAbove(that, Quad64 b, factor)
//                              whether a lane is above factor times b's
//   AllWithin(Quad64, min, max)
//   MulAdd(double or Quad64, double, double)
//                              a * b + c in float64, fused where that is one
//                              instruction
//   ReciprocalSqrt(double or Quad64)
//                              1 / sqrt(a), correct but for one rounding to
//                              float32 and far less than that in float64
//   Load64(const double*), Store(p, Quad or Quad64)
//
// and for every element type T
//
//   Load(const T*), LoadPartial(const T*, n)    n < kLanes; other lanes are 0
//   Store(T*, v), StorePartial(T*, v, n)        one rounding, to nearest even
//                              unless the thread rounds otherwise
//   Stream(T*, v)              like Store, but may bypass the caches
//   Round<T>(v)                v rounded to T
//   kStreamAlignment           bytes that Stream's address is a multiple of,
//                              0 when Stream is not better than Store
#ifndef KERNELS_RMS_NORM_ROW_KERNEL_H_
#define KERNELS_RMS_NORM_ROW_KERNEL_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/exceptional_row.h"
#include "kernels/rms_norm/variants.h"

namespace ai_edge_rms_norm {

namespace {  // compiled for each instruction set

template <class T>
__attribute__((noinline)) double SumInFloat64(const T* x, std::size_t n) {
  constexpr std::size_t kSums = 16;
  double sums[kSums] = {};
  const std::size_t steps_end = n - n % kSums;
  for (std::size_t i = 0; i < steps_end; i += kSums) {
    for (std::size_t k = 0; k < kSums; ++k) {
      const double value = ToFloat(x[i + k]);
      sums[k] += value * value;
    }
  }
  for (std::size_t i = steps_end; i < n; ++i) {
    const double value = ToFloat(x[i]);
    sums[i - steps_end] += value * value;
  }
  double total = 0.0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace

struct NoWeight {};

// The sums of squares of rows, and for add_rms_norm what they are the squares
// of. Apart from RowKernel, since they do not depend on the weight.
template <class Simd, class T, bool kAddResidual>
class RowSums {
 public:
  using Summer = typename Simd::template Summer<T>;
  using Vec = typename Summer::Vec;
  using Quad = typename Simd::Quad;
  using Quad64 = typename Simd::Quad64;

  static constexpr std::size_t kStep = Summer::kLanes * Summer::kAccumulators;
  // float32 sums are carried over at most this many elements (32 per lane, of
  // bfloat16 also 64) and then added in float64, so that the error does not
  // grow with hidden_size.
  static constexpr std::size_t kBlock = 32 * kStep;
  // How much of the next row is summed at a time.
  static constexpr std::size_t kChunk = 256;
  static_assert(kChunk % kStep == 0 && kBlock % kChunk == 0,
                "an element's accumulator must not depend on the schedule");

  struct Source {  // a row to be summed
    const T* x;
    const T* residual;
    T* sum;

    // The row to be normalized.
    RMS_NORM_INLINE const T* Row() const { return kAddResidual ? sum : x; }

    RMS_NORM_INLINE void Advance(std::size_t n) {
      x += n;
      if constexpr (kAddResidual) {
        residual += n;
        sum += n;
      }
    }
  };

  static RMS_NORM_INLINE auto LoadSource(const Source& source, std::size_t i) {
    if constexpr (kAddResidual) {
      const auto v = Summer::template Round<T>(Summer::Add(
          Summer::Load(source.x + i), Summer::Load(source.residual + i)));
      Summer::Store(source.sum + i, v);
      return v;
    } else {
      return Summer::Load(source.x + i);
    }
  }

  static RMS_NORM_INLINE auto LoadSourcePartial(const Source& source,
                                                std::size_t i,
                                                std::size_t count) {
    if constexpr (kAddResidual) {
      const auto v = Summer::template Round<T>(
          Summer::Add(Summer::LoadPartial(source.x + i, count),
                      Summer::LoadPartial(source.residual + i, count)));
      Summer::StorePartial(source.sum + i, v, count);
      return v;
    } else {
      return Summer::LoadPartial(source.x + i, count);
    }
  }

  using Sums = Vec[Summer::kAccumulators];

  // Adds the squares of whole steps. Which accumulator an element goes to
  // depends on its index alone, so that a row's result does not depend on the
  // schedule, the rows around it or the number of threads.
  static RMS_NORM_INLINE void AccumulateSteps(const Source& source,
                                              std::size_t begin,
                                              std::size_t end, Sums& sums) {
    for (std::size_t i = begin; i < end; i += kStep) {
#pragma GCC unroll 8
      for (int k = 0; k < Summer::kAccumulators; ++k) {
        const auto v = LoadSource(source, i + k * Summer::kLanes);
        sums[k] = Summer::MulAdd(v, v, sums[k]);
      }
    }
  }

  // The same for less than one step.
  static RMS_NORM_INLINE void AccumulateTail(const Source& source,
                                             std::size_t begin, std::size_t end,
                                             Sums& sums) {
    const std::size_t count = end - begin;
#pragma GCC unroll 8
    for (std::size_t k = 0; k < Summer::kAccumulators; ++k) {
      if (count < (k + 1) * Summer::kLanes) break;
      const auto v = LoadSource(source, begin + k * Summer::kLanes);
      sums[k] = Summer::MulAdd(v, v, sums[k]);
    }
    const std::size_t rest = count % Summer::kLanes;
    if (rest != 0) {
      const auto v = LoadSourcePartial(source, end - rest, rest);
      sums[0] = Summer::MulAdd(v, v, sums[0]);
    }
  }

  static RMS_NORM_INLINE void Clear(Sums& sums) {
#pragma GCC unroll 8
    for (Vec& sum : sums) sum = Summer::Zero();
  }

  static RMS_NORM_INLINE Quad Reduce(const Sums& sums) {
    static_assert(Summer::kAccumulators == 4 || Summer::kAccumulators == 8);
    if constexpr (Summer::kAccumulators == 8) {
      return Summer::Fold(
          Summer::Add(Summer::Add(Summer::Add(sums[0], sums[4]),
                                  Summer::Add(sums[2], sums[6])),
                      Summer::Add(Summer::Add(sums[1], sums[5]),
                                  Summer::Add(sums[3], sums[7]))));
    } else {
      return Summer::Fold(Summer::Add(Summer::Add(sums[0], sums[2]),
                                      Summer::Add(sums[1], sums[3])));
    }
  }

  // A lane adds up to 32 squares, and the rounding errors of all lanes average
  // out. Not so where one element makes up most of a row's sum: the lane that
  // has it then has more than this part of the sum, of which the lanes of a
  // Quad have a quarter each in other rows. Errors of this kind do not show in
  // results of 16 bits.
  static constexpr bool kChecksLanes = std::is_same_v<T, float>;
  static constexpr double kMaxLanePart = 0.5;

  static RMS_NORM_INLINE bool IsDominated(Quad lanes, double total) {
    return kChecksLanes && Simd::ReduceMax(lanes) > kMaxLanePart * total;
  }

  static RMS_NORM_INLINE double Total(const Source& source, std::size_t begin,
                                      std::size_t end, Quad lanes) {
    const double total = Simd::ReduceAdd(lanes);
    if (__builtin_expect(IsDominated(lanes, total), 0)) {
      return SumInFloat64(source.Row() + begin, end - begin);
    }
    return total;
  }

  // The same of four short rows.
  static RMS_NORM_INLINE Quad64 Totals(const Source& source, std::size_t n,
                                       const Quad (&lanes)[4]) {
    Quad64 totals = Simd::ReduceAdd(lanes[0], lanes[1], lanes[2], lanes[3]);
    if constexpr (kChecksLanes) {
      const auto max = Simd::ReduceMax(lanes[0], lanes[1], lanes[2], lanes[3]);
      if (__builtin_expect(Simd::AnyAbove(max, totals, kMaxLanePart), 0)) {
        double total[4];
        Source row = source;
        for (int k = 0; k < 4; ++k) {
          total[k] = Total(row, 0, n, lanes[k]);
          row.Advance(n);
        }
        totals = Simd::Load64(total);
      }
    }
    return totals;
  }

  static RMS_NORM_INLINE Quad SumToQuad(const Source& source, std::size_t begin,
                                        std::size_t end) {
    const std::size_t steps_end = end - (end - begin) % kStep;
    Sums sums;
    Clear(sums);
    AccumulateSteps(source, begin, steps_end, sums);
    AccumulateTail(source, steps_end, end, sums);
    return Reduce(sums);
  }

  static RMS_NORM_INLINE double SumBlock(const Source& source,
                                         std::size_t begin, std::size_t end) {
    return Total(source, begin, end, SumToQuad(source, begin, end));
  }

  static RMS_NORM_INLINE double Sum(const Source& source, std::size_t n) {
    double total = 0.0;
    for (std::size_t begin = 0; begin < n; begin += kBlock) {
      total += SumBlock(source, begin, Min(begin + kBlock, n));
    }
    return total;
  }

  static __attribute__((noinline)) double SumOutlined(Source source,
                                                      std::size_t n) {
    return Sum(source, n);
  }

  // mean(x^2) + epsilon of four rows of at most kBlock elements. 16-bit types,
  // whose conversions take longer than a call, have it once for all weights.
  static RMS_NORM_INLINE Quad64 FourMeans(const RmsNormParams& params,
                                          double reciprocal_n,
                                          const Source& source) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return InlinedFourMeans(params, reciprocal_n, source);
    } else {
      return OutlinedFourMeans(params, reciprocal_n, source);
    }
  }

  static __attribute__((noinline)) Quad64 OutlinedFourMeans(
      const RmsNormParams& params, double reciprocal_n, Source source) {
    return InlinedFourMeans(params, reciprocal_n, source);
  }

  static RMS_NORM_INLINE Quad64 InlinedFourMeans(const RmsNormParams& params,
                                                 double reciprocal_n,
                                                 const Source& source) {
    const std::size_t n = params.hidden_size;
    Quad lanes[4];
    Source row = source;
#pragma GCC unroll 4
    for (Quad& quad : lanes) {
      quad = SumToQuad(row, 0, n);
      row.Advance(n);
    }
    return Simd::MulAdd(Totals(source, n, lanes), reciprocal_n, params.epsilon);
  }

  static RMS_NORM_INLINE std::size_t Min(std::size_t a, std::size_t b) {
    return a < b ? a : b;
  }
};

// T: type of x, residual, sum and y. Weight: element type or NoWeight.
template <class Simd, class T, class Weight, bool kAddResidual, bool kStream>
class RowKernel {
 public:
  // A row that is one block has a function of its own, in which nothing needs a
  // register of the caller's. Values saved on the stack have to be read back
  // from behind the stores of y, and until then the caller cannot go on: a
  // quarter of the time of a row of 640 elements.
  static __attribute__((noinline)) void Normalize(const RmsNormParams& params,
                                                  const void* x,
                                                  const void* weight, void* y,
                                                  const ResidualSum* residual) {
    if (params.rows != 1 || params.hidden_size > Rows::kBlock) {
      return NormalizeRows(params, x, weight, y, residual);
    }
    const Source source = FirstSource(x, residual);
    const Target target = FirstTarget(weight, y);
    const Quad lanes = Rows::SumToQuad(source, 0, params.hidden_size);
    const double sum_of_squares = Simd::ReduceAdd(lanes);
    if (__builtin_expect(Rows::IsDominated(lanes, sum_of_squares), 0)) {
      return NormalizeDominatedRow(params, source.Row(), target.weight,
                                   target.y);
    }
    NormalizeRow(params, 1.0 / static_cast<double>(params.hidden_size), source,
                 sum_of_squares, target);
    if constexpr (kStream) Simd::StreamFence();
  }

 private:
  using Rows = RowSums<Simd, T, kAddResidual>;
  using Source = typename Rows::Source;
  using Vec = typename Simd::Vec;
  using Quad = typename Simd::Quad;
  using Quad64 = typename Simd::Quad64;
  // float32 vectors and, for the second pass, those that suit T's stores.
  using Out = typename Simd::template Scaler<T>;

  static constexpr bool kHasWeight = !std::is_same_v<Weight, NoWeight>;

  struct Target {  // a row to be scaled
    const T* row;
    const Weight* weight;
    T* y;
    float scale;
  };

  // In which order one row is scaled and the next one is summed.
  enum class Schedule {
    // Four rows after the other four: short rows wait for the latency of the
    // reduction, the square root and the division less often.
    kFourRows,
    // One after the other.
    kRowByRow,
    // The first chunk of the next row before the row is scaled: the loads run
    // while the reciprocal square root is still being computed.
    kLead,
    // Chunk by chunk: reads and writes keep each other company as in a copy.
    kInterleave,
  };

  static RMS_NORM_INLINE Schedule ChooseSchedule(std::size_t rows,
                                                 std::size_t n) {
    // Rows shorter than a chunk are interleaved by the CPU itself. Four rows at
    // a time and interleaving pay as long as the rows in work, their output and
    // the weight stay in a 32 KiB first-level cache, with room for what is
    // prefetched; leading while the matrices stay in a second-level cache of
    // 512 KiB or more. All measured, see docs/notes/kernel_limits.md.
    constexpr std::size_t kSources = kAddResidual ? 3 : 1;
    constexpr std::size_t kRows = kAddResidual ? 6 : 4;
    const std::size_t row_bytes = n * sizeof(T);
    if (kStream || rows == 1) return Schedule::kRowByRow;
    const std::size_t summed_rows = rows < 8 ? 4 : 8;
    if (rows >= 4 && n <= Rows::kBlock &&
        (summed_rows * kSources + 5) * row_bytes <= 27 << 10) {
      return Schedule::kFourRows;
    }
    if (n < Rows::kChunk) return Schedule::kRowByRow;
    if (kRows * row_bytes <= 24 << 10) return Schedule::kInterleave;
    if ((kRows - 2) * rows * row_bytes <= 512 << 10) return Schedule::kLead;
    return Schedule::kRowByRow;
  }

  static RMS_NORM_INLINE Source FirstSource(const void* x,
                                            const ResidualSum* residual) {
    if constexpr (kAddResidual) {
      return {static_cast<const T*>(x),
              static_cast<const T*>(residual->residual),
              static_cast<T*>(residual->sum)};
    } else {
      return {static_cast<const T*>(x), nullptr, nullptr};
    }
  }

  static RMS_NORM_INLINE Target FirstTarget(const void* weight, void* y) {
    return {nullptr, static_cast<const Weight*>(weight), static_cast<T*>(y),
            0.0f};
  }

  // The order of the two products of an element.
  enum class Order {
    // x * weight does not wait for the scale: nearly free in a short row. But
    // it can leave the range of float32 where the result does not.
    kWeightFirst,
    // |x * scale| is at most sqrt(n).
    kScaleFirst,
  };

  static constexpr double kMinMean = 0x1p-32;
  static constexpr double kMaxMean = 0x1p+32;

  // Whether the scale lies between 2^-16 and 2^16, where kWeightFirst can only
  // turn results of 2^112 and more into infinity.
  static RMS_NORM_INLINE bool AllowsWeightFirst(double mean_plus_epsilon) {
    return mean_plus_epsilon >= kMinMean && mean_plus_epsilon <= kMaxMean;
  }

  // In a row with a small scale, x * scale may become zero, which an infinite
  // weight would turn into NaN. (True for a weight of NaN, too.)
  static RMS_NORM_INLINE bool HasInfinity(const Weight* weight, std::size_t n) {
    if constexpr (kHasWeight) {
      const Vec zero = Simd::Zero();
      Vec product = zero;
      std::size_t i = 0;
      for (; i + Simd::kLanes <= n; i += Simd::kLanes) {
        product = Simd::MulAdd(Simd::Load(weight + i), zero, product);
      }
      if (i < n) {
        const Vec rest = Simd::LoadPartial(weight + i, n - i);
        product = Simd::MulAdd(rest, zero, product);
      }
      return Simd::ReduceAdd(Simd::Fold(product)) != 0.0;
    } else {
      return false;
    }
  }

  // For the rows that do not, among them those without a scale in float32.
  static __attribute__((noinline)) void NormalizeRowScaleFirst(
      const RmsNormParams& params, double mean_plus_epsilon, const T* row,
      const Weight* weight, T* y) {
    if (IsExceptional(mean_plus_epsilon, params.hidden_size) ||
        (mean_plus_epsilon > kMaxMean &&
         HasInfinity(weight, params.hidden_size))) {
      return NormalizeExceptionalRow(kElementType<T>, params.hidden_size,
                                     params.epsilon, row, weight,
                                     params.weight_type, y);
    }
    const float scale = Simd::ReciprocalSqrt(mean_plus_epsilon);
    Scale<Order::kScaleFirst>({row, weight, y, scale}, params.hidden_size);
  }

  static RMS_NORM_INLINE void NormalizeRow(const RmsNormParams& params,
                                           double reciprocal_n,
                                           const Source& source,
                                           double sum_of_squares,
                                           Target target) {
    const double mean_plus_epsilon =
        Simd::MulAdd(sum_of_squares, reciprocal_n, params.epsilon);
    target.row = source.Row();
    ScaleRow(params, mean_plus_epsilon, target);
  }

  static RMS_NORM_INLINE void ScaleRow(const RmsNormParams& params,
                                       double mean_plus_epsilon,
                                       Target target) {
    if (__builtin_expect(AllowsWeightFirst(mean_plus_epsilon), 1)) {
      target.scale = Simd::ReciprocalSqrt(mean_plus_epsilon);
      Scale<Order::kWeightFirst>(target, params.hidden_size);
    } else {
      NormalizeRowScaleFirst(params, mean_plus_epsilon, target.row,
                             target.weight, target.y);
    }
  }

  // A row that is summed anew. Not a function that returns the sum: the caller
  // would have to save its registers.
  static __attribute__((noinline)) void NormalizeDominatedRow(
      const RmsNormParams& params, const T* row, const Weight* weight, T* y) {
    const std::size_t n = params.hidden_size;
    const double mean_plus_epsilon = Simd::MulAdd(
        SumInFloat64(row, n), 1.0 / static_cast<double>(n), params.epsilon);
    ScaleRow(params, mean_plus_epsilon, {row, weight, y, 0.0f});
    if constexpr (kStream) Simd::StreamFence();
  }

  static __attribute__((noinline)) void NormalizeRows(
      const RmsNormParams& params, const void* x, const void* weight, void* y,
      const ResidualSum* residual) {
    const Source source = FirstSource(x, residual);
    const Target target = FirstTarget(weight, y);
    const Schedule schedule = ChooseSchedule(params.rows, params.hidden_size);
    if (schedule == Schedule::kFourRows) {
      NormalizeFourRowsAtATime(params, source, target);
    } else if (schedule == Schedule::kRowByRow) {
      NormalizeRowByRow(params, source, target, params.rows);
    } else {
      NormalizeOneRowAhead(
          params, source, target,
          schedule == Schedule::kLead ? params.hidden_size : Rows::kChunk);
    }
    if constexpr (kStream) Simd::StreamFence();
  }

  // n is not read from params, which for the compiler change with every store
  // to y: rows of 128 elements would take 3 to 20 % longer.
  static RMS_NORM_INLINE void ScaleFourRows(const RmsNormParams& params,
                                            std::size_t n, Quad64 means,
                                            Quad scales, const Source& source,
                                            Target target) {
    if (__builtin_expect(!Simd::AllWithin(means, kMinMean, kMaxMean), 0)) {
      double mean_plus_epsilon[4];
      Simd::Store(mean_plus_epsilon, means);
      return ScaleOneByOne(params, mean_plus_epsilon, source.Row(),
                           target.weight, target.y);
    }
    float scale[4];
    Simd::Store(scale, scales);
    target.row = source.Row();
    for (int k = 0; k < 4; ++k) {
      target.scale = scale[k];
      Scale<Order::kWeightFirst>(target, n);
      target.row += n;
      target.y += n;
    }
  }

  static __attribute__((noinline)) void ScaleOneByOne(
      const RmsNormParams& params, const double* mean_plus_epsilon,
      const T* row, const Weight* weight, T* y) {
    const std::size_t n = params.hidden_size;
    for (int k = 0; k < 4; ++k) {
      ScaleRow(params, mean_plus_epsilon[k],
               {row + k * n, weight, y + k * n, 0.0f});
    }
  }

  static __attribute__((noinline)) void NormalizeFourRowsAtATime(
      const RmsNormParams& params, Source source, Target target) {
    const std::size_t n = params.hidden_size;
    const double reciprocal_n = 1.0 / static_cast<double>(n);
    const std::size_t groups = params.rows / 4;
    Source next = source;
    Quad64 means = Rows::FourMeans(params, reciprocal_n, next);
    for (std::size_t group = 0; group < groups; ++group) {
      // The next rows are summed while the roots are still being computed.
      const Quad scales = Simd::ReciprocalSqrt(means);
      Quad64 next_means = means;
      if (group + 1 < groups) {
        next.Advance(4 * n);
        next_means = Rows::FourMeans(params, reciprocal_n, next);
      }
      ScaleFourRows(params, n, means, scales, source, target);
      means = next_means;
      source.Advance(4 * n);
      target.y += 4 * n;
    }
    NormalizeRowByRow(params, source, target, params.rows % 4);
  }

  static RMS_NORM_INLINE void NormalizeRowByRow(const RmsNormParams& params,
                                                Source source, Target target,
                                                std::size_t rows) {
    const std::size_t n = params.hidden_size;
    const double reciprocal_n = 1.0 / static_cast<double>(n);
    for (std::size_t r = 0; r < rows; ++r) {
      NormalizeRow(params, reciprocal_n, source, Rows::Sum(source, n), target);
      source.Advance(n);
      target.y += n;
    }
  }

  static RMS_NORM_INLINE void NormalizeOneRowAhead(const RmsNormParams& params,
                                                   Source source, Target target,
                                                   std::size_t scale_step) {
    const std::size_t n = params.hidden_size;
    const double reciprocal_n = 1.0 / static_cast<double>(n);
    double sum_of_squares = Rows::SumOutlined(source, n);
    for (std::size_t r = 1; r <= params.rows; ++r) {
      const double mean_plus_epsilon =
          Simd::MulAdd(sum_of_squares, reciprocal_n, params.epsilon);
      target.row = source.Row();
      source.Advance(n);
      if (__builtin_expect(AllowsWeightFirst(mean_plus_epsilon), 1)) {
        target.scale = Simd::ReciprocalSqrt(mean_plus_epsilon);
        if (r < params.rows) {
          sum_of_squares = SumAndScale(source, target, n, scale_step);
        } else {
          Scale<Order::kWeightFirst>(target, n);
        }
      } else {
        NormalizeRowScaleFirst(params, mean_plus_epsilon, target.row,
                               target.weight, target.y);
        if (r < params.rows) sum_of_squares = Rows::SumOutlined(source, n);
      }
      target.y += n;
    }
  }

  template <Order kOrder>
  static RMS_NORM_INLINE typename Out::Vec Product(typename Out::Vec x,
                                                   typename Out::Vec weight,
                                                   typename Out::Vec scale) {
    return kOrder == Order::kWeightFirst ? Out::Mul(Out::Mul(x, weight), scale)
                                         : Out::Mul(Out::Mul(x, scale), weight);
  }

  template <Order kOrder>
  static RMS_NORM_INLINE void ScaleVector(const Target& target,
                                          typename Out::Vec scale,
                                          std::size_t i) {
    typename Out::Vec v = Out::Load(target.row + i);
    if constexpr (kHasWeight) {
      v = Product<kOrder>(v, Out::Load(target.weight + i), scale);
    } else {
      v = Out::Mul(v, scale);
    }
    if constexpr (kStream) {
      Out::Stream(target.y + i, v);
    } else {
      Out::Store(target.y + i, v);
    }
  }

  template <Order kOrder>
  static RMS_NORM_INLINE void ScaleSteps(const Target& target,
                                         std::size_t begin, std::size_t end) {
    const typename Out::Vec scale = Out::Set(target.scale);
    for (std::size_t i = begin; i < end; i += Rows::kStep) {
#pragma GCC unroll 16
      for (std::size_t k = 0; k < Rows::kStep; k += Out::kLanes) {
        ScaleVector<kOrder>(target, scale, i + k);
      }
    }
  }

  template <Order kOrder>
  static RMS_NORM_INLINE void ScaleTail(const Target& target, std::size_t begin,
                                        std::size_t end) {
    const typename Out::Vec scale = Out::Set(target.scale);
    std::size_t i = begin;
    for (; i + Out::kLanes <= end; i += Out::kLanes) {
      ScaleVector<kOrder>(target, scale, i);
    }
    if (i < end) {
      const std::size_t count = end - i;
      typename Out::Vec v = Out::LoadPartial(target.row + i, count);
      if constexpr (kHasWeight) {
        v = Product<kOrder>(v, Out::LoadPartial(target.weight + i, count),
                            scale);
      } else {
        v = Out::Mul(v, scale);
      }
      Out::StorePartial(target.y + i, v, count);
    }
  }

  template <Order kOrder>
  static RMS_NORM_INLINE void Scale(const Target& target, std::size_t n) {
    const std::size_t steps_end = n - n % Rows::kStep;
    ScaleSteps<kOrder>(target, 0, steps_end);
    ScaleTail<kOrder>(target, steps_end, n);
  }

  // Sums the squares of source and scales scale_step elements of target after
  // every chunk of source until all of target is scaled.
  static RMS_NORM_INLINE double SumAndScale(const Source& source,
                                            const Target& target, std::size_t n,
                                            std::size_t scale_step) {
    const std::size_t steps_end = n - n % Rows::kStep;
    std::size_t scaled = 0;
    double total = 0.0;
    for (std::size_t begin = 0; begin < n; begin += Rows::kBlock) {
      const std::size_t end = Rows::Min(begin + Rows::kBlock, n);
      const std::size_t sum_end = Rows::Min(end, steps_end);
      typename Rows::Sums sums;
      Rows::Clear(sums);
      for (std::size_t chunk = begin; chunk < sum_end; chunk += Rows::kChunk) {
        Rows::AccumulateSteps(source, chunk,
                              Rows::Min(chunk + Rows::kChunk, sum_end), sums);
        if (scaled < steps_end) {
          const std::size_t scale_end =
              Rows::Min(scaled + scale_step, steps_end);
          ScaleSteps<Order::kWeightFirst>(target, scaled, scale_end);
          scaled = scale_end;
        }
      }
      Rows::AccumulateTail(source, sum_end, end, sums);
      total += Rows::Total(source, begin, end, Rows::Reduce(sums));
    }
    ScaleTail<Order::kWeightFirst>(target, steps_end, n);
    return total;
  }
};

template <class Simd, class T, class Weight, bool kAddResidual>
RMS_NORM_INLINE void DispatchOnStreaming(const RmsNormParams& params,
                                         const void* x, const void* weight,
                                         void* y, const ResidualSum* residual,
                                         bool stream) {
  if constexpr (Simd::kStreamAlignment != 0) {
    constexpr std::size_t kMask = Simd::kStreamAlignment - 1;
    const std::size_t row_bytes = params.hidden_size * sizeof(T);
    const auto address = reinterpret_cast<std::uintptr_t>(y);
    if (stream && ((address | row_bytes) & kMask) == 0) {
      RowKernel<Simd, T, Weight, kAddResidual, true>::Normalize(
          params, x, weight, y, residual);
      return;
    }
  }
  RowKernel<Simd, T, Weight, kAddResidual, false>::Normalize(params, x, weight,
                                                             y, residual);
}

template <class Simd, class T, bool kAddResidual>
RMS_NORM_INLINE void DispatchOnWeight(const RmsNormParams& params,
                                      const void* x, const void* weight,
                                      void* y, const ResidualSum* residual,
                                      bool stream) {
  if (weight == nullptr) {
    DispatchOnStreaming<Simd, T, NoWeight, kAddResidual>(params, x, weight, y,
                                                         residual, stream);
  } else if (params.weight_type == ElementType::kFloat32) {
    DispatchOnStreaming<Simd, T, float, kAddResidual>(params, x, weight, y,
                                                      residual, stream);
  } else {
    DispatchOnStreaming<Simd, T, T, kAddResidual>(params, x, weight, y,
                                                  residual, stream);
  }
}

// The arguments of DispatchOnWeight by the names in RMS_NORM_KERNELS.
using Type_f32 = float;
using Type_f16 = Float16;
using Type_bf16 = BFloat16;

#define RMS_NORM_DEFINE_KERNEL(op, type, isa, Simd)                          \
  void op##_##type##_##isa(const RmsNormParams& params, const void* x,       \
                           const void* weight, void* y,                      \
                           const ResidualSum* residual, bool stream) {       \
    DispatchOnWeight<Simd, Type_##type, kOp_##op == RmsNormOp::kAddRmsNorm>( \
        params, x, weight, y, residual, stream);                             \
  }

// Defines the kernels of one variant.
#define RMS_NORM_DEFINE_KERNELS(isa, Simd) \
  RMS_NORM_KERNELS(RMS_NORM_DEFINE_KERNEL, isa, Simd)

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_ROW_KERNEL_H_
