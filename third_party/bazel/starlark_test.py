"""The files of Bazel, parsed and in part executed without Bazel.

Bazel 8 reads MODULE.bazel, which Debian's Bazel 4 ignores. This notices what needs no
Bazel: syntax, labels without a file, locks that a repository rule does not watch.
Run by .ci/run from the checkout, whose files it lists.
"""

import pathlib
import re
import subprocess

import starlark
from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PATTERNS = ("*BUILD", "*.BUILD", "*.bzl", "*WORKSPACE", "MODULE.bazel")
_EXTENSIONS = (
    "MODULE.bazel",
    "WORKSPACE",
    "third_party/bazel/repositories.bzl",
    "third_party/python/environments.bzl",
    "third_party/python/extension.bzl",
    "third_party/tensorflow/extension.bzl",
    "third_party/tensorflow/release.bzl",
    "third_party/toolchains/extension.bzl",
    "third_party/toolchains/repositories.bzl",
)
_LABEL = re.compile(r'"(?:@ai_edge_rms_norm)?//([\w./-]*)(?::([\w./-]+))?"')

# Fakes of the names that the repository rules take from Bazel.
_FAKES = """
watched = []
written = {}

def Label(label):
    return label

def repository_rule(**kwargs):
    return lambda **attributes: None

attr = struct(string_dict = lambda **kwargs: None, label = lambda **kwargs: None)

def _execute(command, timeout = 600):
    return struct(return_code = 0, stdout = "x86_64", stderr = "")

def _watch(path):
    watched.append(path.label)

def _file(name, content, executable = False):
    written[name] = content

def _fake(environ = {"PYTHON_BIN_PATH": "python3"}, exists = True, **extra):
    return struct(
        attr = struct(
            locks = {"x86_64": "//:a.lock"},
            _lock = "//:a.lock",
            _script = "//:make.py",
        ),
        execute = _execute,
        file = _file,
        name = "fake",
        os = struct(environ = environ, name = "linux"),
        path = lambda label: struct(basename = label, label = label, exists = exists),
        report_progress = lambda message: None,
        symlink = lambda target, link: None,
        which = lambda name: name,
        **extra
    )
"""


def _files() -> list[str]:
    command = ["git", "ls-files", *_PATTERNS]
    listed = subprocess.run(
        command, cwd=_ROOT, check=True, capture_output=True, text=True
    )
    return listed.stdout.split()


def _parse(name: str, text: str) -> starlark.AstModule:
    return starlark.parse(name, text, dialect=starlark.Dialect.extended())


def _run(call: str, result: str):
    """Returns the value of `result` after `call` of a repository rule with fakes."""
    text = _FAKES
    for file in ("python/environments", "toolchains/repositories"):
        text += (_ROOT / f"third_party/{file}.bzl").read_text()
    text = re.sub(r"^load\(.*\)$", "", text, flags=re.MULTILINE)
    extensions = [starlark.LibraryExtension.StructType]
    return starlark.eval(
        starlark.Module(),
        _parse("repositories.bzl", f"{text}\n{call}\n{result}\n"),
        starlark.Globals.extended_by(extensions),
    )


class StarlarkTest(absltest.TestCase):
    def test_every_file_parses(self):
        files = _files()
        self.assertContainsSubset(_EXTENSIONS, files)
        for file in files:
            with self.subTest(file):
                _parse(file, (_ROOT / file).read_text())

    def test_lock_and_script_are_watched(self):
        call = "_python_environment_impl(_fake(watch = _watch))"
        watched = _run(call, "watched")
        self.assertEqual(watched, ["//:a.lock", "//:make.py"])

    def test_runs_without_watch(self):
        self.assertEmpty(_run("_python_environment_impl(_fake())", "watched"))

    def test_zig(self):
        files = _run("_zig_impl(_fake())", "written")
        self.assertContainsSubset(("c++", "ar"), files)
        self.assertIn("c++ -target aarch64-macos.", files["c++"])
        _parse("BUILD", files["BUILD"])

    def test_android_ndk(self):
        ndk = '_fake(environ = {"ANDROID_NDK_HOME": "/ndk"}'
        build = _run(f"_android_ndk_impl({ndk}))", "written")["BUILD"]
        _parse("BUILD", build)
        self.assertIn("/ndk/toolchains/llvm/prebuilt/linux-x86_64/bin/clang++", build)
        for call, message in (
            (f"{ndk}, exists = False)", "ANDROID_NDK_HOME=/ndk has no"),
            ("_fake(environ = {})", "ANDROID_NDK_HOME is not set"),
        ):
            with self.assertRaisesRegex(starlark.StarlarkError, message):
                _run(f"_android_ndk_impl({call})", "written")

    def test_labels_exist(self):
        labels = 0
        for file in _EXTENSIONS:
            for package, name in _LABEL.findall((_ROOT / file).read_text()):
                if package == "visibility":
                    continue
                labels += 1
                with self.subTest(f"{file}: //{package}:{name}"):
                    folder = _ROOT / package
                    target = name or folder.name
                    build = (folder / "BUILD").read_text()
                    self.assertTrue(
                        (folder / target).is_file() or f'name = "{target}"' in build
                    )
        self.assertGreater(labels, 5)


if __name__ == "__main__":
    absltest.main()
