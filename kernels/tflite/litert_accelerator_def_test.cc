// Pins the layouts of litert_accelerator_def.h to those of LiteRT 2.3 on 64-bit
// targets. That the runtime agrees is what
// tests/backends/compiled_model_test.py shows.
#include "kernels/tflite/litert_accelerator_def.h"

#include <cstddef>

#include "gtest/gtest.h"

namespace {

static_assert(sizeof(void*) == 8, "The offsets below are those of LP64.");

#define EXPECT_OFFSET(type, member, offset) \
  EXPECT_EQ(offsetof(type, member), size_t{offset})

TEST(LiteRtAcceleratorDefTest, Enumerations) {
  EXPECT_EQ(sizeof(LiteRtStatus), 4u);
  EXPECT_EQ(sizeof(LiteRtHwAccelerators), 4u);
  EXPECT_EQ(sizeof(LiteRtApiVersion), 12u);
}

TEST(LiteRtAcceleratorDefTest, AbiHeader) {
  EXPECT_EQ(sizeof(LiteRtAbiHeader), 8u);
  EXPECT_OFFSET(LiteRtAbiHeader, struct_size, 0);
  EXPECT_OFFSET(LiteRtAbiHeader, major_version, 2);
  EXPECT_OFFSET(LiteRtAbiHeader, minor_version, 4);
}

TEST(LiteRtAcceleratorDefTest, RuntimeContext) {
  EXPECT_OFFSET(LiteRtRuntimeContext, abi_header, 0);
  EXPECT_OFFSET(LiteRtRuntimeContext, wrap_delegate, 144);
}

TEST(LiteRtAcceleratorDefTest, AcceleratorDef) {
  EXPECT_EQ(sizeof(LiteRtAcceleratorDef), 200u);
  EXPECT_OFFSET(LiteRtAcceleratorDef, abi_header, 0);
  EXPECT_OFFSET(LiteRtAcceleratorDef, get_name, 8);
  EXPECT_OFFSET(LiteRtAcceleratorDef, get_version, 16);
  EXPECT_OFFSET(LiteRtAcceleratorDef, get_hardware_support, 24);
  EXPECT_OFFSET(LiteRtAcceleratorDef,
                is_tflite_delegate_responsible_for_jit_compilation, 32);
  EXPECT_OFFSET(LiteRtAcceleratorDef, create_delegate, 40);
}

}  // namespace
