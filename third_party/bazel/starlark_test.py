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
)
_LABEL = re.compile(r'"(?:@ai_edge_rms_norm)?//([\w./-]*)(?::([\w./-]+))?"')

# Fakes of the names that environments.bzl takes from Bazel.
_FAKES = """
watched = []

def Label(label):
    return label

def repository_rule(**kwargs):
    return lambda **attributes: None

attr = struct(string_dict = lambda **kwargs: None, label = lambda **kwargs: None)

def _execute(command, timeout = 600):
    return struct(return_code = 0, stdout = "x86_64", stderr = "")

def _watch(path):
    watched.append(path.label)

def _fake(**extra):
    return struct(
        attr = struct(locks = {"x86_64": "//:a.lock"}, _script = "//:make.py"),
        execute = _execute,
        file = lambda *args: None,
        name = "fake",
        os = struct(environ = {"PYTHON_BIN_PATH": "python3"}),
        path = lambda label: struct(basename = label, label = label),
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


def _watched(call: str) -> list[str]:
    """Returns the labels that environments.bzl watches in `call` of its rule."""
    text = (_ROOT / "third_party/python/environments.bzl").read_text()
    extensions = [starlark.LibraryExtension.StructType]
    return starlark.eval(
        starlark.Module(),
        _parse("environments.bzl", f"{_FAKES}\n{text}\n{call}\nwatched\n"),
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
        watched = _watched("_python_environment_impl(_fake(watch = _watch))")
        self.assertEqual(watched, ["//:a.lock", "//:make.py"])

    def test_runs_without_watch(self):
        self.assertEmpty(_watched("_python_environment_impl(_fake())"))

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

    def test_one_version(self):
        package = (_ROOT / "python/ai_edge_rms_norm/__init__.py").read_text()
        (version,) = re.findall(r'^__version__ = "(.+)"$', package, re.MULTILINE)
        module = (_ROOT / "MODULE.bazel").read_text()
        declared = re.search(r'^    version = "(.+)",$', module, re.MULTILINE)
        self.assertEqual(declared.group(1), version)


if __name__ == "__main__":
    absltest.main()
