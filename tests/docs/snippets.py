"""The snippets of the documents, and how each is run.

A fenced block is Python (`python`), commands (`bash`, or no language and a first word
that is a program) or text. Python blocks of a page share a namespace and a folder with
its commands, in the order of the page. A comment in front of a block changes that:

    <!-- snippet: skip REASON -->    the block is not run
    <!-- snippet: setup              Python that a reader does not see
    ...
    -->

The folder of a page holds model.tflite, a matrix product and a norm in the plain form,
and x.npy, an input for it.
"""

import ast
import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.tflite import flatbuffer
from testing import tflite_builder
from tests.backends import models

__all__ = ["CHECKOUT", "ROOT", "Snippet", "commands", "pages", "parse", "rule", "run"]

ROOT = pathlib.Path(__file__).parents[2]
# Under Bazel ROOT has only what the test depends on; the targets and scripts that a
# command names are looked up here.
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]

_BLOCK = re.compile(
    r"(?P<comment><!-- snippet: (?P<kind>skip|setup)\b(?P<text>.*?)-->\n)"
    r"|(?P<indent>^[ ]*)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^[ ]*```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_TOOL = "ai-edge-rms-norm"
# Programs whose commands are not run here, and why.
_NOT_RUN = {
    "./bazelw": "Bazel in Bazel; the target is looked up",
    "bazel": "Bazel in Bazel; the target is looked up",
    "apt-get": "installs packages",
    "pip": "installs packages",
    "npm": "installs packages",
    "npx": "installs packages",
    "git": "changes the checkout",
    "cmake": "needs TFLite's sources",
    "benchmark_model": "a program of TFLite",
    "adb": "needs a device",
    "tests/arm64/run": "minutes; .ci/run does",
    "tests/docs/build_site": "has a check of its own in .ci/run",
    ".ci/run": "runs this test",
}


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A block of a page.

    Attributes:
      line: The line of its first line of code, from 1.
      language: `python`, `bash` or `text`.
      code: Its lines.
      skip: Why it is not run; empty if it is.
    """

    line: int
    language: str
    code: str
    skip: str = ""


def pages() -> list[str]:
    """Returns the documents by their path from the root."""
    found = sorted(p.relative_to(ROOT) for p in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *map(str, found)]


def _language(language: str, code: str) -> str:
    if language in ("python", "py"):
        return "python"
    first = code.split(maxsplit=1)[0] if code.strip() else ""
    if language in ("bash", "sh", "shell", "console"):
        return "bash"
    known = not language and (first in _NOT_RUN or first in (_TOOL, "python"))
    return "bash" if known else "text"


def parse(page: str) -> list[Snippet]:
    """Returns the blocks of a page.

    Raises:
      ValueError: A reason is missing, or a comment is not in front of a block.
    """
    snippets: list[Snippet] = []
    pending = ""
    for match in _BLOCK.finditer(page):
        line = page.count("\n", 0, match.start()) + 2
        if match["kind"] == "setup":
            snippets.append(Snippet(line, "python", match["text"].lstrip("\n")))
        elif match["kind"] == "skip":
            pending = match["text"].strip()
            if not pending:
                raise ValueError(f"line {line - 1}: a skipped snippet needs a reason")
        else:
            indent = len(match["indent"])
            code = "".join(c[indent:] for c in match["code"].splitlines(True))
            language = _language(match["language"], code)
            snippets.append(Snippet(line, language, code, pending))
            pending = ""
    if pending:
        raise ValueError(f"no block behind the comment with {pending!r}")
    return snippets


def commands(code: str) -> list[list[str]]:
    """Returns the commands of a block as words, without assignments in front."""
    lines = code.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            found.append(words)
    return found


def rule(words: list[str]) -> str:
    """Returns why a command is not run; empty if it is.

    Raises:
      ValueError: There is no rule for its program, or what it names does not exist.
    """
    program = words[0]
    if program in ("./bazelw", "bazel"):
        for word in words[1:]:
            if word.startswith("//"):
                _check_label(word)
    if program in _NOT_RUN:
        return _NOT_RUN[program]
    if program in ("python", "python3"):
        script = next((w for w in words[1:] if w.endswith(".py")), None)
        if script and not (CHECKOUT / script).exists():
            raise ValueError(f"there is no {script}")
        return "has a test or a place in .ci/run of its own"
    if program == _TOOL:
        return ""
    raise ValueError(f"no rule for the command {shlex.join(words)!r}")


def _check_label(label: str) -> None:
    package, _, target = label[2:].partition(":")
    package = package.removesuffix("...").rstrip("/")
    build = CHECKOUT / package / "BUILD"
    if not build.parent.is_dir():
        raise ValueError(f"{label}: there is no folder {package}")
    # The names of some tests are completed by a list comprehension.
    names = (f'"{target}"', f'"{target.removesuffix("_test")}"')
    if target and not any(name in build.read_text() for name in names):
        raise ValueError(f"{label}: {package or '.'}/BUILD has no {target}")


def run(page: str) -> None:
    """Runs the snippets of a page in the current folder; prints a line for each.

    Raises:
      ValueError: There is no rule for a command.
      SystemExit: A command failed.
    """
    path = ROOT / page
    namespace: dict[str, object] = {"__name__": "__main__"}
    for snippet in parse(path.read_text()):
        where = f"{page}:{snippet.line}"
        if snippet.skip:
            print(f"SKIPPED {where}: {snippet.skip}", flush=True)
        elif snippet.language == "python":
            # Line numbers of a traceback are those of the page.
            tree = ast.parse(snippet.code, str(path))
            ast.increment_lineno(tree, snippet.line - 1)
            exec(compile(tree, str(path), "exec"), namespace)
            print(f"RAN {where}", flush=True)
        elif snippet.language == "bash":
            for words in commands(snippet.code):
                _run_command(where, words)


def _run_command(where: str, words: list[str]) -> None:
    reason = rule(words)
    text = shlex.join(words)
    if reason:
        print(f"SKIPPED {where}: {text}: {reason}", flush=True)
        return
    arguments = [sys.executable, "-m", "ai_edge_rms_norm.cli", *words[1:]]
    process = subprocess.run(arguments, capture_output=True, text=True)
    # 1 is a finding, such as a norm that would overflow.
    if process.returncode not in (0, 1) or "Traceback" in process.stderr:
        sys.exit(f"{where}: {text}: exit {process.returncode}\n{process.stderr}")
    print(f"RAN {where}: {text}", flush=True)


def _write_model() -> None:
    shape = 4, 64
    builder = tflite_builder.Builder()
    x = builder.input(shape)
    matrix = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    product = builder("FULLY_CONNECTED", x, builder.constant(matrix), -1, shape=shape)
    content = models.norm(backends.PLAIN, shape, builder=builder, x=product)
    tree = flatbuffer.read(content)
    (y,) = tree.subgraphs[0].outputs
    tree.signatureDefs = [
        schema.SignatureDefT(
            inputs=[schema.TensorMapT(name=b"x", tensorIndex=x)],
            outputs=[schema.TensorMapT(name=b"y", tensorIndex=int(y))],
            signatureKey=b"serving_default",
        )
    ]
    flatbuffer.write_file("model.tflite", tree)
    np.save("x.npy", np.ones(shape, np.float32))


if __name__ == "__main__":
    _write_model()
    run(sys.argv[1])
