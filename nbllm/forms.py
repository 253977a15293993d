"""How an answer reaches the caller: streamed, through a channel in one piece, or whole."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Protocol

from nbllm._loop import Channel, resolve
from nbllm.cached import Cached
from nbllm.providers.base import Provider
from nbllm.response import Record
from nbllm.types import Completion, Event, ReasoningDelta, Request, TextDelta, UsageUpdate, coalesced

__all__ = ["Form", "InOnePiece", "Streamed", "Whole"]


class Form(Protocol):
    """How an answer reaches the caller: piece by piece, or whole."""

    @property
    def begun(self) -> bool:
        """Whether something of it has."""

    async def attempt(self, provider: Provider, request: Request) -> None:
        """Let the provider answer, once."""

    def replay(self, cached: Cached) -> None:
        """Give the answer that the cache held."""


class Streamed:
    """An answer that streams through a channel."""

    def __init__(self, record: Record, channel: Channel[Event], opened: concurrent.futures.Future[None]) -> None:
        self._record, self._channel, self._opened = record, channel, opened
        self._pending: list[Event] = []
        self._loop = asyncio.get_running_loop()

    @property
    def begun(self) -> bool:
        return bool(self._pending) or self._record.first_event is not None

    async def attempt(self, provider: Provider, request: Request) -> None:
        await provider.stream(request, self._emit, self._open)
        self.flush()

    def replay(self, cached: Cached) -> None:
        self._open(cached.request_id)
        self._emit(list(cached.events))
        self.flush()

    def flush(self) -> None:
        """Hand over what has gathered."""
        if self._pending:
            batch = coalesced(self._pending)
            self._pending.clear()
            self._record.add(batch)
            self._channel.put(batch)

    def _open(self, request_id: str | None) -> None:
        self._record.request_id = request_id
        resolve(self._opened)

    def _emit(self, batch: list[Event]) -> None:
        # HTTP chunks that one socket read brought are decoded without the loop running in between, so what is
        # called soon is called once for all of them: the reader is woken once a read, not once a token.
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending.extend(batch)


class InOnePiece(Streamed):
    """An answer that comes through a channel, in one piece."""

    async def attempt(self, provider: Provider, request: Request) -> None:
        done = await provider.completion(request)
        self._record.raw = done.raw
        self._open(done.request_id)
        self._emit(_events_of(done))
        self.flush()


class Whole:
    """An answer that comes in one piece."""

    def __init__(self, record: Record) -> None:
        self._record = record

    @property
    def begun(self) -> bool:
        return self._record.first_event is not None

    async def attempt(self, provider: Provider, request: Request) -> None:
        done = await provider.completion(request)
        self._record.raw, self._record.request_id = done.raw, done.request_id
        self._record.add(_events_of(done))

    def replay(self, cached: Cached) -> None:
        self._record.request_id = cached.request_id
        self._record.add(list(cached.events))


def _events_of(done: Completion) -> list[Event]:
    """A whole answer as the events of one that streams."""
    said: list[Event] = [ReasoningDelta(done.reasoning), TextDelta(done.text)]
    return [*said, *done.tool_calls, UsageUpdate(done.usage), done.finish]
