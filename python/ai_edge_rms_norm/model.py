"""A converted model: its bytes, its export to a file and its execution."""

import os

import numpy as np
from numpy import typing as npt

from ai_edge_rms_norm import encoding, flatbuffer
from ai_edge_rms_norm.interpreter import Interpreter

__all__ = ["DEFAULT_SIGNATURE", "Model"]

DEFAULT_SIGNATURE = "serving_default"


class Model:
    """A .tflite in memory, callable from one thread at a time.

    Args:
      content: The bytes of a .tflite.

    Raises:
      ValueError: `content` is no .tflite.
    """

    def __init__(self, content: bytes):
        flatbuffer.check_header(content)
        self._content = content
        self._interpreter: Interpreter | None = None

    def __getstate__(self):
        # Copied and pickled without the interpreter, which a call makes anew.
        return {"_content": self._content, "_interpreter": None}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Model":
        """Reads a .tflite.

        Raises:
          OSError: The file cannot be read.
          ValueError: It is no .tflite.
        """
        with open(path, "rb") as file:
            return cls(file.read())

    def model_content(self) -> bytes:
        """Returns the bytes of the .tflite."""
        return self._content

    def __bytes__(self) -> bytes:
        return self._content

    def export(self, path: str | os.PathLike) -> None:
        """Writes the .tflite, completely or not at all.

        Raises:
          OSError: The file cannot be written.
        """
        flatbuffer.write_file(path, self._content)

    def nodes(self) -> list[encoding.RmsNormNode]:
        """Lists our operators in the model."""
        return encoding.find_nodes(flatbuffer.read(self._content))

    def translate(self, to: encoding.Encoding | str) -> "Model":
        """Returns the model with our operators in another encoding.

        Raises:
          ValueError: The encoding is unknown.
        """
        return Model(encoding.translate(self._content, to))

    def interpreter(self, num_threads: int | None = None, **kwargs) -> Interpreter:
        """Returns a new interpreter for the model; arguments as for `Interpreter`."""
        return Interpreter(
            model_content=self._content, num_threads=num_threads, **kwargs
        )

    def __call__(
        self,
        *args: npt.ArrayLike,
        signature_name: str = DEFAULT_SIGNATURE,
        **kwargs: npt.ArrayLike,
    ):
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
