"""Draws docs/data/float16.png from what tests/gpu/measure_float16.py measured.

python benchmarks/float16_figure.py docs/data/float16.json docs/data/float16.png
"""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

_LABELS = {
    "plain": "plain: mean of squares of x",
    "decomposed": "decomposed: range-safe operators",
    "ml_drift": "ml_drift: one kernel",
}


def main() -> None:
    source, target = sys.argv[1:]
    measured = json.loads(pathlib.Path(source).read_text())
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for encoding, label in _LABELS.items():
        axes.loglog(measured["max_abs_x"], measured["errors"][encoding], label=label)
    axes.axvline(256, color="gray", linestyle=":", label="|x| = 256: x² leaves float16")
    axes.text(300, 0.6, "the output is zeros", va="top")
    axes.set_xlabel("largest |x|")
    axes.set_ylabel("largest error / largest output")
    axes.set_title("RMSNorm in float16 on LiteRT's GPU accelerator, hidden size 768")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main()
