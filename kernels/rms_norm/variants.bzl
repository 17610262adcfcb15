"""Instruction set flags of the kernel variants, in one place."""

load("@rules_cc//cc:defs.bzl", "cc_library")
load("//kernels:copts.bzl", "COPTS")

# GCC 12 takes the undefined pass-through operand of AVX-512 intrinsics for an
# uninitialized variable (GCC bug 105593).
_AVX512_COPTS = [
    "-mavx512f",
    "-mavx512dq",
    "-mavx512bw",
    "-mavx512vl",
    "-mfma",
    "-mf16c",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
]

_VARIANTS = {
    "generic": struct(cpu = None, copts = []),
    "avx2": struct(
        cpu = "x86_64",
        copts = ["-mavx2", "-mfma", "-mf16c"],
    ),
    "avx512": struct(cpu = "x86_64", copts = _AVX512_COPTS),
    "avx512_zen4": struct(cpu = "x86_64", copts = _AVX512_COPTS),
    "neon": struct(cpu = "aarch64", copts = []),
}

def rms_norm_variants(name, deps):
    """One cc_library per variant, and one of those that fit the target CPU.

    Args:
      name: of the library that collects the variants; each variant is
        <name>_<isa>, from rms_norm_<isa>.cc.
      deps: of every variant.
    """
    for isa, variant in _VARIANTS.items():
        constraints = []
        if variant.cpu:
            constraints = ["@platforms//cpu:" + variant.cpu]
        cc_library(
            name = name + "_" + isa,
            srcs = ["rms_norm_" + isa + ".cc"],
            # Optimized in every compilation mode, since unoptimized
            # intrinsics are slower than scalar code. Products and sums are
            # fused where the source says so and nowhere else.
            copts = COPTS + variant.copts + ["-O3", "-ffp-contract=off"],
            target_compatible_with = constraints,
            deps = deps,
        )
    cc_library(
        name = name,
        deps = [name + "_generic"] + select({
            "@platforms//cpu:x86_64": [
                name + "_avx2",
                name + "_avx512",
                name + "_avx512_zen4",
            ],
            "@platforms//cpu:aarch64": [name + "_neon"],
            "//conditions:default": [],
        }),
    )
