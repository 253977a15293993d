"""The Messages API, Anthropic's protocol.

Messages, tools and attachments into a request's fields; events and whole messages out of an answer.
Protocol: https://platform.claude.com/docs/en/build-with-claude/streaming.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from nbllm.errors import InvalidRequestError, ProviderError
from nbllm.providers.hosted import Decoder
from nbllm.types import (
    Attachment,
    Completion,
    Event,
    Finish,
    FinishReason,
    Message,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageUpdate,
)

__all__ = ["EventDecoder", "completion", "conversation", "text_blocks", "tool", "tool_choice", "usage_of"]

Block = dict[str, Any]

FINISH: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Reasons to stop; `pause_turn`, where a server's tool has run long, is another reason."""

IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})

TOOL_CHOICES: Final = {"auto": "auto", "none": "none", "required": "any", "any": "any"}


class EventDecoder(Decoder):
    """Decodes the events of one answer; `message_stop` is the terminal one.

    Args:
        refusal: Makes an error of an error's body.
    """

    def __init__(self, refusal: Callable[[Any], ProviderError]) -> None:
        self._refusal = refusal
        self._reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._calls: dict[int, tuple[int, Any]] = {}
        """By content block: which tool call it is, and its input as it stood at the start."""
        self._begun: set[int] = set()
        """The content blocks of tool calls of which a piece has come."""

    def feed(self, name: str, data: str, events: list[Event]) -> None:
        if name == "ping":
            return
        try:
            event = json.loads(data)
        except ValueError:
            if name == "error":
                raise self._refusal(data) from None
            raise
        kind = event["type"]
        if kind == "content_block_delta":
            self._delta(event, events)
        elif kind == "content_block_start":
            self._start(event, events)
        elif kind == "content_block_stop":
            self._stop(event["index"], events)
        elif kind == "message_start":
            self._count(event["message"].get("usage"), events)
        elif kind == "message_delta":
            delta = event["delta"]
            self._reason = delta.get("stop_reason") or self._reason
            if delta.get("stop_details"):
                events.append(ProviderEvent("stop_details", delta["stop_details"]))
            self._count(event.get("usage"), events)
        elif kind == "message_stop":
            events.append(_finish(self._reason))
            self.done = True
        elif kind == "error":
            raise self._refusal(event)
        # Others are to be passed over: Anthropic adds kinds of events within a version of its API.

    def _start(self, event: Mapping[str, Any], events: list[Event]) -> None:
        index, block = event["index"], event["content_block"]
        kind = block["type"]
        if kind == "text":
            if block.get("text"):
                events.append(TextDelta(_text(block["text"])))
        elif kind == "thinking":
            if block.get("thinking"):
                events.append(ReasoningDelta(_text(block["thinking"])))
        elif kind == "tool_use":
            number = len(self._calls)
            self._calls[index] = number, block.get("input") or {}
            events.append(ToolCallDelta(number, _text(block["id"]), _text(block["name"])))
        else:  # what the provider's own tools do, and reasoning that is not shown
            events.append(ProviderEvent(kind, event))

    def _delta(self, event: Mapping[str, Any], events: list[Event]) -> None:
        index, delta = event["index"], event["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            events.append(TextDelta(_text(delta["text"])))
        elif kind == "thinking_delta":
            events.append(ReasoningDelta(_text(delta["thinking"])))
        elif kind == "input_json_delta" and index in self._calls:
            if piece := _text(delta["partial_json"]):
                self._begun.add(index)
                events.append(ToolCallDelta(self._calls[index][0], arguments=piece))
        else:  # a signature, a citation, the input of one of the provider's own tools
            events.append(ProviderEvent(kind, event))

    def _stop(self, index: int, events: list[Event]) -> None:
        # A call without arguments comes without a piece of them.
        if index in self._calls and index not in self._begun:
            number, given = self._calls[index]
            events.append(ToolCallDelta(number, arguments=_json(given)))

    def _count(self, usage: Mapping[str, Any] | None, events: list[Event]) -> None:
        # The counts are cumulative, and the later report leaves out what it does not repeat.
        if usage:
            self._usage.update({name: value for name, value in usage.items() if value is not None})
            events.append(UsageUpdate(usage_of(self._usage)))


def completion(raw: Mapping[str, Any]) -> Completion | None:
    """The completion that an answer without streaming holds; None where it holds none.

    Raises:
        ValueError, TypeError, AttributeError, LookupError: where it is not of the protocol.
    """
    blocks = raw.get("content")
    if not isinstance(blocks, list):
        return None
    return Completion(
        text="".join(_text(block["text"]) for block in blocks if block["type"] == "text"),
        finish=_finish(raw.get("stop_reason")),
        usage=usage_of(raw.get("usage") or {}),
        model=raw.get("model"),
        tool_calls=tuple(
            ToolCall(block["id"], block["name"], _json(block.get("input") or {}))
            for block in blocks
            if block["type"] == "tool_use"
        ),
        reasoning="".join(_text(block["thinking"]) for block in blocks if block["type"] == "thinking"),
        raw=raw,
    )


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """The token counts that an answer reports; Anthropic's `input_tokens` leaves out those of its cache."""
    fresh, read, written = (
        usage.get(name) for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    )
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=usage.get("output_tokens"),
        cached_tokens=read,
        reasoning_tokens=(usage.get("output_tokens_details") or {}).get("thinking_tokens"),
        cache_write_tokens=written,
    )


def conversation(messages: Iterable[Message]) -> tuple[list[Block], list[dict[str, Any]]]:
    """The system prompt as blocks, and the turns, those of one side in a row put together.

    Raises:
        InvalidRequestError: where a message holds what the protocol has no place for.
    """
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "assistant") and message.attachments:
            raise InvalidRequestError(
                f"Anthropic takes no file in a message of the {message.role}.", action="Attach it to one of the user's."
            )
        if message.role == "system":
            system += text_blocks(message.content)
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if not blocks:  # the API refuses an empty turn, and it says nothing
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        if len(turn["content"]) == 1 and turn["content"][0]["type"] == "text":
            turn["content"] = turn["content"][0]["text"]
    return system, turns


def text_blocks(given: str | Iterable[Block] | None) -> list[Block]:
    """Text, or blocks as they are, as blocks; the API refuses an empty one."""
    if isinstance(given, str):
        return [{"type": "text", "text": given}] if given.strip() else []
    return list(given or ())


def _blocks(message: Message) -> list[Block]:
    if message.role != "tool":
        # Files first: the models read them better before the question than after it.
        files = [_file(attachment) for attachment in message.attachments]
        return [*files, *text_blocks(message.content), *(_call(call) for call in message.tool_calls)]
    if not message.tool_call_id:
        raise InvalidRequestError(
            "A tool's message does not say which call it answers.", action="Give it the call's id as tool_call_id."
        )
    result: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id}
    if message.attachments:
        result["content"] = [*text_blocks(message.content), *(_file(attachment) for attachment in message.attachments)]
    elif message.content:
        result["content"] = message.content
    return [result]


def _call(call: ToolCall) -> Block:
    try:
        given = json.loads(call.arguments or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InvalidRequestError(
            f"The arguments of the call {call.id} of {call.name} are no JSON object, and Anthropic takes no other.",
            action="Correct them in the assistant's message.",
        )
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _file(attachment: Attachment) -> Block:
    kind = attachment.media_type.partition(";")[0].strip().lower()
    kind = "image/jpeg" if kind == "image/jpg" else kind
    if kind in IMAGES:
        return {"type": "image", "source": _base64(kind, attachment.data)}
    source: dict[str, Any]
    if kind == "application/pdf":
        source = _base64(kind, attachment.data)
    elif kind.startswith("text/"):
        try:
            source = {"type": "text", "media_type": "text/plain", "data": attachment.data.decode("utf-8-sig")}
        except UnicodeDecodeError:
            raise InvalidRequestError(
                f"{attachment.name or 'The attachment'} is not text in UTF-8.", action="Save it in UTF-8."
            ) from None
    else:
        raise InvalidRequestError(
            f"Anthropic takes no {attachment.media_type}.", action="Attach a PNG, JPEG, GIF, WebP, PDF or text file."
        )
    return {"type": "document", "source": source} | ({"title": attachment.name} if attachment.name else {})


def _base64(kind: str, data: bytes) -> dict[str, Any]:
    return {"type": "base64", "media_type": kind, "data": base64.b64encode(data).decode()}


def tool(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool in OpenAI's shape as one of Anthropic's; one of Anthropic's as it is."""
    function = given.get("function")
    if given.get("type") != "function" or not isinstance(function, Mapping):
        return given
    made: dict[str, Any] = {
        "name": function.get("name"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return made | {name: function[name] for name in ("description", "strict") if function.get(name) is not None}


def tool_choice(given: Any) -> Any:
    """OpenAI's `tool_choice` as Anthropic's; Anthropic's as it is."""
    if isinstance(given, str) and given in TOOL_CHOICES:
        return {"type": TOOL_CHOICES[given]}
    if isinstance(given, Mapping) and isinstance(given.get("function"), Mapping):
        return {"type": "tool", "name": given["function"].get("name")}
    return given


def _finish(reason: str | None) -> Finish:
    return Finish(FINISH.get(reason, "other") if reason else "stop", reason)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value
