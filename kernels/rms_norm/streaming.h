// From which size on an output is written past the caches.
#ifndef KERNELS_RMS_NORM_STREAMING_H_
#define KERNELS_RMS_NORM_STREAMING_H_

#include <cstddef>

namespace ai_edge_rms_norm {

// In bytes of y, for this process: that of the environment variable
// AI_EDGE_RMS_NORM_MIN_STREAMED_BYTES, or a quarter of the last-level cache.
// Both are read once.
std::size_t MinStreamedBytes();

// The two of which MinStreamedBytes is made. wanted: the environment variable
// or nullptr. cache_bytes: of the last-level cache, 0 if unknown.
std::size_t ChooseMinStreamedBytes(const char* wanted, std::size_t cache_bytes);
std::size_t LastLevelCacheBytes();

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_STREAMING_H_
