#include "kernels/rms_norm/floor.h"

#include <cstdint>

namespace ai_edge_rms_norm {
namespace {

// Has value in a register, so that it is loaded.
#if defined(__x86_64__)
#define RMS_NORM_FLOOR_KEEP(value) __asm__ __volatile__("" : : "x"(value))
typedef std::uint64_t Block
    __attribute__((vector_size(32), aligned(1), may_alias));
#define RMS_NORM_FLOOR_TARGET __attribute__((target("avx2")))
#elif defined(__aarch64__)
#define RMS_NORM_FLOOR_KEEP(value) __asm__ __volatile__("" : : "w"(value))
typedef std::uint64_t Block
    __attribute__((vector_size(16), aligned(1), may_alias));
#define RMS_NORM_FLOOR_TARGET
#endif

}  // namespace

bool HasFloor() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2");
#else
  return true;
#endif
}

RMS_NORM_FLOOR_TARGET void Floor(const void* x, const void* weight, void* y,
                                 std::size_t rows, std::size_t row_bytes,
                                 std::size_t weight_bytes) {
  const std::size_t blocks = row_bytes / sizeof(Block);
  const std::size_t weight_blocks = weight_bytes / sizeof(Block);
  const auto* w = static_cast<const Block*>(weight);
  for (std::size_t r = 0; r < rows; ++r) {
    const auto* row = reinterpret_cast<const Block*>(
        static_cast<const char*>(x) + r * row_bytes);
    auto* out = reinterpret_cast<Block*>(static_cast<char*>(y) + r * row_bytes);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < blocks; ++i) RMS_NORM_FLOOR_KEEP(row[i]);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < blocks; ++i) {
      RMS_NORM_FLOOR_KEEP(row[i]);
      RMS_NORM_FLOOR_KEEP(w[i]);
      out[i] = Block{};
    }
    // The rest of a float32 weight beside rows of 16-bit elements.
#pragma GCC unroll 8
    for (std::size_t i = blocks; i < weight_blocks; ++i) {
      RMS_NORM_FLOOR_KEEP(w[i]);
    }
  }
}

}  // namespace ai_edge_rms_norm
