"""The norms of Hugging Face Transformers, and whether `replace_rms_norm` takes them.

They are the classes at the top of a modeling file of `transformers.models` whose name
has RMSNorm or LayerNorm in it. Many are copies: classes with the same methods are one
body.
"""

import ast
import collections
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterable

import torch
import transformers

import ai_edge_rms_norm as arn
from ai_edge_rms_norm.ops import proof

__all__ = ["NormClass", "Outcome", "bodies", "examine", "norm_classes"]

_NAME = re.compile("(rms|layer)_?norm", re.IGNORECASE)
_SIZE = 24
# The usual names of arguments that have no default.
_ARGUMENTS = {
    "group_size": 8,
    **dict.fromkeys(
        ("c_in", "dim", "hidden_size", "normalized_shape", "num_channels", "size"),
        _SIZE,
    ),
}
# Arguments that default to None and are needed.
_OPTIONAL = {"dim", "hidden_size"}


@dataclasses.dataclass(frozen=True)
class NormClass:
    """A class of Transformers that is called a norm.

    Attributes:
      module: The name of its module.
      name: Its name.
      body: Its methods without docstrings and annotations, the same for copies; with
        its bases if it has no forward of its own.
    """

    module: str
    name: str
    body: str

    @property
    def is_rms_norm(self) -> bool:
        """Whether it is called an RMSNorm, not only a LayerNorm."""
        return "rms" in self.name.lower()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one norm.

    Attributes:
      status: "proven", "refused", or "not made" if its constructor needs more than
        sizes, such as the configuration of a model.
      detail: The proof, or the reason.
    """

    status: str
    detail: str


class _Bare(ast.NodeTransformer):
    """Removes docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        node.returns = None
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)


def _body(node: ast.ClassDef) -> str:
    bases = ", ".join(map(ast.unparse, node.bases))
    methods = [_Bare().visit(n) for n in node.body if isinstance(n, ast.FunctionDef)]
    text = "\n".join(map(ast.unparse, methods)).replace(node.name, "_")
    has_forward = any(method.name == "forward" for method in methods)
    return text if has_forward else f"{bases}\n{text}"


@functools.cache
def norm_classes() -> tuple[NormClass, ...]:
    """Returns the norms in the sources of Transformers, in the order of their names."""
    folder = pathlib.Path(inspect.getfile(transformers)).parent / "models"
    return tuple(
        NormClass(
            f"transformers.models.{path.parent.name}.{path.stem}",
            node.name,
            _body(node),
        )
        for path in sorted(folder.glob("*/modeling_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and _NAME.search(node.name)
    )


def bodies(classes: Iterable[NormClass]) -> dict[str, list[NormClass]]:
    """Returns classes by what they have in common."""
    found = collections.defaultdict(list)
    for norm in classes:
        found[norm.body].append(norm)
    return dict(found)


def _make(norm: NormClass) -> torch.nn.Module:
    kind = getattr(importlib.import_module(norm.module), norm.name)
    arguments = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        is_needed = parameter.default is parameter.empty or name in _OPTIONAL
        if is_needed and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            arguments[name] = _ARGUMENTS[name]
    return kind(**arguments)


def examine(norm: NormClass) -> Outcome:
    """Makes a norm and replaces it."""
    try:
        module = _make(norm)
    except KeyError as error:
        return Outcome("not made", f"its constructor needs {error.args[0]}")
    except (RuntimeError, TypeError, ValueError) as error:
        return Outcome("not made", str(error))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    model = torch.nn.Sequential(module)
    report = arn.replace_rms_norm(model)
    if report.replaced:
        (replaced,) = report.replaced
        weight = "weight"
        if replaced.weight_offset:
            weight = f"{replaced.weight_offset:g} + weight"
        elif replaced.hidden_size is None:
            weight = "no weight"
        return Outcome("proven", f"{weight}, result {model[0].result_dtype}")
    if report.skipped:
        return Outcome("refused", report.skipped[0].reason)
    try:  # It is not called an RMSNorm, so that the report does not mention it.
        proof.prove(module)
    except proof.NotProvenError as error:
        return Outcome("refused", str(error))
    raise AssertionError(f"{norm} is proven and was not replaced")
