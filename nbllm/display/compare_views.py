"""Where several answers are drawn: beside each other in a widget, in an output that is redrawn, in a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from nbllm.display.answer import INTERVAL, SETTLING, _has_widgets, _settling
from nbllm.display.comparison import Comparison, Row, plain_column, plain_foot, plain_table, static_columns
from nbllm.display.note import Note
from nbllm.display.safe import safe_text
from nbllm.response import FINAL, Response, ResponseStream

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["ColumnsView", "open_columns"]

Streams = Mapping[str, ResponseStream]


class ColumnsView(Protocol):
    """Where a comparison is drawn."""

    interval: float

    def push(self, streams: Streams) -> None:
        """Draw the answers so far."""

    def finish(self, comparison: Comparison, note: Note, metadata: dict[str, Any]) -> None:
        """Put the static form in place of the live one."""


def open_columns(shell: InteractiveShell, streams: Streams, note: Note) -> ColumnsView:
    """The view that suits where the cell runs."""
    if not hasattr(shell, "kernel"):
        return TerminalColumns()
    return WidgetColumns(streams, note) if _has_widgets(shell) else OutputColumns(streams, note)


class WidgetColumns:
    """A small anywidget with a column for each answer."""

    interval = INTERVAL

    def __init__(self, streams: Streams, note: Note) -> None:
        from IPython.display import display

        from nbllm.display.compare_widget import CompareWidget  # anywidget and ipywidgets take 0.3 s to import

        by_part = {str(number): stream for number, stream in enumerate(streams.values())}

        def stop(part: str | None) -> None:
            for stream in by_part.values() if part is None else [by_part[part]] if part in by_part else []:
                stream.cancel()

        elapsed = max(stream.duration for stream in streams.values())
        plain = note.format not in ("markdown", "math")
        self._widget = CompareWidget(stop, list(streams), _states(streams), plain=plain, elapsed=elapsed)
        self._handle: Any = display(self._widget, display_id=True)  # type: ignore[no-untyped-call]

    def push(self, streams: Streams) -> None:
        self._widget.push_all([stream.text for stream in streams.values()])
        self._widget.rows = _states(streams)  # sent where something is new in it

    def finish(self, comparison: Comparison, note: Note, metadata: dict[str, Any]) -> None:
        data = static_columns(comparison, note)
        self._handle.update(data, metadata=metadata, raw=True)
        self._widget.finish({"data": data, "metadata": metadata})
        _settling.append(self._widget)
        if len(_settling) > SETTLING:
            _settling.popleft().close()


def _states(streams: Streams) -> list[dict[str, Any]]:
    return [_state(Row.of(name, stream)) for name, stream in streams.items()]


def _state(row: Row) -> dict[str, Any]:
    """A row as `compare.js` has it; while it runs only what does not change all the time, since the view counts on."""
    message, action = row.what_failed
    _, said, *measured = row.cells()
    if row.state not in FINAL:
        said, measured = "thinking" if row.state == "streaming" and not row.words else said, measured[:1]
    elif row.cached:
        said += ", cached"
    return {
        "state": row.state,
        "cells": [said, *measured],
        "first": row.time_to_first_token,
        "error": message,
        "action": action,
    }


class OutputColumns:
    """One output, redrawn as a whole: for nbclient, papermill and front ends without widgets."""

    def __init__(self, streams: Streams, note: Note) -> None:
        from IPython.display import display

        self._form = Note(format=note.format)
        self.interval = 0.1
        self._drawn = ""
        self._handle: Any = display(  # type: ignore[no-untyped-call]
            static_columns(Comparison.of(streams), self._form), raw=True, display_id=True
        )

    def push(self, streams: Streams) -> None:
        data = static_columns(Comparison.of(streams), self._form)
        # Each redraw sends the whole text: the longer it is, the rarer, so that all of them stay within bounds.
        self.interval = max(0.1, len(data["text/plain"]) / 150 * 0.001)
        state = "".join(f"{stream.state}{len(stream.text)}," for stream in streams.values())
        if state != self._drawn:
            self._drawn = state
            self._handle.update(data, raw=True)

    def finish(self, comparison: Comparison, note: Note, metadata: dict[str, Any]) -> None:
        self._handle.update(static_columns(comparison, note), metadata=metadata, raw=True)


class TerminalColumns:
    """The terminal: each answer as a whole when it has ended, the table at the end; a line tells who is waited for."""

    interval = 0.1

    def __init__(self) -> None:
        self._printed: set[str] = set()
        self._line = ""

    def push(self, streams: Streams) -> None:
        for name, stream in streams.items():
            if stream.state in FINAL and stream.ended.done():
                self._print(Row.of(name, stream), stream.response())
        running = [f"{name} {len(stream.text)}" for name, stream in streams.items() if name not in self._printed]
        if sys.stdout.isatty():
            line = safe_text(f"… {', '.join(running)} characters" if running else "").replace("\n", " ")
            self._progress(line[: shutil.get_terminal_size().columns - 1])

    def finish(self, comparison: Comparison, note: Note, metadata: dict[str, Any]) -> None:
        for row in comparison.rows:
            self._print(row, comparison[row.model])
        self._progress("")
        foot = plain_foot(note)
        sys.stdout.write(plain_table(comparison) + (f"\n\n{foot}\n" if foot else "\n"))
        sys.stdout.flush()

    def _print(self, row: Row, answer: Response) -> None:
        if row.model not in self._printed:
            self._printed.add(row.model)
            self._progress("")
            sys.stdout.write(f"{plain_column(row, answer)}\n\n")

    def _progress(self, line: str) -> None:
        if line != self._line:
            sys.stdout.write(f"\r{' ' * len(self._line)}\r{line}")
            sys.stdout.flush()
            self._line = line
