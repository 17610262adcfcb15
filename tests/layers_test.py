"""A layer imports its deps and nothing else, and no torch below `ops`.

Each target of this test has one layer of the package in its runfiles, without the
package's own `__init__`, so that an import that BUILD does not allow is not found.
"""

import importlib
import pathlib
import pkgutil
import sys

from absl import flags
from absl.testing import absltest

_LAYER = flags.DEFINE_string("layer", None, "Folder of the package.", required=True)
_WITHOUT = flags.DEFINE_list("without", [], "Packages that it must not import.")


class LayersTest(absltest.TestCase):
    def test_imports(self):
        name = f"ai_edge_rms_norm.{_LAYER.value}"
        package = importlib.import_module(name)
        folder = pathlib.Path(package.__path__[0])
        self.assertFalse(
            (folder.parent / "post_import.py").exists(), "the whole package"
        )
        modules = list(pkgutil.iter_modules([str(folder)]))
        self.assertNotEmpty(modules)
        for module in modules:
            importlib.import_module(f"{name}.{module.name}")
        self.assertEmpty([m for m in _WITHOUT.value if m in sys.modules])


if __name__ == "__main__":
    absltest.main()
