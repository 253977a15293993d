"""Views for where there are no widgets: outputs that are redrawn now and then, and the terminal."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from nbllm.display.note import NOTHING, Note
from nbllm.display.safe import safe_text
from nbllm.display.static import live_form, usage_line
from nbllm.response import ResponseStream

__all__ = ["EndView", "OutputView", "TerminalView"]

THINKING: Final = "thinking…"
"""What is shown while the model reasons and has said nothing yet."""


class OutputView:
    """One output, redrawn as a whole: for nbclient, papermill and front ends without widgets."""

    def __init__(self, note: Note = NOTHING) -> None:
        from IPython.display import display

        self.interval = 0.1
        self._format, self._thinking = note.format, False
        waiting = {"text/markdown": "…", "text/plain": "…"}
        self._handle: Any = display(waiting, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def push(self, stream: ResponseStream) -> None:
        text = stream.text
        # Each redraw sends the whole text: the longer it is, the rarer, so that all of them stay within bounds.
        self.interval = max(0.1, len(text) / 150 * 0.001)
        if text:
            self._handle.update(live_form(text, self._format), raw=True)
        elif stream.reasoning and not self._thinking:
            self._thinking = True
            self._handle.update({"text/markdown": f"*{THINKING}*", "text/plain": THINKING}, raw=True)

    def finish(self, data: dict[str, str], metadata: dict[str, Any]) -> None:
        self._handle.update(data, metadata=metadata, raw=True)


class EndView:
    """One output, made at the end."""

    interval = 0.0

    def push(self, stream: ResponseStream) -> None:
        """Nothing is shown before the end."""

    def finish(self, data: dict[str, str], metadata: dict[str, Any]) -> None:
        from IPython.display import display

        if any(data.values()):  # else there is an error, and nothing to keep
            display(data, metadata=metadata, raw=True, display_id=True)  # type: ignore[no-untyped-call]


_OPEN = re.compile(r"(?:\r|\x1b(?:\[[0-?]{0,64}[ -/]{0,8})?|\x9b[0-?]{0,64}[ -/]{0,8}|[\ud800-\udfff]|\ufffd)\Z")
"""The end of a text of which the next piece may make something else: half an escape, a line break or a character."""


class TerminalView:
    """The terminal: text is written once, as it comes."""

    interval = 0.03

    def __init__(self) -> None:
        self._stream: ResponseStream | None = None
        self._written = 0
        self._thinking = False

    def push(self, stream: ResponseStream) -> None:
        self._stream = stream
        text = stream.text
        if not text and stream.reasoning and not self._thinking and sys.stdout.isatty():
            self._thinking = True
            self._write(THINKING)
        if pending := _OPEN.search(text):
            text = text[: pending.start()]
        self._text(text)

    def finish(self, data: dict[str, str], metadata: dict[str, Any]) -> None:
        below = data["text/plain"]
        if self._stream is not None:
            self._text(self._stream.text)
            below = below[len(safe_text(self._stream.text)) :]
            line = usage_line(self._stream)
            below += f"\n\n{line}" if line not in below else ""
        self._write(below + "\n")

    def _text(self, text: str) -> None:
        if text and self._thinking:
            self._thinking = False
            self._write(f"\r{' ' * len(THINKING)}\r")
        self._write(safe_text(text[self._written :]))
        self._written = max(self._written, len(text))

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
