// Times every kernel that this CPU supports on the shapes of real models, with
// memcpy of the same bytes and the floor (floor.h) beside it, in bytes read and
// written per second. All buffers start at multiples of 4096 bytes, since
// memcpy takes up to 17 times longer on Zen 3 when (destination - source) mod
// 4096 is between 1 and 48.
//
//   rms_norm_benchmark --benchmark_filter='rms_norm_f32_avx512|memcpy_4'
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernels/rms_norm/element_types.h"
#include "kernels/rms_norm/floor.h"
#include "kernels/rms_norm/streaming.h"
#include "kernels/rms_norm/variants.h"

namespace {

using ai_edge_rms_norm::ElementType;
using ai_edge_rms_norm::KernelInfo;

constexpr std::int64_t kShapes[][2] = {
    {1, 640},   {1, 1152},   {1, 2048},   {1, 4096},    {4, 256},    {16, 2048},
    {128, 640}, {128, 2304}, {512, 4096}, {1024, 1152}, {2048, 8192}};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

// Elements of value 1, so that no row takes an exceptional path.
Memory Ones(ElementType type, std::size_t count) {
  const std::size_t element = SizeOf(type);
  constexpr std::size_t kPage = 4096;
  const std::size_t bytes = (count * element + kPage - 1) / kPage * kPage;
  Memory memory(std::aligned_alloc(kPage, bytes));
  for (std::size_t i = 0; i < count; ++i) {
    switch (type) {
      case ElementType::kFloat32:
        static_cast<float*>(memory.get())[i] = 1.0f;
        break;
      case ElementType::kFloat16:
        static_cast<ai_edge_rms_norm::Float16*>(memory.get())[i] = {0x3c00};
        break;
      case ElementType::kBFloat16:
        static_cast<ai_edge_rms_norm::BFloat16*>(memory.get())[i] = {0x3f80};
        break;
    }
  }
  return memory;
}

void RunKernel(benchmark::State& state, const KernelInfo& info) {
  const auto rows = static_cast<std::size_t>(state.range(0));
  const auto n = static_cast<std::size_t>(state.range(1));
  const bool adds = info.op == ai_edge_rms_norm::RmsNormOp::kAddRmsNorm;
  const Memory x = Ones(info.type, rows * n);
  const Memory residual = Ones(info.type, adds ? rows * n : 0);
  const Memory sum = Ones(info.type, adds ? rows * n : 0);
  const Memory y = Ones(info.type, rows * n);
  const Memory weight = Ones(ElementType::kFloat32, n);
  const std::size_t element = SizeOf(info.type);
  const ai_edge_rms_norm::RmsNormParams params = {rows, n, 1e-6, info.type,
                                                  ElementType::kFloat32};
  const ai_edge_rms_norm::ResidualSum residual_sum = {residual.get(),
                                                      sum.get()};
  const bool stream =
      rows * n * element >= ai_edge_rms_norm::MinStreamedBytes();
  for (auto _ : state) {
    info.kernel(params, x.get(), weight.get(), y.get(), &residual_sum, stream);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(
      state.iterations() * rows * n * element * (adds ? 4 : 2)));
}

void RunMemcpy(benchmark::State& state, ElementType type) {
  const auto count = static_cast<std::size_t>(state.range(0) * state.range(1));
  const std::size_t element = SizeOf(type);
  const Memory x = Ones(type, count);
  const Memory y = Ones(type, count);
  for (auto _ : state) {
    std::memcpy(y.get(), x.get(), count * element);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(
      static_cast<std::int64_t>(state.iterations() * count * element * 2));
}

void RunFloor(benchmark::State& state) {
  const auto rows = static_cast<std::size_t>(state.range(0));
  const std::size_t row_bytes = state.range(1) * sizeof(float);
  const Memory x = Ones(ElementType::kFloat32, rows * state.range(1));
  const Memory y = Ones(ElementType::kFloat32, rows * state.range(1));
  const Memory weight = Ones(ElementType::kFloat32, state.range(1));
  for (auto _ : state) {
    ai_edge_rms_norm::Floor(x.get(), weight.get(), y.get(), rows, row_bytes,
                            row_bytes);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(
      static_cast<std::int64_t>(state.iterations() * rows * row_bytes * 2));
}

}  // namespace

int main(int argc, char** argv) {
  for (const auto& [rows, hidden_size] : kShapes) {
    benchmark::RegisterBenchmark("memcpy_4_byte_elements", RunMemcpy,
                                 ElementType::kFloat32)
        ->Args({rows, hidden_size});
    benchmark::RegisterBenchmark("memcpy_2_byte_elements", RunMemcpy,
                                 ElementType::kFloat16)
        ->Args({rows, hidden_size});
    if (ai_edge_rms_norm::HasFloor()) {
      benchmark::RegisterBenchmark("floor_f32", RunFloor)
          ->Args({rows, hidden_size});
    }
    for (const KernelInfo& info : ai_edge_rms_norm::AllKernels()) {
      if (!info.supported()) continue;
      benchmark::RegisterBenchmark(info.name, RunKernel, info)
          ->Args({rows, hidden_size});
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
