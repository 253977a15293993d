"""The README's table of faults, out of the same data as the tests: `python -m tests.faults.table` rewrites it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.faults.matrix import CELLS, PROVIDERS, Cell

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- faults: written by python -m tests.faults.table -->\n", "<!-- /faults -->\n"


def _outcome(cell: Cell) -> tuple[str, str, str]:
    """What the caller gets, what is kept of the text, and whether it is tried again."""
    if cell.error is not None:
        error = f"`{cell.error.__name__}`"
    else:
        error = "the answer" if cell.kept == "whole" else "no error; the connection is closed"
    kept = {"nothing": "none", "so far": "all that had arrived", "whole": "all"}[cell.kept]
    return error, kept, "yes" if cell.retried else ("" if cell.error is None else "no")


def render() -> str:
    """The table and its sentence, as Markdown."""
    # Alike outcomes make one row, at the place of the first of them.
    order: list[tuple[str, str, str]] = []
    for cell in CELLS:
        if _outcome(cell) not in order:
            order.append(_outcome(cell))
    rows = [("what happens", "what you get", "text kept", "retried")]
    for outcome, cells in groupby(sorted(CELLS, key=lambda cell: order.index(_outcome(cell))), key=_outcome):
        rows.append((", ".join(cell.says for cell in cells), *outcome))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---|---|---|---|")
    tests = f"{len(CELLS)} faults for each of {len(PROVIDERS)} providers: {len(CELLS) * len(PROVIDERS)} tests"
    return "\n".join([*lines, "", f"{tests} (`tests/faults/`), each with the provider's own SDK over a socket.", ""])


def written(readme: str) -> str:
    """The README with the table as it has to be.

    Raises:
        ValueError: where the README has no place for it.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text("utf-8")), "utf-8")
