#include "kernels/tflite/rms_norm_op.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "kernels/rms_norm/thread_pool.h"
#include "kernels/tflite/rms_norm_node.h"
#include "kernels/tflite/rms_norm_options.h"
#include "kernels/tflite/tflite_c_api.h"

namespace ai_edge_rms_norm {
namespace {

// TFLite gives a custom op no place for state of a whole interpreter, so ops
// with the same number of threads share a pool as long as one of them lives.
std::shared_ptr<ThreadPool> SharedPool(int num_threads) {
  static auto* mutex = new std::mutex;
  static auto* pools = new std::map<int, std::weak_ptr<ThreadPool>>;
  if (num_threads <= 1) return nullptr;
  const std::lock_guard<std::mutex> lock(*mutex);
  std::shared_ptr<ThreadPool> pool = (*pools)[num_threads].lock();
  if (pool == nullptr) {
    pool = std::make_shared<ThreadPool>(num_threads);
    (*pools)[num_threads] = pool;
  }
  return pool;
}

struct OpData {
  RmsNormNode node;
  std::shared_ptr<ThreadPool> pool;
};

template <RmsNormOp op, const char* name>
void* Init(TfLiteContext* context, const char* buffer, std::size_t length) {
  RmsNormOptions options;
  const std::string error = ParseRmsNormOptions(buffer, length, &options);
  auto data = std::make_unique<OpData>();
  data->node = RmsNormNode(op, name, options);
  if (!error.empty()) {
    context->ReportError(context, "%s: %s", data->node.name(), error.c_str());
    return nullptr;
  }
  return data.release();
}

void Free(TfLiteContext*, void* user_data) {
  delete static_cast<OpData*>(user_data);
}

TfLiteStatus Prepare(TfLiteContext* context, TfLiteNode* node) {
  auto* data = static_cast<OpData*>(node->user_data);
  if (data == nullptr) return kTfLiteError;  // Init has reported why.
  data->pool =
      SharedPool(std::min(context->recommended_num_threads, kMaxNumThreads));
  if (data->node.Bind(context, node->inputs, node->outputs) != kTfLiteOk) {
    return kTfLiteError;
  }
  return data->node.Prepare(context);
}

TfLiteStatus Invoke(TfLiteContext* context, TfLiteNode* node) {
  const auto* data = static_cast<const OpData*>(node->user_data);
  return data->node.Invoke(context, data->pool.get());
}

template <RmsNormOp op, const char* name>
TfLiteRegistration* Register() {
  static TfLiteRegistration registration = [] {
    TfLiteRegistration made{};
    made.init = Init<op, name>;
    made.free = Free;
    made.prepare = Prepare;
    made.invoke = Invoke;
    made.builtin_code = kTfLiteBuiltinCustom;
    made.custom_name = name;
    made.version = 1;
    return made;
  }();
  return &registration;
}

}  // namespace

TfLiteRegistration* Register_RMS_NORM() {
  return Register<RmsNormOp::kRmsNorm, kRmsNormName>();
}

TfLiteRegistration* Register_ADD_RMS_NORM() {
  return Register<RmsNormOp::kAddRmsNorm, kAddRmsNormName>();
}

TfLiteRegistration* Register_ML_DRIFT_RMS_NORM() {
  return Register<RmsNormOp::kRmsNorm, kMlDriftRmsNormName>();
}

}  // namespace ai_edge_rms_norm
