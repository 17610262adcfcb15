// Registers our ops with the MutableOpResolver of the TensorFlow in the
// process.
#include "kernels/tflite/rms_norm_op.h"

struct TfLiteRegistration;

namespace tflite {

// The part of tensorflow/lite/mutable_op_resolver.h that is needed here, where
// there are no TFLite headers; libtensorflow_cc.so.2 defines the function.
class MutableOpResolver {
 public:
  void AddCustom(const char* name, const TfLiteRegistration* registration,
                 int version = 1);
};

}  // namespace tflite

extern "C" __attribute__((visibility("default"))) void RegisterRmsNormOps(
    tflite::MutableOpResolver* resolver) {
  ai_edge_rms_norm::RegisterRmsNormOps(resolver);
}
