// A TfLiteIntArray that owns its memory.
#ifndef KERNELS_TFLITE_INT_ARRAY_H_
#define KERNELS_TFLITE_INT_ARRAY_H_

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>

#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

struct FreeIntArray {
  void operator()(TfLiteIntArray* array) const { std::free(array); }
};

// release() it to hand it to the runtime, which frees with free(), too.
using IntArray = std::unique_ptr<TfLiteIntArray, FreeIntArray>;

// Returns a copy of the values; nullptr if there is no memory.
inline IntArray NewIntArray(const int* data, std::size_t size) {
  IntArray array(static_cast<TfLiteIntArray*>(
      std::malloc(sizeof(TfLiteIntArray) + size * sizeof(int))));
  if (array == nullptr) return array;
  array->size = static_cast<int>(size);
  std::copy(data, data + size, array->data);
  return array;
}

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_INT_ARRAY_H_
