"""An answer while it streams, and an answer that is whole."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from nbllm import _loop
from nbllm._loop import BackgroundLoop, Channel, Job
from nbllm.errors import UsageError
from nbllm.types import (
    Event,
    Finish,
    FinishReason,
    ProviderEvent,
    ReasoningDelta,
    Request,
    State,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageUpdate,
    whole_characters,
)

__all__ = ["CodeBlock", "Record", "Response", "ResponseStream"]

FINAL: Final[frozenset[State]] = frozenset({"complete", "interrupted", "incomplete", "failed"})
TOKENS: Final = (TextDelta, ReasoningDelta, ToolCallDelta, ToolCall)


class CodeBlock(NamedTuple):
    """A fenced block of an answer: its language (empty where none is named) and its code."""

    language: str
    code: str


@dataclass(slots=True)
class Record:
    """What is known of a call while it runs: written on the background loop, read anywhere."""

    provider: str
    model: str
    state: State = "pending"
    started: float = field(default_factory=time.monotonic)
    sent: float | None = None
    first_event: float | None = None
    first_token: float | None = None
    ended: float | None = None
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    finish: Finish | None = None
    cached: bool = False
    request_id: str | None = None
    attempts: int = 0
    fallback_of: tuple[str, ...] = ()
    request: Request | None = None
    raw: Any = None
    error: BaseException | None = None
    _text: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _calls: dict[int, ToolCall] = field(default_factory=dict)
    _whole_calls: list[ToolCall] = field(default_factory=list)
    provider_events: list[ProviderEvent] = field(default_factory=list)

    def add(self, events: list[Event]) -> None:
        """Take in what arrived; nothing arrives any more after the end."""
        if self.state in FINAL:
            return
        if self.first_event is None:
            self.first_event = time.monotonic()
            self.state = "streaming"
        # A provider may report the prompt's usage first: what the reader waits for is the model's first word.
        if self.first_token is None and any(isinstance(event, TOKENS) for event in events):
            self.first_token = time.monotonic()
        for event in events:
            if isinstance(event, TextDelta):
                self._text.append(event.text)
            elif isinstance(event, ReasoningDelta):
                self._reasoning.append(event.text)
            elif isinstance(event, UsageUpdate):
                self.usage = event.usage
            elif isinstance(event, Finish):
                self.finish = event
            elif isinstance(event, ToolCallDelta):
                call = self._calls.get(event.index, ToolCall("", "", ""))
                self._calls[event.index] = ToolCall(
                    event.id or call.id, event.name or call.name, call.arguments + event.arguments
                )
            elif isinstance(event, ToolCall):
                self._whole_calls.append(event)
            else:
                self.provider_events.append(event)

    def end(self, state: State, error: BaseException | None = None) -> None:
        """Set the final state; the first one counts."""
        if self.state not in FINAL:
            self.state, self.error, self.ended = state, error, time.monotonic()

    @property
    def text(self) -> str:
        """The answer so far."""
        return whole_characters("".join(self._text))

    @property
    def reasoning(self) -> str:
        """The reasoning so far, as far as the provider shows it."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls, each as whole as it has arrived."""
        return tuple(self._whole_calls) or tuple(call for _, call in sorted(self._calls.items()))


class Response(str):
    """A whole answer: a `str` that also knows where it came from, and renders as markdown.

    `str(response)` is the exact text. What a notebook displays is the same text with raw HTML and unsafe links
    made harmless, since a model's text is somebody else's.

    Attributes:
        provider: The provider that answered.
        model: The model that answered.
        usage: Tokens used.
        cost: US dollars, or None where the price is not known.
        finish_reason: Why the model stopped; None where it was stopped.
        state: `complete`, or `interrupted` where the reader stopped it.
        cached: Whether it was replayed from the cache; the rest then describes the original call.
        request_id: The provider's id of the request, where it gives one.
        fallback_of: The models, as `provider:model`, that were asked before this one and failed.
        reasoning: The model's reasoning, as far as the provider shows it.
        tool_calls: What tools the model asks for.
        provider_events: What else the provider said, of its own kinds: citations, sources, signatures.
        raw: The provider's own answer as plain data, for a call that did not stream.
    """

    provider: str
    model: str
    usage: Usage
    cost: float | None
    finish_reason: FinishReason | None
    state: State
    cached: bool
    request_id: str | None
    fallback_of: tuple[str, ...]
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    provider_events: tuple[ProviderEvent, ...]
    raw: Any

    def __new__(cls, text: str, record: Record | None = None) -> Self:
        """A response with the text, and what `record` knows of the call."""
        self = super().__new__(cls, text)
        record = record or Record(provider="", model="", state="complete")
        self.provider, self.model = record.provider, record.model
        self.usage, self.cost, self.cached, self.raw = record.usage, record.cost, record.cached, record.raw
        self.request_id, self.fallback_of = record.request_id, record.fallback_of
        self.finish_reason = record.finish.reason if record.finish else None
        self.state, self.reasoning, self.tool_calls = record.state, record.reasoning, record.tool_calls
        self.provider_events = tuple(record.provider_events)
        return self

    def __getnewargs__(self) -> tuple[str]:
        # For copy and pickle: the rest travels in the instance's dict.
        return (str(self),)

    def __str__(self) -> str:
        return str.__str__(self)

    @property
    def code_blocks(self) -> list[CodeBlock]:
        """The fenced code blocks of the answer, in order (CommonMark 0.31, section 4.5)."""
        return [
            CodeBlock(found["info"].split()[0] if found["info"].split() else "", _dedent(found))
            for found in _FENCE.finditer(self + "\n")
        ]

    def json(self) -> Any:
        """The JSON of the answer: all of it, or its only code block.

        Raises:
            UsageError: where it is no JSON.
        """
        blocks = self.code_blocks
        candidates = [str(self), *(block.code for block in blocks if block.language in ("", "json"))]
        for candidate in candidates:
            try:
                return json.loads(candidate)
            except ValueError:
                continue
        raise UsageError(
            "The answer is not JSON.", action="Ask for JSON only, or look at the text; nothing of it is lost."
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from nbllm.display.safe import safe_bundle

        return safe_bundle(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from nbllm.display.safe import safe_text

        # On its own it is read; within a list it is a str among others.
        printer.text(safe_text(self) if len(printer.stack) < 2 else repr(str(self)))

    def _repr_markdown_(self) -> str:
        return self._repr_mimebundle_().get("text/markdown", "")


_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)\n(?P<code>.*?)(?:^ *(?P=fence)[`~]*[ \t]*\n|\Z)",
    re.MULTILINE | re.DOTALL,
)


def _dedent(found: re.Match[str]) -> str:
    indent = len(found["indent"])
    lines = found["code"].splitlines(keepends=True)
    return "".join(line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in lines)


class ResponseStream:
    """An answer while it arrives: an `AsyncIterator[str]`, a plain iterator in a cell, and a context manager.

    The call runs on nbllm's background loop whether or not anyone reads. Leaving `async with`, `cancel()` and
    dropping the last reference stop it and close its socket; what had arrived stays in `text`.

    Reading raises what went wrong: above all IncompleteStreamError, where the stream ended without the provider's
    terminal event. A stream that was cancelled just ends; its `state` says `interrupted`.
    """

    def __init__(
        self,
        record: Record,
        channel: Channel[Event],
        job: Job[None],
        loop: BackgroundLoop,
    ) -> None:
        self._record = record
        self._channel = channel
        self._job = job
        self._loop = loop
        self._pending: deque[Event] = deque()
        self._exhausted = False
        # The job holds the record and the channel, never this object: nobody left to read means nothing to do.
        self._finalizer = weakref.finalize(self, job.cancel)
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        return f"<ResponseStream {self.provider}:{self.model} {self.state}, {len(self.text)} characters>"

    @property
    def text(self) -> str:
        """The answer so far, read or not."""
        return self._record.text

    @property
    def reasoning(self) -> str:
        """The reasoning so far, as far as the provider shows it."""
        return self._record.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far."""
        return self._record.tool_calls

    @property
    def usage(self) -> Usage:
        """Tokens used, as far as it is known by now."""
        return self._record.usage

    @property
    def cost(self) -> float | None:
        """US dollars, or None where the price is not known."""
        return self._record.cost

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the model stopped, once it has."""
        return self._record.finish.reason if self._record.finish else None

    @property
    def state(self) -> State:
        """`pending`, `streaming`, or how it ended: `complete`, `interrupted`, `incomplete`, `failed`."""
        return self._record.state

    @property
    def error(self) -> BaseException | None:
        """What went wrong; None while it runs and where nothing did."""
        return self._record.error

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from when the request was first sent to the model's first word, reasoning included; None before it.

        Retries and a model that failed before this one count, loading an SDK does not. Of an answer out of the cache it
        is the time of the replay.
        """
        first = self._record.first_token
        return None if first is None else first - self._sent

    @property
    def duration(self) -> float:
        """Seconds from when the request was first sent to the end, or to now while it runs."""
        return (self._record.ended or time.monotonic()) - self._sent

    @property
    def _sent(self) -> float:
        return self._record.sent or self._record.started

    @property
    def provider(self) -> str:
        """The provider that answers."""
        return self._record.provider

    @property
    def model(self) -> str:
        """The model that answers."""
        return self._record.model

    @property
    def request(self) -> Request | None:
        """What was asked of the model that answers; None before its turn came."""
        return self._record.request

    @property
    def cached(self) -> bool:
        """Whether it is replayed from the cache."""
        return self._record.cached

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request, where it gives one."""
        return self._record.request_id

    @property
    def fallback_of(self) -> tuple[str, ...]:
        """The models that were asked before this one and failed."""
        return self._record.fallback_of

    def cancel(self) -> None:
        """Stop it; from any thread, at once. What had arrived stays, and the provider's socket is closed."""
        self._record.end("interrupted")
        self._job.cancel()
        # A job that is cancelled before its first step never gets to close the channel itself.
        self._channel.close()

    async def aclose(self) -> None:
        """Stop it where it still runs, and return when its socket is closed."""
        if not self._job.ended.done():
            self.cancel()
            await asyncio.wait([asyncio.wrap_future(self._job.ended)], timeout=_loop.GRACE)
        self._exhausted = True

    def close(self) -> None:
        """The same for code that does not await."""
        if not self._job.ended.done():
            self.cancel()
            if not self._loop.here:  # there it would wait for itself
                _loop.settle(self._job.ended)
        self._exhausted = True

    async def events(self) -> AsyncIterator[Event]:
        """The typed events, in place of their text."""
        self._claim()
        while (event := await self._next()) is not None:
            yield event

    async def collect(self) -> Response:
        """Read to the end; the whole answer.

        Raises:
            ProviderError: where it failed.
        """
        while await self._next() is not None:
            pass
        return self.response()

    def response(self) -> Response:
        """What has arrived by now as a `Response`."""
        return Response(self._record.text, self._record)

    def __await__(self) -> Generator[Any, None, Response]:
        return self.collect().__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        self._claim()
        return self

    async def __anext__(self) -> str:
        while (event := await self._next()) is not None:
            if isinstance(event, TextDelta):
                return event.text
        raise StopAsyncIteration

    def __iter__(self) -> Iterator[str]:
        for batch in self.batches():
            for event in batch:
                if isinstance(event, TextDelta):
                    yield event.text

    def batches(self) -> Iterator[list[Event]]:
        """The events, all that have gathered since the last look together; for code that does not await."""
        self._claim()
        if self._loop.here:
            raise UsageError("A stream was read blockingly on nbllm's own loop.", action="Use `async for` there.")
        while self._pending or not self._exhausted:
            batch, self._pending = [*self._pending], deque()
            if batch or (batch := self._read_blocking()):
                yield batch

    @property
    def ended(self) -> concurrent.futures.Future[None]:
        """Done when the call has ended, whatever its end, and its socket is closed."""
        return self._job.ended

    def _read_blocking(self) -> list[Event]:
        try:
            batch = self._channel.get_blocking()
        except Exception:
            self._exhausted = True
            raise
        except BaseException:  # an interrupt while waiting
            self.close()
            raise
        self._exhausted = not batch
        return batch

    async def _next(self) -> Event | None:
        if not self._pending:
            if self._exhausted:
                self._raise_again()
                return None
            try:
                batch = await self._channel.get()
            except Exception:
                self._exhausted = True
                raise
            except BaseException:  # cancelling whoever reads cancels the call
                self.cancel()
                raise
            if not batch:
                self._exhausted = True
                return None
            self._pending.extend(batch)
        return self._pending.popleft()

    def _raise_again(self) -> None:
        # A stream that failed stays failed: whoever reads on does not get half an answer as a whole one.
        if self._record.error is not None:
            raise self._record.error

    def _claim(self) -> None:
        if self._exhausted:
            self._raise_again()
            raise UsageError("This stream was already read to its end.", action="Its whole text is in `.text`.")
