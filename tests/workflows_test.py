"""The files, targets and configurations that the GitHub workflows name exist.

They run nowhere else, so a file that moves would break them unnoticed.
"""

import pathlib
import re

import yaml
from absl.testing import absltest

# Under Bazel there are only the data of this test; the rest is looked up here.
_CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
_WORKFLOWS = sorted((_CHECKOUT / ".github" / "workflows").glob("*.yml"))
# Folders that the workflows make.
_MADE = ("bazel-bin/", "dist/", "environment/")
_WORD = re.compile(r"[^\s;\"'()=]+")


def texts(workflow: str) -> list[str]:
    """Returns the scripts of a workflow, and the patterns of files that it hashes."""
    found = re.findall(r"hashFiles\('(.+?)'\)", workflow)
    for job in yaml.safe_load(workflow)["jobs"].values():
        found += [step["run"] for step in job["steps"] if "run" in step]
    return found


def missing(text: str) -> list[str]:
    """Returns the words of a script that name what is not in the checkout."""
    found = []
    for word in _WORD.findall(text.replace("./bazelw", "bazelw")):
        if word.startswith("//"):
            known = _is_target(word)
        elif word.startswith(("/", "~", "$", "-", *_MADE)) or "/" not in word:
            continue
        else:
            known = any(_CHECKOUT.glob(word))
        if not known:
            found.append(word)
    configurations = (_CHECKOUT / ".bazelrc").read_text()
    for name in re.findall(r"--config=(\w+)", text):
        if not re.search(rf"^\w+:{name} ", configurations, re.MULTILINE):
            found.append(f"--config={name}")
    return found


def _is_target(label: str) -> bool:
    package, _, target = label[2:].partition(":")
    folder = _CHECKOUT / package.removesuffix("...")
    if not target:
        return folder.is_dir()
    build = folder / "BUILD"
    return build.is_file() and f'"{target}"' in build.read_text()


class WorkflowsTest(absltest.TestCase):
    def test_what_they_name_exists(self):
        self.assertNotEmpty(_WORKFLOWS)
        for path in _WORKFLOWS:
            for text in texts(path.read_text()):
                with self.subTest(path.name, text=text):
                    self.assertEmpty(missing(text))

    def test_what_does_not_exist_is_found(self):
        known = "tests/macos/run dist; .ci/fuzz; cat /etc/none dist/none $HOME/none"
        self.assertEmpty(missing(f"{known}\nbazelw test --config=asan //kernels/..."))
        for word in (
            ".ci/none",
            "tests/none.py",
            "third_party/*.none",
            "//none/...",
            "//kernels/rms_norm:none",
            "--config=none",
        ):
            self.assertEqual(missing(f"run {word}"), [word])


if __name__ == "__main__":
    absltest.main()
