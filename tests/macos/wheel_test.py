"""The wheel for macOS: what its delegate exports, needs and promises.

tests/macos/run builds the wheel and starts this in an environment with lief.
"""

import os
import pathlib
import re
import sys
import tempfile
import unittest
import zipfile

import macho

_KERNELS = pathlib.Path(__file__).parents[2] / "kernels" / "tflite"
_DELEGATE = "ai_edge_rms_norm/_native/librms_norm_delegate.dylib"
# Zig links its C++ library into the delegate and ignores the list of exported symbols:
# operators new and delete, namespace std, and symbols of the linker.
_OF_ZIG = re.compile(r"__Z(n[wa]|d[la])|__ZN?K?St|___dso_handle$|__mh_dylib_header$")


class WheelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.wheel,) = pathlib.Path(os.environ["WHEEL_FOLDER"]).glob("*-macosx_*.whl")
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        with zipfile.ZipFile(cls.wheel) as archive:
            cls.names = archive.namelist()
            cls.delegate = pathlib.Path(archive.extract(_DELEGATE, folder.name))

    def test_tag_is_that_of_the_delegate(self):
        self.assertEqual(macho.platform_tag(self.delegate), "macosx_11_0_arm64")
        self.assertTrue(self.wheel.name.endswith("-py3-none-macosx_11_0_arm64.whl"))
        libraries = [n for n in self.names if "_native/" in n]
        self.assertEqual(libraries, [_DELEGATE])

    def test_exports_what_the_linux_library_exports(self):
        script = (_KERNELS / "rms_norm_delegate.lds").read_text()
        expected = re.findall(r"^ +(\w+);$", script, re.MULTILINE)
        self.assertEqual(len(expected), 6)
        binary = macho.read(self.delegate)  # it must outlive its symbols
        exports = {symbol.name for symbol in binary.exported_symbols}
        expected = {"_" + name for name in expected}
        if sys.platform == "darwin":
            self.assertEqual(exports, expected)
        else:
            self.assertLessEqual(expected, exports)
            strays = [e for e in exports - expected if not _OF_ZIG.match(e)]
            self.assertEqual(strays, [])

    def test_names_no_folder_of_the_build(self):
        binary = macho.read(self.delegate)
        names = {library.name for library in binary.libraries} - macho.needed(binary)
        self.assertEqual(names, {"@rpath/librms_norm_delegate.dylib"})
        self.assertIn("/usr/lib/libSystem.B.dylib", macho.needed(binary))
        self.assertFalse(binary.has_rpath)

    def test_another_library_is_refused(self):
        binary = macho.read(self.delegate)
        binary.add_library("/opt/homebrew/lib/libomp.dylib")
        path = self.delegate.with_name("stray.dylib")
        binary.write(str(path))
        with self.assertRaisesRegex(ValueError, "needs other libraries: /opt/home"):
            macho.platform_tag(path)

    def test_an_elf_file_is_refused(self):
        path = self.delegate.with_name("elf.dylib")
        path.write_bytes(b"\x7fELF" + bytes(60))
        with self.assertRaisesRegex(ValueError, "not a Mach-O file"):
            macho.platform_tag(path)


if __name__ == "__main__":
    unittest.main()
