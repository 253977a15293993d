"""The one event loop that owns every provider client, and the bridges to it.

Clients of the provider SDKs belong to the event loop that they were made on: used from another, they fail with
"Event loop is closed". A notebook has several loops (the kernel's own, one for each `asyncio.run`), so all
provider I/O runs on one background loop that lives as long as the process, and everything else talks to it:

* a `Job` is a coroutine there, which anyone can cancel;
* `run` waits for it from a thread without a loop, in short steps, so that an interrupt is answered;
* `bridge` awaits it from any event loop;
* a `Channel` hands the batches of a stream over to either kind of reader.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from nbllm.errors import MissingExtraError, UsageError

__all__ = [
    "BackgroundLoop",
    "Channel",
    "Gate",
    "Job",
    "allow_nested_loops",
    "background_loop",
    "resolve",
    "settle",
    "wait",
]

T = TypeVar("T")

POLL = 0.05
"""Seconds between two looks at a result while a thread waits for it: a KeyboardInterrupt is raised between."""

GRACE = 2.0
"""Seconds that a cancelled job may take to close what it opened, before its waiter goes on without it."""


class Job(Generic[T]):
    """A coroutine on the background loop: cancelled from any thread, and `ended` only when it really has.

    A `concurrent.futures.Future` that is cancelled counts as done at once, while its task still closes sockets;
    whoever must know that they are closed waits for `ended`.

    Attributes:
        outcome: Its result or exception.
        ended: Done, with None, when the coroutine has run to its end or will never start.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        """Start it, with the caller's context variables.

        Apart from making the job, so that an interrupt which strikes in here finds something to cancel.
        """
        self._loop.call_soon_threadsafe(self._begin, coroutine)

    def cancel(self) -> None:
        """Cancel it, started or not; at once, from any thread."""
        self._cancelled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> None:
        if self._cancelled:
            coroutine.close()
            self._finish(None)
            return
        self._task = asyncio.ensure_future(coroutine)
        self._task.add_done_callback(self._finish)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[T] | None) -> None:
        if task is None or task.cancelled():
            self.outcome.cancel()
            self.outcome.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            resolve(self.outcome, error=error)
        else:
            resolve(self.outcome, task.result())
        resolve(self.ended, None)


def resolve(future: concurrent.futures.Future[T], result: T | None = None, error: BaseException | None = None) -> None:
    """Give a future its outcome, unless it has one: whoever waited for it may have cancelled it."""
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None where T is None


class BackgroundLoop:
    """An event loop that runs in a daemon thread of its own until the process ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="nbllm", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def here(self) -> bool:
        """Whether the caller runs on this loop's thread."""
        return threading.current_thread() is self._thread

    def job(self) -> Job[Any]:
        """A job that is yet to be started."""
        return Job(self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, waited for in this thread.

        An exception that interrupts the wait (KeyboardInterrupt) cancels the coroutine and is raised after the
        coroutine has closed what it opened.

        Raises:
            UsageError: on the loop's own thread, which would wait for itself.
        """
        if self.here:
            coroutine.close()
            raise UsageError(
                "A blocking nbllm call was made on nbllm's own event loop.",
                action="Await the asynchronous form there instead.",
            )
        job: Job[T] = Job(self.loop)
        try:
            job.start(coroutine)
            return wait(job.outcome)
        except BaseException:
            if not job.ended.done():
                job.cancel()
                settle(job.ended)
            raise

    async def bridge(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, awaited on whatever loop the caller runs; cancelling the caller cancels it."""
        if self.here:
            return await coroutine
        job: Job[T] = Job(self.loop)
        job.start(coroutine)
        try:
            return await asyncio.wrap_future(job.outcome)
        except asyncio.CancelledError:
            job.cancel()
            raise

    def close(self) -> None:
        """Cancel every task and stop; for the end of the process."""
        if self.loop.is_closed() or not self._thread.is_alive():
            return
        job: Job[None] = Job(self.loop)
        job.start(_cancel_all())
        settle(job.ended)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self.loop.close()


async def _cancel_all() -> None:
    me = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not me]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Gate:
    """Opens when a future is done; for a thread that waits and must stay open to an interrupt.

    A bare lock, since Python's conditions and events are no place to be interrupted: a KeyboardInterrupt between their
    release and their next acquire is replaced by a RuntimeError.
    """

    def __init__(self, future: concurrent.futures.Future[Any] | None = None) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        if future is not None:
            future.add_done_callback(lambda _: self.open())

    def open(self) -> None:
        """Open it; once."""
        self._lock.release()

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait at most so long, in steps short enough for an interrupt; whether it is open."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._lock.acquire(timeout=min(POLL, left)):
                self._lock.release()  # it stays open
                return True
        return False


def wait(future: concurrent.futures.Future[T]) -> T:
    """The future's result; an interrupt is noticed within a few hundredths of a second."""
    Gate(future).wait()
    return future.result()


def settle(future: concurrent.futures.Future[Any], timeout: float = GRACE) -> None:
    """Wait a while for a future to be done, whatever its outcome; a second interrupt ends the wait."""
    Gate(future).wait(timeout)


class Channel(Generic[T]):
    """Hands batches of items from the background loop to one reader: a thread or any event loop.

    The writer appends; the reader takes all that has gathered at once. However many items arrive between two
    looks of the reader, it is woken once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: list[T] = []
        self._closed = False
        self._error: BaseException | None = None
        self._wake: Callable[[], None] | None = None
        self._process = os.getpid()

    def put(self, items: list[T]) -> None:
        """Append items and wake the reader."""
        with self._lock:
            self._items.extend(items)
            wake, self._wake = self._wake, None
        if wake:
            wake()

    def close(self, error: BaseException | None = None) -> None:
        """No more items follow; `error` is raised to the reader after what is left. The first close counts."""
        with self._lock:
            if self._closed:
                return
            self._closed, self._error = True, error
            wake, self._wake = self._wake, None
        if wake:
            wake()

    async def get(self) -> list[T]:
        """The next batch; an empty list at the end.

        Raises:
            BaseException: the writer's error, once.
            UsageError: where somebody else is reading, or it is read in a forked child.
        """
        while True:
            ready = asyncio.get_running_loop().create_future()
            wake = functools.partial(_call, ready)
            if (items := self._take(wake)) is not None:
                return items
            try:
                await ready
            finally:
                self._forget(wake)

    def get_blocking(self) -> list[T]:
        """The same for a thread, which an interrupt leaves within a few hundredths of a second."""
        while True:
            gate = Gate()
            if (items := self._take(gate.open)) is not None:
                return items
            try:
                gate.wait()
            finally:
                self._forget(gate.open)

    def _take(self, wake: Callable[[], None]) -> list[T] | None:
        """What has gathered; an empty list at the end; None where there is nothing yet, then `wake` is called later."""
        with self._lock:
            if self._items:
                items, self._items = self._items, []
                return items
            if self._closed:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                return []
            if self._process != os.getpid():
                raise UsageError("This stream belongs to the process before the fork.", action="Ask again in this one.")
            if self._wake is not None:
                raise UsageError("This stream is being read by somebody else.", action="Read it in one place.")
            self._wake = wake
            return None

    def _forget(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if self._wake == wake:
                self._wake = None


def _call(ready: asyncio.Future[None]) -> None:
    def set_result() -> None:
        if not ready.done():
            ready.set_result(None)

    with contextlib.suppress(RuntimeError):  # the reader's loop may have closed meanwhile
        ready.get_loop().call_soon_threadsafe(set_result)


_current: BackgroundLoop | None = None
_guard = threading.Lock()


def background_loop() -> BackgroundLoop:
    """The process's background loop, started at the first call."""
    global _current  # noqa: PLW0603 - one per process is the point
    with _guard:
        if _current is None:
            _current = BackgroundLoop()
            atexit.register(_current.close)
        return _current


def _forget_after_fork() -> None:
    # Only the forking thread survives in the child: the loop's thread is gone, its lock may be held, and its
    # sockets are the parent's. A new loop is started at the next use; whoever holds clients compares loops.
    global _current, _guard
    if _current is not None:
        atexit.unregister(_current.close)
    _current, _guard = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def allow_nested_loops() -> str:
    """Let `asyncio.run` work in a cell, where a loop already runs; nbllm itself does not need it.

    Returns:
        Which library was applied and why.

    Raises:
        MissingExtraError: where the one that is safe here is not installed.
    """
    ipykernel = sys.modules.get("ipykernel")
    seven = ipykernel is not None and int(ipykernel.__version__.split(".")[0]) >= 7
    if not seven:
        import nest_asyncio

        nest_asyncio.apply()
        return "nest_asyncio is applied: this kernel is older than ipykernel 7, where it is safe."
    try:
        import nest_asyncio2
    except ImportError as exc:
        raise MissingExtraError("nest-asyncio2", "nest") from exc
    nest_asyncio2.apply()
    return "nest_asyncio2 is applied: on ipykernel 7, nest_asyncio was measured to lose queued cells."
