// The delegate as a shared library that any stock runtime loads, for example
// with load_delegate() in Python: the two functions of
// tensorflow/lite/delegates/external/external_delegate_interface.h.
//
// Options:
//   num_threads      1 to 256; default is what the first interpreter has.
//   fuse_decomposed  0 or 1; default 0. Whether decomposed RMSNorm that is not
//                    range-safe is run, too. fuse_primitives is a deprecated
//                    name of it.
#include <charconv>
#include <cstddef>
#include <cstring>
#include <string>
#include <system_error>

#include "kernels/rms_norm/rms_norm.h"
#include "kernels/rms_norm/variants.h"
#include "kernels/tflite/rms_norm_delegate.h"
#include "kernels/tflite/rms_norm_node.h"

namespace ai_edge_rms_norm {
namespace {

struct ExternalOptions {
  int num_threads = 0;
  int fuse_decomposed = 0;
};

// Returns what is wrong with an option, or an empty string.
std::string SetOption(const char* key, const char* value,
                      ExternalOptions* external) {
  struct Option {
    const char* name;
    int min, max;
    int* field;
  };
  const Option options[] = {
      {"num_threads", 1, kMaxNumThreads, &external->num_threads},
      {"fuse_decomposed", 0, 1, &external->fuse_decomposed},
      {"fuse_primitives", 0, 1, &external->fuse_decomposed},
  };
  for (const Option& option : options) {
    if (std::strcmp(key, option.name) != 0) continue;
    const char* end = value + std::strlen(value);
    const auto [parsed, error] = std::from_chars(value, end, *option.field);
    if (error == std::errc() && parsed == end && *option.field >= option.min &&
        *option.field <= option.max) {
      return "";
    }
    return std::string("option ") + key + " must be an integer from " +
           std::to_string(option.min) + " to " + std::to_string(option.max) +
           ", got \"" + value + "\"";
  }
  return std::string("unknown option \"") + key +
         "\", expected \"num_threads\" or \"fuse_decomposed\"";
}

}  // namespace
}  // namespace ai_edge_rms_norm

#define AI_EDGE_RMS_NORM_EXPORT \
  extern "C" __attribute__((visibility("default")))

AI_EDGE_RMS_NORM_EXPORT TfLiteDelegate* tflite_plugin_create_delegate(
    char** options_keys, char** options_values, std::size_t num_options,
    void (*report_error)(const char*)) {
  ai_edge_rms_norm::ExternalOptions external;
  for (std::size_t i = 0; i < num_options; ++i) {
    const std::string error = ai_edge_rms_norm::SetOption(
        options_keys[i], options_values[i], &external);
    if (error.empty()) continue;
    if (report_error != nullptr) {
      report_error(("AiEdgeRmsNorm: " + error).c_str());
    }
    return nullptr;
  }
  ai_edge_rms_norm::RmsNormDelegateOptions options;
  options.num_threads = external.num_threads;
  options.fuse_decomposed = external.fuse_decomposed != 0;
  return ai_edge_rms_norm::CreateRmsNormDelegate(options);
}

AI_EDGE_RMS_NORM_EXPORT void tflite_plugin_destroy_delegate(
    TfLiteDelegate* delegate) {
  ai_edge_rms_norm::DeleteRmsNormDelegate(delegate);
}

// The kernel variant in use; see RmsNormVariant(). For ctypes.
AI_EDGE_RMS_NORM_EXPORT const char* ai_edge_rms_norm_variant() {
  return ai_edge_rms_norm::RmsNormVariant();
}

// The variants of this architecture, "avx2, generic"; see VariantNames().
AI_EDGE_RMS_NORM_EXPORT const char* ai_edge_rms_norm_variants() {
  return ai_edge_rms_norm::VariantNames();
}
