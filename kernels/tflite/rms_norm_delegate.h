// RMSNorm as a delegate of TFLite and LiteRT. It runs
//   CUSTOM ai_edge_torch.rms_norm, ai_edge_torch.add_rms_norm and
//     custom_call.RmsNorm,
//   STABLEHLO_COMPOSITE odml.rms_norm, where its decomposition is RMSNorm,
//   decomposed RMSNorm in the range-safe form, and in any form if wanted
//     (rms_norm_pattern.h),
// in every subgraph, and leaves all else to the runtime.
//
// One delegate may serve several interpreters, in several threads.
#ifndef KERNELS_TFLITE_RMS_NORM_DELEGATE_H_
#define KERNELS_TFLITE_RMS_NORM_DELEGATE_H_

#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

struct RmsNormDelegateOptions {
  // 1 to kMaxNumThreads; 0: as many as the first interpreter has.
  int num_threads = 0;
  // Whether decomposed RMSNorm that is not range-safe is run, too.
  bool fuse_decomposed = false;
};

// Returns a delegate to be deleted by DeleteRmsNormDelegate, after all
// interpreters that use it.
TfLiteDelegate* CreateRmsNormDelegate(const RmsNormDelegateOptions& options);

// delegate may be nullptr.
void DeleteRmsNormDelegate(TfLiteDelegate* delegate);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_DELEGATE_H_
