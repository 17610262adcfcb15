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
//   ReduceAdd(v)               sum of the lanes, added pairwise
//   MulAdd(double, double, double)
//                              the same in float64, fused where that is one
//                              instruction
//   ReciprocalSqrt(double)     1 / sqrt(a), correct but for one rounding to
//                              float32 and far less than that in float64
//   Scaler<T>                  the class whose vectors scale rows of T
//
// and for every element type T
//
//   Load(const T*), LoadPartial(const T*, n)    n < kLanes; other lanes are 0
//   Store(T*, v), StorePartial(T*, v, n)        one rounding, to nearest even
//   Stream(T*, v)              like Store, but may bypass the caches
//   Round<T>(v)                v rounded to T
//   kStreamAlignment           bytes that Stream's address is a multiple of,
//                              0 when Stream is no better than Store
#ifndef KERNELS_RMS_NORM_ROW_KERNEL_H_
#define KERNELS_RMS_NORM_ROW_KERNEL_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/exceptional_row.h"
#include "kernels/rms_norm/variants.h"

namespace ai_edge_rms_norm {

struct NoWeight {};

// T: type of x, residual, sum and y. Weight: element type or NoWeight.
template <class Simd, class T, class Weight, bool kAddResidual, bool kStream>
class RowKernel {
 public:
  // A row that is one block has a function of its own, in which nothing needs a
  // register of the caller's. What is saved on the stack has to be read back
  // from behind the stores of y, and until then the caller cannot go on: a
  // quarter of the time of a row of 640 elements.
  static __attribute__((noinline)) void Normalize(const RmsNormParams& params,
                                                  const void* x,
                                                  const void* weight, void* y,
                                                  const ResidualSum* residual) {
    if (params.rows != 1 || params.hidden_size > kBlock) {
      return NormalizeRows(params, x, weight, y, residual);
    }
    const Source source = FirstSource(x, residual);
    NormalizeRow(params, 1.0 / static_cast<double>(params.hidden_size), source,
                 SumBlock(source, 0, params.hidden_size),
                 FirstTarget(weight, y));
    if constexpr (kStream) Simd::StreamFence();
  }

 private:
  using Vec = typename Simd::Vec;
  // float32 vectors and, for the second pass, those that suit T's stores.
  using Out = typename Simd::template Scaler<T>;

  static constexpr std::size_t kStep = Simd::kLanes * Simd::kAccumulators;
  // float32 sums are carried over at most this many elements (32 per lane) and
  // then added in float64, so that the error does not grow with hidden_size.
  static constexpr std::size_t kBlock = 32 * kStep;
  // How much of the next row is summed at a time.
  static constexpr std::size_t kChunk = 256;
  static_assert(kChunk % kStep == 0 && kBlock % kChunk == 0,
                "an element's accumulator must not depend on the schedule");
  static constexpr bool kHasWeight = !std::is_same_v<Weight, NoWeight>;

  struct Source {  // a row to be summed
    const T* x;
    const T* residual;
    T* sum;

    RMS_NORM_INLINE void Advance(std::size_t n) {
      x += n;
      if constexpr (kAddResidual) {
        residual += n;
        sum += n;
      }
    }
  };
  struct Target {  // a row to be scaled
    const T* row;
    const Weight* weight;
    T* y;
    float scale;
  };

  // In which order one row is scaled and the next one is summed.
  enum class Schedule {
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
    // Rows shorter than a chunk are interleaved by the CPU itself. Interleaving
    // pays as long as both rows, the output and the weight stay in a 32 KiB
    // first-level cache, with room for what is prefetched; leading while the
    // matrices stay in a second-level cache of 512 KiB or more. All measured,
    // see docs/benchmarks.md.
    constexpr std::size_t kRows = kAddResidual ? 6 : 4;
    const std::size_t row_bytes = n * sizeof(T);
    if (kStream || rows == 1 || n < kChunk) return Schedule::kRowByRow;
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

  // Whether the scale lies between 2^-16 and 2^16, where kWeightFirst can only
  // turn results of 2^112 and more into infinity.
  static RMS_NORM_INLINE bool AllowsWeightFirst(double mean_plus_epsilon) {
    return mean_plus_epsilon >= 0x1p-32 && mean_plus_epsilon <= 0x1p+32;
  }

  // For the rows that do not, among them those without a scale in float32.
  static __attribute__((noinline)) void NormalizeRowScaleFirst(
      const RmsNormParams& params, double mean_plus_epsilon, const T* row,
      const Weight* weight, T* y) {
    if (IsExceptional(mean_plus_epsilon)) {
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
    const std::size_t n = params.hidden_size;
    const double mean_plus_epsilon =
        Simd::MulAdd(sum_of_squares, reciprocal_n, params.epsilon);
    target.row = kAddResidual ? source.sum : source.x;
    if (__builtin_expect(AllowsWeightFirst(mean_plus_epsilon), 1)) {
      target.scale = Simd::ReciprocalSqrt(mean_plus_epsilon);
      Scale<Order::kWeightFirst>(target, n);
    } else {
      NormalizeRowScaleFirst(params, mean_plus_epsilon, target.row,
                             target.weight, target.y);
    }
  }

  static __attribute__((noinline)) void NormalizeRows(
      const RmsNormParams& params, const void* x, const void* weight, void* y,
      const ResidualSum* residual) {
    const Source source = FirstSource(x, residual);
    const Target target = FirstTarget(weight, y);
    const Schedule schedule = ChooseSchedule(params.rows, params.hidden_size);
    if (schedule == Schedule::kRowByRow) {
      NormalizeRowByRow(params, source, target);
    } else {
      NormalizeOneRowAhead(
          params, source, target,
          schedule == Schedule::kLead ? params.hidden_size : kChunk);
    }
    if constexpr (kStream) Simd::StreamFence();
  }

  static RMS_NORM_INLINE void NormalizeRowByRow(const RmsNormParams& params,
                                                Source source, Target target) {
    const std::size_t n = params.hidden_size;
    const double reciprocal_n = 1.0 / static_cast<double>(n);
    for (std::size_t r = 0; r < params.rows; ++r) {
      NormalizeRow(params, reciprocal_n, source, Sum(source, n), target);
      source.Advance(n);
      target.y += n;
    }
  }

  static RMS_NORM_INLINE void NormalizeOneRowAhead(const RmsNormParams& params,
                                                   Source source, Target target,
                                                   std::size_t scale_step) {
    const std::size_t n = params.hidden_size;
    const double reciprocal_n = 1.0 / static_cast<double>(n);
    double sum_of_squares = SumOutlined(source, n);
    for (std::size_t r = 1; r <= params.rows; ++r) {
      const double mean_plus_epsilon =
          Simd::MulAdd(sum_of_squares, reciprocal_n, params.epsilon);
      target.row = kAddResidual ? source.sum : source.x;
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
        if (r < params.rows) sum_of_squares = SumOutlined(source, n);
      }
      target.y += n;
    }
  }

  static RMS_NORM_INLINE Vec LoadSource(const Source& source, std::size_t i) {
    Vec v = Simd::Load(source.x + i);
    if constexpr (kAddResidual) {
      v = Simd::template Round<T>(
          Simd::Add(v, Simd::Load(source.residual + i)));
      Simd::Store(source.sum + i, v);
    }
    return v;
  }

  static RMS_NORM_INLINE Vec LoadSourcePartial(const Source& source,
                                               std::size_t i,
                                               std::size_t count) {
    Vec v = Simd::LoadPartial(source.x + i, count);
    if constexpr (kAddResidual) {
      v = Simd::template Round<T>(
          Simd::Add(v, Simd::LoadPartial(source.residual + i, count)));
      Simd::StorePartial(source.sum + i, v, count);
    }
    return v;
  }

  using Sums = Vec[Simd::kAccumulators];

  // Adds the squares of whole steps. Which accumulator an element goes to
  // depends on its index alone, so that a row's result does not depend on the
  // schedule, the rows around it or the number of threads.
  static RMS_NORM_INLINE void AccumulateSteps(const Source& source,
                                              std::size_t begin,
                                              std::size_t end, Sums& sums) {
    for (std::size_t i = begin; i < end; i += kStep) {
#pragma GCC unroll 8
      for (int k = 0; k < Simd::kAccumulators; ++k) {
        const Vec v = LoadSource(source, i + k * Simd::kLanes);
        sums[k] = Simd::MulAdd(v, v, sums[k]);
      }
    }
  }

  // The same for less than one step.
  static RMS_NORM_INLINE void AccumulateTail(const Source& source,
                                             std::size_t begin, std::size_t end,
                                             Sums& sums) {
    const std::size_t count = end - begin;
#pragma GCC unroll 8
    for (std::size_t k = 0; k < Simd::kAccumulators; ++k) {
      if (count < (k + 1) * Simd::kLanes) break;
      const Vec v = LoadSource(source, begin + k * Simd::kLanes);
      sums[k] = Simd::MulAdd(v, v, sums[k]);
    }
    const std::size_t rest = count % Simd::kLanes;
    if (rest != 0) {
      const Vec v = LoadSourcePartial(source, end - rest, rest);
      sums[0] = Simd::MulAdd(v, v, sums[0]);
    }
  }

  static RMS_NORM_INLINE void Clear(Sums& sums) {
#pragma GCC unroll 8
    for (Vec& sum : sums) sum = Simd::Zero();
  }

  static RMS_NORM_INLINE float Reduce(Sums& sums) {
    static_assert(Simd::kAccumulators == 4 || Simd::kAccumulators == 8);
    if constexpr (Simd::kAccumulators == 8) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sums[k] = Simd::Add(sums[k], sums[k + 4]);
    }
    return Simd::ReduceAdd(
        Simd::Add(Simd::Add(sums[0], sums[2]), Simd::Add(sums[1], sums[3])));
  }

  static RMS_NORM_INLINE float SumBlock(const Source& source, std::size_t begin,
                                        std::size_t end) {
    const std::size_t steps_end = end - (end - begin) % kStep;
    Sums sums;
    Clear(sums);
    AccumulateSteps(source, begin, steps_end, sums);
    AccumulateTail(source, steps_end, end, sums);
    return Reduce(sums);
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
    for (std::size_t i = begin; i < end; i += kStep) {
#pragma GCC unroll 16
      for (std::size_t k = 0; k < kStep; k += Out::kLanes) {
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
    const std::size_t steps_end = n - n % kStep;
    ScaleSteps<kOrder>(target, 0, steps_end);
    ScaleTail<kOrder>(target, steps_end, n);
  }

  // Sums the squares of source and scales scale_step elements of target after
  // every chunk of source until all of target is scaled.
  static RMS_NORM_INLINE double SumAndScale(const Source& source,
                                            const Target& target, std::size_t n,
                                            std::size_t scale_step) {
    const std::size_t steps_end = n - n % kStep;
    std::size_t scaled = 0;
    double total = 0.0;
    for (std::size_t begin = 0; begin < n; begin += kBlock) {
      const std::size_t end = Min(begin + kBlock, n);
      const std::size_t sum_end = Min(end, steps_end);
      Sums sums;
      Clear(sums);
      for (std::size_t chunk = begin; chunk < sum_end; chunk += kChunk) {
        AccumulateSteps(source, chunk, Min(chunk + kChunk, sum_end), sums);
        if (scaled < steps_end) {
          const std::size_t scale_end = Min(scaled + scale_step, steps_end);
          ScaleSteps<Order::kWeightFirst>(target, scaled, scale_end);
          scaled = scale_end;
        }
      }
      AccumulateTail(source, sum_end, end, sums);
      total += Reduce(sums);
    }
    ScaleTail<Order::kWeightFirst>(target, steps_end, n);
    return total;
  }

  static RMS_NORM_INLINE std::size_t Min(std::size_t a, std::size_t b) {
    return a < b ? a : b;
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
