"""The cells that stream, by number: what `%llm jobs` lists and `%llm stop` stops."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from nbllm.errors import UsageError
from nbllm.response import ResponseStream
from nbllm.types import State

__all__ = ["Job", "Jobs"]

REMEMBERED: Final = 50
"""Jobs that have ended and are still listed."""


@dataclass(slots=True, eq=False)
class Job:
    """A cell that streams, or has streamed.

    Attributes:
        number: What to stop it by.
        label: What it is about, for a person: somebody's text, to be shown as such.
        cell: The id of its cell, where the front end sends it.
        background: Whether other cells can run meanwhile.
        started: When, in seconds since the epoch.
    """

    number: int
    label: str
    cell: str | None
    background: bool
    started: float
    _stream: ResponseStream | None = field(repr=False, default=None)
    _model: str = ""
    _state: State = "pending"
    _characters: int = 0
    _began: float = field(default_factory=time.monotonic)
    _seconds: float | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._stream is not None

    @property
    def state(self) -> State:
        """Where its stream stands, or how it ended."""
        return stream.state if (stream := self._stream) is not None else self._state

    @property
    def model(self) -> str:
        """Who answers, as `provider:model`."""
        return f"{stream.provider}:{stream.model}" if (stream := self._stream) is not None else self._model

    @property
    def characters(self) -> int:
        """How long the answer is by now."""
        return len(stream.text) if (stream := self._stream) is not None else self._characters

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._began if self._seconds is None else self._seconds

    def stop(self) -> None:
        """Stop it; from any thread, at once. What had arrived stays."""
        if (stream := self._stream) is not None:
            stream.cancel()

    def let_go(self) -> None:
        """Keep what is to be said of the stream, which has ended, and not the stream: a list keeps no answers."""
        stream = self._stream
        if stream is not None:
            self._model, self._state, self._characters = self.model, stream.state, len(stream.text)
            self._seconds = time.monotonic() - self._began
            self._stream = None


class Jobs:
    """The jobs of this kernel. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._running: dict[int, Job] = {}
        self._ended: deque[Job] = deque(maxlen=REMEMBERED)

    def add(self, stream: ResponseStream, *, label: str = "", cell: str | None = None, background: bool = False) -> Job:
        """Count a stream as a job, until it ends."""
        with self._lock:
            self._number += 1
            job = Job(self._number, " ".join(label.split())[:80], cell, background, time.time(), stream)
            self._running[job.number] = job
        stream.ended.add_done_callback(lambda _: self._ended_now(job))
        return job

    def running(self) -> list[Job]:
        """Those that run, the oldest first."""
        with self._lock:
            return list(self._running.values())

    def all(self) -> list[Job]:
        """Those that run and the last ones that ended, the oldest first."""
        with self._lock:
            return sorted([*self._ended, *self._running.values()], key=lambda job: job.number)

    def stop(self, number: int | None = None) -> list[Job]:
        """Stop one job, or all that run.

        Returns:
            Those that were stopped.

        Raises:
            UsageError: where no job of this number runs.
        """
        found = self.running()
        if number is not None:
            found = [job for job in found if job.number == number]
            if not found:
                raise UsageError(f"No job {number} runs.", action="See %llm jobs.")
        for job in found:
            job.stop()
        return found

    def _ended_now(self, job: Job) -> None:
        with self._lock:
            job.let_go()
            if self._running.pop(job.number, None) is not None:
                self._ended.append(job)
