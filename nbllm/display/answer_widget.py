"""The kernel's side of the live views; imported when the first answer is drawn."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import traitlets

__all__ = ["AnswerWidget", "LiveWidget", "script"]

HERE = Path(__file__).parent


def script(name: str) -> str:
    """A view's ES module: what the views share, then its own; without comments, since each widget sends it."""
    text = "\n".join((HERE / part).read_text("utf-8") for part in ("markdown.js", "view.js", name))
    return re.sub(r"^(?:[ \t]*//.*\n|[ \t]+|\n)", "", text, flags=re.MULTILINE)


def _so_far(_: Any, widget: LiveWidget) -> dict[str, Any]:
    return {name: {"text": text, "at": len(text)} for name, text in dict(widget.parts).items()}


class LiveWidget(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's base is untyped
    """The kernel's side of `view.js`: text in several parts that grow, Stop, and the static form at the end.

    Messages to the view: `{part, at, next, delta}`, offsets in characters (code points) of that part's whole text. From
    it: `{ask: "stop", part}`, answered with `{stopping}`, `{ask: "resync", part, at}`, `{ask: "final"}`, answered with
    `{static: {data, metadata}}`, `{ask: "close"}`.

    A page that is loaded in mid-stream asks for the widget's state: `snapshot` is then what there is by now.
    """

    key = traitlets.Unicode().tag(sync=True)
    own_id = traitlets.Unicode().tag(sync=True)
    snapshot: Any = traitlets.Dict().tag(sync=True, to_json=_so_far)
    final = traitlets.Bool(False).tag(sync=True)

    def __init__(self, stop: Callable[[str | None], None], **traits: Any) -> None:
        self.parts: dict[str, str] = {}
        self._static: dict[str, Any] = {}
        # The view needs a key from its first moment on; the model's id is known only once the comm is open.
        super().__init__(key=uuid.uuid4().hex, **traits)
        self.own_id = self.model_id
        self._stop: Callable[[str | None], None] | None = stop
        self.on_msg(self._asked)
        if hasattr(self.comm, "_reply_subshell_for"):
            # ipykernel 7.4 pins the messages of a comm that a cell made to the main shell, where they wait
            # until the cell ends; a click on Stop is for now, and only cancels.
            self.comm._reply_subshell_for = lambda data, default: default  # noqa: SLF001 - there is no public way

    def push(self, part: str, text: str) -> None:
        """Send what is new in a part, whose whole text by now this is."""
        text = text.removesuffix("\ufffd")  # perhaps half a character, whose other half is to come
        at = len(self.parts.get(part, ""))
        if len(text) > at:
            self.parts[part] = text
            self.send({"part": part, "at": at, "next": len(text), "delta": text[at:]})

    def finish(self, static: dict[str, Any]) -> None:
        """Keep what the output is now (`data` and `metadata`) for a page that asks; the stream is let go."""
        self._stop, self._static = None, static
        self.final = True

    def _asked(self, _: Any, content: Any, buffers: Any) -> None:
        ask = content.get("ask") if isinstance(content, dict) else None
        stop = self._stop  # this may run on a subshell's thread, and `finish` on the main one
        if ask == "stop" and stop is not None:
            stop(content.get("part"))
            self.send({"stopping": True})  # else the view interrupts the kernel
        elif ask == "resync" and isinstance(content.get("at"), int):
            part, at = str(content.get("part")), max(0, content["at"])
            text = self.parts.get(part, "")
            self.send({"part": part, "at": at, "next": len(text), "delta": text[at:]})
        elif ask == "final" and self.final:
            self.send({"static": self._static})
        elif ask == "close" and self.final:
            self.close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
        # What a front end without widgets shows until the end.
        return ({**(data or {}), "text/plain": "…"}, *metadata)


class AnswerWidget(LiveWidget):
    """One answer: the parts `text` and `reasoning`, a line of status, and whether its text is no markdown."""

    plain = traitlets.Bool(False).tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    _esm = script("answer.js")
    _css = HERE / "answer.css"
