// Options of an RMSNorm operator in a TFLite model.
#ifndef KERNELS_TFLITE_RMS_NORM_OPTIONS_H_
#define KERNELS_TFLITE_RMS_NORM_OPTIONS_H_

#include <cstddef>
#include <string>

namespace ai_edge_rms_norm {

struct RmsNormOptions {
  double epsilon = 0.0;
};

// Parses the FlexBuffers map {"epsilon": number} that a CUSTOM operator has as
// custom_options and a composite as attributes. The bytes are not trusted.
//
// Returns an empty string and sets *options, or returns what is wrong: not a
// FlexBuffers map, epsilon missing, not a number, not finite or not > 0, or an
// entry other than epsilon (ignoring it could change the result).
//
// Accepts exactly the following, read in this order; the first rule that does
// not hold is the error. Python's reader implements the same rules. Numbers are
// little-endian and need no alignment; every byte that a rule reads must lie in
// the buffer, and no other byte matters. "Indirect at p, width w" is the
// position p - (unsigned integer of w bytes at p).
//
//   1. The buffer has at least 3 bytes. The last one is the width W of the
//      root, 1, 2, 4 or 8; the one before it the root's packed type; the W
//      bytes before that are the root, at R.
//   2. A packed type t is the type t >> 2 and the width 1 << (t & 3). The
//      root's type is 9, a map, of width w. The map is at M, indirect at R with
//      width W. The integer of w bytes at M - w is the number of values, N; the
//      one at M - 2w the width k of the keys' offsets, 1, 2, 4 or 8; the keys
//      are at K, indirect at M - 3w with width w; the integer of k bytes at
//      K - k is N, too. N >= 1.
//   3. Key i is at the position indirect at K + i * k with width k, for i from
//      0 to N - 1. It is "epsilon", with the zero byte after it. (Any other key
//      is unknown, whatever its value is.)
//   4. N = 1: a key that is there twice has no meaning.
//   5. The packed type of the value is the byte at M + w, the value is at M.
//      Of the types
//        1 int, 2 uint, 3 float                             the w bytes at M
//        6 indirect int, 7 indirect uint, 8 indirect float  as many bytes as
//                          the packed type's width, indirect at M with width w
//      it is one; all others (null, bool, string, key, vector, ...) are not
//      numbers. Integers have 1, 2, 4 or 8 bytes and become the nearest double;
//      floats have 4 or 8 bytes.
//   6. The number is finite and > 0.
std::string ParseRmsNormOptions(const void* data, size_t size,
                                RmsNormOptions* options);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_OPTIONS_H_
