"""Names and colours the norms of a .tflite for Model Explorer.

The format is that of `model_explorer.node_data_builder.ModelNodeData` of
ai-edge-model-explorer 0.1.34, which loads it beside the model.
"""

import os
from typing import Any

from ai_edge_rms_norm.tflite import edit, flatbuffer
from ai_edge_rms_norm.tflite.encoding import Encoding, Survey

__all__ = ["node_data"]

_FUSED, _DECOMPOSED, _LEFT_ALONE = "#a5d6a7", "#ffe082", "#ef9a9a"


def node_data(path: str | bytes | os.PathLike[str]) -> dict[str, Any]:
    """Returns Model Explorer's node data for the norms of a .tflite.

    Each operator of a norm has as value the number of the norm, counted from 1 in the
    order of `inspection.inspect`, and is green for fused norms and composites, yellow
    for decomposed ones and red for what looks like a norm and is left alone.

    Raises:
      OSError: The file cannot be read.
      ValueError: It is not a .tflite, or damaged.
    """
    model = flatbuffer.load(path)
    survey = Survey(model)
    nodes = [
        (
            norm.subgraph,
            norm.operators,
            _DECOMPOSED if norm.encoding == Encoding.DECOMPOSED else _FUSED,
        )
        for norm in survey.norms
    ]
    nodes += [(s.subgraph, (s.operator,), _LEFT_ALONE) for s in survey.skipped]
    graphs: dict[str, Any] = {}
    for number, (index, operators, color) in enumerate(nodes, 1):
        name = edit.text(model.subgraphs[index].name)
        # As Model Explorer calls subgraphs without a name.
        name = name or ("main" if index == 0 else f"subgraph_{index}")
        graph = graphs.setdefault(name, {"name": "RMSNorm", "results": {}})
        for operator in operators:
            graph["results"][str(operator)] = {"value": number, "bgColor": color}
    return graphs
