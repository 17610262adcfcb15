"""Writes compile_commands.json, which clangd and clang-tidy read, at the root.

    python3 tools/compile_commands.py [ARGUMENT OF BAZEL...]

Nothing is compiled. The file has the C++ files of the project with the flags that they
are compiled with for this machine; with --config=NAME, those of NAME.
"""

import json
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# The fuzzers are built only when asked for by name.
_TARGETS = (
    "//kernels/...",
    "//fuzz/...",
    "//fuzz:kernel_fuzzer",
    "//fuzz:pattern_fuzzer",
    "//fuzz:rms_norm_options_fuzzer",
    "//third_party/...",
)
# Clang, which both programs are made of, refuses the first.
_OF_GCC = "-fno-canonical-system-headers"
_FOR_CLANG = "-Wno-unknown-warning-option"


def _bazel(*arguments: str) -> str:
    command = [str(_ROOT / "bazelw"), *arguments]
    return subprocess.run(
        command, cwd=_ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def compile_commands(aquery: str, output_base: str) -> list[dict[str, object]]:
    """Returns the entries of compile_commands.json, by file.

    Args:
        aquery: What `bazel aquery --output=jsonproto` prints of CppCompile actions.
        output_base: Of Bazel, which keeps the files of other projects there.
    """
    entries: dict[str, list[str]] = {}
    for action in json.loads(aquery).get("actions", []):
        # External files are relative to a folder that has them only while building.
        arguments = [
            f"{output_base}/{argument}"
            if argument.startswith("external/")
            else argument
            for argument in action["arguments"]
            if argument != _OF_GCC
        ]
        file = arguments[arguments.index("-c") + 1]
        # A test may compile a file of the library again with a further define.
        if file not in entries or len(arguments) < len(entries[file]):
            entries[file] = arguments
    return [
        {"directory": str(_ROOT), "file": file, "arguments": [*arguments, _FOR_CLANG]}
        for file, arguments in sorted(entries.items())
        # Paths of the project itself have no prefix.
        if (_ROOT / file).is_file()
    ]


def main() -> None:
    """Writes the file."""
    options = sys.argv[1:]
    query = f'mnemonic("CppCompile", {" + ".join(_TARGETS)})'
    aquery = _bazel("aquery", "--output=jsonproto", *options, query)
    entries = compile_commands(aquery, _bazel("info", *options, "output_base").strip())
    if not entries:
        sys.exit(f"bazel aquery names no C++ file of the project: {query}")
    (_ROOT / "compile_commands.json").write_text(f"{json.dumps(entries, indent=1)}\n")
    print(f"compile_commands.json: {len(entries)} files")


if __name__ == "__main__":
    main()
