"""A stream drawn into one output of a cell: live while it arrives, static markdown afterwards."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from nbllm._loop import Gate
from nbllm.display.safe import safe_bundle
from nbllm.response import Response, ResponseStream

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Interrupted", "follow", "open_view"]

INTERVAL: Final = 0.05
"""Seconds between two pushes to a view: more often is not seen, and floods the channel that drops messages."""


SETTLING: Final = 4
"""How many finished views are kept alive, for a page that is being reloaded to find."""

_settling: deque[Any] = deque()


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


def follow(stream: ResponseStream, open_view: Callable[[], View], filled: Sequence[str] = ()) -> Response:
    """Draw a stream until it ends, in the thread that calls.

    Args:
        stream: What to draw.
        open_view: Opens where to draw it; called here, so that an interrupt meanwhile stops the stream as well.
        filled: What was filled into the prompt, which is said below the answer: nothing goes out unseen.

    Returns:
        The whole answer, or what had arrived where Stop was pressed.

    Raises:
        Interrupted: where the cell was interrupted; the partial answer is drawn and kept.
        ProviderError: where the call failed; likewise.
    """
    view: View | None = None
    try:
        with stream:  # whatever ends this, the provider is stopped
            view = open_view()
            for _ in _ticks(stream, view):
                view.push(stream.text)
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        if view is not None:
            view.finish(*_static(stream, filled))
    return stream.response()


def _ticks(stream: ResponseStream, view: View) -> Iterator[None]:
    """Once for the first piece at once, then at most each `view.interval` while more arrives."""
    ended = Gate(stream.ended)
    for _ in stream.batches():
        yield
        # Returns early where the call ends meanwhile, so that its last words are not held back.
        ended.wait(view.interval)


def _static(stream: ResponseStream, filled: Sequence[str]) -> tuple[str, dict[str, Any]]:
    text, state = stream.text, stream.state
    if state == "interrupted":
        text += "\n\n*Stopped here.*" if text else "*Stopped before the first word.*"
    elif state in ("incomplete", "failed"):
        text += "\n\n*The answer breaks off here.*" if text else ""
    if filled:
        text += f"\n\n*Filled in: {', '.join(f'`{{{name}}}`' for name in filled)}.*"
    usage = stream.usage
    provenance = {
        "provider": stream.provider,
        "model": stream.model,
        "state": state,
        "finish_reason": stream.finish_reason,
        "filled_in": list(filled),
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

        from nbllm.display.answer_widget import AnswerWidget  # anywidget and ipywidgets take 0.3 s to import

        self._widget = AnswerWidget(stop=stream.cancel)
        self._handle: Any = display(self._widget, display_id=True)  # type: ignore[no-untyped-call]

    def push(self, text: str) -> None:
        self._widget.push(text)

    def finish(self, text: str, metadata: dict[str, Any]) -> None:
        data = safe_bundle(text)
        self._handle.update(data, metadata=metadata, raw=True)
        self._widget.finish({"data": data, "metadata": metadata})
        # The view asks to be closed when it has settled; where nobody does, because the page is gone or the front end
        # is another one, the oldest goes.
        _settling.append(self._widget)
        if len(_settling) > SETTLING:
            _settling.popleft().close()
