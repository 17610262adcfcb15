"""`ai-edge-rms-norm inspect`."""

import dataclasses
from typing import Any

from ai_edge_rms_norm import backends
from ai_edge_rms_norm.cli import app, errors, options, output
from ai_edge_rms_norm.tflite import inspection


def _shape(shape: tuple[int, ...] | None) -> str:
    sizes = ("?" if size < 0 else str(size) for size in shape or ())
    return "x".join(sizes)


def _row(norm: inspection.InspectedNorm) -> list[str]:
    return [
        norm.title,
        _kind(norm),
        "" if norm.hidden_size is None else str(norm.hidden_size),
        "" if norm.epsilon is None else repr(norm.epsilon),
        {None: "", True: "yes", False: "none"}[norm.has_weight],
        _shape(norm.shape),
        norm.dtype,
        ", ".join(norm.signatures),
        f"{norm.subgraph}:{norm.operator}",
        *([norm.model] if norm.model else []),
    ]


def _kind(norm: inspection.InspectedNorm) -> str:
    if norm.encoding is None:
        return f"left alone: {norm.reason}"
    if norm.is_fused:
        return f"fused: {norm.encoding}"
    if norm.encoding == backends.PLAIN:
        return f"decomposed: {norm.num_operators} operators, fusible"
    if norm.encoding == "decomposed":
        return f"decomposed: {norm.num_operators} operators, range-safe, fusible"
    return "composite"


def print_runtimes(result: inspection.Inspection) -> None:
    """Prints which runtimes run a file, and how."""
    rows = []
    for report in result.runtimes():
        counts = ", ".join(f"{n} {o.value}" for o, n in report.outcomes.items())
        if not report.loads:
            verdict = "no"
        elif report.is_right:
            verdict = "yes"
        else:
            unknown = {*report.outcomes} - {backends.Outcome.UNKNOWN}
            is_right = all(outcome.is_right for outcome in unknown)
            verdict = "not measured" if is_right else "wrong"
        title = backends.RUNTIMES[report.runtime].title.replace("`", "")
        rows.append([title, verdict, counts, "; ".join(report.notes)])
    output.table(["runtime", "runs it", "norms", "note"], rows)


def document(result: inspection.Inspection) -> dict[str, Any]:
    """Returns what `--json` prints."""
    return {
        "format": result.kind,
        "models": result.models,
        "norms": [dataclasses.asdict(norm) for norm in result.norms],
        "skipped": [dataclasses.asdict(norm) for norm in result.skipped],
        "runtimes": [
            {
                "runtime": report.runtime,
                "title": backends.RUNTIMES[report.runtime].title.replace("`", ""),
                "loads": report.loads,
                "is_right": report.is_right,
                "outcomes": {o.value: n for o, n in report.outcomes.items()},
                "notes": report.notes,
            }
            for report in result.runtimes()
        ],
    }


@app.command
def inspect(model: options.Model, json: options.Json = False) -> None:
    """List every norm of a file, and which runtimes run it.

    Examples:
      ai-edge-rms-norm inspect model.tflite
      ai-edge-rms-norm inspect model.litertlm --json
    """
    with errors.about(model):
        result = inspection.inspect(model)
    if json:
        output.print_json("inspect", {"file": str(model), **document(result)})
        return
    columns = ["layer", "norm", "hidden size", "epsilon", "weight", "x", "type"]
    columns += ["signature", "subgraph:operator"]
    columns += ["model"] if result.kind != "tflite" else []
    output.table(columns, [_row(norm) for norm in (*result.norms, *result.skipped)])
    if result.norms:
        print()
        print_runtimes(result)
    output.summary(
        f"{model}: {len(result.norms)} norms, {len(result.skipped)} left alone"
    )
