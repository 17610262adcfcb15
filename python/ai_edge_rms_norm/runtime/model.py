"""A converted model: its bytes, its export to a file and its execution."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import typing as npt

from ai_edge_rms_norm.runtime import compare as compare_lib
from ai_edge_rms_norm.runtime import execution
from ai_edge_rms_norm.runtime.interpreter import Interpreter
from ai_edge_rms_norm.tflite import bundle, flatbuffer, inspection
from ai_edge_rms_norm.tflite import encoding as encoding_lib
from ai_edge_rms_norm.tflite import fuse as fuse_lib

__all__ = ["DEFAULT_SIGNATURE", "Model", "fuse"]

DEFAULT_SIGNATURE = "serving_default"


class Model:
    """A .tflite in memory, callable from one thread at a time.

    Args:
      content: The bytes of a .tflite.

    Raises:
      ValueError: `content` is not a .tflite.
    """

    def __init__(self, content: bytes) -> None:
        flatbuffer.check_header(content)
        self._content = content
        self._interpreter: Interpreter | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Copied and pickled without the interpreter, which a call makes anew.
        return {"_content": self._content, "_interpreter": None}

    @classmethod
    def load(cls, path: str | bytes | os.PathLike[str]) -> "Model":
        """Reads a .tflite.

        Raises:
          OSError: The file cannot be read.
          ValueError: It is not a .tflite.
        """
        with open(path, "rb") as file:
            content = file.read()
        flatbuffer.check_header(content, os.fsdecode(path))
        return cls(content)

    def model_content(self) -> bytes:
        """Returns the bytes of the .tflite."""
        return self._content

    def __bytes__(self) -> bytes:
        return self._content

    def export(self, path: str | bytes | os.PathLike[str]) -> None:
        """Writes the .tflite, completely or not at all.

        Raises:
          OSError: The file cannot be written.
        """
        flatbuffer.write_file(path, self._content)

    def rms_norm_ops(self) -> list[encoding_lib.RmsNormOp]:
        """Lists the operators of this package in the model."""
        return encoding_lib.find_ops(flatbuffer.read(self._content))

    def translate(
        self, to: encoding_lib.Encoding | str, *, range_safe: bool = True
    ) -> "Model":
        """Returns the model in another encoding; as the function `translate`."""
        return Model(encoding_lib.translate(self._content, to, range_safe=range_safe))

    def interpreter(self, num_threads: int | None = None, **kwargs: Any) -> Interpreter:
        """Returns a new interpreter for the model; arguments as for `Interpreter`."""
        return Interpreter(
            model_content=self._content, num_threads=num_threads, **kwargs
        )

    def summary(self) -> str:
        """Returns size, signatures and norms, one norm a line, for reading."""
        model = bundle.BundledModel("", memoryview(self._content))
        result = inspection.inspect_models("tflite", (model,))
        tree = flatbuffer.read(self._content)
        operators = sum(len(subgraph.operators) for subgraph in tree.subgraphs)
        lines = [
            f"{len(self._content)} bytes, {operators} operators,"
            f" {len(tree.signatureDefs or ())} signatures,"
            f" {len(result.norms)} norms, {len(result.skipped)} left alone"
        ]
        lines += [
            f"{norm.title}: {norm.encoding}, hidden size {norm.hidden_size},"
            f" epsilon {norm.epsilon!r}, {'a' if norm.has_weight else 'no'} weight"
            for norm in result.norms
        ]
        lines += [f"{norm.title}: left alone: {norm.reason}" for norm in result.skipped]
        return "\n".join(lines)

    def compare(
        self,
        other: "Model",
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        *,
        signature: str | None = None,
        rtol: float = 1e-3,
        atol: float = 1e-5,
    ) -> compare_lib.Comparison:
        """Runs this and another model on the same inputs and compares the outputs.

        Both run with the delegate, in their own encodings.

        Args:
          other: What this one is compared to.
          inputs: By name; default from N(0, 1), with zeros for integers.
          signature: Which one to run, default the first.
          rtol: Tolerance relative to the largest |b| of an output.
          atol: Absolute tolerance.

        Raises:
          ValueError: A signature, an input or an output is not the same in both.
        """
        a, b = (
            execution.runners(model.interpreter(), signature) for model in (self, other)
        )
        name, runner = next(iter(a.items()))
        if name not in b:
            raise ValueError(f"the other has no signature {name!r}, but {list(b)}")
        if inputs is None:
            inputs = execution.random_inputs(runner)
        return compare_lib.compare_outputs(
            runner(runner.check_inputs(inputs)),
            b[name](b[name].check_inputs(inputs)),
            rtol=rtol,
            atol=atol,
        )

    def __call__(
        self,
        *args: npt.ArrayLike,
        signature_name: str = DEFAULT_SIGNATURE,
        **kwargs: npt.ArrayLike,
    ) -> Any:
        """Runs a signature.

        Args:
          *args: The positional inputs `args_0`, `args_1`, ... of the signature.
          signature_name: Which signature to run.
          **kwargs: The inputs of these names.

        Returns:
          The output, a tuple of outputs `output_0`, `output_1`, ..., or a dict when
          the PyTorch model returned one.

        Raises:
          ValueError: There is no such signature, or its inputs have other names.
        """
        if self._interpreter is None:
            self._interpreter = self.interpreter()
        signatures = self._interpreter.get_signature_list()
        if signature_name not in signatures:
            raise ValueError(
                f"the model has no signature {signature_name!r}; it has"
                f" {sorted(signatures)}"
            )
        inputs = {f"args_{i}": np.asarray(value) for i, value in enumerate(args)}
        inputs.update((name, np.asarray(value)) for name, value in kwargs.items())
        expected = sorted(signatures[signature_name]["inputs"])
        if sorted(inputs) != expected:
            raise ValueError(
                f"signature {signature_name!r} takes {expected}, got {sorted(inputs)}"
            )
        outputs = self._interpreter.get_signature_runner(signature_name)(**inputs)
        positional = [f"output_{i}" for i in range(len(outputs))]
        if set(outputs) != set(positional):
            return outputs
        values = tuple(outputs[name] for name in positional)
        return values[0] if len(values) == 1 else values


def fuse(
    model: bytes | str | os.PathLike[str],
    *,
    encoding: encoding_lib.Encoding | str = encoding_lib.Encoding.CUSTOM,
    range_safe: bool = True,
) -> tuple[Model, fuse_lib.FusionReport]:
    """Makes one operator of every RMSNorm in a finished .tflite.

    An intermediate that something else uses, or that is an output, keeps a norm from
    being fused, as does a mean over other axes than the last; the report names these.
    Half-precision norms that round in between become norms that round once. A
    LayerNorm written as mean(d * d) of d = x - mean(x) holds an RMSNorm of d, which is
    fused.

    Args:
      model: The bytes or the path of a .tflite. A file is mapped.
      encoding: How the norms, also those that were operators before, are written;
        those in this encoding stay as they are, but decomposed ones get the form that
        `range_safe` says, and composites without a weight one of ones.
      range_safe: Whether the operators of the encoding `decomposed`, and inside of
        composites, are those of the range-safe form. The plain form takes half to two
        thirds of the time on a stock CPU runtime, but its squares overflow in float16
        from 256 on.

    Returns:
      The model and the report of what was fused and what was not.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a .tflite or is damaged, refers to operators by index, or
        the encoding is unknown.
    """
    encoding = encoding_lib.Encoding(encoding)
    if isinstance(model, bytes):
        tree = flatbuffer.read(model)
    else:
        tree = flatbuffer.load(model)
    report = fuse_lib.fuse_model(tree, encoding, range_safe=range_safe)
    return Model(flatbuffer.to_bytes(tree)), report
