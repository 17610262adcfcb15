"""Tables of the package's reports, as text and for notebooks."""

import html
from collections.abc import Sequence

__all__ = ["html_table", "text_table"]

_GAP = "  "


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns rows below the names of their columns, aligned; one line for each."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        _GAP.join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def html_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """Returns an HTML table below a title of lines; all text is escaped."""
    lines = "<br>".join(map(html.escape, title.splitlines()))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f"<p>{lines}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
