"""The lines that the patch adds, compiled and run against TensorFlow's wheel.

The wheel has the headers of MLIR and VHLO and the library with MLIR, but not the
headers of LLVM and FlatBuffers. LLVM 22 fits; older ones do not (19.1 lacks
llvm::uninitialized_copy, 16 LogicalResult.h).
"""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

from absl import flags
from absl.testing import absltest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from third_party.tensorflow import source

_PATCH = flags.DEFINE_string("patch", None, "The patch.")
_FRAME = flags.DEFINE_string("frame", None, "The code around its lines.")
_MAIN = flags.DEFINE_string("main", None, "Runs them.")

_EXPORTER = "tensorflow/compiler/mlir/lite/flatbuffer_export.cc"
_LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")
# (Debian package, folder of its headers, one of them)
_HEADERS = (
    ("llvm-22-dev", "usr/lib/llvm-22/include", "llvm/ADT/APFloat.h"),
    ("libflatbuffers-dev", "usr/include", "flatbuffers/flexbuffers.h"),
)


@functools.cache
def _headers(package: str, folder: str, header: str) -> pathlib.Path:
    """Returns the installed headers, else those in Debian's package, unpacked.

    Raises:
        SkipTest: Neither is to be had; says why.
    """
    if (pathlib.Path("/", folder) / header).exists():
        return pathlib.Path("/", folder)
    missing = f"the headers of {package} are not installed"
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise absltest.SkipTest(f"{missing}, and this is not Debian")
    unpacked = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR")))
    download = subprocess.run(
        ["apt-get", "download", package], cwd=unpacked, capture_output=True, text=True
    )
    packages = list(unpacked.glob("*.deb"))
    if download.returncode or not packages:
        # On one line, as the reports of the tests have it.
        error = " ".join(download.stderr.split())
        raise absltest.SkipTest(f"{missing}, and apt-get download: {error}")
    subprocess.run(["dpkg", "-x", packages[0], unpacked], check=True)
    return unpacked / folder


class PatchedExporterTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        wheel = importlib.util.find_spec("tensorflow").submodule_search_locations[0]
        self._wheel = pathlib.Path(wheel)
        include = self._wheel / "include"
        self._include = [
            include,
            include / "external/llvm-project/mlir/include",
            include / "external/stablehlo",
        ]
        for package, folder, header in _HEADERS:
            headers = _headers(package, folder, header)
            # The compiler finds these by itself, and no longer if they are named.
            if headers != pathlib.Path("/usr/include"):
                self._include.append(headers)
        self._folder = pathlib.Path(self.create_tempdir().full_path)

    def _write(self, added: list[str]) -> None:
        """Writes the lines of each hunk to where the frame includes them from."""
        for i, lines in enumerate(added):
            (self._folder / f"patch_hunk_{i}.inc").write_text(lines)

    def _compile(self, *arguments: str | pathlib.Path) -> str:
        """Returns the errors."""
        command = ["g++", "-std=c++17", f"-I{self._folder}", *arguments]
        for path in self._include:
            command += ["-isystem", path]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stderr if result.returncode else ""

    def _check(self, added: list[str]) -> str:
        self._write(added)
        return self._compile(
            "-fsyntax-only", "-Wall", "-Wextra", "-Werror", _FRAME.value
        )

    def _added(self) -> list[str]:
        patch = pathlib.Path(_PATCH.value).read_text()
        return [
            "".join(f"{line[1:]}\n" for line in body if line.startswith("+"))
            for _, body in source.hunks(patch, _EXPORTER)
        ]

    def test_compiles(self):
        self.assertEqual(self._check(self._added()), "")

    def test_a_wrong_getter_does_not_compile(self):
        added = self._added()
        for getter in ("getCallTargetName", "getOutputOperandAliases"):
            self.assertIn(getter, added[0])
            wrong = [lines.replace(f"{getter}()", f"{getter}s()") for lines in added]
            self.assertRegex(
                self._check(wrong), f"CustomCallOpV1.* has no member.*{getter}s"
            )

    def _run_cases(self) -> dict[str, dict]:
        """Returns what became of every case of patched_exporter_main.cc, by name."""
        self._write(self._added())
        # MLIR is built without RTTI, so its classes have no type_info to refer to.
        binary = self._folder / "main"
        generated = self._wheel / (
            "include/external/stablehlo/stablehlo/dialect/VhloOps.cpp.inc"
        )
        operators = generated.read_text()
        end = "MLIR_DEFINE_EXPLICIT_TYPE_ID(::mlir::vhlo::CustomCallOpV1)\n"
        _, definitions = operators.split(end)[0].rsplit("\nMLIR_DEFINE_EXPLICIT", 1)
        (self._folder / "custom_call_v1.inc").write_text(
            definitions.partition("\n")[2] + end
        )
        errors = self._compile(
            "-O0",
            "-fno-rtti",
            "-DFLATBUFFERS_LOCALE_INDEPENDENT=0",
            f"-I{pathlib.Path(_FRAME.value).parent}",
            _MAIN.value,
            *(self._wheel / library for library in _LIBRARIES),
            f"-Wl,-rpath,{self._wheel}",
            "-o",
            binary,
        )
        self.assertEqual(errors, "")
        result = subprocess.run([binary], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        cases = [json.loads(line) for line in result.stdout.splitlines()]
        for case in cases:
            if "custom_attributes" in case:
                case["custom_attributes"] = flexbuffers.Loads(
                    bytes(case["custom_attributes"])
                )
        return {case.pop("case"): case for case in cases}

    def test_runs(self):
        cases = self._run_cases()
        plain = {
            "call_target_name": "test.call",
            "has_side_effect": True,
            "backend_config": '{"epsilon": 1e-06}',
            "api_version": 2,
            "called_computations": None,
            "custom_attributes": {"has_side_effect": True},
            # The frame gives the operator itself.
            "opcode_index": schema.BuiltinOperator.STABLEHLO_CUSTOM_CALL,
            "inputs": [3, 1],
            "outputs": [4],
            "builtin_options_2_type": schema.BuiltinOptions2.StablehloCustomCallOptions,
            "has_builtin_options_2": True,
            "debug_metadata_index": 5,
        }
        self.assertEqual(cases.pop("plain"), plain)
        for name, value in {
            "vhlo_bool": True,
            "vhlo_string": "text",
            "vhlo_integer": -3,
            "vhlo_unsigned": 2**64 - 3,
            "vhlo_float": 0.10000000149011612,  # float32(0.1)
            "bool": True,
            "string": "text",
            "integer": -7,
            "unsigned": 2**64 - 3,
            "float": 1e-6,
        }.items():
            with self.subTest(name):
                attributes = {"has_side_effect": True, "extra": value}
                actual = cases.pop(name)
                self.assertEqual(actual, plain | {"custom_attributes": attributes})
                self.assertIs(type(actual["custom_attributes"]["extra"]), type(value))
        # Every other case is something that a flatbuffer cannot hold.
        for name, error in {
            "wide_integer": "the attribute extra, which a flatbuffer cannot hold: 1 :",
            "wide_float": "the attribute extra, which a flatbuffer cannot hold: 1.0",
            "vhlo_dictionary": "the attribute extra, which",
            "frontend_attributes": "the attribute mhlo.frontend_attributes, which",
            "call_target_name": "a malformed call_target_name",
            "backend_config": "a backend_config that is not a string, which",
            "called_computations": "called_computations, which",
            "operand_layouts": "operand_layouts, which",
            "result_layouts": "result_layouts, which",
            "output_operand_aliases": "output_operand_aliases, which",
        }.items():
            with self.subTest(name):
                actual = cases.pop(name)
                self.assertEqual(list(actual), ["error"])
                self.assertStartsWith(
                    actual["error"], f"'vhlo.custom_call_v1' op has {error}"
                )
        self.assertEmpty(cases)


if __name__ == "__main__":
    absltest.main()
