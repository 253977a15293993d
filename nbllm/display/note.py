"""What is to be said below an answer, beside what the call itself tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["NOTHING", "Note"]


@dataclass(frozen=True, slots=True)
class Note:
    """What a cell knows of its answer that the stream does not.

    Attributes:
        filled: What was filled into the prompt: nothing goes out unseen.
        history: How many earlier messages were sent along.
        stale: Labels of later cells that now rest on an older answer.
        format: How the answer is shown: `markdown`, `text`, `code`, `json`, `html` or `math`.
        lines: Further sentences to say below the answer.
    """

    filled: tuple[str, ...] = ()
    history: int = 0
    stale: tuple[str, ...] = ()
    format: str = "markdown"
    lines: tuple[str, ...] = ()


NOTHING: Final = Note()
"""Nothing is to be said."""
