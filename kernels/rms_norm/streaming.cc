#include "kernels/rms_norm/streaming.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <system_error>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ai_edge_rms_norm {
namespace {

#if defined(__x86_64__)
// The last cache that "deterministic cache parameters" list: leaf 4 of Intel,
// whose layout AMD's leaf 0x8000001D has, too. sysconf() is not used:
// glibc 2.36 takes 32 MiB of an AMD CPU for 256.
std::size_t LastCacheOfLeaf(unsigned leaf) {
  std::size_t bytes = 0;
  unsigned level = 0;
  for (unsigned index = 0; index < 16; ++index) {
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(leaf, index, &eax, &ebx, &ecx, &edx) == 0) break;
    if ((eax & 31) == 0) break;  // no more caches
    if (((eax >> 5) & 7) <= level) continue;
    level = (eax >> 5) & 7;
    const std::size_t ways = (ebx >> 22) + 1;
    const std::size_t partitions = ((ebx >> 12) & 1023) + 1;
    const std::size_t line = (ebx & 4095) + 1;
    bytes = ways * partitions * line * (std::size_t{ecx} + 1);
  }
  return bytes;
}
#endif

// A number of bytes that fits, and nothing else.
bool ParseBytes(const char* text, std::size_t* bytes) {
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, *bytes);
  return error == std::errc() && stop == end;
}

}  // namespace

std::size_t LastLevelCacheBytes() {
#if defined(__x86_64__)
  const std::size_t bytes = LastCacheOfLeaf(4);
  return bytes != 0 ? bytes : LastCacheOfLeaf(0x8000001d);
#else
  return 0;  // No variant of another architecture streams.
#endif
}

std::size_t ChooseMinStreamedBytes(const char* wanted,
                                   std::size_t cache_bytes) {
  if (wanted != nullptr && *wanted != '\0') {
    std::size_t bytes;
    if (ParseBytes(wanted, &bytes)) return bytes;
    std::fprintf(stderr,
                 "AI_EDGE_RMS_NORM_MIN_STREAMED_BYTES=%s is not a number of "
                 "bytes; it is ignored.\n",
                 wanted);
  }
  // A quarter: with a consumer that reads y afterwards and other data in
  // between, streaming gains from 8 MiB on with 32 MiB of cache and from 128
  // MiB on with 480 (docs/notes/kernel_limits.md).
  constexpr std::size_t kUnknown = std::size_t{64} << 20;
  return cache_bytes != 0 ? cache_bytes / 4 : kUnknown;
}

std::size_t MinStreamedBytes() {
  static const std::size_t bytes =
      ChooseMinStreamedBytes(std::getenv("AI_EDGE_RMS_NORM_MIN_STREAMED_BYTES"),
                             LastLevelCacheBytes());
  return bytes;
}

}  // namespace ai_edge_rms_norm
