"""Runs the signatures of a model, or its first subgraph where it has none."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import interpreter as litert
from numpy import typing as npt

__all__ = ["NO_SIGNATURE", "Runner", "random_inputs", "read_inputs", "runners"]

# Stands for the name of a signature in a model without any.
NO_SIGNATURE = "subgraph 0"


class Runner:
    """Runs one signature, or subgraph 0 of a model without signatures.

    Attributes:
      inputs: LiteRT's details (shape, shape_signature, dtype, ...) of each input.

    Args:
      interpreter: The model's.
      signature: Name of a signature, or NO_SIGNATURE for subgraph 0, whose inputs and
        outputs are called as their tensors.
    """

    def __init__(self, interpreter: litert.Interpreter, signature: str) -> None:
        self._interpreter = interpreter
        self._runner: Any = None
        if signature != NO_SIGNATURE:
            self._runner = interpreter.get_signature_runner(signature)
            self.inputs: dict[str, Any] = self._runner.get_input_details()
        else:
            self.inputs = _by_name(interpreter.get_input_details())

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs it; returns the outputs by name."""
        if self._runner is not None:
            outputs: dict[str, np.ndarray] = self._runner(**inputs)
            return outputs
        interpreter = self._interpreter
        for name, value in inputs.items():
            interpreter.resize_tensor_input(self.inputs[name]["index"], value.shape)
        interpreter.allocate_tensors()
        for name, value in inputs.items():
            interpreter.set_tensor(self.inputs[name]["index"], value)
        interpreter.invoke()
        return {
            name: interpreter.get_tensor(detail["index"])
            for name, detail in _by_name(interpreter.get_output_details()).items()
        }

    def check_inputs(
        self, values: Mapping[str, npt.ArrayLike]
    ) -> dict[str, np.ndarray]:
        """Returns the inputs as arrays of the types that the model takes.

        Raises:
          ValueError: A name, a shape or a type is not that of an input.
        """
        if set(values) != set(self.inputs):
            raise ValueError(
                f"the inputs are {sorted(self.inputs)}, got {sorted(values)}"
            )
        return {
            name: _as_input(name, np.asarray(value), self.inputs[name])
            for name, value in values.items()
        }


def _by_name(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [detail["name"] for detail in details]
    return {
        name if names.count(name) == 1 and name else f"{name}#{i}": detail
        for i, (name, detail) in enumerate(zip(names, details, strict=True))
    }


def _as_input(name: str, value: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    expected = [int(size) for size in detail["shape_signature"]]
    if len(value.shape) != len(expected) or any(
        size not in (-1, given)
        for size, given in zip(expected, value.shape, strict=True)
    ):
        raise ValueError(
            f"input {name!r} must have the shape {expected}, got {list(value.shape)}"
        )
    dtype = np.dtype(detail["dtype"])
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise ValueError(f"input {name!r} must be {dtype}, got {value.dtype}")
    return value.astype(dtype)


def runners(
    interpreter: litert.Interpreter, signature: str | None = None
) -> dict[str, Runner]:
    """Returns what can be run, by the name of the signature.

    Args:
      interpreter: The model's.
      signature: The only one to return; default all.

    Raises:
      ValueError: There is no such signature.
    """
    names = list(interpreter.get_signature_list()) or [NO_SIGNATURE]
    if signature is not None:
        if signature not in names:
            raise ValueError(f"the model has no signature {signature!r}, but {names}")
        names = [signature]
    return {name: Runner(interpreter, name) for name in names}


def random_inputs(runner: Runner, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns inputs from N(0, 1), and zeros for integers and booleans.

    Zero is valid wherever an integer indexes something. A size that the run decides
    is 1.
    """
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(detail["shape"]).astype(detail["dtype"])
        if np.issubdtype(detail["dtype"], np.floating)
        else np.zeros(detail["shape"], detail["dtype"])
        for name, detail in runner.inputs.items()
    }


def read_inputs(path: str | os.PathLike[str]) -> dict[str, np.ndarray] | np.ndarray:
    """Reads the arrays of a .npz by name, or the one of a .npy.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is neither.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)}: not a .npz or .npy: {error}") from error
