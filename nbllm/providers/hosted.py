"""What the providers that are reached over HTTP share: their SDK's call, seen and decoded from below it.

A hosted provider says which call of its SDK to make (`send`, `complete`, `models`) and what an answer's server-sent
events mean (a `Decoder`). Opening, reading, closing and error mapping are the same for all of them: what went wrong is
read off the exchange (a status, headers, a body, or a transport error of httpx2), not off five trees of exceptions.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from nbllm import errors
from nbllm.config import ProviderSettings, Secret, origin
from nbllm.errors import NbllmError, Phase, ProviderError
from nbllm.keys import note
from nbllm.providers import mapping
from nbllm.providers.base import Provider, ours_within
from nbllm.providers.sse import SSEDecoder
from nbllm.providers.transport import Exchange, async_client, drained, exchange
from nbllm.types import Completion, Event, ModelInfo, Request

if TYPE_CHECKING:
    import httpx2

__all__ = ["Answer", "Decoder", "HostedProvider", "preview"]

T = TypeVar("T")


class Decoder(abc.ABC):
    """Turns the server-sent events of one answer into events of ours.

    Attributes:
        done: Nothing that matters follows: the rest of the body is not waited for.
    """

    done = False

    @abc.abstractmethod
    def feed(self, name: str, data: str, events: list[Event]) -> None:
        """Append what one server-sent event means.

        Args:
            name: The event's name, mostly empty.
            data: Its data.
            events: Where to append; what was appended counts even where this raises.

        Raises:
            ProviderError: where it reports an error.
            ValueError, TypeError, AttributeError, LookupError: where it is not of the protocol.
        """

    def end(self, events: list[Event]) -> None:
        """Append what the end of the body means; nothing, mostly: the terminal event has come or it has not."""
        return


@dataclass(slots=True)
class Answer:
    """A stream that has begun: the response, and what the SDK returned, kept from the garbage collector with it."""

    response: httpx2.Response
    kept: Any


class HostedProvider(Provider):
    """A provider over HTTP.

    A subclass sets the class attributes and builds its SDK's client around `self.http` in `build`.
    """

    default_url: ClassVar[str]
    """Where the provider itself is; a key is required there, and optional elsewhere."""
    key_variable: str
    """The environment variable that holds its key; for an endpoint, the setting."""

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(settings)
        self.label = settings.label or self.label
        self.base_url = settings.base_url or self.default_url
        self.key_variable = settings.key_variable or self.key_variable
        at_home = origin(self.base_url) == origin(self.default_url)
        if settings.api_key is None and at_home and (stored := self.stored_key()) is not None:
            self.settings = settings = dataclasses.replace(settings, api_key=note(stored, settings.name))
        if settings.api_key is None and (settings.key_needed or at_home):
            raise errors.MissingKeyError(
                f"There is no key for {self.label}.",
                action=f"Set {self.key_variable} (in a notebook: %llm key {settings.name}, which asks for it unseen).",
                provider=settings.name,
            )
        self.http = async_client(settings.name, self.base_url, settings.timeout)
        self.build()

    @property
    def key(self) -> str:
        """The key, or a word in its place: a server of one's own mostly wants none, but the SDKs want a word."""
        return self.settings.api_key.reveal() if self.settings.api_key else "not-needed"

    def stored_key(self) -> Secret | None:
        """A key that the provider's own tools keep on this machine, for its own address, where none is configured."""
        return None

    @abc.abstractmethod
    def build(self) -> None:
        """Import the SDK and build its client around `self.http`, at `self.base_url`, without retries of its own."""

    @abc.abstractmethod
    async def send(self, request: Request) -> Any:
        """Make the SDK's streaming call. The SDK finds an empty body: the real one is diverted to us."""

    @abc.abstractmethod
    def decoder(self, request: Request) -> Decoder:
        """What decodes the answer to this request."""

    async def open(self, request: Request) -> Answer:
        kept, seen = await self._call(lambda: self.send(request), request, divert=True)
        if seen.response is None:
            raise errors.ResponseFormatError(f"The SDK of {self.label} sent nothing.", action="Report this to nbllm.")
        return Answer(seen.response, kept)

    async def decode(self, stream: Answer, request: Request) -> AsyncGenerator[list[Event], None]:
        framing, decoder, head, seen = SSEDecoder(), self.decoder(request), b"", False
        async with contextlib.aclosing(stream.response.aiter_bytes()) as body:
            while not decoder.done:
                chunk = await anext(body, b"")
                received = framing.feed(chunk) if chunk else framing.end()
                seen = seen or bool(received)
                if not seen:
                    head = (head + chunk)[:2000]
                events: list[Event] = []
                data = ""
                try:
                    for name, data in received:
                        decoder.feed(name, data, events)
                        if decoder.done:
                            break
                except ProviderError:
                    yield events  # what came before the fault in the same read is kept
                    raise
                except (ValueError, AttributeError, TypeError, LookupError) as exc:
                    yield events
                    raise errors.ResponseFormatError(
                        f"{self.label} sent a chunk that is not of its protocol: {preview(data.encode())}",
                        action="What had arrived is kept; run it again, and look at the server if it stays so.",
                    ) from exc
                if decoder.done or not chunk:
                    decoder.end(events)
                if events:
                    yield events
                if not chunk:
                    break
            if not seen:
                raise errors.ResponseFormatError(
                    f"{self.label} answered {request.model} with something that is no stream: {preview(head)}",
                    action=f"Check the base URL, {self.base_url}: a proxy or another service may answer there.",
                )
            await drained(body)

    async def close(self, stream: Answer) -> None:
        await stream.response.aclose()

    def request_id(self, stream: Answer) -> str | None:
        return mapping.request_id(stream.response.headers)

    async def completion(self, request: Request) -> Completion:
        done, seen = await self._translating(lambda: self._call(lambda: self.complete(request), request), request)
        found = mapping.request_id(seen.response.headers) if seen.response is not None else None
        return dataclasses.replace(done, request_id=done.request_id or found, usage=done.usage.checked())

    async def list_models(self) -> list[ModelInfo]:
        found, _ = await self._translating(lambda: self._call(self.models, None), None)
        return found

    async def aclose(self) -> None:
        await self.http.aclose()

    def map_error(self, exc: Exception, request: Request | None, phase: Phase) -> ProviderError | None:
        import httpx2

        # SDKs wrap what the transport raised, some in an exception without a cause, some in an HTTPError of their own.
        inner: BaseException | None = exc
        while inner is not None and not isinstance(inner, (httpx2.RequestError, httpx2.StreamError)):
            inner = inner.__cause__ or inner.__context__
        if isinstance(inner, httpx2.ProxyError):
            return mapping.proxy_error(self.label, str(inner))
        if isinstance(inner, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            return mapping.connection_error(self.label, self.base_url, exc, "connect")
        if isinstance(inner, httpx2.TimeoutException):
            return mapping.timeout_error(self.label, self.settings.timeout, phase)
        if isinstance(inner, httpx2.DecodingError):
            return self.no_protocol("an answer that cannot be unpacked")
        if isinstance(inner, (httpx2.TransportError, httpx2.StreamError)):
            return mapping.connection_error(self.label, self.base_url, exc, phase)
        return None

    def said(self, body: Any) -> dict[str, Any]:
        """What an error's body says, under `message`, `code`, `param` and, where it has one of its own, `status`.

        Args:
            body: Its parsed JSON, or its text where it is none.
        """
        while isinstance(body, list) and body:
            body = body[0]
        found = body.get("error", body) if isinstance(body, Mapping) else body
        if not isinstance(found, Mapping):
            return {"message": found if isinstance(found, str) else ""}
        return {
            "message": found.get("message") or found.get("detail") or "",
            "code": found.get("code") or found.get("type"),
            "param": found.get("param"),
        }

    def refusal(
        self, body: Any, model: str | None, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> ProviderError:
        """The error that a refusal means: an answer with an error's status, or an error event within a stream."""
        said = self.said(body)
        message = said.get("message")
        code = said.get("code")
        status = said.get("status") or status
        if status is None and str(code or "").isdigit():
            status = int(str(code))
        return mapping.error_for(
            mapping.Failure(
                label=self.label,
                key_variable=self.key_variable,
                message=message if isinstance(message, str) else json.dumps(message, default=str),
                status=status,
                code=str(code or ""),
                param=said["param"] if isinstance(said.get("param"), str) else None,
                headers=headers,
                base_url=self.base_url,
                provider=self.name,
                retry_after=said.get("retry_after"),
            ),
            model=model,
        )

    def no_protocol(self, what: str) -> errors.ResponseFormatError:
        """The error of an answer that is not the provider's."""
        return errors.ResponseFormatError(
            f"{self.label} sent {what}.",
            action=f"Check the base URL, {self.base_url}: a proxy or another service may answer there.",
        )

    async def _call(
        self, call: Callable[[], Awaitable[T]], request: Request | None, *, divert: bool = False
    ) -> tuple[T, Exchange]:
        """The SDK's call, watched; its errors in our terms."""
        with exchange(divert=divert) as seen:
            try:
                return await call(), seen
            except BaseException as exc:
                diverted = divert and seen.response is not None and seen.response.is_success
                if diverted and isinstance(exc, Exception) and ours_within(exc) is None:
                    # The SDK did not like the answer's headers: what it is, its body says better.
                    return cast("T", None), seen
                if divert and seen.response is not None:  # whatever ended the call, nobody will read the body
                    await asyncio.shield(seen.response.aclose())
                found = exc if isinstance(exc, NbllmError) else self._fault(exc, seen, request)
                if isinstance(found, ProviderError) and seen.response is not None:
                    found.request_id = found.request_id or mapping.request_id(seen.response.headers)
                if found is None or found is exc:
                    raise
                raise found from self._cause(exc)

    def _fault(self, exc: BaseException, seen: Exchange, request: Request | None) -> ProviderError | None:
        """The error that an exception out of an SDK's call means, by what was seen of the call."""
        if not isinstance(exc, Exception):
            return None
        if ours_within(exc) is not None:  # the SDK wrapped what our own request hook raised
            return None
        response, model = seen.response, request.model if request else None
        if response is not None and response.status_code == 407:  # never a provider's own
            return mapping.proxy_error(self.label, f"407 {response.reason_phrase}")
        if response is not None and response.status_code >= 400:
            return self.refusal(_parsed(response), model, response.status_code, response.headers)
        if (found := self.map_error(exc, request, "open")) is not None:
            return found
        if response is not None:
            return self.no_protocol("an answer that is not of its protocol" if request else "no list of models")
        if not seen.sent and request is not None and isinstance(exc, (TypeError, ValueError)):
            # What pydantic says of a wrong type is a page long.
            return errors.InvalidRequestError(
                f"{self.label}: {mapping.sentence(str(exc))}", action="Correct that option."
            )
        return None


def preview(body: bytes) -> str:
    """The beginning of a body, to show in an error."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text[:80] + ("…" if len(text) > 80 else "")) if text else "an empty body."


def _parsed(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return preview(response.content) if response.content else ""
