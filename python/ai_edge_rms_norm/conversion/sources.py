"""Loads what is to be converted: a factory in a Python file, or an exported program."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

__all__ = ["Source", "load_factory", "load_program", "load_source"]


class Source(NamedTuple):
    """A module to be converted.

    Attributes:
      module: The module.
      args: Its positional example inputs.
      kwargs: Its named ones.
      dynamic_shapes: As `arn.convert` takes it; None for static shapes.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any = None


def load_source(source: str | os.PathLike[str]) -> Source:
    """Loads a module with its example inputs.

    Args:
      source: `FILE.py:FACTORY`, or the path of a .pt2 of `torch.export.save`.

    Returns:
      The module and its example inputs; the sizes that a .pt2 leaves open stay so.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is something else, or the factory returns something else.
    """
    name = os.fspath(source)
    path, colon, factory = name.rpartition(":")
    if colon and path.endswith(".py"):
        return load_factory(path, factory)
    if name.endswith(".pt2"):
        return load_program(name)
    if pathlib.Path(name).is_dir() or name.endswith(".json"):
        raise ValueError(
            f"{name}: a Hugging Face checkpoint has no example inputs; convert it with"
            " ai_edge_rms_norm.conversion.huggingface or: ai-edge-rms-norm convert"
        )
    what = "expected" if pathlib.Path(name).exists() else "it does not exist; expected"
    raise ValueError(f"{name}: {what} FILE.py:FACTORY, a .pt2 or a checkpoint")


def load_factory(path: str | os.PathLike[str], name: str) -> Source:
    """Runs a Python file and calls a function in it.

    Args:
      path: Of the Python file; what lies beside it can be imported.
      name: Of the function. It returns the module and its example inputs: a tensor, a
        tuple of the positional ones, or a dict of the named ones.

    Raises:
      OSError: The file cannot be read.
      ValueError: There is no such function, it raises, or it returns something else.
    """
    file = pathlib.Path(path)
    # Says so if the file is missing or cannot be read.
    file.read_bytes()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise ValueError(f"{file}: it has no function {name!r}")  # noqa: TRY004
        result = factory()
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    if not (
        isinstance(result, tuple)
        and len(result) == 2
        and isinstance(result[0], torch.nn.Module)
    ):
        raise ValueError(
            f"{file}: {name} must return (torch.nn.Module, example inputs), got"
            f" {type(result).__name__}"
        )
    inputs = result[1]
    if isinstance(inputs, Mapping):
        return Source(result[0], (), dict(inputs))
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    return Source(result[0], tuple(inputs), {})


def load_program(path: str | os.PathLike[str]) -> Source:
    """Reads a .pt2 that `torch.export.save` wrote, with its example inputs.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a .pt2, has no example inputs, or leaves sizes open of
        inputs that are named or not tensors.
    """
    with open(path, "rb") as file:
        try:
            program = torch.export.load(file)
        except Exception as error:  # torch raises many types for damaged files.
            raise ValueError(f"{os.fspath(path)}: not a .pt2: {error}") from error
    if program.example_inputs is None:
        raise ValueError(f"{os.fspath(path)}: it was exported without example inputs")
    args, kwargs = program.example_inputs
    return Source(program.module(), tuple(args), dict(kwargs), _dynamic_shapes(program))


def _dynamic_shapes(program: torch.export.ExportedProgram) -> Any:
    names = set(program.graph_signature.user_inputs)
    values = [n.meta["val"] for n in program.graph.nodes if n.name in names]
    shapes = [
        {
            axis: torch.export.Dim.DYNAMIC
            for axis, size in enumerate(getattr(value, "shape", ()))
            if isinstance(size, torch.SymInt)
        }
        for value in values
    ]
    if not any(shapes):
        return None
    leaves, structure = pytree.tree_flatten(program.example_inputs)
    if len(leaves) != len(shapes):
        raise ValueError("a .pt2 with open sizes must have tensors as its only inputs")
    args, kwargs = pytree.tree_unflatten(shapes, structure)
    if kwargs:
        raise ValueError("a .pt2 with open sizes must have positional inputs only")
    return tuple(args)
