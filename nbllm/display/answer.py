"""A stream drawn into one output of a cell: live while it arrives, static markdown afterwards."""

from __future__ import annotations

import concurrent.futures
import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from nbllm.display.safe import safe_markdown, safe_text
from nbllm.errors import NbllmError
from nbllm.response import Response, ResponseStream

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Interrupted", "follow", "open_view"]

INTERVAL: Final = 0.05
"""Seconds between two pushes to a view: more often is not seen, and floods the channel that drops messages."""


class Interrupted(KeyboardInterrupt):
    """The cell was interrupted; what had arrived is kept. One line in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return ["Interrupted: what had arrived is kept."]


class View(Protocol):
    """Where an answer is drawn."""

    interval: float

    def push(self, text: str) -> None:
        """Draw the answer so far."""

    def finish(self, text: str, metadata: dict[str, Any]) -> None:
        """Put the static form in place of the live one."""


def follow(stream: ResponseStream, open_view: Callable[[], View]) -> Response:
    """Draw a stream until it ends, in the thread that calls.

    Args:
        stream: What to draw.
        open_view: Opens where to draw it; called here, so that an interrupt meanwhile stops the stream as well.

    Returns:
        The whole answer, or what had arrived where Stop was pressed.

    Raises:
        Interrupted: where the cell was interrupted; the partial answer is drawn and kept.
        ProviderError: where the call failed; likewise.
    """
    view: View | None = None
    try:
        view = open_view()
        for _ in _ticks(stream, view):
            view.push(stream.text)
    except KeyboardInterrupt:
        stream.close()
        if view is not None:
            view.finish(*_static(stream))
        raise Interrupted from None
    except NbllmError:
        if view is not None:
            view.finish(*_static(stream))
        raise
    view.finish(*_static(stream))
    return stream.response()


def _ticks(stream: ResponseStream, view: View) -> Iterator[None]:
    """Once for the first piece at once, then at most each `view.interval` while more arrives."""
    for _ in stream.batches():
        yield
        # Returns early where the call ends meanwhile, so that its last words are not held back.
        concurrent.futures.wait([stream.job], view.interval)


def _static(stream: ResponseStream) -> tuple[str, dict[str, Any]]:
    text, state = stream.text, stream.state
    if state == "interrupted":
        text += "\n\n*Stopped here.*" if text else "*Stopped before the first word.*"
    elif state in ("incomplete", "failed"):
        text += "\n\n*The answer breaks off here.*" if text else ""
    usage = stream.usage
    provenance = {
        "provider": stream.provider,
        "model": stream.model,
        "state": state,
        "finish_reason": stream.finish_reason,
        "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
    }
    return text, {"nbllm": provenance}


def open_view(shell: InteractiveShell, stream: ResponseStream) -> View:
    """The view that suits where the cell runs: a live widget, an output that is redrawn, or the terminal."""
    from nbllm.display.text import OutputView, TerminalView

    if not hasattr(shell, "kernel"):
        return TerminalView()
    if _has_widgets(shell):
        return WidgetView(stream)
    return OutputView()


def _has_widgets(shell: Any) -> bool:
    """Whether the front end draws widgets. It does not say; but those that do send the cell's id, nbclient does not."""
    with contextlib.suppress(AttributeError, LookupError):
        return bool(shell.get_parent().get("metadata", {}).get("cellId"))
    return False


class WidgetView:
    """A small anywidget that is sent deltas, replaced by static markdown at the end."""

    interval = INTERVAL

    def __init__(self, stream: ResponseStream) -> None:
        from IPython.display import display

        self._widget = _widget_class()(stop=stream.cancel)
        self._handle: Any = display(self._widget, display_id=True)  # type: ignore[no-untyped-call]

    def push(self, text: str) -> None:
        self._widget.push(text)

    def finish(self, text: str, metadata: dict[str, Any]) -> None:
        data = static_bundle(text)
        self._handle.update(data, metadata=metadata, raw=True)
        self._widget.final = {"data": data, "metadata": metadata}


def static_bundle(text: str) -> dict[str, str]:
    """What a saved notebook keeps of an answer: markdown made harmless, and plain text."""
    return {"text/markdown": safe_markdown(text), "text/plain": safe_text(text)} if text else {"text/plain": ""}


_class: Any = None


def _widget_class() -> Any:
    """The widget's class, made when first needed: anywidget and ipywidgets cost a third of a second to import."""
    global _class  # noqa: PLW0603
    if _class is not None:
        return _class
    import anywidget
    import traitlets

    here = Path(__file__).parent

    class AnswerWidget(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's base is untyped
        """The kernel's side of `answer.js`.

        Messages to the view: `{at, next, delta}`, offsets in characters (code points) of the whole text. From it:
        `{ask: "stop"}`, `{ask: "resync", at}`, `{ask: "close"}`.
        """

        _esm = here / "answer.js"
        _css = here / "answer.css"
        key = traitlets.Unicode().tag(sync=True)
        own_id = traitlets.Unicode().tag(sync=True)
        snapshot: Any = traitlets.Dict({"text": "", "at": 0}).tag(sync=True)
        final = traitlets.Any(None).tag(sync=True)
        blocking = traitlets.Bool(True).tag(sync=True)

        def __init__(self, stop: Any) -> None:
            # The view needs a key from its first moment on; the model's id is known only once the comm is open.
            super().__init__(key=uuid.uuid4().hex)
            self.own_id = self.model_id
            self._stop = stop
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

        def _asked(self, _: Any, content: Any, buffers: Any) -> None:
            ask = content.get("ask") if isinstance(content, dict) else None
            if ask == "stop":
                self._stop()
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

    _class = AnswerWidget
    return _class
