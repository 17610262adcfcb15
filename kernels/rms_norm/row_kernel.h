// The algorithm of every variant, as a template over its vector operations.
//
// A per-ISA file defines a class Simd in an anonymous namespace (so that no
// code compiled with its instruction set flags is shared with other files) and
// instantiates RunKernel with it. Simd provides
//
//   Vec                        float32 vector of kLanes lanes
//   kAccumulators              how many sums hide the latency of MulAdd
//   Zero(), Set(float)
//   Add(a, b), Mul(a, b), MulAdd(a, b, c) = a * b + c
//   ReduceAdd(v)               sum of the lanes, added pairwise
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
#include "kernels/rms_norm/kernels.h"

namespace ai_edge_rms_norm {

struct NoWeight {};

// T: type of x, residual, sum and y. Weight: element type or NoWeight.
template <class Simd, class T, class Weight, bool kAddResidual, bool kStream>
class RowKernel {
 public:
  static RMS_NORM_INLINE void Run(const KernelArgs& args) {
    const Schedule schedule = ChooseSchedule(args.rows, args.hidden_size);
    if (schedule == Schedule::kRowByRow) {
      RunRowByRow(args);
    } else {
      RunOneRowAhead(args, schedule == Schedule::kLead);
    }
  }

 private:
  using Vec = typename Simd::Vec;
  // float32 vectors and, for the second pass, those that suit T's stores.
  using Out = typename Simd::template Scaler<T>;

  static constexpr std::size_t kStep = Simd::kLanes * Simd::kAccumulators;
  // float32 sums are carried over at most this many elements (16 per lane) and
  // then added in float64, so that the error does not grow with hidden_size.
  static constexpr std::size_t kBlock = 16 * kStep;
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
    // Interleaving pays as long as both rows, the output and the weight stay in
    // a 32 KiB first-level cache, with room for what is prefetched; leading
    // while the matrices stay in a second-level cache of 512 KiB or more. Both
    // measured, see docs/benchmarks.md.
    constexpr std::size_t kRows = kAddResidual ? 6 : 4;
    const std::size_t row_bytes = n * sizeof(T);
    if (kStream || rows == 1) return Schedule::kRowByRow;
    if (kRows * row_bytes <= 24 << 10) return Schedule::kInterleave;
    if ((kRows - 2) * rows * row_bytes <= 512 << 10) return Schedule::kLead;
    return Schedule::kRowByRow;
  }

  static RMS_NORM_INLINE Source FirstSource(const KernelArgs& args) {
    if constexpr (kAddResidual) {
      return {static_cast<const T*>(args.x),
              static_cast<const T*>(args.residual), static_cast<T*>(args.sum)};
    } else {
      return {static_cast<const T*>(args.x), nullptr, nullptr};
    }
  }

  static RMS_NORM_INLINE Target FirstTarget(const KernelArgs& args) {
    return {nullptr, static_cast<const Weight*>(args.weight),
            static_cast<T*>(args.y), 0.0f};
  }

  static __attribute__((noinline)) void ScaleExceptional(const KernelArgs& args,
                                                         const T* row, T* y) {
    NormalizeExceptionalRow(kElementType<T>, args.hidden_size, args.epsilon,
                            row, args.weight, args.weight_type, y);
  }

  static RMS_NORM_INLINE void RunRowByRow(const KernelArgs& args) {
    const std::size_t n = args.hidden_size;
    const double reciprocal_n = 1.0 / static_cast<double>(n);
    Source source = FirstSource(args);
    Target target = FirstTarget(args);
    for (std::size_t r = 0; r < args.rows; ++r) {
      const double mean_plus_epsilon =
          Sum(source, n) * reciprocal_n + args.epsilon;
      target.row = kAddResidual ? source.sum : source.x;
      if (__builtin_expect(IsExceptional(mean_plus_epsilon), 0)) {
        ScaleExceptional(args, target.row, target.y);
      } else {
        target.scale = Simd::ReciprocalSqrt(mean_plus_epsilon);
        Scale(target, n);
      }
      source.Advance(n);
      target.y += n;
    }
  }

  static RMS_NORM_INLINE void RunOneRowAhead(const KernelArgs& args,
                                             bool lead) {
    const std::size_t n = args.hidden_size;
    const double reciprocal_n = 1.0 / static_cast<double>(n);
    Source source = FirstSource(args);
    Target target = FirstTarget(args);
    double sum_of_squares = SumOutlined(source, n);
    for (std::size_t r = 1; r <= args.rows; ++r) {
      const double mean_plus_epsilon =
          sum_of_squares * reciprocal_n + args.epsilon;
      target.row = kAddResidual ? source.sum : source.x;
      source.Advance(n);
      if (__builtin_expect(IsExceptional(mean_plus_epsilon), 0)) {
        ScaleExceptional(args, target.row, target.y);
        if (r < args.rows) sum_of_squares = SumOutlined(source, n);
      } else {
        target.scale = Simd::ReciprocalSqrt(mean_plus_epsilon);
        if (r < args.rows) {
          sum_of_squares =
              SumAndScale<true>(source, target, n, kChunk, lead ? n : kChunk);
        } else {
          Scale(target, n);
        }
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
    std::size_t i = begin;
#pragma GCC unroll 8
    for (int k = 0; k < Simd::kAccumulators; ++k) {
      if (i + Simd::kLanes > end) break;
      const Vec v = LoadSource(source, i);
      sums[k] = Simd::MulAdd(v, v, sums[k]);
      i += Simd::kLanes;
    }
    if (i < end) {
      const Vec v = LoadSourcePartial(source, i, end - i);
      sums[0] = Simd::MulAdd(v, v, sums[0]);
    }
  }

  static RMS_NORM_INLINE double Reduce(Sums& sums) {
    static_assert(Simd::kAccumulators == 4 || Simd::kAccumulators == 8);
    if constexpr (Simd::kAccumulators == 8) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sums[k] = Simd::Add(sums[k], sums[k + 4]);
    }
    return Simd::ReduceAdd(
        Simd::Add(Simd::Add(sums[0], sums[2]), Simd::Add(sums[1], sums[3])));
  }

  // y = (x * scale) * weight, not x * (scale * weight): the latter product can
  // leave the range of float32 where the result does not.
  static RMS_NORM_INLINE void ScaleVector(const Target& target,
                                          typename Out::Vec scale,
                                          std::size_t i) {
    typename Out::Vec v = Out::Mul(Out::Load(target.row + i), scale);
    if constexpr (kHasWeight) v = Out::Mul(v, Out::Load(target.weight + i));
    if constexpr (kStream) {
      Out::Stream(target.y + i, v);
    } else {
      Out::Store(target.y + i, v);
    }
  }

  static RMS_NORM_INLINE void ScaleSteps(const Target& target,
                                         std::size_t begin, std::size_t end) {
    const typename Out::Vec scale = Out::Set(target.scale);
    for (std::size_t i = begin; i < end; i += kStep) {
#pragma GCC unroll 16
      for (std::size_t k = 0; k < kStep; k += Out::kLanes) {
        ScaleVector(target, scale, i + k);
      }
    }
  }

  static RMS_NORM_INLINE void ScaleTail(const Target& target, std::size_t begin,
                                        std::size_t end) {
    const typename Out::Vec scale = Out::Set(target.scale);
    std::size_t i = begin;
    for (; i + Out::kLanes <= end; i += Out::kLanes) {
      ScaleVector(target, scale, i);
    }
    if (i < end) {
      const std::size_t count = end - i;
      typename Out::Vec v =
          Out::Mul(Out::LoadPartial(target.row + i, count), scale);
      if constexpr (kHasWeight) {
        v = Out::Mul(v, Out::LoadPartial(target.weight + i, count));
      }
      Out::StorePartial(target.y + i, v, count);
    }
  }

  static RMS_NORM_INLINE void Scale(const Target& target, std::size_t n) {
    const std::size_t steps = n - n % kStep;
    ScaleSteps(target, 0, steps);
    ScaleTail(target, steps, n);
  }

  // Sums the squares of source and, when kScale, scales scale_step elements of
  // target after every chunk of source until all of target is scaled.
  template <bool kScale>
  static RMS_NORM_INLINE double SumAndScale(const Source& source,
                                            const Target& target, std::size_t n,
                                            std::size_t chunk,
                                            std::size_t scale_step) {
    const std::size_t steps = n - n % kStep;
    std::size_t begin = 0;
    std::size_t scaled = 0;
    double total = 0.0;
    do {
      const std::size_t block_end = Min(begin + kBlock, steps);
      Sums sums;
#pragma GCC unroll 8
      for (Vec& sum : sums) sum = Simd::Zero();
      while (begin < block_end) {
        const std::size_t end = Min(begin + chunk, block_end);
        AccumulateSteps(source, begin, end, sums);
        begin = end;
        if (kScale && scaled < steps) {
          const std::size_t scale_end = Min(scaled + scale_step, steps);
          ScaleSteps(target, scaled, scale_end);
          scaled = scale_end;
        }
      }
      if (begin == steps) AccumulateTail(source, steps, n, sums);
      total += Reduce(sums);
    } while (begin < steps);
    if constexpr (kScale) ScaleTail(target, steps, n);
    return total;
  }

  static RMS_NORM_INLINE double Sum(const Source& source, std::size_t n) {
    return SumAndScale<false>(source, Target{}, n, kBlock, 0);
  }

  static __attribute__((noinline)) double SumOutlined(Source source,
                                                      std::size_t n) {
    return Sum(source, n);
  }

  static RMS_NORM_INLINE std::size_t Min(std::size_t a, std::size_t b) {
    return a < b ? a : b;
  }
};

template <class Simd, class T, class Weight, bool kAddResidual>
RMS_NORM_INLINE void RunKernelStreamed(const KernelArgs& args) {
  if constexpr (Simd::kStreamAlignment != 0) {
    constexpr std::size_t kMask = Simd::kStreamAlignment - 1;
    const bool aligned = ((reinterpret_cast<std::uintptr_t>(args.y) |
                           args.hidden_size * sizeof(T)) &
                          kMask) == 0;
    if (args.stream && aligned) {
      RowKernel<Simd, T, Weight, kAddResidual, true>::Run(args);
      return Simd::StreamFence();
    }
  }
  RowKernel<Simd, T, Weight, kAddResidual, false>::Run(args);
}

template <class Simd, class T, bool kAddResidual>
RMS_NORM_INLINE void RunKernel(const KernelArgs& args) {
  if (args.weight == nullptr) {
    RunKernelStreamed<Simd, T, NoWeight, kAddResidual>(args);
  } else if (args.weight_type == ElementType::kFloat32) {
    RunKernelStreamed<Simd, T, float, kAddResidual>(args);
  } else {
    RunKernelStreamed<Simd, T, T, kAddResidual>(args);
  }
}

// Defines the six kernels of one variant.
#define RMS_NORM_DEFINE_KERNELS(isa, Simd)               \
  void rms_norm_f32_##isa(const KernelArgs& args) {      \
    RunKernel<Simd, float, false>(args);                 \
  }                                                      \
  void rms_norm_f16_##isa(const KernelArgs& args) {      \
    RunKernel<Simd, Float16, false>(args);               \
  }                                                      \
  void rms_norm_bf16_##isa(const KernelArgs& args) {     \
    RunKernel<Simd, BFloat16, false>(args);              \
  }                                                      \
  void add_rms_norm_f32_##isa(const KernelArgs& args) {  \
    RunKernel<Simd, float, true>(args);                  \
  }                                                      \
  void add_rms_norm_f16_##isa(const KernelArgs& args) {  \
    RunKernel<Simd, Float16, true>(args);                \
  }                                                      \
  void add_rms_norm_bf16_##isa(const KernelArgs& args) { \
    RunKernel<Simd, BFloat16, true>(args);               \
  }

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_ROW_KERNEL_H_
