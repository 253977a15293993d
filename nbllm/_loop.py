"""The one event loop that owns every provider client, and the bridges to it.

Clients of the provider SDKs belong to the event loop that they were made on: used from another, they fail with
"Event loop is closed". A notebook has several loops (the kernel's own, one for each `asyncio.run`), so all
provider I/O runs on one background loop that lives as long as the process, and everything else talks to it:

* `submit` starts a coroutine there and returns at once;
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
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from nbllm.errors import MissingExtraError, UsageError

__all__ = ["BackgroundLoop", "Channel", "allow_nested_loops", "background_loop", "drained", "settle", "wait"]

T = TypeVar("T")

POLL = 0.05
"""Seconds between two looks at a result while a thread waits for it: a KeyboardInterrupt is raised between."""

GRACE = 2.0
"""Seconds that a cancelled job may take to close what it opened, before its waiter goes on without it."""


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

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the loop, with the caller's context variables; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

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
        task: asyncio.Task[Any] | None = None
        abandoned = False

        async def job() -> T:
            nonlocal task
            task = asyncio.current_task()
            if abandoned:
                coroutine.close()
                raise asyncio.CancelledError
            return await coroutine

        # An interrupt may strike at any line, `submit` included, before there is a future to cancel: hence the task.
        try:
            return wait(self.submit(job()))
        except BaseException:
            abandoned = True
            if task is not None:
                self.loop.call_soon_threadsafe(task.cancel)
            # Wait while what was cancelled closes its sockets on the loop.
            settle(self.submit(drained()))
            raise

    async def bridge(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, awaited on whatever loop the caller runs; cancelling the caller cancels it."""
        if self.here:
            return await coroutine
        future = self.submit(coroutine)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancel every task and stop; for the end of the process."""
        if self.loop.is_closed() or not self._thread.is_alive():
            return
        with contextlib.suppress(Exception):
            self.submit(_cancel_all()).result(GRACE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self.loop.close()


async def drained() -> None:
    """Wait, on the background loop, until every task that is being cancelled has closed what it opened and ended."""
    me = asyncio.current_task()
    while pending := [task for task in asyncio.all_tasks() if task is not me and task.cancelling()]:
        await asyncio.wait(pending, timeout=0.1)


async def _cancel_all() -> None:
    me = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not me]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def wait(future: concurrent.futures.Future[T]) -> T:
    """The future's result, in steps short enough for the main thread to notice an interrupt between them."""
    while True:
        try:
            return future.result(timeout=POLL)
        except concurrent.futures.TimeoutError:  # on 3.11 the built-in TimeoutError, which a job may raise itself
            if future.done():
                return future.result()


def settle(future: concurrent.futures.Future[Any], timeout: float = GRACE) -> None:
    """Wait a while for a future to be done, whatever its outcome; a second interrupt ends the wait."""
    concurrent.futures.wait([future], timeout)


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

    def _take(self) -> list[T] | None:
        """What has gathered; an empty list at the end; None where there is nothing yet. Holds the lock."""
        if self._items:
            items, self._items = self._items, []
            return items
        if not self._closed:
            return None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return []

    async def get(self) -> list[T]:
        """The next batch; an empty list at the end.

        Raises:
            BaseException: the writer's error, once.
        """
        while True:
            with self._lock:
                if (items := self._take()) is not None:
                    return items
                ready = asyncio.get_running_loop().create_future()
                self._wake = functools.partial(_call, ready)
            await ready

    def get_blocking(self) -> list[T]:
        """The same for a thread, which an interrupt leaves within a few hundredths of a second."""
        while True:
            with self._lock:
                if (items := self._take()) is not None:
                    return items
                ready = threading.Event()
                self._wake = ready.set
            while not ready.wait(POLL):
                pass


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
