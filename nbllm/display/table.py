"""A small table for what a command has to say: aligned in a terminal, plain HTML in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from nbllm.display.safe import safe_text

__all__ = ["Table"]


class Table:
    """Rows of text under headings, and an optional line below.

    What is in the cells may come from a provider, so everything is escaped.
    """

    def __init__(self, headings: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
        self.headings = list(headings)
        self.rows = [[_one_line(cell) for cell in row] for row in rows]
        self.note = note

    def __str__(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([*text, *([self.note] if self.note else [])])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        def row(tag: str, cells: Sequence[str]) -> str:
            inner = "".join(f'<{tag} style="text-align:left">{_escaped(cell)}</{tag}>' for cell in cells)
            return f"<tr>{inner}</tr>"

        body = "".join(row("td", cells) for cells in self.rows)
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        head = row("th", self.headings)
        return {
            "text/html": f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{note}",
            "text/plain": str(self),
        }


def _escaped(text: str) -> str:
    # JupyterLab typesets formulas in HTML outputs too, and TeX can hold links.
    return html.escape(text).replace("$", "<span>&#36;</span>").replace("\\", "<span>&#92;</span>")


def _one_line(value: Any) -> str:
    return " ".join(safe_text(str(value)).split())
