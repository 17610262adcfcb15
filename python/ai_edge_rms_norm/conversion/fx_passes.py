"""Makes our operator of RMSNorm that is written out in an exported program.

A graph pass over `torch.export.ExportedProgram`, for norms that are no module of their
own and for programs that are there already. Found is, at ATen level and in any order of
the factors,

    x * rsqrt(mean(x * x, dim=-1) + epsilon) * weight ...

with pow(x, 2), x * x or square; rsqrt, pow(·, -0.5), or sqrt with a division or a
reciprocal; casts between floating types anywhere; and factors of shape [hidden size],
also computed ones like 1 + w. Several such factors become one weight.

A second pass joins a residual addition with the norm behind it.
"""

import numbers
import operator

import torch
from torch.fx import Graph, Node

import ai_edge_rms_norm.ops.rms_norm  # noqa: F401  Defines the operators.

__all__ = ["fuse_add", "fuse_decomposed"]

_ATEN = torch.ops.aten
_CASTS = (_ATEN._to_copy.default,)
_SHAPES = (_ATEN.unsqueeze.default, _ATEN.view.default, _ATEN.reshape.default)
_ADDITIONS = (_ATEN.add.Tensor, _ATEN.add.Scalar)
_PRODUCTS = (_ATEN.mul.Tensor, _ATEN.mul.Scalar)
# What export puts beside a cast; it computes nothing.
_ASSERTION = _ATEN._assert_tensor_metadata.default
_HALF_DTYPES = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, *_HALF_DTYPES)


def _value(node) -> torch.Tensor | None:
    """Returns the fake tensor that a node computes."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def _shape(node: Node) -> list[str]:
    """Returns a shape as text: comparing symbols would constrain them."""
    return [str(size) for size in _value(node).shape]


def _is_cast(node) -> bool:
    return (
        isinstance(node, Node)
        and node.target in _CASTS
        and _value(node) is not None
        and _value(node).dtype in _DTYPES
        and _value(node.args[0]).dtype in _DTYPES
    )


def _source(node):
    """Returns what a node was before it was cast to a wider float."""
    while _is_cast(node) and _value(node.args[0]).dtype in _HALF_DTYPES:
        node = node.args[0]
    return node


def _users(node: Node) -> list[Node]:
    return [user for user in node.users if user.target != _ASSERTION]


def _only_user(node: Node) -> Node | None:
    users = _users(node)
    return users[0] if len(users) == 1 else None


class _Match:
    """What a chain of nodes computes, found from the node that computes the root."""

    def __init__(self, root: Node):
        self.found = False
        exponent = root.args[1] if root.target == _ATEN.pow.Tensor_Scalar else None
        inverted = root.target == _ATEN.rsqrt.default or exponent == -0.5
        if not inverted and root.target != _ATEN.sqrt.default and exponent != 0.5:
            return
        chain = {root}
        shifted = self._back(root.args[0], chain, (*_CASTS, *_SHAPES))
        if not isinstance(shifted, Node) or shifted.target not in _ADDITIONS:
            return
        chain.add(shifted)
        mean, self.epsilon = shifted.args[:2]
        # add(a, b, alpha=2) is a + 2 b.
        if shifted.kwargs or not isinstance(self.epsilon, numbers.Real):
            return
        mean = self._back(mean, chain, (*_CASTS, *_SHAPES))
        if not isinstance(mean, Node) or mean.target != _ATEN.mean.dim:
            return
        chain.add(mean)
        square = self._back(mean.args[0], chain, _CASTS)
        if not isinstance(square, Node) or not self._is_square(square):
            return
        chain.add(square)
        x = square.args[0]
        shape = _shape(x)
        if (
            not shape
            or not isinstance(_value(x).shape[-1], int)
            or mean.args[1] is None  # Over all dimensions.
            or [d % len(shape) for d in mean.args[1]] != [len(shape) - 1]
            or not 0 < self.epsilon < float("inf")
        ):
            return
        self._forward(root, x, chain, inverted)

    @staticmethod
    def _back(node, chain: set[Node], targets) -> Node:
        while isinstance(node, Node) and node.target in targets:
            if node.target in _CASTS and not _is_cast(node):
                break
            chain.add(node)
            node = node.args[0]
        return node

    @staticmethod
    def _is_square(node: Node) -> bool:
        if node.target == _ATEN.pow.Tensor_Scalar:
            return node.args[1] == 2
        if node.target == _ATEN.square.default:
            return True
        return (
            node.target == _ATEN.mul.Tensor
            and isinstance(node.args[1], Node)
            and _source(node.args[0]) is _source(node.args[1])
        )

    @staticmethod
    def _scales(node, x: Node) -> Node | None:
        """Returns the weight of a node that computes x * weight."""
        if not isinstance(node, Node) or node.target != _ATEN.mul.Tensor:
            return None
        for a, b in (node.args, node.args[::-1]):
            if (
                _source(a) is _source(x)
                and _value(b) is not None
                and _shape(b) == _shape(x)[-1:]
            ):
                return b
        return None

    def _forward(self, root: Node, x: Node, chain: set[Node], inverted: bool):
        shape, source = _shape(x), _source(x)
        variants = {_value(v).dtype: v for v in (source, x)}
        node, has_x, weights = root, False, []
        while (user := _only_user(node)) is not None:
            target, others = user.target, [a for a in user.args if a is not node]
            if target in _SHAPES:
                if has_x or weights:
                    break
            elif _is_cast(user):
                pass
            elif target == _ATEN.reciprocal.default and not inverted:
                inverted = True
            elif target in _PRODUCTS and others == [1]:
                pass  # 1 / sqrt(v) is reciprocal(sqrt(v)) * 1.
            elif target == _ATEN.div.Tensor and not inverted and user.args[1] is node:
                inverted = True
                if _source(user.args[0]) is source:
                    if _shape(node) != [*shape[:-1], "1"]:
                        break
                    has_x = True
                elif user.args[0] != 1:
                    break
            elif target == _ATEN.mul.Tensor and inverted and len(others) == 1:
                (other,) = others
                if not has_x and _source(other) is source:
                    if _shape(node) != [*shape[:-1], shape[-1] if weights else "1"]:
                        break
                    has_x = True
                elif not has_x and (weight := self._scales(other, x)) is not None:
                    if weights or _shape(node) != [*shape[:-1], "1"]:
                        break
                    chain.add(other)
                    weights.append(weight)
                    has_x = True
                elif _value(other) is not None and _shape(other) == shape[-1:]:
                    if not has_x and _shape(node) != [*shape[:-1], "1"] and not weights:
                        break
                    weights.append(other)
                else:
                    break
            else:
                break
            chain.add(user)
            node = user
            dtype = _value(node).dtype
            if has_x and _shape(node) == shape and dtype in variants:
                self.found, self.output, self.chain = True, node, set(chain)
                self.x, self.weights = variants[dtype], list(weights)
        if self.found:
            # What something outside needs would be computed twice.
            self.found = all(
                node is self.output or self.chain.issuperset(_users(node))
                for node in self.chain
            )


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

    def emit(target, *args, **kwargs) -> Node:
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


def fuse_decomposed(program: torch.export.ExportedProgram) -> int:
    """Makes one operator of every RMSNorm in an exported program, in place.

    A norm whose intermediates something else uses is left alone, as are those over
    other dimensions than the last one, those with an epsilon that is no number and
    those inside of a composite (`StableHLOCompositeBuilder`, enable_hlfb), which is
    what its decomposition computes. A composite `odml.rms_norm` becomes our operator
    in the finished file.

    Args:
      program: An exported program at ATen level (after `run_decompositions`, which
        writes out aten.rms_norm, too).

    Returns:
      The number of norms that were fused.
    """
    graph = program.graph_module.graph
    inside_composites = _inside_composites(graph)
    count = 0
    for node in list(graph.nodes):
        if (
            node.op != "call_function"
            or _value(node) is None
            or node in inside_composites
        ):
            continue
        match = _Match(node)
        if not match.found:
            continue
        output = match.output
        with graph.inserting_before(output):
            new = graph.call_function(
                torch.ops.ai_edge_torch.custom_rms_norm.default,
                (
                    match.x,
                    _weight(graph, match.weights, match.x),
                    float(match.epsilon),
                ),
            )
        # The names of tensors in the .tflite come from this.
        new.meta = dict(output.meta)
        for inner in match.chain:
            for user in list(inner.users):
                if user.target == _ASSERTION:
                    graph.erase_node(user)
        output.replace_all_uses_with(new)
        program.graph_signature.replace_all_uses(output.name, new.name)
        count += 1
    if count:
        graph.eliminate_dead_code()
        graph.lint()
        program.graph_module.recompile()
    return count


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
      program: An exported program at ATen level, with our operators.

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
            _value(term) is None
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
