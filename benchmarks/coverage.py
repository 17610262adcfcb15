"""Which norms of Hugging Face Transformers `replace_rms_norm` replaces, and why not.

    bazel run //benchmarks:coverage -- --output $PWD/results

Every norm of `testing/transformers_norms.py` is made with a hidden size of 24 and given
to `replace_rms_norm`. Prints the bodies with what became of them and writes
coverage.json to --output.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from importlib import metadata

from absl import app, flags
from rich import markup
from rich.console import Console
from rich.table import Table

from ai_edge_rms_norm.tflite import files
from testing.transformers_norms import (
    NormClass,
    Outcome,
    bodies,
    examine,
    norm_classes,
)

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON.")


def _rows(
    outcomes: dict[NormClass, Outcome],
) -> Iterator[tuple[str, int, NormClass, Outcome]]:
    """Yields the bodies: the status first, and the number of classes."""
    for classes in bodies(outcomes).values():
        by_outcome = collections.Counter(outcomes[norm].status for norm in classes)
        for status, count in by_outcome.items():
            norm = next(n for n in classes if outcomes[n].status == status)
            yield status, count, norm, outcomes[norm]


def main(_: list[str]) -> None:
    outcomes = {norm: examine(norm) for norm in norm_classes()}
    table = Table("status", "classes", "such as", "detail")
    rows = sorted(_rows(outcomes), key=lambda row: (row[0], -row[1]))
    for status, count, norm, outcome in rows:
        table.add_row(status, str(count), norm.name, markup.escape(outcome.detail))
    console = Console(width=200)
    console.print(table)
    counts = {
        kind: collections.Counter(
            outcome.status
            for norm, outcome in outcomes.items()
            if norm.is_rms_norm == (kind == "RMSNorm")
        )
        for kind in ("RMSNorm", "LayerNorm")
    }
    facts = {
        "classes": len(outcomes),
        "bodies": len(bodies(outcomes)),
        "counts": counts,
        "versions": {
            package: metadata.version(package) for package in ("torch", "transformers")
        },
    }
    console.print(facts)
    if _OUTPUT.value is None:
        return
    folder = pathlib.Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    results = [
        {**dataclasses.asdict(outcome), "module": norm.module, "class": norm.name}
        for norm, outcome in outcomes.items()
    ]
    text = json.dumps({**facts, "results": results}, indent=1) + "\n"
    files.write_file(folder / _OUTPUT.value / "coverage.json", [text.encode()])


if __name__ == "__main__":
    app.run(main)
