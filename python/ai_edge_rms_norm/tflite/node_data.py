"""Names and colours the norms of a file for Model Explorer.

The format is that of `model_explorer.node_data_builder.ModelNodeData` of
ai-edge-model-explorer 0.1.34, which loads it beside the model.
"""

import os
from typing import Any

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.tflite import bundle as bundle_lib
from ai_edge_rms_norm.tflite import edit, flatbuffer
from ai_edge_rms_norm.tflite.encoding import Encoding, RmsNormOp, Survey
from ai_edge_rms_norm.tflite.verify import Content

__all__ = ["model_node_data", "node_data"]

_FUSED, _DECOMPOSED, _LEFT_ALONE = "#a5d6a7", "#ffe082", "#ef9a9a"


def node_data(path: str | bytes | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Returns Model Explorer's node data for the norms of a file, by model.

    Each operator of a norm has a text that names the norm: its number, counted from 1
    in the order of `inspection.inspect`, its encoding and epsilon. It is green for
    fused norms and composites, yellow for decomposed ones and red for what looks like a
    norm and is left alone, whose text is the reason.

    Args:
      path: Of a .tflite, .litertlm or .task.

    Returns:
      By the name of the model in a bundle, empty for a .tflite itself.

    Raises:
      ImportError: It is a .litertlm, and litert-lm-builder is not installed.
      OSError: The file cannot be read.
      ValueError: It is something else, or damaged.
    """
    return {
        model.name: model_node_data(
            model.content,
            f"{os.fsdecode(path)}, {model.name}" if model.name else os.fsdecode(path),
        )
        for model in bundle_lib.read_bundle(path).models
    }


def model_node_data(content: Content, name: str = "model") -> dict[str, Any]:
    """Returns the node data of one .tflite, by graph.

    Args:
      content: Its bytes.
      name: What to call it in errors.

    Raises:
      ValueError: It is damaged.
    """
    model = flatbuffer.read(content, name)
    survey = Survey(model)
    nodes = [
        (
            norm.subgraph,
            norm.operators,
            _name(survey, norm),
            _DECOMPOSED if norm.encoding == Encoding.DECOMPOSED else _FUSED,
        )
        for norm in survey.norms
    ]
    nodes += [
        (item.subgraph, (item.operator,), f"left alone: {item.reason}", _LEFT_ALONE)
        for item in survey.skipped
    ]
    graphs: dict[str, Any] = {}
    for number, (index, operators, text, color) in enumerate(nodes, 1):
        graph_name = edit.text(model.subgraphs[index].name)
        # As Model Explorer calls subgraphs without a name.
        graph_name = graph_name or ("main" if index == 0 else f"subgraph_{index}")
        graph = graphs.setdefault(graph_name, {"name": "RMSNorm", "results": {}})
        for operator in operators:
            value = f"norm {number}: {text}"
            graph["results"][str(operator)] = {"value": value, "bgColor": color}
    return graphs


def _name(survey: Survey, norm: RmsNormOp) -> str:
    encoding = norm.encoding.value
    if norm.encoding == Encoding.DECOMPOSED and not survey.is_range_safe(norm):
        encoding = backends.PLAIN
    # An addition has two outputs.
    add = "with addition, " if len(norm.outputs) > 1 else ""
    return f"{add}{encoding}, epsilon {norm.epsilon!r}"
