"""Makes pictures with matplotlib, which the extra `plot` installs."""

import io
import os
import pathlib
from typing import Any

from ai_edge_rms_norm.tflite import files

__all__ = ["new_figure", "write_figure"]


def new_figure(width: float, height: float) -> Any:
    """Returns an empty matplotlib figure, of inches.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a picture needs matplotlib: pip install 'ai-edge-rms-norm[plot]'",
            name="matplotlib",
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure; the suffix says the format, PNG without one.

    Raises:
      OSError: The file cannot be written.
      ValueError: The format is not known.
    """
    content = io.BytesIO()
    suffix = pathlib.PurePath(path).suffix.removeprefix(".") or "png"
    figure.savefig(content, format=suffix)
    files.write_file(path, [content.getvalue()])
