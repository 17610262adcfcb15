"""The lines that the patch adds compile against the headers in TensorFlow's wheel.

The wheel has the headers of MLIR and VHLO, but not those of LLVM. LLVM 22 fits; older
ones do not (19.1 lacks llvm::uninitialized_copy, 16 LogicalResult.h).
"""

import functools
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile

from absl import flags
from absl.testing import absltest

from third_party.tensorflow import source

_PATCH = flags.DEFINE_string("patch", None, "The patch.")
_FRAME = flags.DEFINE_string("frame", None, "What stands around its lines.")

_LLVM = "llvm-22"
_EXPORTER = "tensorflow/compiler/mlir/lite/flatbuffer_export.cc"


@functools.cache
def _llvm_headers() -> pathlib.Path | None:
    """Returns the installed headers, else those in Debian's package, unpacked."""
    installed = pathlib.Path(f"/usr/lib/{_LLVM}/include")
    if (installed / "llvm").is_dir():
        return installed
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    folder = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR")))
    download = subprocess.run(
        ["apt-get", "download", f"{_LLVM}-dev"], cwd=folder, capture_output=True
    )
    packages = list(folder.glob("*.deb"))
    if download.returncode or not packages:
        return None
    subprocess.run(["dpkg", "-x", packages[0], folder], check=True)
    return folder / f"usr/lib/{_LLVM}/include"


class PatchCompilesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        wheel = importlib.util.find_spec("tensorflow").submodule_search_locations[0]
        include = pathlib.Path(wheel, "include")
        llvm = _llvm_headers()
        if llvm is None:
            self.skipTest(f"the headers of {_LLVM} are not installed ({_LLVM}-dev)")
        self._include = [
            include,
            include / "external/llvm-project/mlir/include",
            include / "external/stablehlo",
            llvm,
        ]

    def _compile(self, added: list[str]) -> str:
        """Compiles with the lines of each hunk in place; returns the errors."""
        folder = pathlib.Path(self.create_tempdir().full_path)
        for i, lines in enumerate(added):
            (folder / f"patch_hunk_{i}.inc").write_text(lines)
        command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
        command += [f"-I{folder}", _FRAME.value]
        for path in self._include:
            command += ["-isystem", path]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stderr if result.returncode else ""

    def _added(self) -> list[str]:
        patch = pathlib.Path(_PATCH.value).read_text()
        return [
            "".join(f"{line[1:]}\n" for line in body if line.startswith("+"))
            for _, body in source.hunks(patch, _EXPORTER)
        ]

    def test_compiles(self):
        self.assertEqual(self._compile(self._added()), "")

    def test_a_wrong_getter_does_not_compile(self):
        added = self._added()
        for getter in ("getCallTargetName", "getOutputOperandAliases"):
            self.assertIn(getter, added[0])
            wrong = [lines.replace(f"{getter}()", f"{getter}s()") for lines in added]
            self.assertRegex(
                self._compile(wrong), f"CustomCallOpV1.* has no member.*{getter}s"
            )


if __name__ == "__main__":
    absltest.main()
