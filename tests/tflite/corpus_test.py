"""Files that once were read wrong, or without an end: each gives the right answer."""

import contextlib
import faulthandler
import io
import pathlib
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.cli import main
from ai_edge_rms_norm.tflite import edit, flatbuffer, op_options
from testing.tflite_builder import Builder
from tests.tflite import corpus

_OP = schema.BuiltinOperator
# All of them together take 5 s; what does not end is shown with its stack.
_SECONDS = 120
_OPTIONS = op_options.encode_custom_options(1e-3)
_UNKNOWN = flexbuffers.Dumps({"epsilon": 1e-3, "axis": 1})


def _interface(shape, dtype=np.float32, weight=(16,), signature=None, y=None):
    """Returns a builder, and the indices of x, the weight and y."""
    b = Builder()
    x = b.input(shape, dtype, signature)
    w = b.constant(np.ones(weight))
    b.subgraph.outputs = [b.tensor(shape, y or dtype, signature=signature)]
    return b, [x, w], b.subgraph.outputs


def _composite(shape, inner=(2, 16), axes=-1, inside=np.float32, attributes=None, **kw):
    """A composite whose operands are not those of its decomposition, or odd ones."""
    b, inputs, outputs = _interface(shape, **kw)
    index = corpus.decomposition(b, inner, axes, inside)
    b.composite(inputs, outputs, index, attributes=attributes)
    return flatbuffer.to_bytes(b.model)


def _custom(options, shape=(2, 16), name=op_options.RMS_NORM, terms=1, **kwargs):
    b, (x, weight), outputs = _interface(shape, **kwargs)
    b.custom(
        name,
        [x, *[b.constant(np.ones(16))] * (terms - 1), weight],
        [*[b.tensor(shape)] * (terms - 1), *outputs],
        options,
    )
    return flatbuffer.to_bytes(b.model)


def _custom_call(backend_config):
    b, inputs, outputs = _interface((2, 16))
    b.subgraph.operators.append(
        schema.OperatorT(
            opcodeIndex=edit.intern_operator_code(b.model, _OP.STABLEHLO_CUSTOM_CALL),
            inputs=inputs,
            outputs=outputs,
            builtinOptions2Type=(schema.BuiltinOptions2.StablehloCustomCallOptions),
            builtinOptions2=schema.StablehloCustomCallOptionsT(
                callTargetName=op_options.RMS_NORM.encode(),
                backendConfig=backend_config,
            ),
        )
    )
    return flatbuffer.to_bytes(b.model)


# The file, what every tool says of it, and the runtime.
_NESTED = "unknown (key|option) .nested."
_AXIS = "unknown (key|option) .axis."
_REFUSED = {
    "shared_vectors": (_custom(corpus.shared_vectors()), _NESTED),
    "unknown_option": (_custom(_UNKNOWN), _AXIS),
    "options_none": (_custom(None), "(with a value at byte -1 of|got) 0"),
    "options_empty": (_custom(b""), "(with a value at byte -1 of|got) 0"),
    "json_key": (_custom_call(b'{"epsilon": 1e-3, "axis": 1}'), _AXIS),
    "json_depth": (_custom_call(b"[" * 100000), "not JSON"),
    "json_overflow": (_custom_call(b'{"epsilon": ' + b"9" * 400 + b"}"), "is inf"),
    "json_none": (_custom_call(None), "not JSON"),
    "json_not_utf8": (_custom_call(b"\xff"), "backendConfig is not UTF-8"),
}

# The file, why no plain operators may take its place, what the runtime says.
_NO_KERNEL = {
    "weight_scalar": (_custom(_OPTIONS, weight=()), r"float32 of shape \[\]", "weight"),
    "weight_one": (_custom(_OPTIONS, weight=(1,)), r"of shape \[1\], must", "weight"),
    "weight_8": (_custom(_OPTIONS, weight=(8,)), r"of shape \[8\], must", "weight"),
    "weight_2d": (_custom(_OPTIONS, weight=(1, 16)), r"of shape \[1, 16\]", "weight"),
    "y_float16": (_custom(_OPTIONS, y=np.float16), "x is float32", "y must have"),
    "x_int32": (_custom(_OPTIONS, dtype=np.int32), "is int32", "got int32"),
    "x_uint8": (_custom(_OPTIONS, dtype=np.uint8), "is uint8", "got uint8"),
    "scalar": (_custom(_OPTIONS, (), weight=()), r"its shape is \[\]", "one dimension"),
    "residual": (
        _custom(_OPTIONS, name=op_options.ADD_RMS_NORM, terms=2),
        r"of shape \[16\], x has the shape \[2, 16\]",
        "residual must have",
    ),
}

# The file, why fuse and translate leave the composite, and the shape of x with which
# the runtime's own operators and the delegate are compared; None: they take none.
_COMPOSITES = {
    # Axis 2 is not the last one outside.
    "rank": (_composite((1, 2, 3, 16), (2, 3, 16)), "input 0 is", (1, 2, 3, 16)),
    "axes_that_a_placeholder_hides": (
        _composite((1, 16), (1, 16), axes=(0, 1), signature=[-1, 16]),
        r"over the axes \[0, 1\]",
        (4, 16),
    ),
    "int32": (_composite((2, 16), dtype=np.int32), "input 0 is int32", None),
    "uint8": (_composite((2, 16), dtype=np.uint8), "input 0 is uint8", None),
    "float16": (_composite((2, 16), dtype=np.float16), "input 0 is float16", None),
    "weight_scalar": (_composite((2, 16), weight=()), r"input 1 is .*\[\]", (2, 16)),
    # The runtime ends the process for these.
    "int8_inside": (_composite((2, 16), inside=np.int8), "is int8", None),
    "shared_vectors": (
        _composite((2, 16), attributes=corpus.shared_vectors()),
        "unknown key 'nested'",
        (2, 16),
    ),
    "no_attributes": (_composite((2, 16), attributes=b""), "got 0 bytes", (2, 16)),
}


def _run(kind, content, shape):
    interpreter = kind(model_content=content)
    interpreter.resize_tensor_input(0, shape)
    interpreter.allocate_tensors()
    x = np.random.default_rng(0).standard_normal(shape)
    interpreter.set_tensor(0, x.astype(np.float32))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


class CorpusTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        faulthandler.dump_traceback_later(_SECONDS, exit=True)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)

    def _command(self, name, content):
        """Returns what the command writes to stderr, after checking that it fails."""
        folder = pathlib.Path(self.create_tempdir().full_path)
        (folder / "in.tflite").write_bytes(content)
        arguments = ["", name, str(folder / "in.tflite"), str(folder / "out.tflite")]
        with (
            mock.patch.object(sys, "argv", arguments),
            contextlib.redirect_stderr(io.StringIO()) as stderr,
            self.assertRaises(SystemExit) as status,
        ):
            main.main()
        self.assertEqual(status.exception.code, 2)
        self.assertFalse((folder / "out.tflite").exists())
        return stderr.getvalue()

    @parameterized.named_parameters((k, *row) for k, row in _REFUSED.items())
    def test_refused(self, content, message):
        steps = [
            lambda: arn.fuse(content),
            lambda: arn.Model(content).rms_norm_ops(),
            *(lambda e=e: arn.translate(content, e) for e in arn.Encoding),
        ]
        for step in steps:
            with self.assertRaisesRegex(ValueError, message):
                step()
        for name in ("fuse", "translate"):
            self.assertRegex(self._command(name, content), f"^error: .*{message}.*\n$")
        with self.assertRaisesRegex((ValueError, RuntimeError), message):
            _run(arn.Interpreter, content, (2, 16))

    @parameterized.named_parameters((k, *row) for k, row in _NO_KERNEL.items())
    def test_operands_without_a_kernel(self, content, message, said_by_runtime):
        for encoding in ("composite", "decomposed", "ml_drift"):
            with self.assertRaisesRegex(ValueError, message):
                arn.translate(content, encoding)
            model, report = arn.fuse(content, encoding=encoding)
            self.assertEqual(bytes(model), content)
            self.assertRegex(report.skipped[0].reason, message)
        # Both keep what it says, whatever that is.
        call = arn.translate(content, "stablehlo_custom_call")
        self.assertEqual(arn.translate(call, "custom"), content)
        with self.assertRaisesRegex(RuntimeError, said_by_runtime):
            arn.Interpreter(model_content=content).allocate_tensors()

    @parameterized.named_parameters((k, *row) for k, row in _COMPOSITES.items())
    def test_other_composites(self, content, reason, shape):
        _, report = arn.fuse(content)
        self.assertRegex(report.skipped[0].reason, reason)
        for encoding in arn.Encoding:
            self.assertEqual(arn.translate(content, encoding), content)
            self.assertEqual(bytes(arn.fuse(content, encoding=encoding)[0]), content)
        if shape is not None:
            expected = _run(litert.Interpreter, content, shape)
            actual = _run(arn.Interpreter, content, shape)
            np.testing.assert_allclose(actual, expected, rtol=4e-6)


if __name__ == "__main__":
    absltest.main()
