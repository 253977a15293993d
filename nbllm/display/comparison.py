"""Several answers to one prompt, how they went, and the static form of both that a notebook keeps.

Timings are what a comparison is for, so they stand in the static form too. An answer out of the response cache has
none of its own: there they are left out, rather than those of the replay given for the model's.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nbllm.accounting import usd
from nbllm.display.note import NOTHING, Note
from nbllm.display.safe import safe_markdown, safe_text
from nbllm.display.static import LONGEST_NAME, emphasis, formatted, note_said
from nbllm.display.table import Table
from nbllm.errors import MissingExtraError, NbllmError
from nbllm.response import FINAL, Response, ResponseStream
from nbllm.types import FinishReason, State

__all__ = ["HEADINGS", "Comparison", "Row", "plain_column", "plain_foot", "plain_table", "static_columns"]

HEADINGS: Final = ("Model", "State", "First token", "Time", "Tokens/s", "Tokens", "Cost")
"""Of the table; `Row.cells` gives what stands below them."""

PER_TOKEN: Final = 4
"""Characters a token, about, until the provider has said how many tokens there were. `compare.js` counts alike."""

UNKNOWN: Final = "—"

WORDS: Final[Mapping[State, str]] = {
    "pending": "waiting",
    "streaming": "writing",
    "complete": "done",
    "interrupted": "stopped",
    "incomplete": "broke off",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Row:
    """How one of the calls went, or goes.

    Attributes:
        model: Its name in the comparison, as it was asked for.
        answered_by: The fallback that answered, as `provider:model`; None where it was the model itself.
        state: As of a `ResponseStream`.
        finish_reason: Why the model stopped; None where it did not of itself.
        error: What ended it.
        cached: Whether it came out of the response cache.
        time_to_first_token: Seconds to the model's first word, retries included; None where there was none, and where
            it was cached.
        seconds: Seconds from beginning to end; None where it was cached.
        tokens_per_second: Tokens of a complete answer over the seconds from its first word to its end; over all seconds
            where it came in one piece. Reasoning counts where it could be seen.
        input_tokens: Tokens of the prompt, where known.
        output_tokens: Tokens of the answer, reasoning included, where known.
        cost: US dollars, or None where that is not known.
        words: Characters of the answer.
        characters: The same, with those of the reasoning that is shown.
    """

    model: str
    answered_by: str | None
    state: State
    finish_reason: FinishReason | None
    error: BaseException | None
    cached: bool
    time_to_first_token: float | None
    seconds: float | None
    tokens_per_second: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost: float | None
    words: int
    characters: int

    @classmethod
    def of(cls, model: str, stream: ResponseStream) -> Row:
        """What is known of the stream by now."""
        measured = not stream.cached
        usage, text, reasoning = stream.usage, stream.text, stream.reasoning
        return cls(
            model=model,
            answered_by=f"{stream.provider}:{stream.model}" if stream.fallback_of else None,
            state=stream.state,
            finish_reason=stream.finish_reason,
            error=stream.error,
            cached=stream.cached,
            time_to_first_token=stream.time_to_first_token if measured else None,
            seconds=stream.duration if measured else None,
            tokens_per_second=_rate(stream) if measured and stream.state == "complete" else None,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost=stream.cost,
            words=len(text),
            characters=len(text) + len(reasoning),
        )

    @property
    def said(self) -> str:
        """Its state in a word or a few."""
        if self.state == "complete" and self.finish_reason not in ("stop", "tool_calls", None):
            return f"done ({self.finish_reason.replace('_', ' ')})"
        return WORDS[self.state]

    @property
    def what_failed(self) -> tuple[str, str]:
        """The error and what to do about it; empty where there is none."""
        if self.error is None:
            return "", ""
        message = self.error.message if isinstance(self.error, NbllmError) else str(self.error)
        action = self.error.action if isinstance(self.error, NbllmError) else None
        return f"{type(self.error).__name__}: {message}", action or ""

    def cells(self) -> tuple[str, ...]:
        """What the table says of it, below `HEADINGS`; what is not known is a dash, what is estimated has an ≈."""
        known = self.state == "complete" and self.output_tokens is not None
        output = (
            f"{self.output_tokens}"
            if known
            else f"≈\u00a0{self.characters // PER_TOKEN}"
            if self.characters
            else UNKNOWN
        )
        return (
            self.model,
            self.said,
            _seconds(self.time_to_first_token),
            _seconds(self.seconds),
            UNKNOWN if self.tokens_per_second is None else _number(self.tokens_per_second),
            output if self.input_tokens is None else f"{self.input_tokens}\u00a0→\u00a0{output}",
            UNKNOWN if self.cost is None else usd(self.cost),
        )


class Comparison(Mapping[str, Response]):
    """The answers by the models' names, in the order in which they were asked.

    A model that failed has what had arrived of its answer, which may be nothing; its `state` says so, and `errors` why.

    Attributes:
        rows: How each of them went.
        errors: What went wrong, of those with which something did.
    """

    def __init__(self, rows: Iterable[Row], responses: Iterable[Response]) -> None:
        self.rows = tuple(rows)
        self.errors = {row.model: row.error for row in self.rows if row.error is not None}
        self._responses = dict(zip([row.model for row in self.rows], responses, strict=True))

    @classmethod
    def of(cls, streams: Mapping[str, ResponseStream]) -> Comparison:
        """What the streams have given by now."""
        rows = [Row.of(name, stream) for name, stream in streams.items()]
        return cls(rows, [stream.response() for stream in streams.values()])

    def __getitem__(self, model: str) -> Response:
        return self._responses[model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._responses)

    def __len__(self) -> int:
        return len(self._responses)

    def __repr__(self) -> str:
        return f"<Comparison {', '.join(f'{safe_text(row.model)!r} {row.said}' for row in self.rows)}>"

    def to_dataframe(self) -> Any:
        """A row for each model: its text and state, timings, tokens and cost; what is not known is missing there.

        Raises:
            MissingExtraError: where pandas is not installed.
        """
        try:
            import pandas as pd  # type: ignore[import-untyped]
        except ImportError as exc:
            raise MissingExtraError("pandas", "data") from exc
        rows = [
            {
                "model": row.model,
                "text": str(self[row.model]),
                "state": row.state,
                "error": row.error and safe_text(str(row.error)),
                **{name: getattr(row, name) for name in MEASURES},
                "cached": row.cached,
            }
            for row in self.rows
        ]
        frame = pd.DataFrame(rows, columns=["model", "text", "state", "error", *MEASURES, "cached"])
        whole = dict.fromkeys(("input_tokens", "output_tokens"), "Int64")
        return frame.astype({name: whole.get(name, "float64") for name in MEASURES})

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return static_columns(self)


MEASURES: Final = (
    "time_to_first_token",
    "seconds",
    "tokens_per_second",
    "input_tokens",
    "output_tokens",
    "cost",
)


def _rate(stream: ResponseStream) -> float | None:
    tokens, first = stream.usage.output_tokens, stream.time_to_first_token
    if tokens is None or first is None:
        return None
    if not stream.reasoning:
        # Reasoning that is not shown was done before the first word, whose time is not in what follows.
        tokens -= stream.usage.reasoning_tokens or 0
    seconds = stream.duration - first
    if seconds < 0.05 * stream.duration:
        seconds = stream.duration
    return tokens / seconds if seconds > 0 else None


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    digits = 2 if seconds < 10 else 1 if seconds < 100 else 0
    return f"{seconds:.{digits}f}\u00a0s"


# -- the static form

COLUMNS: Final = (
    '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:0 16px">\n'
    '<div style="min-width:0;overflow-x:auto">'
)
NEXT_COLUMN: Final = '</div>\n<div style="min-width:0;overflow-x:auto">'
"""With blank lines around them, what is within is markdown as before. A reader that keeps no styles, such as GitHub,
shows the answers one below the other."""


def static_columns(comparison: Comparison, note: Note = NOTHING) -> dict[str, str]:
    """What a notebook keeps: a table of how they went, then the answers, each under its model's name."""
    table, *columns, foot = _harmless([_table(comparison), *_columns(comparison, note.format), _foot(note)])
    side_by_side = f"\n\n{NEXT_COLUMN}\n\n".join(columns)
    markdown = f"{table}\n\n{COLUMNS}\n\n{side_by_side}\n\n</div>\n</div>\n\n{foot}".rstrip("\n")
    plain = [
        plain_table(comparison),
        *(plain_column(row, comparison[row.model]) for row in comparison.rows),
        plain_foot(note),
    ]
    return {"text/markdown": markdown, "text/plain": "\n\n".join(part for part in map(safe_text, plain) if part)}


def plain_table(comparison: Comparison) -> str:
    """How they went, for a terminal."""
    return str(Table(HEADINGS, [row.cells() for row in comparison.rows]))


def plain_column(row: Row, answer: Response) -> str:
    """One answer under its model's name, for a terminal."""
    said = [_heading(row), str(answer), *(f"*{line}*" for line in _marks(row, answer)), *_failure(row)]
    return safe_text("\n\n".join([f"── {_one_line(said[0])} ──", *filter(None, said[1:])]))


def plain_foot(note: Note) -> str:
    """What is to be said below the answers, for a terminal."""
    said = _below(note)
    return safe_text(f"*{said}*") if said else ""


def _harmless(parts: list[str]) -> list[str]:
    """Parts of one document made harmless.

    Each by itself, so that no unclosed fence reaches into the next one; then all together, since two dollars that are
    harmless each alone would make a formula of what lies between.
    """
    mark = secrets.token_hex(16)  # which no model can have foreseen
    whole = safe_markdown(f"\n\n{mark}\n\n".join(map(safe_markdown, parts)))
    return [part.strip("\n") for part in whole.split(mark)]


def _table(comparison: Comparison) -> str:
    rule = ("---", "---", *["---:"] * (len(HEADINGS) - 2))
    rows = [HEADINGS, rule, *(map(_literal, row.cells()) for row in comparison.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _columns(comparison: Comparison, form: str) -> Iterator[str]:
    for row in comparison.rows:
        answer = comparison[row.model]
        said = [formatted(answer, form)] if answer else []
        said += [*map(emphasis, (*_marks(row, answer), *_failure(row)))]
        yield "\n\n".join([f"#### {_literal(_heading(row))}", *said])


def _foot(note: Note) -> str:
    said = _below(note)
    return emphasis(said) if said else ""


def _below(note: Note) -> str:
    said = " · ".join(note_said(note))
    return said[:1].upper() + said[1:]


def _heading(row: Row) -> str:
    return row.model if row.answered_by is None else f"{row.model} (answered by {row.answered_by})"


def _marks(row: Row, answer: Response) -> list[str]:
    """What else is to be said of the answer, in short sentences."""
    if row.state == "interrupted":
        return ["Stopped here." if answer else "Stopped before the first word."]
    if row.state not in FINAL:
        return [] if answer else ["…"]
    if answer.tool_calls:
        return [f"Asks for {', '.join(_one_line(call.name)[:LONGEST_NAME] for call in answer.tool_calls)}."]
    return ["The answer is empty."] if row.state == "complete" and not answer else []


def _failure(row: Row) -> list[str]:
    """What went wrong, and what to do about it."""
    message, action = row.what_failed
    return [_one_line(line) for line in (message, action and f"→ {action}") if line]


def _one_line(text: str) -> str:
    return re.sub(r"[^\S\u00a0]+", " ", safe_text(text)).strip()  # what is not to be broken stays together


_MARKUP: Final = re.compile(r"[!-/:-@\[-`{-~](?<![,\-./:;()?=%+'])")


def _literal(text: str) -> str:
    """Somebody else's words in one line of markdown, to the letter."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", _one_line(text))
