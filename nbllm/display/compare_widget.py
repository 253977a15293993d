"""The kernel's side of the live columns; imported when the first comparison is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import traitlets

from nbllm.display.answer_widget import HERE, LiveWidget, script

__all__ = ["CompareWidget"]


def _by_now(_: Any, widget: CompareWidget) -> float:
    return time.monotonic() - widget.began


class CompareWidget(LiveWidget):
    """Several answers: the parts are their numbers, from "0".

    Messages to the view: `{parts: {part: [at, delta], …}}`, all that is new in one. How each goes is in `rows`; seconds
    are counted on by the view, from the `clock` that a page finds when it is loaded.
    """

    _esm = script("compare.js")
    _css = "\n".join((HERE / name).read_text("utf-8") for name in ("answer.css", "compare.css"))
    names: Any = traitlets.List().tag(sync=True)
    rows: Any = traitlets.List().tag(sync=True)
    plain = traitlets.Bool(False).tag(sync=True)
    clock = traitlets.Float().tag(sync=True, to_json=_by_now)

    def __init__(
        self,
        stop: Callable[[str | None], None],
        names: Sequence[str],
        rows: list[dict[str, Any]],
        *,
        plain: bool,
        elapsed: float,
    ) -> None:
        self.began = time.monotonic() - elapsed
        super().__init__(stop, names=list(names), rows=rows, plain=plain)

    def push_all(self, texts: Sequence[str]) -> None:
        """Send what is new in any of them, in one message."""
        deltas = {}
        for number, text in enumerate(texts):
            part, whole = str(number), text.removesuffix("\ufffd")  # perhaps half a character
            at = len(self.parts.get(part, ""))
            if len(whole) > at:
                self.parts[part] = whole
                deltas[part] = [at, whole[at:]]
        if deltas:
            self.send({"parts": deltas})
