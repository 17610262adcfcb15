"""The kernel variants by CPU, with their instruction set flags."""

load("@rules_cc//cc:defs.bzl", "cc_library")
load("//kernels:copts.bzl", "COPTS")

# GCC 12 takes the undefined pass-through operand of AVX-512 intrinsics for an
# uninitialized variable (GCC bug 105593). Clang does not know the last option.
_AVX512_COPTS = [
    "-mavx512f",
    "-mavx512dq",
    "-mavx512bw",
    "-mavx512vl",
    "-mfma",
    "-mf16c",
    "-Wno-unknown-warning-option",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
]

# BF16 is an option of Armv8.2-A, which GCC wants to hear. Zig takes no -march.
_BF16_COPTS = select({
    "@platforms//os:macos": ["-mcpu=generic+bf16"],
    "//conditions:default": ["-march=armv8.2-a+bf16"],
})

# With sanitizers, -O3 takes minutes for each variant; with clang's for fuzzing, -O1 too.
_OPTIMIZATION = select({
    # Which fortified functions do not compile with.
    "//kernels:fuzzed": ["-O0", "-U_FORTIFY_SOURCE"],
    "//kernels:sanitized": ["-O1"],
    "//conditions:default": ["-O3"],
})

_X86_64 = "@platforms//cpu:x86_64"
_AARCH64 = "@platforms//cpu:aarch64"

# In the order of variants.inc, which has what is known at run time.
# rms_norm_test compares the two.
_VARIANTS = {
    "avx512_zen4": struct(cpu = _X86_64, copts = _AVX512_COPTS + ["-mavx512bf16"]),
    "avx512_bf16": struct(cpu = _X86_64, copts = _AVX512_COPTS + ["-mavx512bf16"]),
    "avx512": struct(cpu = _X86_64, copts = _AVX512_COPTS),
    "avx2": struct(cpu = _X86_64, copts = ["-mavx2", "-mfma", "-mf16c"]),
    "neon_bf16": struct(cpu = _AARCH64, copts = _BF16_COPTS),
    "neon": struct(cpu = _AARCH64, copts = []),
    "generic": struct(cpu = None, copts = []),
}

def _variants_of(cpu):
    return [
        isa
        for isa, variant in _VARIANTS.items()
        if variant.cpu in (cpu, None)
    ]

_CPUS = {
    _X86_64: _X86_64,
    _AARCH64: _AARCH64,
    "//conditions:default": None,
}

# For rms_norm_test: RMS_NORM_VARIANTS is the list of the names, without quotes.
VARIANT_DEFINES = select({
    condition: ["RMS_NORM_VARIANTS=" + ",".join(_variants_of(cpu))]
    for condition, cpu in _CPUS.items()
})

def rms_norm_variants(name, deps):
    """One cc_library per variant, and one of those that fit the target CPU.

    Args:
      name: of the library that collects the variants; each variant is
        <name>_<isa>, from rms_norm_<isa>.cc.
      deps: of every variant.
    """
    for isa, variant in _VARIANTS.items():
        cc_library(
            name = name + "_" + isa,
            srcs = ["rms_norm_" + isa + ".cc"],
            # Optimized in every compilation mode, since unoptimized
            # intrinsics are slower than scalar code. Products and sums are
            # fused where the source says so and nowhere else.
            copts = COPTS + variant.copts + _OPTIMIZATION + ["-ffp-contract=off"],
            target_compatible_with = [variant.cpu] if variant.cpu else [],
            deps = deps,
        )
    cc_library(
        name = name,
        deps = select({
            condition: [name + "_" + isa for isa in _variants_of(cpu)]
            for condition, cpu in _CPUS.items()
        }),
    )
