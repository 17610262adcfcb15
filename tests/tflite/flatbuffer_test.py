"""Reading a .tflite strictly, and writing files so that nothing is lost."""

import errno
import os
import pathlib
import random
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from unittest import mock

import flatbuffers
import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema

from ai_edge_rms_norm.tflite import edit, files, flatbuffer, verify

_OP = schema.BuiltinOperator
_OPTIONS = schema.BuiltinOptions
_OPTIONS_2 = schema.BuiltinOptions2


def tensor(name: bytes, shape: list[int], buffer: int = 0) -> schema.TensorT:
    shape_array = np.array(shape, np.int32)
    return schema.TensorT(name=name, shape=shape_array, buffer=buffer)


def model(weights: int = 1) -> schema.ModelT:
    """z = (x * w) * (x * w), and a composite that nothing calls as subgraph 1."""
    weight = np.arange(16, dtype=np.float32).view(np.uint8)

    def multiply(inputs, output):
        return schema.OperatorT(
            inputs=inputs,
            outputs=[output],
            builtinOptionsType=_OPTIONS.MulOptions,
            builtinOptions=schema.MulOptionsT(),
        )

    x, z = (
        schema.TensorMapT(name=name, tensorIndex=i)
        for name, i in ((b"x", 0), (b"z", 3))
    )
    return schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(builtinCode=_OP.MUL, deprecatedBuiltinCode=_OP.MUL)
        ],
        buffers=[edit.AlignedBuffer(data) for data in (None, *[weight] * weights)],
        subgraphs=[
            schema.SubGraphT(
                tensors=[
                    tensor(b"x", [2, 16]),
                    tensor(b"w", [16], buffer=1),
                    tensor(b"y", [2, 16]),
                    tensor(b"z", [2, 16]),
                ],
                inputs=[0],
                outputs=[3],
                operators=[multiply([0, 1], 2), multiply([2, 2], 3)],
            )
        ],
        signatureDefs=[
            schema.SignatureDefT(inputs=[x], outputs=[z], signatureKey=b"serve")
        ],
    )


def composite(m: schema.ModelT, subgraph: int, calls: int) -> None:
    """Makes a composite of the first operator of a subgraph."""
    operator = m.subgraphs[subgraph].operators[0]
    operator.opcodeIndex = edit.intern_operator_code(m, _OP.STABLEHLO_COMPOSITE)
    operator.builtinOptions, operator.builtinOptionsType = None, 0
    operator.builtinOptions2Type = _OPTIONS_2.StableHLOCompositeOptions
    operator.builtinOptions2 = schema.StableHLOCompositeOptionsT(
        name=b"odml.rms_norm", decompositionSubgraphIndex=calls
    )


def calls_itself(m):
    composite(m, 0, calls=0)


def calls_in_a_circle(m):
    m.subgraphs += [model().subgraphs[0], model().subgraphs[0]]
    composite(m, 0, calls=1)
    composite(m, 1, calls=2)
    composite(m, 2, calls=1)


def composite_without_options(m):
    composite(m, 0, calls=0)
    operator = m.subgraphs[0].operators[0]
    operator.builtinOptions2, operator.builtinOptions2Type = None, 0


def composite_without_name(m):
    m.subgraphs.append(model().subgraphs[0])
    composite(m, 0, calls=1)
    m.subgraphs[0].operators[0].builtinOptions2.name = None


def composite_of_nothing(m):
    composite(m, 0, calls=-1)


def other_options(m):
    operator = m.subgraphs[0].operators[1]
    operator.builtinOptions = schema.CastOptionsT()
    operator.builtinOptionsType = _OPTIONS.CastOptions


def constant_output(m):
    m.subgraphs[0].tensors[2].buffer = 1
    m.subgraphs[0].tensors[2].shape = np.array([16], np.int32)


def constant_input(m):
    m.subgraphs[0].tensors[0].buffer = 1
    m.subgraphs[0].tensors[0].shape = np.array([16], np.int32)


def data_in_buffer_0(m):
    m.buffers[0].data = m.buffers[1].data


def short_constant(m):
    m.buffers[1].data = m.buffers[1].data[:60]


def external_beyond_the_end(m):
    m.buffers[1].offset, m.buffers[1].size = 1 << 40, 64


def setter(get, name, value):
    return lambda m: setattr(get(m), name, value)


def first_tensor(m):
    return m.subgraphs[0].tensors[0]


MALFORMED = {
    "self": (calls_itself, "subgraph 0 calls itself"),
    "circle": (calls_in_a_circle, "subgraph 1 calls itself.*of subgraph 2"),
    "no options": (composite_without_options, "StableHLOCompositeOptions are missing"),
    "no composite name": (composite_without_name, "operator 0 .*its name is missing"),
    "composite of nothing": (composite_of_nothing, "refers to subgraph -1"),
    "options": (other_options, r"operator 1 \(MUL\).*be MulOptions, got CastOptions"),
    "constant output": (constant_output, "operator 0 .*its output, tensor 2, has"),
    "constant input": (constant_input, "its input, tensor 0, has constant data"),
    "buffer 0": (data_in_buffer_0, "buffer 0 must be empty"),
    "constant": (short_constant, "tensor 1 .'w'.*must have 64 bytes, .* has 60"),
    "external": (external_beyond_the_end, "buffer 1: 64 bytes at byte 1099511627776"),
    "version": (lambda m: setattr(m, "version", 4), "schema version 4, expected 3"),
    "subgraphs": (setter(lambda m: m, "subgraphs", []), "has no subgraph"),
    "key": (setter(lambda m: m.signatureDefs[0], "signatureKey", None), "key of sig"),
    "map": (setter(lambda m: m.signatureDefs[0].inputs[0], "name", None), "'serve' is"),
    "rank": (setter(first_tensor, "shapeSignature", [-1]), "another rank"),
    "negative": (setter(first_tensor, "shape", [-1, 16]), "negative dimension"),
    "code": (
        setter(lambda m: m.operatorCodes[0], "builtinCode", _OP.CUSTOM),
        "custom code of operator code 0 is missing",
    ),
}


def repeated(operators: int, subgraphs: int) -> bytes:
    """A file of few tables whose vectors refer to the same one again and again."""
    builder = flatbuffers.Builder()

    def vector(start, offset, count):
        start(builder, count)
        for _ in range(count):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()

    schema.OperatorStart(builder)
    operator = schema.OperatorEnd(builder)
    start = schema.SubGraphStartOperatorsVector
    listed = vector(start, operator, operators)
    schema.SubGraphStart(builder)
    schema.SubGraphAddOperators(builder, listed)
    subgraph = schema.SubGraphEnd(builder)
    listed = vector(schema.ModelStartSubgraphsVector, subgraph, subgraphs)
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, listed)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


class ReadTest(parameterized.TestCase):
    def test_left_out_vectors_are_empty(self):
        m = model()
        m.subgraphs[0].operators[0].inputs = None
        m.subgraphs[0].tensors[2].shape = m.subgraphs[0].tensors[2].name = None
        read = flatbuffer.read(flatbuffer.to_bytes(m))
        self.assertEqual(read.subgraphs[0].operators[0].inputs.tolist(), [])
        self.assertEqual(read.subgraphs[0].tensors[2].shape.tolist(), [])
        self.assertEqual(read.subgraphs[0].tensors[2].name, b"")

    @parameterized.named_parameters((name, *case) for name, case in MALFORMED.items())
    def test_malformed(self, damage, message):
        m = model()
        damage(m)
        content = flatbuffer.to_bytes(m)
        with self.assertRaisesRegex(ValueError, f"m.tflite is a damaged.*{message}"):
            flatbuffer.read(content, "m.tflite")

    def test_shared_tables_are_bounded(self):
        """32 kB that would become 4000 * 4000 operators."""
        content = repeated(operators=4000, subgraphs=4000)
        self.assertLess(len(content), 33000)
        with self.assertRaisesRegex(ValueError, "add up to more than 4 times the"):
            flatbuffer.read(content)

    def test_few_shared_tables_are_read(self):
        content = repeated(operators=3, subgraphs=1)
        with self.assertRaisesRegex(ValueError, "operator code 0, there are 0"):
            flatbuffer.read(content)

    def test_fields_of_the_schema(self):
        """`verify` knows the installed schema, which is unpacked."""
        tables = [name for name in vars(schema) if hasattr(schema, f"{name}Start")]
        self.assertGreater(len(tables), 150)
        for table in tables:
            known = {field.name for field in verify.table_fields(table)}
            unpacked = vars(getattr(schema, f"{table}T")())
            self.assertEqual(known, set(unpacked), table)
        kinds = {field.name: field for field in verify.table_fields("Tensor")}
        self.assertEqual(kinds["name"].kind, "string")
        self.assertEqual(kinds["quantization"].table, "QuantizationParameters")
        self.assertEqual((kinds["shape"].kind, kinds["shape"].element), ("scalars", 4))

    def test_unknown_fields_are_refused(self):
        builder = flatbuffers.Builder()
        builder.StartObject(40)
        builder.PrependUint32Slot(0, 3, 0)
        builder.PrependUint32Slot(39, 7, 0)
        builder.Finish(builder.EndObject(), b"TFL3")
        with self.assertRaisesRegex(ValueError, "field 39 of the table Model is not"):
            flatbuffer.read(bytes(builder.Output()))

    def test_unknown_options_are_refused(self):
        m = model()
        packed = bytearray(flatbuffer.to_bytes(m))
        operator = schema.Model.GetRootAs(packed).Subgraphs(0).Operators(0)._tab
        packed[operator.Pos + operator.Offset(10)] = 250  # builtin_options_type
        with self.assertRaisesRegex(ValueError, "type 250 of the union BuiltinOptions"):
            flatbuffer.read(bytes(packed))

    def test_damage_is_one_error(self):
        """Whatever the bytes: read, or a ValueError in words."""
        rng = random.Random(15)
        content = flatbuffer.to_bytes(model())
        refused = 0
        for _ in range(3000):
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 1, 2, 8))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            if rng.random() < 0.2:
                del damaged[rng.randrange(8, len(damaged)) :]
            try:
                flatbuffer.to_bytes(flatbuffer.read(bytes(damaged)))
            except ValueError as error:
                refused += 1
                self.assertRegex(str(error), "^model is (a damaged|not a) .tflite: ")
        self.assertBetween(refused, 500, 2900)

    def test_data_at_one_place_are_written_once(self):
        m = model(weights=50)
        large = np.zeros(edit.APPENDED_SIZE, np.uint8)
        for i, buffer in enumerate(m.buffers[1:]):
            buffer.data = None if i % 2 else large
            if i % 2:
                buffer.external, buffer.offset, buffer.size = large, 16, len(large)
        content = flatbuffer.to_bytes(m)
        self.assertLess(len(content), 3 * edit.APPENDED_SIZE)
        again = flatbuffer.read(content)
        for buffer in again.buffers[1:]:
            data = buffer.external if buffer.data is None else buffer.data
            np.testing.assert_array_equal(data, large)
        self.assertEqual(flatbuffer.to_bytes(again), content)

    def test_codes_alone(self):
        self.assertEqual(
            flatbuffer.read_builtin_codes(flatbuffer.to_bytes(model())), {_OP.MUL}
        )

    def test_sparse_file(self):
        path = os.path.join(self.create_tempdir().full_path, "sparse.tflite")
        with open(path, "wb") as file:
            file.write(b"\xff\xff\xff\x7fTFL3")
            file.truncate(5 << 30)
        with self.assertRaisesRegex(ValueError, "sparse.tflite is a damaged .tflite"):
            flatbuffer.load(path)
        with self.assertRaisesRegex(ValueError, "sparse.tflite is a damaged .tflite"):
            flatbuffer.load(os.fsencode(path))


class WriteFileTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        # Not below root's home, where Bazel has its folders: other users are tried.
        temporary = tempfile.TemporaryDirectory(dir="/tmp")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name) / "folder"
        self.folder.mkdir()
        self.path = self.folder / "model.tflite"

    def write(self, path, content=b"new"):
        files.write_file(path, [content])

    def assertFolderHas(self, *names):
        self.assertEqual(sorted(os.listdir(self.folder)), sorted(names))

    def test_mode_is_kept(self):
        for mode in (0o600, 0o640, 0o755):
            self.path.write_bytes(b"old")
            self.path.chmod(mode)
            self.write(self.path)
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), mode)

    def test_owner_is_kept(self):
        if os.getuid() != 0:
            self.skipTest("only root can give files away")
        self.path.write_bytes(b"old")
        os.chown(self.path, 12345, 23456)
        self.write(self.path)
        status = self.path.stat()
        self.assertEqual((status.st_uid, status.st_gid), (12345, 23456))

    def test_new_file_has_the_mode_of_open(self):
        with mock.patch.object(os, "umask", side_effect=AssertionError):
            self.write(self.path)
        (self.folder / "opened").write_bytes(b"")
        self.assertEqual(
            self.path.stat().st_mode, (self.folder / "opened").stat().st_mode
        )

    def test_named_temporary_file(self):
        """Where the file system has no files without a name."""
        with mock.patch.object(files, "_open_unnamed", return_value=None):
            self.test_mode_is_kept()
            self.path.unlink()
            self.test_new_file_has_the_mode_of_open()
        self.assertFolderHas("model.tflite", "opened")

    def without_privileges(self, action) -> str:
        """Returns what an action raises or warns as a user who is not root."""
        self.folder.parent.chmod(0o755)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    if os.getuid() == 0:
                        os.setuid(65534)
                    action()
                    text = "".join(str(warning.message) for warning in caught)
                except BaseException as error:
                    text = f"{type(error).__name__}: {error}"
            os.write(writer, text.encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as file:
            return file.read()

    def test_read_only_file_is_refused(self):
        self.path.write_bytes(b"old")
        self.path.chmod(0o444)
        self.folder.chmod(0o777)
        answer = self.without_privileges(lambda: self.write(self.path))
        self.assertRegex(answer, "PermissionError: .*Permission denied.*model.tflite")
        self.assertEqual(self.path.read_bytes(), b"old")

    def test_writable_file_in_a_read_only_folder(self):
        self.path.write_bytes(b"old")
        self.path.chmod(0o666)
        self.folder.chmod(0o555)
        answer = self.without_privileges(lambda: self.write(self.path))
        self.assertRegex(answer, "^.*model.tflite was written in place")
        self.assertEqual(self.path.read_bytes(), b"new")
        answer = self.without_privileges(lambda: self.write(self.folder / "other"))
        self.assertRegex(answer, "PermissionError: .*Permission denied.*other")
        self.assertFolderHas("model.tflite")

    def test_links(self):
        self.path.symlink_to("loop")
        (self.folder / "loop").symlink_to("model.tflite")
        with self.assertRaisesRegex(OSError, "symbolic links.*model.tflite"):
            self.write(self.path)
        self.path.unlink()
        self.path.symlink_to("new/folder/target")
        self.write(self.path)
        self.assertTrue(self.path.is_symlink())
        self.assertEqual((self.folder / "new/folder/target").read_bytes(), b"new")

    def test_long_names(self):
        for length in (246, 255):
            path = self.folder / ("n" * length)
            self.write(path)
            self.write(os.fsencode(path), b"newer")
            self.assertEqual(path.read_bytes(), b"newer")
        with self.assertRaisesRegex(OSError, "File name too long"):
            self.write(self.folder / ("n" * 256))

    def test_deep_path(self):
        os.chdir(self.folder)
        path = "d/" * 1500 + "model.tflite"
        try:
            self.write(path)
            with open(path, "rb") as file:
                self.assertEqual(file.read(), b"new")
        finally:
            subprocess.run(["rm", "-rf", "d"], check=True)
        with self.assertRaisesRegex(OSError, "File name too long"):
            self.write("d/" * 2100 + "model.tflite")

    def test_in_place_where_it_cannot_be_replaced(self):
        self.path.write_bytes(b"the old content")
        for content in (b"new", b"", b"a longer content than the old one"):
            busy = OSError(errno.EBUSY, "Device or resource busy")
            with (
                mock.patch.object(os, "replace", side_effect=busy),
                self.assertWarnsRegex(UserWarning, "in place.*resource busy"),
            ):
                self.write(self.path, content)
            self.assertEqual(self.path.read_bytes(), content)
        self.assertFolderHas("model.tflite")

    def test_full_disk(self):
        full = OSError(errno.ENOSPC, "No space left on device")
        self.path.write_bytes(b"old")
        for patched in ("fsync", "replace"):
            with (
                mock.patch.object(os, patched, side_effect=full),
                self.assertRaisesRegex(OSError, "No space left.*model.tflite"),
            ):
                self.write(self.path)
        with (
            mock.patch.object(os, "replace", side_effect=OSError(errno.EBUSY, "busy")),
            mock.patch.object(os, "posix_fallocate", side_effect=full),
            self.assertRaisesRegex(OSError, "No space left"),
        ):
            self.write(self.path, b"longer than the old one")
        self.assertEqual(self.path.read_bytes(), b"old")
        self.assertFolderHas("model.tflite")

    def test_ended_while_writing(self):
        """Neither kind of temporary file is left, and the old one is as it was."""
        script = (
            "import os, sys, time\n"
            "from ai_edge_rms_norm.tflite import files\n"
            "class Slow(list):\n"
            "  def __iter__(self):\n"
            "    yield b'new' * 100000\n"
            "    print('writing', flush=True)\n"
            "    time.sleep(60)\n"
            "if sys.argv[2] == 'named': files._open_unnamed = lambda folder: None\n"
            "files.write_file(sys.argv[1], Slow())\n"
        )
        self.path.write_bytes(b"old")
        for kind, number in (
            ("named", signal.SIGTERM),
            ("unnamed", signal.SIGTERM),
            ("unnamed", signal.SIGKILL),
        ):
            process = subprocess.Popen(
                [sys.executable, "-c", script, self.path, kind],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            self.assertEqual(process.stdout.readline(), b"writing\n")
            process.send_signal(number)
            self.assertEqual(process.wait(), -number)
            process.stdout.close()
            self.assertFolderHas("model.tflite")
            self.assertEqual(self.path.read_bytes(), b"old")

    def test_other_threads(self):
        """Every file has the mode that the umask gives, whoever writes beside."""
        modes, stop = set(), threading.Event()

        def create():
            while not stop.is_set():
                path = self.folder / "other"
                path.touch()
                modes.add(path.stat().st_mode)
                path.unlink()

        thread = threading.Thread(target=create)
        thread.start()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            self.write(self.path)
        stop.set()
        thread.join()
        self.assertLen(modes, 1)

    def test_no_warning_otherwise(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.write(self.path)
            self.write(self.path)


class ReadFileTest(absltest.TestCase):
    def test_small_files_are_not_mapped(self):
        path = pathlib.Path(self.create_tempdir().full_path, "file")
        path.write_bytes(b"content")
        self.assertEqual(files.read_file(path), b"content")
        with mock.patch.object(files, "_MAPPED_SIZE", 1):
            mapped = files.read_file(path)
        self.assertNotIsInstance(mapped, bytes)
        self.assertEqual(mapped[:], b"content")


if __name__ == "__main__":
    absltest.main()
