"""Writes the table of ai_edge_rms_norm.backends into docs/backends.md.

PYTHONPATH=python:. python tests/backends/update_docs.py
"""

import pathlib
import re

from ai_edge_rms_norm import backends

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "backends.md"
_BEGIN = "<!-- The table is made by tests/backends/update_docs.py. -->\n"
_END = "<!-- End of the table. -->\n"


def updated(page: str) -> str:
    """Returns the page with today's table.

    Raises:
      ValueError: The page has no place for the table.
    """
    begin, end = re.escape(_BEGIN), re.escape(_END)
    parts = re.split(f"(?s)(?<={begin}).*(?={end})", page)
    if len(parts) != 2:
        raise ValueError(f"{PAGE} needs the lines {_BEGIN!r} and {_END!r} once")
    return f"{parts[0]}\n{backends.matrix()}\n{parts[1]}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
