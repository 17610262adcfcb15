"""The repositories of the mode with WORKSPACE: what MODULE.bazel declares for Bazel 8.

Rules that Bazel 4 has built in are re-exported under the names of today's rule sets;
libraries are those of the distribution.
"""

_LOCAL = ["rules_cc", "rules_python", "rules_shell", "remote_coverage_tools"]

_DEBIAN = {
    "platforms": "/usr/share/bazel/tools/platforms",
    "rules_java": "/usr/share/bazel/rules/java",
    "rules_proto": "/usr/share/bazel/rules/proto",
}

def workspace_repositories():
    """Declares the rule sets and the C++ libraries."""
    for name in _LOCAL:
        native.local_repository(name = name, path = "third_party/bazel/" + name)
    for name, path in _DEBIAN.items():
        native.local_repository(name = name, path = path)
    native.new_local_repository(
        name = "googletest",
        build_file = "//third_party/googletest:googletest.BUILD",
        path = "/usr/src/googletest",
    )
    native.new_local_repository(
        name = "google_benchmark",
        build_file = "//third_party/google_benchmark:google_benchmark.BUILD",
        path = "/usr/include/benchmark",
    )
    native.new_local_repository(
        name = "flatbuffers",
        build_file = "//third_party/flatbuffers:flatbuffers.BUILD",
        path = "/usr/include/flatbuffers",
    )
