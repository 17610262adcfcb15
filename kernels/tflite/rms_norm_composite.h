// Recognizes STABLEHLO_COMPOSITE nodes that compute exactly an RMSNorm.
#ifndef KERNELS_TFLITE_RMS_NORM_COMPOSITE_H_
#define KERNELS_TFLITE_RMS_NORM_COMPOSITE_H_

#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

inline constexpr char kRmsNormCompositeName[] = "odml.rms_norm";

// Whether the node, a STABLEHLO_COMPOSITE, is an odml.rms_norm with inputs
// x[, weight] that the kernel computes; sets *options if so.
//
// The decomposition is what a composite means, so it is read, too: it must
// normalize over the last dimension with the epsilon of the attributes and
// multiply by nothing but the weight. (litert-torch's RMSNorm with with_scale
// hides a second scale as a constant in there.) The interface does not tell
// which tensor is the decomposition's output: it is taken for the one that no
// node reads. What is not claimed is no error: the runtime can always run the
// decomposition.
//
// To be called from TfLiteDelegate::Prepare.
bool IsRmsNormComposite(TfLiteContext* context, const TfLiteNode& node,
                        RmsNormOptions* options);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_COMPOSITE_H_
