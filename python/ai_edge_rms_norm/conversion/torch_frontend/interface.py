"""The interface of a PyTorch front end."""

import abc
import dataclasses
import importlib.metadata
import io
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

__all__ = ["FrontEnd", "Lowered", "Lowering", "Signature", "Transform", "distribution"]

# Changes an exported program in place; what it returns is not used.
Transform = Callable[[torch.export.ExportedProgram], object]
# Emits the MLIR of a torch operator; takes the lowering context and its arguments.
Lowering = Callable[..., Any]

# Older than the StableHLO of every TensorFlow that is supported, so that all of them
# can read it, and new enough for everything that the lowerings emit. Compatibility of
# portable artifacts: https://openxla.org/stablehlo/compatibility.
_VHLO_VERSION = "1.5.0"


def distribution(name: str) -> str:
    """Returns the name and the version of an installed distribution, for messages."""
    return f"{name} {importlib.metadata.version(name)}"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A module to convert, and how it is called.

    Attributes:
      name: The name of the signature in the model.
      module: The module, in evaluation mode.
      args: Positional example inputs.
      kwargs: Example inputs by name.
      dynamic_shapes: As `torch.export.export` takes it; None for static shapes.
    """

    name: str
    module: torch.nn.Module
    args: tuple[torch.Tensor, ...]
    kwargs: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    dynamic_shapes: Any = None


class Lowered(Protocol):
    """A StableHLO module: the class MlirLowered of both front ends.

    Attributes:
      ctx: The MLIR context.
      module: The MLIR module. Its function `main` takes the parameters and the inputs
        of the program in the order of input_signature.
      state_dict: The parameters by name.
      input_signature: Per argument its shape (a torch.SymInt is dynamic), its
        torch.dtype and its input_spec: is_user_input and i (index among the inputs),
        or is_parameter and name.
      output_signature: Per result its shape and its torch.dtype.
    """

    ctx: Any
    module: Any
    state_dict: dict[str, torch.Tensor]
    input_signature: list[Any]
    output_signature: list[Any]

    def get_text(self) -> str:
        """Returns the module as MLIR text."""


class FrontEnd(abc.ABC):
    """A PyTorch front end.

    Attributes:
      module: Name of its Python package.
      name: Distribution and version, for messages.
      converter: Distribution and version of litert-converter; None without it.
      lowerings: Its registry of lowerings, a module.
      ir: Its MLIR bindings, a module like `mlir.ir`.
      stablehlo: The bindings of the StableHLO dialect.
    """

    module: str
    name: str
    converter: str | None
    lowerings: Any
    ir: Any
    stablehlo: Any

    @abc.abstractmethod
    def export_decomposed(self, signature: Signature) -> torch.export.ExportedProgram:
        """Exports a signature and runs the decompositions that come before passes."""

    @abc.abstractmethod
    def run_passes(
        self, program: torch.export.ExportedProgram
    ) -> torch.export.ExportedProgram:
        """Runs the passes that come before the lowering."""

    @abc.abstractmethod
    def lower_to_stablehlo(self, program: torch.export.ExportedProgram) -> Lowered:
        """Lowers an exported program; its parameters become arguments."""

    @abc.abstractmethod
    def serialize_portable_artifact(self, bytecode: bytes, version: str) -> bytes:
        """Returns StableHLO bytecode as VHLO bytecode of a version."""

    @abc.abstractmethod
    def flat_names(self, specs: list[pytree.TreeSpec], context: Any) -> list[str]:
        """Names the leaves of tree specs, as the front end does in its models.

        Args:
          specs: The children of a spec.
          context: The context of that spec: its keys, if it is a dict.
        """

    def lower(self, operator: Any) -> Callable[[Lowering], Lowering]:
        """Returns a decorator that registers the lowering of a torch operator."""
        decorator: Callable[[Lowering], Lowering] = self.lowerings.lower(operator)
        return decorator

    def convert(
        self,
        signatures: Sequence[Signature],
        transform: Transform | None = None,
        **options: Any,
    ) -> bytes:
        """Converts signatures into one .tflite with litert-converter.

        Args:
          signatures: At least one.
          transform: Runs on every exported program before it is lowered.
          **options: Of the front end's converter.

        Raises:
          ImportError: litert-converter is not installed.
        """
        raise ImportError(
            "the backend litert needs litert-torch with litert-converter; installed is"
            f" {self.name}"
        )

    def export(
        self, signature: Signature, transform: Transform | None = None
    ) -> torch.export.ExportedProgram:
        """Exports a signature and runs a pass and the front end's own."""
        program = self.export_decomposed(signature)
        if transform is not None:
            transform(program)
        return self.run_passes(program)

    def serialize_vhlo(self, lowered: Lowered) -> bytes:
        """Returns a module as a portable artifact (VHLO bytecode)."""
        bytecode = io.BytesIO()
        lowered.module.operation.write_bytecode(bytecode)
        with lowered.ctx:
            return self.serialize_portable_artifact(bytecode.getvalue(), _VHLO_VERSION)

    def input_names(self, signature: Signature) -> list[str]:
        """Names the tensors among the inputs: `args_0`, ..., and keyword arguments."""
        _, spec = pytree.tree_flatten((signature.args, signature.kwargs))
        args, kwargs = _children(spec)
        names = self.flat_names(_children(args), args.context)
        return [f"args_{name}" for name in names] + self.flat_names(
            _children(kwargs), kwargs.context
        )

    def output_names(
        self, program: torch.export.ExportedProgram, count: int
    ) -> list[str]:
        """Names the outputs: the keys of a dict, else `output_0`, ..."""
        spec = program.call_spec.out_spec
        if spec is None or not spec.context:
            return [f"output_{i}" for i in range(count)]
        return self.flat_names(_children(spec), spec.context)


def _children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    # A method since torch 2.10, which deprecates the attribute.
    return spec.children() if hasattr(spec, "children") else spec.children_specs
