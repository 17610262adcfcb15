// Recognizes STABLEHLO_COMPOSITE nodes that compute exactly an RMSNorm.
#ifndef KERNELS_TFLITE_RMS_NORM_COMPOSITE_H_
#define KERNELS_TFLITE_RMS_NORM_COMPOSITE_H_

#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {

inline constexpr char kRmsNormCompositeName[] = "odml.rms_norm";

enum class CompositeKind : unsigned char {
  kOther,  // Not claimed; its decomposition is a graph like any other.
  kRmsNorm,
  // An RMSNorm that can be claimed inside of its decomposition only: the C
  // interface does not tell the order of a subgraph's inputs. It follows from
  // the shapes, unless x has one dimension and there is a weight.
  kRmsNormInside,
  // The decomposition is an RMSNorm, but of operands of other types or shapes,
  // which the runtime will give to it; no kernel takes them.
  kOtherOperands,
};

struct Composite {
  CompositeKind kind = CompositeKind::kOther;
  // Of kRmsNormInside and kOtherOperands.
  const TfLiteContext* decomposition = nullptr;
};

// Says whether the node, a STABLEHLO_COMPOSITE, is an odml.rms_norm with inputs
// x[, weight] that the kernel computes; sets *options if so.
//
// The decomposition defines a composite, so it is read, too: as a whole, it
// must be one RMSNorm (rms_norm_pattern.h) of the epsilon of the attributes,
// whose operands have the types and shapes of the composite's. (litert-torch's
// RMSNorm with with_scale hides a second scale as a constant in there.) The
// runtime can run the decomposition of a composite that is not claimed.
//
// To be called from TfLiteDelegate::Prepare.
Composite FindComposite(TfLiteContext* context, const TfLiteNode& node,
                        RmsNormOptions* options);

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_COMPOSITE_H_
