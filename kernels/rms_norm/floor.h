// The least that RMSNorm of rows takes: reading x, reading x and the weight,
// and writing y. Single-threaded and without streaming stores. The limit of a
// kernel in caches, where memcpy, which reads once, is not.
#ifndef KERNELS_RMS_NORM_FLOOR_H_
#define KERNELS_RMS_NORM_FLOOR_H_

#include <cstddef>

namespace ai_edge_rms_norm {

// Whether the CPU has the instructions that Floor is made of.
bool HasFloor();

// The passes over the whole blocks of each row, of 32 bytes on x86-64 and of 16
// on AArch64. Nothing is computed from what is read, and nothing waits for it.
// y is filled with zeros.
void Floor(const void* x, const void* weight, void* y, std::size_t rows,
           std::size_t row_bytes, std::size_t weight_bytes);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_RMS_NORM_FLOOR_H_
