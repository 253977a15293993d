"""Views for where there are no widgets: outputs that are redrawn now and then, and the terminal."""

from __future__ import annotations

import sys
from typing import Any

from nbllm.display.safe import safe_bundle, safe_text

__all__ = ["OutputView", "TerminalView"]


class OutputView:
    """One output, redrawn as a whole: for nbclient, papermill and front ends without widgets."""

    def __init__(self) -> None:
        from IPython.display import display

        self.interval = 0.1
        waiting = {"text/markdown": "…", "text/plain": "…"}
        self._handle: Any = display(waiting, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def push(self, text: str) -> None:
        # Each redraw sends the whole text: the longer it is, the rarer, so that all of them stay within bounds.
        self.interval = max(0.1, len(text) / 150 * 0.001)
        if text:
            self._handle.update(safe_bundle(text), raw=True)

    def finish(self, text: str, metadata: dict[str, Any]) -> None:
        self._handle.update(safe_bundle(text), metadata=metadata, raw=True)


class TerminalView:
    """The terminal: text is written once, as it comes."""

    interval = 0.03

    def __init__(self) -> None:
        self._written = 0

    def push(self, text: str) -> None:
        sys.stdout.write(safe_text(text[self._written :]))
        sys.stdout.flush()
        self._written = len(text)

    def finish(self, text: str, metadata: dict[str, Any]) -> None:
        self.push(text)
        sys.stdout.write("\n")
        sys.stdout.flush()
