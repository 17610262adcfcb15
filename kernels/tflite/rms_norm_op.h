// RMSNorm as TFLite custom ops, for runtimes that one links oneself:
//
//   tflite::ops::builtin::BuiltinOpResolver resolver;
//   ai_edge_rms_norm::RegisterRmsNormOps(&resolver);
//   tflite::InterpreterBuilder(*model, resolver)(&interpreter);
//
// Stock runtimes load the delegate instead (external_delegate.cc). Needs no
// TFLite header, and can be included beside them.
#ifndef KERNELS_TFLITE_RMS_NORM_OP_H_
#define KERNELS_TFLITE_RMS_NORM_OP_H_

struct TfLiteRegistration;

namespace ai_edge_rms_norm {

// ai_edge_torch.rms_norm: inputs x[, weight]; output y.
// ai_edge_torch.add_rms_norm: inputs x, residual[, weight]; outputs sum, y.
// custom_call.RmsNorm: as ai_edge_torch.rms_norm; what LiteRT's GPU
// accelerator, ML Drift, calls it.
//
// x, residual, sum, y: one shape [..., hidden size] and one type of float32,
// float16, bfloat16; weight: [hidden size] of that type or float32, may be
// omitted or kTfLiteOptionalTensor. custom_options: FlexBuffers map
// {"epsilon": number}. The registrations live as long as the process.
TfLiteRegistration* Register_RMS_NORM();
TfLiteRegistration* Register_ADD_RMS_NORM();
TfLiteRegistration* Register_ML_DRIFT_RMS_NORM();

// Resolver: tflite::MutableOpResolver or anything with its AddCustom(const
// char* name, const TfLiteRegistration*).
template <typename Resolver>
void RegisterRmsNormOps(Resolver* resolver) {
  resolver->AddCustom("ai_edge_torch.rms_norm", Register_RMS_NORM());
  resolver->AddCustom("ai_edge_torch.add_rms_norm", Register_ADD_RMS_NORM());
  resolver->AddCustom("custom_call.RmsNorm", Register_ML_DRIFT_RMS_NORM());
}

}  // namespace ai_edge_rms_norm

#endif  // KERNELS_TFLITE_RMS_NORM_OP_H_
