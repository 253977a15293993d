"""What a provider's protocol has to say of itself: one subclass of `Protocol`, in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from tests.wire.connection import Request
    from tests.wire.script import Refusal, Script


@dataclass(frozen=True)
class Call:
    """What a request asks for: `kind` is "generate", "models" or "model"."""

    kind: str
    model: str = ""
    stream: bool = False


@dataclass(frozen=True)
class Event:
    """One event of a stream; `counts`: it carries a delta of the answer; `raw`: bytes as they are."""

    data: str = ""
    event: str | None = None
    counts: bool = False
    raw: bytes | None = None

    def encode(self, newline: str = "\n", comments: bool = False) -> bytes:
        """The event's bytes (WHATWG server-sent events)."""
        if self.raw is not None:
            return self.raw
        lines = [": keep-alive"] if comments else []
        lines += [f"event: {self.event}"] if self.event else []
        lines += [f"data: {line}" for line in self.data.split("\n")]
        return (newline.join(lines) + newline * 2).encode()


class Protocol(ABC):
    """One provider's protocol: a file of its own, named in `PROTOCOLS`."""

    name: str
    content_type = "text/event-stream"

    @abstractmethod
    def route(self, request: Request) -> Call | None:
        """What the request asks for, None if it is not this protocol's."""

    @abstractmethod
    def key(self, request: Request) -> str:
        """The API key that the request carries."""

    @abstractmethod
    def events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[Event]:
        """The events of a streamed answer, those that end it included."""

    @abstractmethod
    def whole(self, script: Script, request: Request, answer: Sequence[str]) -> Any:
        """The JSON body of an answer that is not streamed."""

    @abstractmethod
    def models(self, names: Sequence[str]) -> Any:
        """The JSON body of the list of models."""

    @abstractmethod
    def model(self, name: str) -> Any:
        """The JSON body that describes one model."""

    @abstractmethod
    def error(self, refusal: Refusal, model: str) -> Any:
        """The JSON body of an error answer."""

    @abstractmethod
    def error_events(self, script: Script) -> Iterator[Event]:
        """The events that report an error inside a stream."""

    @abstractmethod
    def malformed(self) -> Event:
        """An event that cannot be parsed."""

    def page(self, request: Request, names: Sequence[str]) -> Any:
        """The JSON body of the part of the list of models that the request asks for."""
        return self.models(names)

    def parameters(self, request: Request) -> Container[str]:
        """The parameters that the request sets, by the names that scripts reject them by."""
        return request.body if isinstance(request.body, dict) else ()

    def headers(self, request_id: str) -> dict[str, str]:
        """Headers of every answer."""
        return {"x-request-id": request_id}

    def refuse(self, request: Request) -> Refusal | None:
        """What the provider itself refuses, whatever the script; None where the request is in order."""
        return None
