"""The delegate has every protection, and what would be missing is noticed."""

import io
import pathlib

from absl import flags
from absl.testing import absltest
from elftools.elf import elffile

from tests import hardening

_LIBRARY = flags.DEFINE_string(
    "library", None, "Path of librms_norm_delegate.so.", required=True
)


class HardeningTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.content = pathlib.Path(_LIBRARY.value).read_bytes()
        self.elf = elffile.ELFFile(io.BytesIO(self.content))

    def _check_damaged(self, problem, *changes):
        """`changes` are pairs of an offset and the bytes to write there."""
        content = bytearray(self.content)
        for offset, data in changes:
            self.assertNotEqual(content[offset : offset + len(data)], data)
            content[offset : offset + len(data)] = data
        self.assertEqual(hardening.problems(bytes(content)), [problem])

    def _segment(self, kind):
        """Returns the offset of the header of a segment, and the segment."""
        for i, segment in enumerate(self.elf.iter_segments()):
            if segment["p_type"] == kind:
                return self.elf["e_phoff"] + i * self.elf["e_phentsize"], segment
        raise AssertionError(kind)

    def test_protected(self):
        self.assertEmpty(hardening.problems(self.content))

    def test_relro(self):
        header, _ = self._segment("PT_GNU_RELRO")
        self._check_damaged("no PT_GNU_RELRO", (header, bytes(4)))

    def test_stack(self):
        header, _ = self._segment("PT_GNU_STACK")
        # p_flags, of which bit 0 is "executable".
        self._check_damaged("an executable stack", (header + 4, b"\x07"))
        self._check_damaged("an executable stack", (header, bytes(4)))

    def test_bind_now(self):
        _, segment = self._segment("PT_DYNAMIC")
        size = self.elf.structs.Elf_Dyn.sizeof()
        changes = [
            (segment["p_offset"] + i * size + size // 2, bytes(size // 2))
            for i, tag in enumerate(segment.iter_tags())
            if tag.entry.d_tag in ("DT_FLAGS", "DT_FLAGS_1")
        ]
        self._check_damaged("no BIND_NOW", *changes)

    def test_landing_pad(self):
        table = self.elf.get_section_by_name(".dynsym")
        (symbol,) = table.get_symbol_by_name("tflite_plugin_create_delegate")
        (offset,) = self.elf.address_offsets(symbol["st_value"], 4)
        self._check_damaged(f"{symbol.name} without a landing pad", (offset, bytes(4)))

    def test_stack_protector(self):
        offset = self.content.index(b"\0__stack_chk_fail\0") + 1
        self._check_damaged("no stack protector", (offset, b"xx"))


if __name__ == "__main__":
    absltest.main()
