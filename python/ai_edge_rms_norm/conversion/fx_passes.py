"""Fuses RMSNorm in an exported program, and residual additions with the norm behind.

Graph passes over `torch.export.ExportedProgram`, for norms that are not a module of
their own and for programs that are there already. Found is every spelling that
`pattern` knows; several factors of shape [hidden size], also computed ones like 1 + w,
become one weight.
"""

import dataclasses
import operator
from typing import Any

import torch
from absl import logging
from torch.fx import Graph, Node

import ai_edge_rms_norm.ops.rms_norm  # noqa: F401  Defines the operators.
from ai_edge_rms_norm import pattern
from ai_edge_rms_norm.ops import fx_graph

__all__ = ["DecomposedReport", "fuse_add", "fuse_decomposed"]

_ATEN = torch.ops.aten
# Export puts it beside a cast; it computes nothing.
_ASSERTION = _ATEN._assert_tensor_metadata.default


@dataclasses.dataclass(frozen=True)
class DecomposedReport:
    """The result of `fuse_decomposed`.

    Attributes:
      fused: The number of norms that became one operator each.
      skipped: The root mean squares that were left alone, and why.
    """

    fused: int
    skipped: tuple[pattern.Refusal[Node], ...]


def _value(node: Node) -> torch.Tensor:
    """Returns the fake tensor that a node computes."""
    value = fx_graph.value_of(node)
    assert value is not None, node
    return value


def _shape(node: Node) -> list[str]:
    """Returns a shape as text: comparing symbols would constrain them."""
    return [str(size) for size in _value(node).shape]


def _inside_composites(graph: Graph) -> set[Node]:
    """Returns the nodes between the marks that make a composite of them.

    The marks are `mark_tensor(x, name, pos, id, is_input, attr)` of litert-torch and
    ai-edge-torch.
    """
    inside: dict[Node, set[str]] = {}
    for node in graph.nodes:
        ids = set().union(*(inside[i] for i in node.all_input_nodes))
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.name.endswith("::mark_tensor"):
            names = (argument.name for argument in schema.arguments)
            arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
            (ids.add if arguments["is_input"] else ids.discard)(arguments["id"])
        inside[node] = ids
    return {node for node, ids in inside.items() if ids}


def _weight(graph: Graph, weights: list[Node], x: Node) -> Node | None:
    """Emits the product of the weights, in a dtype that the operator takes."""

    def emit(target: Any, *args: Any, **kwargs: Any) -> Node:
        node = graph.call_function(target, args, kwargs)
        values = [_value(a) if isinstance(a, Node) else a for a in args]
        node.meta["val"] = target(*values, **kwargs)
        return node

    allowed = (_value(x).dtype, torch.float32)
    if len(weights) > 1 or any(_value(w).dtype not in allowed for w in weights):
        dtype = torch.promote_types(_value(x).dtype, torch.float32)
        weights = [
            w
            if _value(w).dtype == dtype
            else emit(_ATEN._to_copy.default, w, dtype=dtype)
            for w in weights
        ]
    product, *others = weights or (None,)
    for other in others:
        product = emit(_ATEN.mul.Tensor, product, other)
    return product


def fuse_decomposed(program: torch.export.ExportedProgram) -> DecomposedReport:
    """Makes one operator of every RMSNorm in an exported program, in place.

    A norm whose intermediates something else uses is left alone, as are those over
    other dimensions than the last one, those with an epsilon that is not a constant,
    and those inside of a composite (`StableHLOCompositeBuilder`, enable_hlfb), which
    is what its decomposition computes: a composite `odml.rms_norm` becomes an operator
    in the finished file. The reasons are in the report, and logged.

    Args:
      program: An exported program at ATen level, after `run_decompositions`, which
        decomposes aten.rms_norm, too.

    Returns:
      The number of norms that were fused, and what was left alone.
    """
    graph = program.graph_module.graph
    matches, refusals = fx_graph.find_norms(
        graph, fx_graph.constants(program), _inside_composites(graph)
    )
    for match in matches:
        _replace(program, graph, match)
    if matches:
        graph.eliminate_dead_code()
        graph.lint()
        program.graph_module.recompile()
    for refusal in refusals:
        logging.info("Not fused, %s: %s", refusal.root.name, refusal.reason)
    return DecomposedReport(len(matches), tuple(refusals))


def _replace(
    program: torch.export.ExportedProgram, graph: Graph, match: pattern.Match[Node]
) -> None:
    output = match.y
    with graph.inserting_before(output):
        weight = _weight(graph, list(match.weights), match.x)
        new = graph.call_function(
            torch.ops.ai_edge_torch.custom_rms_norm.default,
            (match.x, weight, match.epsilon),
        )
    # The names of tensors in the .tflite come from this.
    new.meta = dict(output.meta)
    for inner in match.ops:
        for user in list(inner.users):
            if user.target == _ASSERTION:
                graph.erase_node(user)
    output.replace_all_uses_with(new)
    program.graph_signature.replace_all_uses(output.name, new.name)


def _joined_before(graph: Graph, add: Node, norm: Node) -> Node | None:
    """Returns the node before which both can be computed; None if there is none."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    weight = norm.args[1]
    if weight is None or order[weight] < order[add]:
        return add
    if all(order[user] >= order[norm] for user in add.users):
        return norm
    return None


def fuse_add(program: torch.export.ExportedProgram) -> int:
    """Joins x + residual with the norm of the sum, in place.

    The sum stays available to whatever else uses it. Additions that broadcast, promote
    a dtype or scale are left alone; of two norms of one sum, the first is joined.

    Args:
      program: An exported program at ATen level, with the RMSNorm operators.

    Returns:
      The number of additions that were joined.
    """
    graph = program.graph_module.graph
    ops = torch.ops.ai_edge_torch
    count = 0
    for norm in list(graph.nodes):
        if norm.target != ops.custom_rms_norm.default:
            continue
        add = norm.args[0]
        if add.target != _ATEN.add.Tensor or add.kwargs:
            continue
        if any(
            fx_graph.value_of(term) is None
            or _shape(term) != _shape(add)
            or _value(term).dtype != _value(add).dtype
            for term in add.args
        ):
            continue
        place = _joined_before(graph, add, norm)
        if place is None:
            continue
        with graph.inserting_before(place):
            both = graph.call_function(
                ops.custom_add_rms_norm.default,
                (*add.args, *norm.args[1:]),
                norm.kwargs,
            )
            both.meta = {**norm.meta, "val": (_value(add), _value(norm))}
            results = [
                graph.call_function(operator.getitem, (both, i)) for i in range(2)
            ]
        for old, new in zip((add, norm), results, strict=True):
            new.meta = dict(old.meta)
        for old, new in zip((norm, add), results[::-1], strict=True):
            old.replace_all_uses_with(new)
            program.graph_signature.replace_all_uses(old.name, new.name)
            graph.erase_node(old)
        count += 1
    if count:
        graph.lint()
        program.graph_module.recompile()
    return count
