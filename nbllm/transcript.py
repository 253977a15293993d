"""A conversation as Markdown, for people to read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from nbllm.conversation import Turn
from nbllm.display.safe import safe_markdown, safe_text

__all__ = ["MARKER", "markdown"]

MARKER: Final = "<!-- A conversation, exported by nbllm. -->"
"""The first line of an export as Markdown: such a file may be written again."""


def markdown(name: str, turns: Sequence[Turn], *, stale: Collection[str] = (), headings: bool = True) -> str:
    """A conversation to read, as markdown in which somebody else's text is harmless, each turn closed in itself.

    Args:
        name: What it is called.
        turns: What was said.
        stale: Labels of the cells that rest on an older answer.
        headings: Whether each turn has headings, as in a document of its own; else it begins with a bold word, since a
            notebook's outline is made of its headings.
    """
    parts = [f"# {safe_markdown(_line(name))}"] if headings else []
    for turn in turns:
        who = ":".join(filter(None, (turn.provider, turn.model)))
        older = "rests on an older answer" if turn.label and turn.label in stale else ""
        assistant = ", ".join(filter(None, (who, older)))
        parts.append(f"{'## User' if headings else '**You**'} {safe_markdown(_line(turn.label))}".rstrip())
        parts.append(safe_markdown(turn.asked.content).strip())
        parts += [
            f"*Attached: {safe_markdown(_line(file.name or 'a file'))} ({_line(file.media_type)}, {_size(file.data)})*"
            for file in turn.asked.attachments
        ]
        said = safe_markdown(_line(f"({assistant})")) if assistant else ""
        parts.append(f"{'## Assistant' if headings else '**Answer**'} {said}".rstrip())
        parts += [safe_markdown(turn.answer).strip()]
        if turn.state != "complete":
            parts += ["*Stopped here.*" if turn.state == "interrupted" else "*The answer breaks off here.*"]
        if not headings:
            parts += ["---"]
    whole = "\n\n".join(part for part in parts if part).removesuffix("\n\n---")
    # Once more as a whole: a single dollar is left as it is, and two turns with one each would make a formula.
    return safe_markdown(whole) + "\n"


def _line(text: str) -> str:
    return " ".join(safe_text(text).split())


def _size(data: bytes) -> str:
    return f"{len(data):,} bytes" if len(data) < 1000 else f"{len(data) / 1000:,.0f} kB"
