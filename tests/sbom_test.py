"""Tests the SBOM of a wheel, which tools/sbom writes.

python tests/sbom_test.py --wheel=bazel-bin/wheel/NAME.whl
"""

import json
import pathlib
import re
import subprocess

import tomllib
from absl import flags
from absl.testing import absltest

_WHEEL = flags.DEFINE_string("wheel", None, "The wheel.", required=True)
_CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


class SbomTest(absltest.TestCase):
    def test_it_lists_what_the_wheel_needs(self):
        project = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text())["project"]
        needed = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"]]
        file = pathlib.Path(self.create_tempdir(), "sbom.json")
        subprocess.run([_CHECKOUT / "tools" / "sbom", _WHEEL.value, file], check=True)
        sbom = json.loads(file.read_text())
        self.assertEqual(sbom["bomFormat"], "CycloneDX")
        components = {part["name"]: part for part in sbom["components"]}
        self.assertContainsSubset([project["name"], *needed], components)
        self.assertNoCommonElements(["pip", "setuptools"], components)
        for part in components.values():
            self.assertStartsWith(part["purl"], "pkg:pypi/")
        self.assertNotIn("file:", file.read_text())


if __name__ == "__main__":
    absltest.main()
