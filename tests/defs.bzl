"""Which machines a test runs on."""

# With models of litert-torch, which has no release for ARM64 Linux.
LITERT_TORCH = [
    "//third_party/toolchains:native",
    "@platforms//cpu:x86_64",
]
