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
  static void Run(const KernelArgs& args) {
    const std::size_t n = args.hidden_size;
    const T* x = static_cast<const T*>(args.x);
    const T* residual = static_cast<const T*>(args.residual);
    T* sum = static_cast<T*>(args.sum);
    T* y = static_cast<T*>(args.y);
    const Weight* weight = static_cast<const Weight*>(args.weight);
    const double reciprocal_n = 1.0 / static_cast<double>(n);

    // While row r is scaled and written, row r + 1 is read and summed: reads
    // and writes then keep each other company as they do in a copy.
    double total = Pass<true, false>(n, Source{x, residual, sum}, Target{});
    for (std::size_t r = 0; r < args.rows; ++r) {
      const Source next = {Offset(x, n), Offset(residual, n), Offset(sum, n)};
      const T* row = kAddResidual ? sum : x;
      const double mean_plus_epsilon = total * reciprocal_n + args.epsilon;
      const bool last = r + 1 == args.rows;
      if (__builtin_expect(IsExceptional(mean_plus_epsilon), 0)) {
        if (!last) total = Pass<true, false>(n, next, Target{});
        NormalizeExceptionalRow(kElementType<T>, n, args.epsilon, row,
                                args.weight, args.weight_type, y);
      } else {
        const float scale =
            static_cast<float>(1.0 / __builtin_sqrt(mean_plus_epsilon));
        const Target target = {row, Simd::Set(scale), weight, y};
        if (last) {
          Pass<false, true>(n, Source{}, target);
        } else {
          total = Pass<true, true>(n, next, target);
        }
      }
      x = next.x;
      residual = next.residual;
      sum = next.sum;
      y += n;
    }
  }

 private:
  using Vec = typename Simd::Vec;
  static constexpr std::size_t kLanes = Simd::kLanes;
  static constexpr std::size_t kStep = kLanes * Simd::kAccumulators;
  // float32 sums are carried over at most this many elements (64 per lane) and
  // then added in float64, so that the error does not grow with hidden_size.
  static constexpr std::size_t kBlock = 64 * kStep;
  struct Source {  // a row to be summed
    const T* x;
    const T* residual;
    T* sum;
  };
  struct Target {  // a row to be scaled
    const T* row;
    Vec scale;
    const Weight* weight;
    T* y;
  };

  template <class U>
  static RMS_NORM_INLINE U* Offset(U* pointer, std::size_t n) {
    // residual and sum are null without kAddResidual.
    return kAddResidual || pointer != nullptr ? pointer + n : pointer;
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

  // (x * scale) * weight, not x * (scale * weight): the latter product can
  // leave the range of float32 where the result does not.
  static RMS_NORM_INLINE void Scale(const Target& target, std::size_t i) {
    Vec v = Simd::Mul(Simd::Load(target.row + i), target.scale);
    if constexpr (kHasWeight) v = Simd::Mul(v, Simd::Load(target.weight + i));
    if constexpr (kStream) {
      Simd::Stream(target.y + i, v);
    } else {
      Simd::Store(target.y + i, v);
    }
  }

  static RMS_NORM_INLINE void ScalePartial(const Target& target, std::size_t i,
                                           std::size_t count) {
    Vec v = Simd::Mul(Simd::LoadPartial(target.row + i, count), target.scale);
    if constexpr (kHasWeight) {
      v = Simd::Mul(v, Simd::LoadPartial(target.weight + i, count));
    }
    Simd::StorePartial(target.y + i, v, count);
  }

  // Sums the squares of source (kSum) while it scales target (kScale). Which
  // accumulator an element goes to depends on its index alone: a row's result
  // must not depend on the rows around it.
  template <bool kSum, bool kScale>
  static RMS_NORM_INLINE double Pass(std::size_t n, const Source& source,
                                     const Target& target) {
    double total = 0.0;
    std::size_t i = 0;
    do {
      const std::size_t block_end = n - i > kBlock ? i + kBlock : n;
      Vec sums[Simd::kAccumulators];
      for (Vec& sum : sums) sum = Simd::Zero();
      const auto step = [&](Vec & sum) __attribute__((always_inline)) {
        if constexpr (kScale) Scale(target, i);
        if constexpr (kSum) {
          const Vec v = LoadSource(source, i);
          sum = Simd::MulAdd(v, v, sum);
        }
        i += kLanes;
      };
      while (i + kStep <= block_end) {
#pragma GCC unroll 8
        for (Vec& sum : sums) step(sum);
      }
#pragma GCC unroll 8
      for (Vec& sum : sums) {
        if (i + kLanes > block_end) break;
        step(sum);
      }
      if (i < block_end) {
        const std::size_t count = block_end - i;
        if constexpr (kScale) ScalePartial(target, i, count);
        if constexpr (kSum) {
          const Vec v = LoadSourcePartial(source, i, count);
          sums[0] = Simd::MulAdd(v, v, sums[0]);
        }
        i = block_end;
      }
      if constexpr (kSum) {
#pragma GCC unroll 8
        for (int half = Simd::kAccumulators / 2; half > 0; half /= 2) {
          for (int k = 0; k < half; ++k) {
            sums[k] = Simd::Add(sums[k], sums[k + half]);
          }
        }
        total += Simd::ReduceAdd(sums[0]);
      }
    } while (i < n);
    return total;
  }

  static constexpr bool kHasWeight = !std::is_same_v<Weight, NoWeight>;
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
