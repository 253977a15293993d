"""An answer as the cache holds it, and its JSON: strict in what is read, for the file may be somebody else's."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from nbllm import __version__
from nbllm.types import (
    Event,
    Finish,
    FinishReason,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageUpdate,
    whole_characters,
)

if TYPE_CHECKING:
    from nbllm.response import Record

__all__ = ["Cached", "decoded", "encoded"]

T = TypeVar("T")

MAX_EVENTS: Final = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class Cached:
    """An answer as the cache holds it.

    Attributes:
        provider: The provider that answered.
        model: The model that answered.
        events: The answer, its pieces joined; a `Finish` among them.
        cost: US dollars that the original call cost, where that is known.
        request_id: The provider's id of the original request.
        created: When it was stored (ISO 8601, UTC).
        version: The nbllm that stored it.
    """

    provider: str
    model: str
    events: tuple[Event, ...]
    cost: float | None = None
    request_id: str | None = None
    created: str = dataclasses.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__

    @classmethod
    def of(cls, record: Record) -> Cached:
        """The answer of a call that is complete."""
        events: list[Event] = []
        if record.reasoning:
            events.append(ReasoningDelta(record.reasoning))
        if record.text:
            events.append(TextDelta(record.text))
        events += [*record.tool_calls, *record.provider_events, UsageUpdate(record.usage)]
        if record.finish is not None:
            events.append(record.finish)
        return cls(record.provider, record.model, tuple(events), record.cost, record.request_id)

    @property
    def usage(self) -> Usage:
        """What the original call used."""
        return next((event.usage for event in reversed(self.events) if isinstance(event, UsageUpdate)), Usage())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return whole_characters(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise ValueError
    return value


def _no_number(name: str) -> None:
    raise ValueError(name)  # NaN and the infinities are not JSON, though Python reads them


def _dollars(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError
    return float(value)


def _data(value: Any) -> Any:
    json.dumps(value, ensure_ascii=False).encode()  # a ValueError for half a character
    return value


def _reason(value: Any) -> str:
    if value not in get_args(FinishReason):
        raise ValueError
    return str(value)


def _time(value: Any) -> str:
    return datetime.fromisoformat(_text(value)).isoformat()


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _made(cls: Callable[..., T], fields: Mapping[str, Callable[[Any], Any]], found: Any) -> T:
    """A dataclass from JSON: a TypeError, ValueError or LookupError where a field is missing, unknown or wrong."""
    if not isinstance(found, dict):
        raise TypeError
    return cls(**{name: fields[name](value) for name, value in found.items()})


def _usage(value: Any) -> Usage:
    return _made(Usage, {field.name: _or_none(_count) for field in dataclasses.fields(Usage)}, value)


_EVENTS: Final[Mapping[str, tuple[type, Mapping[str, Callable[[Any], Any]]]]] = {
    "text": (TextDelta, {"text": _text}),
    "reasoning": (ReasoningDelta, {"text": _text}),
    "tool_call": (ToolCall, {"id": _text, "name": _text, "arguments": _text}),
    "tool_call_delta": (
        ToolCallDelta,
        {"index": _count, "id": _or_none(_text), "name": _or_none(_text), "arguments": _text},
    ),
    "usage": (UsageUpdate, {"usage": _usage}),
    "finish": (Finish, {"reason": _reason, "raw_reason": _or_none(_text)}),
    "provider": (ProviderEvent, {"kind": _text, "data": _data}),
}
_KINDS: Final = {cls: kind for kind, (cls, _) in _EVENTS.items()}


def _events(value: Any) -> tuple[Event, ...]:
    if not isinstance(value, list) or len(value) > MAX_EVENTS:
        raise ValueError
    events: list[Any] = []
    for kind, fields in value:
        cls, checks = _EVENTS[kind]
        events.append(_made(cls, checks, fields))
    if not any(isinstance(event, Finish) for event in events):
        raise ValueError
    return tuple(events)


_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "provider": _text,
    "model": _text,
    "events": _events,
    "cost": _or_none(_dollars),
    "request_id": _or_none(_text),
    "created": _time,
    "version": _text,
}


def encoded(cached: Cached) -> bytes:
    """The answer as JSON, neighbouring pieces of text in one; what a provider says that is no JSON is left out.

    Raises:
        ValueError: where it is none of the kind.
    """
    fields = {name: getattr(cached, name) for name in _FIELDS}
    fields["events"] = [
        [_KINDS[type(event)], dataclasses.asdict(event)] for event in _joined(cached.events) if _is_plain(event)
    ]
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, RecursionError) as exc:
        raise ValueError("it is no JSON") from exc
    return whole_characters(text).encode()


def decoded(record: bytes) -> Cached:
    """The answer that the JSON holds, checked in every field.

    Raises:
        ValueError: where it holds none.
    """
    try:
        return _made(Cached, _FIELDS, json.loads(record.decode(), parse_constant=_no_number))
    except (TypeError, LookupError, OverflowError, RecursionError) as exc:
        raise ValueError("it is no answer") from exc


def _joined(events: Sequence[Event]) -> list[Event]:
    """The events, neighbouring pieces of text or of reasoning in one."""
    joined: list[Event] = []
    for cls, run in itertools.groupby(events, key=type):
        if cls is TextDelta or cls is ReasoningDelta:
            joined.append(cls("".join(event.text for event in run)))  # type: ignore[union-attr]
        else:
            joined += run
    return joined


def _is_plain(event: Event) -> bool:
    """Whether the event can be kept: what one provider alone says may be anything."""
    if not isinstance(event, ProviderEvent):
        return True
    try:
        json.dumps(event.data, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return False
    return True
