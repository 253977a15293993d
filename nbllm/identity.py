"""What makes two requests the same: one normal form, whose hash is the cache's key and the provenance's prompt hash.

The form is JSON with sorted keys: the order of a dict, a tuple in place of a list, or `0` in place of `0.0` make no
difference; anything that the provider would see makes one. Files stand in it by their hash. What is no JSON stands in
it where its content can be told (pydantic models, dataclasses, enums, bytes, sets); a request with anything else in it
has no identity, and is not cached.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import numbers
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from nbllm.types import Attachment, Message, Request

__all__ = ["prompt_hash", "request_identity"]

FORM: Final = 1
"""The form's own version: a change to it makes every identity a new one."""

DEEPEST: Final = 50
"""Containers within containers; what goes deeper may hold itself."""

TAG: Final = "\0nbllm"
"""Marks what is no JSON: no option of any API begins so."""


def request_identity(request: Request, *, base_url: str | None, extra: Mapping[str, Any] | None = None) -> str | None:
    """The SHA-256 of the request's normal form, in hexadecimal; None where it has none.

    `request.explicit` and `request.dropped` are no part of it: they say how it is sent, not what is asked.

    Args:
        request: What is asked.
        base_url: Where it is sent; always said, or always left None for the provider's own.
        extra: What else decides the answer: a local model's revision, adapter and quantization.
    """
    try:
        return _digest(
            {
                "form": FORM,
                "provider": request.provider,
                "base_url": None if base_url is None else _normal_url(base_url),
                "model": request.model,
                "messages": [_message(message) for message in request.messages],
                "max_tokens": _normal(request.max_tokens),
                "temperature": _normal(request.temperature),
                "options": _normal(request.options),
                "extra": _normal(extra or {}),
            }
        )
    except (_NoIdentityError, ValueError, OverflowError):  # the latter two: numbers of absurd length
        return None


def prompt_hash(request: Request) -> str:
    """The SHA-256 of the messages' part of the normal form alone.

    So that answers of several models, or at several temperatures, can be seen to answer the same prompt.
    """
    return _digest({"form": FORM, "messages": [_message(message) for message in request.messages]})


class _NoIdentityError(Exception):
    """A value whose content cannot be told."""


def _digest(form: Mapping[str, Any]) -> str:
    # ASCII only: half a character in an option (a lone surrogate) has no UTF-8.
    return hashlib.sha256(_canonical(form).encode("ascii")).hexdigest()


def _canonical(form: Any) -> str:
    return json.dumps(form, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _message(message: Message) -> list[Any]:
    return [
        message.role,
        message.content,
        [_attachment(attachment) for attachment in message.attachments],
        [[call.id, call.name, call.arguments] for call in message.tool_calls],
        message.tool_call_id,
    ]


def _attachment(attachment: Attachment) -> list[Any]:
    # The name is sent, and seen by the model, where the API has a place for it.
    return [attachment.media_type, attachment.name, hashlib.sha256(attachment.data).hexdigest()]


def _normal_url(url: str) -> str:
    """The URL with its scheme and host in lower case, no default port and no slash at the end (RFC 3986, 6.2)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return url
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    if port is not None and port != {"http": 80, "https": 443}.get(parts.scheme):
        host = f"{host}:{port}"
    user, found, _ = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, user + found + host, parts.path.rstrip("/"), parts.query, parts.fragment))


def _normal(value: Any, depth: int = 0) -> Any:
    """The value as JSON, equal for equal content.

    Raises:
        _NoIdentityError: where its content cannot be told.
    """
    if depth > DEEPEST:
        raise _NoIdentityError
    while isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Real):  # numpy's too
        return _number(value)
    if isinstance(value, (bytes, bytearray)):
        return {TAG: "bytes", "sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, (list, tuple)):
        return [_normal(item, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return {TAG: "set", "items": sorted((_normal(item, depth + 1) for item in value), key=_canonical)}
    return _object(value, depth)


def _number(value: numbers.Real) -> int | float:
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        raise _NoIdentityError
    return int(number) if number.is_integer() else number


def _mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(key, bool) or not isinstance(key, (str, int)) or str(key) in found:
            raise _NoIdentityError  # JSON would make a str of it, perhaps that of another key
        found[str(key)] = _normal(item, depth + 1)  # a number, as the tokens of `logit_bias`
    return found


def _object(value: Any, depth: int) -> dict[str, Any]:
    """A pydantic model or its class, or a dataclass; by what they are made of, never by a repr with an address."""
    cls = value if isinstance(value, type) else type(value)
    tag = {TAG: f"{cls.__module__}.{cls.__qualname__}"}
    try:
        if cls is value and hasattr(cls, "model_json_schema"):
            return {**tag, "schema": _normal(cls.model_json_schema(), depth + 1)}
        if cls is not value and hasattr(cls, "model_dump"):
            return {**tag, "fields": _normal(value.model_dump(mode="json"), depth + 1)}
        if cls is not value and dataclasses.is_dataclass(cls):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
            return {**tag, "fields": _normal(fields, depth + 1)}
    except _NoIdentityError:
        raise
    except Exception as exc:  # somebody else's method failed: what cannot be told is only not cached
        raise _NoIdentityError from exc
    raise _NoIdentityError
