"""The kernel's side of the live view; imported when the first answer is drawn."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

__all__ = ["AnswerWidget"]


class AnswerWidget(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's base is untyped
    """The kernel's side of `answer.js`.

    Messages to the view: `{at, next, delta}`, offsets in characters (code points) of the whole text. From it:
    `{ask: "stop"}`, answered with `{stopping}`, `{ask: "resync", at}`, `{ask: "close"}`.
    """

    _esm = Path(__file__).parent / "answer.js"
    _css = Path(__file__).parent / "answer.css"
    key = traitlets.Unicode().tag(sync=True)
    own_id = traitlets.Unicode().tag(sync=True)
    snapshot: Any = traitlets.Dict({"text": "", "at": 0}).tag(sync=True)
    final = traitlets.Any(None).tag(sync=True)

    def __init__(self, stop: Callable[[], None]) -> None:
        # The view needs a key from its first moment on; the model's id is known only once the comm is open.
        super().__init__(key=uuid.uuid4().hex)
        self.own_id = self.model_id
        self._stop: Callable[[], None] | None = stop
        self._text = ""
        self.on_msg(self._asked)
        if hasattr(self.comm, "_reply_subshell_for"):
            # ipykernel 7.4 pins the messages of a comm that a cell made to the main shell, where they wait
            # until the cell ends; a click on Stop is for now, and only cancels.
            self.comm._reply_subshell_for = lambda data, default: default  # noqa: SLF001 - there is no public way

    def push(self, text: str) -> None:
        """Send what is new; the whole of it each time it has doubled, so that a reloaded page has it too."""
        at, self._text = len(self._text), text
        if len(text) > at:
            self.send({"at": at, "next": len(text), "delta": text[at:]})
        if len(text) >= 2 * self.snapshot["at"] + 1024:
            self.snapshot = {"text": text, "at": len(text)}

    def finish(self, final: dict[str, Any]) -> None:
        """Say what the output is now; the stream is let go."""
        self._stop = None
        self.final = final

    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        ask = content.get("ask") if isinstance(content, dict) else None
        stop = self._stop  # this may run on a subshell's thread, and `finish` on the main one
        if ask == "stop" and stop is not None:
            stop()
            self.send({"stopping": True})  # else the view interrupts the kernel
        elif ask == "resync" and isinstance(content.get("at"), int):
            at = max(0, content["at"])
            self.send({"at": at, "next": len(self._text), "delta": self._text[at:]})
        elif ask == "close" and self.final is not None:
            self.close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
        # What a front end without widgets shows until the end.
        return ({**(data or {}), "text/plain": "…"}, *metadata)
