"""The interface of a provider, and what all of them share.

A provider says how to build its client, open a stream, decode it into events, close it, complete without streaming,
list models and map errors. The base class owns the rest: the order of these, folding usage, noticing a stream that
ends without its terminal event, and a close that a cancellation cannot interrupt.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from nbllm import errors
from nbllm.config import ProviderSettings
from nbllm.errors import NbllmError, Phase, ProviderError
from nbllm.types import Completion, Event, Finish, ModelInfo, Request, Usage, UsageUpdate

__all__ = ["Emit", "Provider", "ours_within"]

logger = logging.getLogger("nbllm.providers")

T = TypeVar("T")

Emit = Callable[[list[Event]], None]
"""Takes the events of one socket read."""


class Provider(abc.ABC):
    """One provider's side of nbllm. All of its coroutines run on nbllm's background loop.

    Args:
        settings: Its key, base URL and the rest of its configuration.

    Raises:
        MissingKeyError: where it needs a key and none is configured.
        MissingExtraError: where its SDK is not installed.
    """

    label: str
    """Its name to show."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.settings = settings
        self.name = settings.name

    @abc.abstractmethod
    async def open(self, request: Request) -> Any:
        """Send the request; return the provider's stream once the answer has begun."""

    @abc.abstractmethod
    def decode(self, stream: Any, request: Request) -> AsyncGenerator[list[Event], None]:
        """The stream's events, those of one socket read together, with a `Finish` where the provider ends it."""

    @abc.abstractmethod
    async def close(self, stream: Any) -> None:
        """Close the stream's transport; called once for each stream, however it ended."""

    @abc.abstractmethod
    async def complete(self, request: Request) -> Completion:
        """The provider's own call without streaming."""

    @abc.abstractmethod
    async def models(self) -> list[ModelInfo]:
        """What models there are, live."""

    @abc.abstractmethod
    def map_error(self, exc: Exception, request: Request | None, phase: Phase) -> ProviderError | None:
        """The error of ours that an exception of the SDK means; None where it is not one of the SDK's."""

    def adapt(self, request: Request, error: errors.InvalidRequestError) -> Request | None:
        """The request without a default that the model refuses, or None where nothing of the sort can help."""
        return None

    def limits(self, request: Request) -> bool:
        """Whether the answer is asked for with a limit of its length, on which a budget relies."""
        return "max_tokens" not in request.dropped

    def request_id(self, stream: Any) -> str | None:
        """The provider's id of the request that this stream answers, where it gives one."""
        return None

    async def aclose(self) -> None:
        """Close the client."""
        return

    async def stream(self, request: Request, emit: Emit, opened: Callable[[str | None], None]) -> None:
        """Stream an answer.

        Args:
            request: What is asked.
            emit: Called with the events of each socket read, in order.
            opened: Called once, when the provider has begun to answer, with its id of the request.

        Raises:
            ProviderError: whatever went wrong, in our terms.
            IncompleteStreamError: where the stream ends without the provider's terminal event. Its text is the
                caller's to fill in, who has seen the events.
        """
        stream: Any = None
        phase: Phase = "open"
        usage, finished = Usage(), False
        try:
            stream = await self.open(request)
            opened(self.request_id(stream))
            phase = "stream"
            async with contextlib.aclosing(self.decode(stream, request)) as batches:
                async for batch in batches:
                    for index, event in enumerate(batch):
                        if isinstance(event, UsageUpdate):
                            usage = usage.updated(event.usage.checked())
                            batch[index] = UsageUpdate(usage)
                        elif isinstance(event, Finish):
                            finished = True
                    emit(batch)
        except Exception as exc:  # noqa: BLE001 - what is not ours is translated or passed on as it is
            error = self._translated(exc, request, phase)
            if stream is not None and isinstance(error, ProviderError):
                error.request_id = error.request_id or self.request_id(stream)
            raise error from self._cause(exc)
        finally:
            if stream is not None:
                await self._close_shielded(stream)
        if not finished:
            raise errors.IncompleteStreamError(
                f"{self.label} ended the answer of {request.model} without saying that it was complete.",
                action="What had arrived is kept; run it again for the whole answer.",
                provider=self.name,
                model=request.model,
                request_id=self.request_id(stream),
            )

    async def completion(self, request: Request) -> Completion:
        """The whole answer by the provider's own call without streaming, errors in our terms."""
        done = await self._translating(lambda: self.complete(request), request)
        return replace(done, usage=done.usage.checked())

    async def list_models(self) -> list[ModelInfo]:
        """The live list of models, errors in our terms."""
        return await self._translating(self.models, None)

    async def _translating(self, call: Callable[[], Awaitable[T]], request: Request | None) -> T:
        try:
            return await call()
        except Exception as exc:  # noqa: BLE001 - what is not ours is translated or passed on as it is
            raise self._translated(exc, request, "open") from self._cause(exc)

    def _translated(self, exc: Exception, request: Request | None, phase: Phase) -> Exception:
        mapped = ours_within(exc) or self.map_error(exc, request, phase)
        if mapped is None:
            return exc
        if isinstance(mapped, ProviderError):
            mapped.provider = mapped.provider or self.name
            mapped.model = mapped.model or (request.model if request else None)
        if isinstance(mapped, NbllmError) and self.settings.api_key:
            # The last line of defence: servers and libraries quote what they were sent.
            key = self.settings.api_key.reveal()
            if key in str(mapped):
                mapped.message = mapped.message.replace(key, "…")
                mapped.action = mapped.action.replace(key, "…") if mapped.action else None
                mapped.args = (mapped.message,)
        return mapped

    def _cause(self, exc: BaseException) -> BaseException | None:
        # An error of ours that passes through is raised from what it was raised from, never from itself; and what
        # quotes the key is no cause to show.
        cause = exc.__cause__ if isinstance(exc, NbllmError) else exc
        key = self.settings.api_key
        return None if key and cause is not None and key.reveal() in str(cause) else cause

    async def _close_shielded(self, stream: Any) -> None:
        closing = asyncio.ensure_future(self.close(stream))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            # Cancelled once more while closing: the close runs on to its end, and only then do we.
            await asyncio.wait([closing])
            raise
        except Exception:  # the answer is there or its own error is on its way: this one is only worth a line
            logger.debug("closing a stream of %s failed", self.name, exc_info=True)


def ours_within(exc: BaseException) -> NbllmError | None:
    """The error of ours that an exception is or wraps: SDKs make a connection error of what our request hook raised."""
    found: BaseException | None = exc
    while found is not None and not isinstance(found, NbllmError):
        found = found.__cause__ or found.__context__
    return found
