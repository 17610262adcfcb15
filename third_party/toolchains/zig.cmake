# Zig from PyPI's `ziglang` as the C++ compiler for another platform:
#   cmake --toolchain=zig.cmake -DZIG=PATH -DZIG_TARGET=aarch64-macos.11.0
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG ZIG_TARGET)
if(ZIG_TARGET MATCHES "-macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  # The target names the oldest macOS; Zig has its headers.
  set(CMAKE_OSX_DEPLOYMENT_TARGET "" CACHE STRING "")
  set(CMAKE_OSX_SYSROOT "" CACHE STRING "")
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER "${ZIG}" c++ -target "${ZIG_TARGET}")
