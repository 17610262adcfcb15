#include <dlfcn.h>

#include <string>
#include <thread>

#include "gtest/gtest.h"

namespace {

// Symbols of the two libraries, loaded in the order that the mechanism needs.
struct Libraries {
  Libraries() {
    void* interposer = Open("libvhlo_export.so", RTLD_GLOBAL);
    *reinterpret_cast<void**>(&tensorflow_is_loaded) =
        dlsym(interposer, "VhloExportTensorFlowIsLoaded");
    *reinterpret_cast<void**>(&symbol_is_present) =
        dlsym(interposer, "VhloExportSymbolIsPresent");
    *reinterpret_cast<void**>(&open_scope) =
        dlsym(interposer, "VhloExportOpenScope");
    *reinterpret_cast<void**>(&close_scope) =
        dlsym(interposer, "VhloExportCloseScope");
    loaded_before = tensorflow_is_loaded();
    present_before = symbol_is_present();
    void* exporter = Open("libtensorflow_cc.so.2", RTLD_LOCAL);
    *reinterpret_cast<void**>(&convert) = dlsym(exporter, "FakeConvert");
  }

  static void* Open(const std::string& name, int visibility) {
    const std::string path = "kernels/vhlo_export/" + name;
    void* library = dlopen(path.c_str(), RTLD_NOW | visibility);
    if (library == nullptr) ADD_FAILURE() << dlerror();
    return library;
  }

  bool (*tensorflow_is_loaded)();
  bool (*symbol_is_present)();
  void (*open_scope)();
  int (*close_scope)();
  const char* (*convert)(bool);
  bool loaded_before;
  bool present_before;
};

const Libraries& Get() {
  static const Libraries libraries;
  return libraries;
}

TEST(VhloExportTest, KnowsWhetherTensorFlowIsLoaded) {
  EXPECT_FALSE(Get().loaded_before);
  EXPECT_FALSE(Get().present_before);
  EXPECT_TRUE(Get().tensorflow_is_loaded());
  EXPECT_TRUE(Get().symbol_is_present());
}

TEST(VhloExportTest, IsTransparentOutsideOfAScope) {
  EXPECT_STREQ(Get().convert(false), "false");
  EXPECT_STREQ(Get().convert(true), "true");
}

TEST(VhloExportTest, SerializesStablehloInsideOfAScope) {
  Get().open_scope();
  EXPECT_STREQ(Get().convert(false), "true");
  EXPECT_STREQ(Get().convert(true), "true");
  EXPECT_EQ(Get().close_scope(), 2);
  EXPECT_STREQ(Get().convert(false), "false");
}

TEST(VhloExportTest, CountsEachScopeAnew) {
  Get().open_scope();
  EXPECT_EQ(Get().close_scope(), 0);
}

TEST(VhloExportTest, ScopesBelongToOneThread) {
  Get().open_scope();
  std::string other;
  std::thread([&] { other = Get().convert(false); }).join();
  EXPECT_EQ(other, "false");
  EXPECT_EQ(Get().close_scope(), 0);
}

}  // namespace
