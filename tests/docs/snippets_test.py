"""Every command and snippet of the documents runs, or says why it does not."""

import os
import pathlib
import subprocess
import sys

from absl.testing import absltest, parameterized

from tests.docs import snippets

_PARTS = ("python", "bash")


class SnippetsTest(parameterized.TestCase):
    @parameterized.parameters(
        *(
            page
            for page in snippets.pages()
            if any(
                s.language in _PARTS
                for s in snippets.parse((snippets.ROOT / page).read_text())
            )
        )
    )
    def test_page(self, page):
        folder = self.create_tempdir().full_path
        path = [str(snippets.ROOT / "python"), str(snippets.ROOT), *sys.path]
        process = subprocess.run(
            [sys.executable, pathlib.Path(snippets.__file__), page],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            capture_output=True,
            text=True,
        )
        lines = process.stdout.splitlines()
        for line in lines:
            if line.startswith(("RAN", "SKIPPED")):
                print(line)
        self.assertEqual(process.returncode, 0, process.stderr[-6000:])
        self.assertNotEmpty([x for x in lines if x.startswith(("RAN", "SKIPPED"))])


class ParseTest(absltest.TestCase):
    def test_blocks(self):
        page = """\
<!-- snippet: setup
x = 1
-->

```python
y = x
```

<!-- snippet: skip needs a device -->

```
adb push a b
```

```
ai-edge-rms-norm inspect \\
    m.tflite  # a comment
```

```
text
```
"""
        setup, code, skipped, command, text = snippets.parse(page)
        self.assertEqual((setup.line, setup.code), (2, "x = 1\n"))
        self.assertEqual((code.line, code.code), (6, "y = x\n"))
        self.assertEqual(skipped.skip, "needs a device")
        self.assertEqual(
            snippets.commands(command.code),
            [["ai-edge-rms-norm", "inspect", "m.tflite"]],
        )
        self.assertEqual(text.language, "text")

    def test_a_skip_needs_a_reason_and_a_block(self):
        with self.assertRaisesRegex(ValueError, "needs a reason"):
            snippets.parse("<!-- snippet: skip -->\n")
        with self.assertRaisesRegex(ValueError, "no block behind"):
            snippets.parse("<!-- snippet: skip it is late -->\n")

    def test_a_command_without_a_rule(self):
        with self.assertRaisesRegex(ValueError, "no rule for the command 'rm x'"):
            snippets.rule(["rm", "x"])
        with self.assertRaisesRegex(ValueError, "there is no examples/none.py"):
            snippets.rule(["python", "examples/none.py"])
        with self.assertRaisesRegex(ValueError, "has no nothing"):
            snippets.rule(["./bazelw", "run", "//:nothing"])


if __name__ == "__main__":
    absltest.main()
