"""The pinned TensorFlow release, fetched when a target first needs it.

TensorFlow builds as a root workspace of its own, with its own Bazel, so it is no
repository of this one: `build_wheel` unpacks and patches the archive and runs Bazel
there.
"""

VERSION = "2.21.0"

# Tag v2.21.0, commit a481b10260dfdf833a1b16007eead49c1d7febf3.
URL = "https://github.com/tensorflow/tensorflow/archive/refs/tags/v{}.tar.gz".format(VERSION)
SHA256 = "ef3568bb4865d6c1b2564fb5689c19b6b9a5311572cd1f2ff9198636a8520921"

# Applied in this order with `patch -p1 --fuzz=0`.
PATCHES = ["//patches/tensorflow:export_vhlo_custom_call.patch"]

_BUILD = """\
filegroup(
    name = "release",
    srcs = glob(["release.*"]),
    visibility = ["//visibility:public"],
)
"""

# Bazel keeps a repository that it made, this one, too.
_MISSING = """\
{} could not be downloaded. To try again: \
`bazel sync --only=tensorflow_release` with Bazel 4, \
`bazel fetch --force --repo=@tensorflow_release` with Bazel 8.
"""

def _tensorflow_release_impl(repository_ctx):
    # A test that needs the archive is skipped without it, so this must not fail.
    result = repository_ctx.download(
        url = repository_ctx.attr.url,
        output = "release.tar.gz",
        sha256 = repository_ctx.attr.sha256,
        allow_fail = True,
    )
    if not result.success:
        repository_ctx.delete("release.tar.gz")
        repository_ctx.file(
            "release.missing",
            _MISSING.format(repository_ctx.attr.url),
        )
    repository_ctx.file("BUILD", _BUILD)

tensorflow_release = repository_rule(
    implementation = _tensorflow_release_impl,
    attrs = {
        "sha256": attr.string(mandatory = True),
        "url": attr.string(mandatory = True),
    },
    doc = "release.tar.gz, or release.missing with the reason why there is none.",
)

def tensorflow_repositories():
    """Declares @tensorflow_release; WORKSPACE and extension.bzl call it."""
    tensorflow_release(name = "tensorflow_release", sha256 = SHA256, url = URL)
