"""What may be asked, as the caller says it, made into messages; and text out of whatever streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nbllm.errors import UsageError
from nbllm.types import Message, TextDelta, whole_characters

__all__ = ["COMMON_OPTIONS", "Messages", "normalized", "text_of"]

Messages = str | Sequence[Mapping[str, Any] | Message]
"""What may be asked: a prompt, or a conversation of `{"role": …, "content": …}`."""

COMMON_OPTIONS: Final = frozenset({"seed", "top_p", "stop", "tools", "schema"})
"""Options that mean the same for every provider that has them: a number; a share of the probability mass; a str or
list of str at which the answer stops; functions as `{"type": "function", "function": {"name", "description",
"parameters"}}`; a JSON Schema that the answer is to follow."""

ROLES: Final = frozenset({"system", "user", "assistant", "tool"})


def normalized(messages: Messages) -> tuple[Message, ...]:
    """The conversation as messages.

    Raises:
        UsageError: where it is none, or nothing is asked in it.
    """
    if isinstance(messages, str):
        messages = (Message("user", messages),)
    elif isinstance(messages, Mapping) or not isinstance(messages, Sequence):
        raise UsageError(
            f"messages is a {type(messages).__name__}.",
            action='Give a prompt, or a list such as [{"role": "user", "content": "…"}].',
        )
    found = tuple(_whole(_message(index, message)) for index, message in enumerate(messages))
    if not any(message.content.strip() or message.attachments for message in found if message.role != "system"):
        raise UsageError("The prompt is empty.", action="Write what you want to ask.")
    return found


def _message(index: int, message: object) -> Message:
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise UsageError(
            f"messages[{index}] is no message with a role.",
            action=f'Give {{"role": …, "content": …}}; the roles are {", ".join(sorted(ROLES))}.',
        )
    if not isinstance(message.get("content"), str):
        raise UsageError(
            f"messages[{index}] has no text: its content is {type(message.get('content')).__name__}.",
            action="Give the content as a str.",
        )
    unknown = set(message) - {field.name for field in dataclasses.fields(Message)}
    if unknown:
        raise UsageError(
            f"messages[{index}] has {', '.join(sorted(map(repr, unknown)))}, which would be lost.",
            action="Leave it out.",
        )
    return Message(**{**message, "content": str(message["content"])})


def _whole(message: Message) -> Message:
    # However it was given: half a character in it could not be sent.
    return dataclasses.replace(message, content=whole_characters(message.content))


def text_of(chunk: Any) -> str:
    """The text of a piece of a stream: a str, an event, or a chunk of one of the known shapes; else nothing."""
    if isinstance(chunk, str):
        return chunk
    if isinstance(chunk, TextDelta):
        return chunk.text
    if not isinstance(chunk, Mapping):
        return ""
    choices = chunk.get("choices")
    if choices:
        return str((choices[0].get("delta") or {}).get("content") or "")
    delta = chunk.get("delta")
    inner = delta.get("text") if isinstance(delta, Mapping) else None
    return str(inner or chunk.get("text") or chunk.get("content") or "")
