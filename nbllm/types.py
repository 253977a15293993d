"""The data that crosses every border inside nbllm: frozen, slotted, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = [
    "Attachment",
    "Completion",
    "Event",
    "Finish",
    "FinishReason",
    "Message",
    "ModelInfo",
    "ProviderEvent",
    "ReasoningDelta",
    "Request",
    "Role",
    "State",
    "TextDelta",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "UsageUpdate",
    "coalesced",
    "whole_characters",
]

Role = Literal["system", "user", "assistant", "tool"]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]
"""Why a model stopped: it was done, it ran out of tokens, it calls tools, it was filtered, or another reason."""

State = Literal["pending", "streaming", "complete", "interrupted", "incomplete", "failed"]
"""Where a stream stands. The last four are final: the provider said it was done; the reader stopped it; it
ended without the provider's terminal event; or it failed with another error."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file within a message.

    Attributes:
        media_type: Its MIME type, such as `image/png`.
        data: Its bytes.
        name: A file name to show.
    """

    media_type: str
    data: bytes = field(repr=False)
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call of a tool that the model asks for; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: The text.
        attachments: Files that go with it.
        tool_calls: What an assistant's turn asked for.
        tool_call_id: Which call a `tool` turn answers.
    """

    role: Role
    content: str
    attachments: tuple[Attachment, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a provider, resolved: no default is left open.

    Attributes:
        provider: The provider's registered name.
        model: The provider's own name of the model.
        messages: The conversation, oldest first.
        max_tokens: The most tokens to answer with.
        temperature: The sampling temperature; 0 is greedy.
        options: What else the caller set: the common names (`messages.COMMON_OPTIONS`) and the provider's own.
        explicit: Which of `max_tokens` and `temperature` the caller set, as against a default of ours: only
            a default may be dropped for a model that refuses it.
        dropped: Parameters left out for this model, which was found to refuse them.
    """

    provider: str
    model: str
    messages: tuple[Message, ...]
    max_tokens: int = 4000
    temperature: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    explicit: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a call used; None where the provider does not say.

    Attributes:
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens of the answer, reasoning included.
        cached_tokens: Those of the prompt read from the provider's cache.
        reasoning_tokens: Those of the answer spent on reasoning.
        cache_write_tokens: Those of the prompt written to the provider's cache, where that has a price of its own.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None

    @property
    def total_tokens(self) -> int | None:
        """Input and output together, where both are known."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens

    def checked(self) -> Usage:
        """This usage without what is no count: a server may send anything, and an answer is not lost for that."""
        wrong = {
            name: None
            for name in self.__slots__
            if (value := getattr(self, name)) is not None and (type(value) is not int or not 0 <= value < 2**53)
        }
        return replace(self, **wrong) if wrong else self

    def updated(self, later: Usage) -> Usage:
        """This usage with what a later report of the same call knows; providers report totals, not increments."""
        known = {name: value for name in self.__slots__ if (value := getattr(later, name)) is not None}
        return replace(self, **known)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's reasoning, as far as the provider shows it."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: `index` says of which; `arguments` is a fragment of its JSON."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class UsageUpdate:
    """What is known of the call's usage by now; a later one replaces what it knows better."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Finish:
    """The provider's terminal event. `raw_reason` is its own word for the reason."""

    reason: FinishReason
    raw_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderEvent:
    """Something of one provider alone: `kind` names it, `data` is its JSON."""

    kind: str
    data: Any = None


Event = TextDelta | ReasoningDelta | ToolCallDelta | ToolCall | UsageUpdate | Finish | ProviderEvent


@dataclass(frozen=True, slots=True)
class Completion:
    """A provider's whole answer to a call that did not stream."""

    text: str
    finish: Finish
    usage: Usage = Usage()
    model: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    request_id: str | None = None
    raw: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model; None where it is not known.

    Attributes:
        id: The provider's name of it.
        provider: The provider's registered name.
        name: A name to show.
        context_window: Tokens of prompt and answer together.
        max_output_tokens: The most tokens of an answer.
        input_modalities: Such as `("text", "image")`.
        input_price: US dollars per million tokens of prompt.
        output_price: US dollars per million tokens of answer.
        details: What else the provider says.
    """

    id: str
    provider: str
    name: str | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    input_modalities: tuple[str, ...] | None = None
    input_price: float | None = None
    output_price: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)


def whole_characters(text: str) -> str:
    """The text with halves of characters (surrogates, which JSON can hold) put together, lone ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def coalesced(events: list[Event]) -> list[Event]:
    """The events with adjacent pieces of text joined, as a new list."""
    joined: list[Event] = []
    run: list[str] = []
    for event in events:
        if type(event) is TextDelta:
            run.append(event.text)
            continue
        if run:
            joined.append(TextDelta("".join(run)))
            run = []
        joined.append(event)
    if run:
        joined.append(TextDelta("".join(run)))
    return joined
