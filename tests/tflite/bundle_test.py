"""Bundles: every model inside is found, and the rest is as it was."""

import io
import pathlib
import struct
import zipfile

import litert_lm_builder
import numpy as np
from absl.testing import absltest, parameterized
from litert_lm_builder import litertlm_core, litertlm_peek

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.tflite import bundle as bundle_lib
from ai_edge_rms_norm.tflite import inspection, rewriting
from tests.pattern_cases import norm_graph

_DECOMPOSED = norm_graph()[0].content(norm_graph()[1])
_NO_WEIGHT = norm_graph(False)[0].content(norm_graph(False)[1])
_TOKENIZER = bytes(range(256)) * 100  # Longer than a block with the header.


def fused(content: memoryview) -> bytes:
    model, report = arn.fuse(bytes(content), encoding="custom")
    assert len(report.fused) == 1
    return bytes(model)


def offsets(path: pathlib.Path) -> dict[str, int]:
    """Returns where the bytes of each entry of an archive begin."""
    content, found = path.read_bytes(), {}
    for info in zipfile.ZipFile(path).infolist():
        sizes = struct.unpack_from("<HH", content, info.header_offset + 26)
        found[info.filename] = info.header_offset + 30 + sum(sizes)
    return found


class BundleTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def file(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def litertlm(self) -> pathlib.Path:
        kinds = litert_lm_builder.TfLiteModelType
        builder = litert_lm_builder.LitertLmFileBuilder()
        builder.add_system_metadata(
            litert_lm_builder.Metadata("Authors", "me", litert_lm_builder.DType.STRING)
        )
        builder.add_tflite_model(
            self.file("a.tflite", _DECOMPOSED),
            kinds.PREFILL_DECODE,
            backend_constraint="cpu",
        )
        builder.add_sentencepiece_tokenizer(self.file("t.spiece", _TOKENIZER))
        builder.add_tflite_weights(self.file("w", b"weights"), kinds.EMBEDDER)
        builder.add_tflite_model(self.file("b.tflite", _NO_WEIGHT), kinds.EMBEDDER)
        path = self.folder / "model.litertlm"
        with path.open("wb") as file:
            builder.build(file)
        return path

    def test_litertlm(self):
        path, new = self.litertlm(), self.folder / "new.litertlm"
        bundle = bundle_lib.read_bundle(path)
        self.assertEqual(bundle.kind, "litertlm")
        self.assertEqual(
            [(m.name, bytes(m.content)) for m in bundle.models],
            [
                ("Section0_TFLiteModel_tf_lite_prefill_decode", _DECOMPOSED),
                ("Section3_TFLiteModel_tf_lite_embedder", _NO_WEIGHT),
            ],
        )
        # Nothing changed, nothing is changed.
        bundle.write(new, {})
        self.assertEqual(new.read_bytes(), path.read_bytes())

        contents = {m.name: fused(m.content) for m in bundle.models}
        bundle.write(new, contents)
        # The builder's own reader finds the new models, and the rest as it was.
        for file, folder in ((path, "old"), (new, "new")):
            litert_lm_builder.unpack(str(file), str(self.folder / folder))
        old_files = {f.name: f.read_bytes() for f in (self.folder / "old").iterdir()}
        for file in (self.folder / "new").iterdir():
            expected = contents.get(file.stem, old_files[file.name])
            self.assertEqual(file.read_bytes(), expected, file.name)
        self.assertLen(list((self.folder / "new").iterdir()), len(old_files))
        header = litertlm_peek.read_litertlm_header(str(new), io.StringIO())
        for i in range(4):
            begin = header.SectionMetadata().Objects(i).BeginOffset()
            self.assertEqual(begin % litertlm_core.BLOCK_SIZE, 0)
        again = bundle_lib.read_bundle(new).models[0]
        interpreter = arn.Interpreter(model_content=bytes(again.content))
        interpreter.allocate_tensors()
        (x,) = interpreter.get_input_details()
        interpreter.set_tensor(x["index"], np.ones(x["shape"], np.float32))
        interpreter.invoke()

    def test_inspect_and_check(self):
        path = self.litertlm()
        models = [model.name for model in bundle_lib.read_bundle(path).models]
        report = arn.check(path, 1)
        self.assertEqual(report.inspection, inspection.inspect(path))
        self.assertEqual(report.inspection.kind, "litertlm")
        self.assertEqual([norm.norm.model for norm in report.norms], models)
        self.assertEqual([norm.norm.has_weight for norm in report.norms], [True, False])
        for norm in report.norms:
            rows = np.prod(norm.norm.shape[:-1])
            self.assertEqual((norm.statistics.rows, norm.finding), (rows, ""))
        # Of both models, since the inputs have the same name; the cure names the file.
        x = np.full(report.norms[0].norm.shape, 300, np.float32)
        (detail,) = arn.Interpreter(model_content=_DECOMPOSED).get_input_details()
        name = detail["name"]
        report = arn.check(path, {name: x})
        self.assertLen(report.findings, 2)
        self.assertIn(f"{models[0]}, ", str(report))
        self.assertIn(f"fuse {path} OUTPUT", report.cure)
        fixed = self.folder / "fixed.litertlm"
        rewriting.fuse_file(path, "decomposed").write(fixed)
        report = arn.check(fixed, {name: x})
        self.assertLen(report.norms, 2)
        self.assertEmpty(report.findings)

    def task(self) -> pathlib.Path:
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as archive:
            archive.writestr("detector.tflite", _NO_WEIGHT)
            archive.writestr("labels.txt", "a\nb\n")
        path = self.folder / "model.task"
        with zipfile.ZipFile(path, "w") as archive:
            archive.comment = b"a comment"
            info = zipfile.ZipInfo("TF_LITE_PREFILL_DECODE", (2024, 5, 6, 7, 8, 10))
            info.external_attr = 0o640 << 16
            # As zipalign does, so that the bytes begin at 4096.
            padding = 4096 - 30 - len(info.filename)
            info.extra = struct.pack("<HH", 0xD935, padding - 4) + bytes(padding - 4)
            archive.writestr(info, _DECOMPOSED)
            archive.writestr("METADATA", b"text" * 9, zipfile.ZIP_DEFLATED)
            archive.writestr("hand.task", inner.getvalue())
        return path

    def test_task(self):
        path, new = self.task(), self.folder / "new.task"
        bundle = bundle_lib.read_bundle(path)
        names = ["TF_LITE_PREFILL_DECODE", "hand.task/detector.tflite"]
        self.assertEqual([m.name for m in bundle.models], names)
        contents = {m.name: fused(m.content) for m in bundle.models}
        bundle.write(new, contents)
        before, after = zipfile.ZipFile(path), zipfile.ZipFile(new)
        self.assertIsNone(after.testzip())
        self.assertEqual(after.comment, b"a comment")
        for old, entry in zip(before.infolist(), after.infolist(), strict=True):
            for name in ("filename", "date_time", "compress_type", "external_attr"):
                self.assertEqual(getattr(entry, name), getattr(old, name))
        self.assertEqual(after.read("METADATA"), b"text" * 9)
        inner = zipfile.ZipFile(io.BytesIO(after.read("hand.task")))
        self.assertEqual(inner.read("labels.txt"), b"a\nb\n")
        self.assertEqual(inner.read("detector.tflite"), contents[names[1]])
        self.assertEqual(offsets(path)[names[0]], 4096)
        self.assertEqual(offsets(new)[names[0]], 4096)
        models = bundle_lib.read_bundle(new).models
        self.assertEqual({m.name: bytes(m.content) for m in models}, contents)
        # The file itself may be replaced, again and again, without growing.
        bundle_lib.read_bundle(new).write(new, {names[0]: contents[names[0]]})
        content = new.read_bytes()
        bundle_lib.read_bundle(new).write(new, {})
        self.assertEqual(new.read_bytes(), content)

    def test_alignment_of_every_entry(self):
        path, new = self.folder / "a.task", self.folder / "b.task"
        with zipfile.ZipFile(path, "w") as archive:
            for i, size in enumerate((1, 33, 1022, 16)):
                info = zipfile.ZipInfo(f"{i}")
                info.extra = struct.pack("<HH", 0x1234, size) + bytes(size)
                archive.writestr(info, _DECOMPOSED + bytes(i))
        bundle = bundle_lib.read_bundle(path)
        for extra in range(9):
            bundle.write(new, {"0": _DECOMPOSED + bytes(extra)})
            for name, begin in offsets(path).items():
                alignment = begin & -begin
                self.assertEqual(offsets(new)[name] % alignment, 0)
            # Data that others wrote into the extra field is still there.
            self.assertIn(0x1234, struct.unpack_from("<H", _extra(new)))

    def test_tflite(self):
        path = self.file("model", _DECOMPOSED)
        bundle = bundle_lib.read_bundle(path)
        (model,) = bundle.models
        self.assertEqual((bundle.kind, model.name), ("tflite", ""))
        bundle.write(path, {"": _NO_WEIGHT})
        self.assertEqual(pathlib.Path(path).read_bytes(), _NO_WEIGHT)
        with self.assertRaisesRegex(ValueError, "'a' is not a model"):
            bundle.write(path, {"a": b""})

    @parameterized.parameters(
        (b"", "expected a .tflite, a .litertlm or a .task"),
        (b"LITERTLM", "damaged"),
        (b"LITERTLM\x01" + bytes(23), "ends at 0"),
        (b"PK\x03\x04" + bytes(99), "damaged.*BadZipFile"),
    )
    def test_damaged(self, content, message):
        path = self.file("model", content)
        with self.assertRaisesRegex(ValueError, message):
            bundle_lib.read_bundle(path)

    def test_damaged_in_the_middle(self):
        content = bytearray(self.task().read_bytes())
        content[content.index(b"TFL3") + 8] ^= 1
        with self.assertRaisesRegex(ValueError, "'TF_LITE_PREFILL_DECODE' is damaged"):
            bundle_lib.read_bundle(self.file("model", bytes(content)))
        content = self.litertlm().read_bytes()
        with self.assertRaisesRegex(ValueError, "section 3 .* expected it to lie"):
            bundle_lib.read_bundle(self.file("model", content[:-1]))
        newer = bytearray(content)
        struct.pack_into("<I", newer, 8, 99)
        with self.assertRaisesRegex(ValueError, "has major version 99"):
            bundle_lib.read_bundle(self.file("model", bytes(newer)))
        for at in range(0, 900, 3):  # Whatever the header says, it is one error.
            other = bytearray(content)
            other[32 + at] ^= 0xFF
            try:
                bundle_lib.read_bundle(self.file("model", bytes(other)))
            except ValueError:
                continue


def _extra(path: pathlib.Path) -> bytes:
    return zipfile.ZipFile(path).infolist()[0].extra


if __name__ == "__main__":
    absltest.main()
