"""Makes the TensorFlow of this process export custom calls, like a patched one.

Importing this module loads the library beside it (interposed_exporter.cc), which has to
come before TensorFlow; litert-torch does not import TensorFlow, ai-edge-torch does.
For tests only: users apply patches/tensorflow or use calls of `tfl.custom`.
"""

import ctypes
import pathlib
import sys

if "tensorflow" in sys.modules:
    raise RuntimeError("interposed_exporter comes too late: TensorFlow is imported")
ctypes.CDLL(
    str(pathlib.Path(__file__).with_name("libinterposed_exporter.so")),
    ctypes.RTLD_GLOBAL,
)
