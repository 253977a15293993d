"""Several answers to one prompt, drawn side by side: live in columns while they arrive, static markdown afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nbllm._loop import Gate
from nbllm.display.answer import Interrupted, interrupts_held
from nbllm.display.compare_views import open_columns
from nbllm.display.comparison import Comparison
from nbllm.display.note import Note
from nbllm.display.static import provenance
from nbllm.errors import UsageError
from nbllm.response import ResponseStream

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Comparison", "compare", "named"]


def named(streams: Iterable[ResponseStream]) -> dict[str, ResponseStream]:
    """Streams by their models' names, `provider:model`; a name that comes again has a number: `openai:m #2`."""
    by_name: dict[str, ResponseStream] = {}
    for stream in streams:
        name, number = f"{stream.provider}:{stream.model}", 1
        while (key := name if number == 1 else f"{name} #{number}") in by_name:
            number += 1
        by_name[key] = stream
    return by_name


def compare(
    shell: InteractiveShell,
    streams: Mapping[str, ResponseStream],
    note: Note,
    *,
    ended: Callable[[Comparison], Note] | None = None,
) -> Comparison:
    """Draw streams beside each other until all have ended, in the thread that calls.

    One that fails or is stopped leaves the others alone: its column says what happened.

    Args:
        shell: Where the cell runs.
        streams: What to draw, by name; see `named`.
        note: What is to be said below the answers.
        ended: Called once all have ended, however they did, before the static form is made; returns the final note.

    Raises:
        Interrupted: where the cell was interrupted; all are stopped, and what had arrived is drawn and kept.
        UsageError: where there is nothing to compare.
        ProviderError: of the first, where all failed.
    """
    if not streams:
        raise UsageError("There is nothing to compare.", action="Name the models: %%llm MODEL MODEL …")
    view = None
    try:
        try:
            with interrupts_held():
                view = open_columns(shell, streams, note)
            gate = _all_ended(streams.values())
            while not gate.wait(view.interval):
                view.push(streams)
            view.push(streams)
        finally:
            _stop(streams.values())  # whatever ends this, the providers are stopped
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        comparison = Comparison.of(streams)
        with interrupts_held():
            try:
                note = note if ended is None else ended(comparison)
            finally:
                if view is not None:
                    came_from = [provenance(stream, note) for stream in streams.values()]
                    view.finish(comparison, note, {"nbllm": {"compare": came_from}})
    if len(comparison.errors) == len(comparison):
        raise next(iter(comparison.errors.values()))
    return comparison


def _all_ended(streams: Iterable[ResponseStream]) -> Gate:
    """Opens when the last of them has ended."""
    streams = list(streams)
    gate, others = Gate(), deque(streams[1:])

    def one_more(_: Any) -> None:
        try:
            others.pop()  # atomic: they end on the background loop, some may have ended before
        except IndexError:
            gate.open()

    for stream in streams:
        stream.ended.add_done_callback(one_more)
    return gate


def _stop(streams: Iterable[ResponseStream]) -> None:
    running = [stream for stream in streams if not stream.ended.done()]
    for stream in running:  # all of them first, for each is then waited for
        stream.cancel()
    for stream in streams:
        stream.close()
