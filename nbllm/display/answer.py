"""A stream drawn into one output of a cell: live while it arrives, static markdown afterwards."""

from __future__ import annotations

import contextlib
import contextvars
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from nbllm._loop import Gate
from nbllm.display.note import NOTHING, Note
from nbllm.display.static import static_form, usage_line
from nbllm.response import Response, ResponseStream

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "Interrupted",
    "View",
    "follow",
    "follow_in_background",
    "interrupts_held",
    "open_view",
    "static_form",
]

INTERVAL: Final = 0.05
"""Seconds between two pushes to a view: more often is not seen, and floods the channel that drops messages."""


AT_ONCE: Final = 0.05
"""Seconds within which an answer is not drawn live but shown as it is: out of the cache, or an error. No one would see
the difference but for a flicker."""

SETTLING: Final = 20
"""How many finished views are kept alive, for a page that is being reloaded, or opened again, to find."""

_settling: deque[Any] = deque()


class Interrupted(KeyboardInterrupt):
    """The cell was interrupted; what had arrived is kept. One line in place of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return ["Interrupted: what had arrived is kept."]


class View(Protocol):
    """Where an answer is drawn."""

    interval: float

    def push(self, stream: ResponseStream) -> None:
        """Draw the answer so far."""

    def finish(self, data: dict[str, str], metadata: dict[str, Any]) -> None:
        """Put the static form in place of the live one."""


def follow(
    stream: ResponseStream,
    open_view: Callable[[], View],
    note: Note = NOTHING,
    *,
    ended: Callable[[ResponseStream], Note] | None = None,
) -> Response:
    """Draw a stream until it ends, in the thread that calls.

    Args:
        stream: What to draw.
        open_view: Opens where to draw it; called here, so that an interrupt meanwhile stops the stream as well.
        note: What is to be said below the answer.
        ended: Called once the stream has ended, however it did, before the static form is made; returns the final note.

    Returns:
        The whole answer, or what had arrived where Stop was pressed.

    Raises:
        Interrupted: where the cell was interrupted; the partial answer is drawn and kept.
        ProviderError: where the call failed; likewise.
    """
    view: View | None = None
    try:
        with stream:  # whatever ends this, the provider is stopped
            try:
                Gate(stream.ended).wait(AT_ONCE)
            finally:  # an interrupt meanwhile leaves what had arrived to be seen
                with interrupts_held():
                    view = open_view()
            _draw(stream, view)
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        with interrupts_held():
            try:
                note = note if ended is None else ended(stream)
            finally:
                if view is not None:
                    view.finish(*static_form(stream, note))
    return stream.response()


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Let an interrupt strike only afterwards: an output that was opened but is not known yet could not be finished.

    Raises:
        Interrupted: at the end, where one struck meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():  # elsewhere none strikes
        yield
        return
    struck: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: struck.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if struck:
        raise Interrupted


def follow_in_background(
    stream: ResponseStream,
    view: View,
    note: Note = NOTHING,
    *,
    ended: Callable[[ResponseStream], Note] | None = None,
) -> None:
    """Draw a stream until it ends, in a thread of its own; returns at once.

    Args:
        stream: What to draw.
        view: Where; opened in the cell.
        note: What is to be said below the answer.
        ended: As in `follow`; called in that thread.
    """
    # What the view sends belongs to the cell that made it; a thread has no context of its own.
    context = contextvars.copy_context()
    arguments = (stream, view, note, ended)
    thread = threading.Thread(target=context.run, args=(_in_background, *arguments), name="nbllm view", daemon=True)
    thread.start()


def _in_background(
    stream: ResponseStream, view: View, note: Note, ended: Callable[[ResponseStream], Note] | None
) -> None:
    """Draw it; errors go into the view: in a thread nobody catches them, and a traceback would land in another cell."""
    failure: BaseException | None = None
    try:
        with stream:
            _draw(stream, view)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is shown
        failure = exc
    if ended is not None:
        try:
            note = ended(stream)
        except Exception as exc:  # noqa: BLE001 - likewise
            failure = failure or exc
    with contextlib.suppress(Exception):  # the kernel is ending
        view.finish(*static_form(stream, note, failure))


def _draw(stream: ResponseStream, view: View) -> None:
    """Draw the first piece at once, then what more has arrived at most each `view.interval`."""
    ended = Gate(stream.ended)
    for _ in stream.batches():
        view.push(stream)
        # Returns early where the call ends meanwhile, so that its last words are not held back.
        ended.wait(view.interval)


def open_view(shell: InteractiveShell, stream: ResponseStream, note: Note = NOTHING) -> View:
    """The view that suits where the cell runs: a live widget, an output that is redrawn, or the terminal.

    Of an answer that has ended already nothing is drawn but its end.
    """
    from nbllm.display.text import EndView, OutputView, TerminalView

    if not hasattr(shell, "kernel"):
        return TerminalView()
    if stream.ended.done():
        return EndView()
    return WidgetView(stream, note) if _has_widgets(shell) else OutputView(note)


def _has_widgets(shell: Any) -> bool:
    """Whether the front end draws widgets. It does not say; but those that do send the cell's id, nbclient does not."""
    with contextlib.suppress(AttributeError, LookupError):
        return bool(shell.get_parent().get("metadata", {}).get("cellId"))
    return False


class WidgetView:
    """A small anywidget that is sent deltas, replaced by static markdown at the end."""

    interval = INTERVAL

    def __init__(self, stream: ResponseStream, note: Note = NOTHING) -> None:
        from IPython.display import display

        from nbllm.display.answer_widget import AnswerWidget  # anywidget and ipywidgets take 0.3 s to import

        plain = note.format not in ("markdown", "math")
        self._widget = AnswerWidget(stop=lambda _: stream.cancel(), plain=plain, status=usage_line(stream))
        self._handle: Any = display(self._widget, display_id=True)  # type: ignore[no-untyped-call]

    def push(self, stream: ResponseStream) -> None:
        self._widget.push("reasoning", stream.reasoning)
        self._widget.push("text", stream.text)
        self._widget.status = usage_line(stream) + (" · from the cache" if stream.cached else "")

    def finish(self, data: dict[str, str], metadata: dict[str, Any]) -> None:
        self._handle.update(data, metadata=metadata, raw=True)
        self._widget.finish({"data": data, "metadata": metadata})
        # The view asks to be closed when it has settled; where nobody does, because the page is gone or the front end
        # is another one, the oldest goes.
        _settling.append(self._widget)
        if len(_settling) > SETTLING:
            _settling.popleft().close()
