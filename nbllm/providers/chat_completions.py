"""Chat Completions, OpenAI's protocol, which Mistral, HuggingFace's router and most local servers speak as well.

Messages, tools and schemas into a request's fields; chunks and completions out of an answer.
Protocol: https://platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from nbllm.errors import ContextLengthError, InvalidRequestError, ProviderError
from nbllm.providers.hosted import Decoder
from nbllm.types import (
    Attachment,
    Completion,
    Event,
    Finish,
    FinishReason,
    Message,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageUpdate,
)

__all__ = [
    "BROKEN_OFF",
    "ChunkDecoder",
    "completion",
    "data_url",
    "exceeds_with_answer",
    "message",
    "response_format",
    "text_of",
    "usage_of",
    "without_refused",
]

FINISH: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
"""Reasons to finish, of OpenAI, Mistral (`model_length`) and TGI (`eos_token`, `stop_sequence`)."""

ANSWERS_LENGTH: Final = ("max_tokens", "max_completion_tokens", "max_new_tokens", "in the completion")
"""What an error of the context window names where the answer's length has a part in it (OpenAI, vLLM, TGI)."""

BROKEN_OFF: Final = {"error": {"message": "The model broke off its answer because of an error", "code": "server_error"}}
"""What `error` for a reason to finish means, which Mistral and OpenRouter give, as the body of an error."""


class ChunkDecoder(Decoder):
    """Decodes the chunks of one answer.

    Args:
        refusal: Makes an error of an error's body.
        closes: The end of the body ends the answer too, for servers that send neither a reason nor `[DONE]`.
    """

    def __init__(self, refusal: Callable[[Any], ProviderError], *, closes: bool = False) -> None:
        self._refusal = refusal
        self._closes = closes
        self._finished = False

    def feed(self, name: str, data: str, events: list[Event]) -> None:
        if data.startswith("[DONE]"):
            self.done = True
            return
        chunk = json.loads(data)
        choices = chunk.get("choices") or ()
        if name == "error" or chunk.get("error") or (chunk.get("object") == "error" and not choices):
            raise self._refusal(chunk)
        for choice in choices:
            if choice.get("index"):  # `n` of more than one: a stream is one answer, the first
                continue
            delta = choice.get("delta") or {}
            self.content(delta, events)
            for call in delta.get("tool_calls") or ():
                function = call.get("function") or {}
                arguments = function.get("arguments")
                events.append(
                    ToolCallDelta(
                        int(call.get("index") or 0),
                        text_of(call.get("id")) or None,
                        text_of(function.get("name")) or None,
                        # Mistral's may be an object, whole.
                        json.dumps(arguments) if self.objects and isinstance(arguments, dict) else text_of(arguments),
                    )
                )
            if reason := choice.get("finish_reason"):
                if reason == "error":
                    raise self._refusal(BROKEN_OFF)
                self._finished = True
                events.append(Finish(FINISH.get(reason, "other"), reason))
        if usage := chunk.get("usage"):
            events.append(UsageUpdate(usage_of(usage)))

    objects = False
    """Whether a tool call's arguments may be an object in place of JSON text."""

    def content(self, delta: Mapping[str, Any], events: list[Event]) -> None:
        """Append the text and the reasoning of a delta."""
        if text := text_of(delta.get("content") or delta.get("refusal")):
            events.append(TextDelta(text))
        # Not OpenAI's own: DeepSeek and vLLM say the first, OpenRouter and others the second.
        if text := text_of(delta.get("reasoning_content") or delta.get("reasoning")):
            events.append(ReasoningDelta(text))

    def end(self, events: list[Event]) -> None:
        if not self._finished and (self.done or self._closes):  # some servers never name a reason
            events.append(Finish("stop"))


def completion(raw: Mapping[str, Any], refusal: Callable[[Any], ProviderError]) -> Completion | None:
    """The completion that an answer without streaming holds; None where it holds none.

    Args:
        raw: The answer's JSON.
        refusal: Makes an error of an error's body.

    Raises:
        ProviderError: where the model broke off.
        ValueError, TypeError, AttributeError, LookupError: where it is not of the protocol.
    """
    choices = raw.get("choices")
    if not choices or not choices[0].get("message"):
        return None
    said = choices[0]["message"]
    reason = choices[0].get("finish_reason")
    if reason == "error":
        raise refusal(BROKEN_OFF)
    return Completion(
        text=text_of(said.get("content") or said.get("refusal")),
        finish=Finish(FINISH.get(reason, "other"), reason),
        usage=usage_of(raw.get("usage") or {}),
        model=raw.get("model"),
        tool_calls=tuple(
            ToolCall(call.get("id") or "", call["function"]["name"], _json_text(call["function"]["arguments"]))
            for call in said.get("tool_calls") or ()
            if call.get("function")
        ),
        reasoning=text_of(said.get("reasoning_content") or said.get("reasoning")),
        raw=raw,
    )


def message(said: Message) -> dict[str, Any]:
    """A message of ours as one of the protocol's."""
    sent: dict[str, Any] = {"role": said.role, "content": said.content}
    if said.attachments:
        parts: list[dict[str, Any]] = [{"type": "text", "text": said.content}] if said.content else []
        sent["content"] = [*parts, *(_part(attachment) for attachment in said.attachments)]
    if said.tool_calls:
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.tool_calls
        ]
    if said.tool_call_id is not None:
        sent["tool_call_id"] = said.tool_call_id
    return sent


def _part(attachment: Attachment) -> dict[str, Any]:
    if attachment.media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": data_url(attachment)}}
    name = attachment.name or "attachment"
    return {"type": "file", "file": {"filename": name, "file_data": data_url(attachment)}}


def data_url(attachment: Attachment) -> str:
    """The attachment as a `data:` URL (RFC 2397)."""
    return f"data:{attachment.media_type};base64,{base64.b64encode(attachment.data).decode()}"


def response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` that asks for JSON of this schema."""
    name = str(schema.get("title") or "answer")
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name)[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": dict(schema), "strict": True}}


def without_refused(request: Request, error: InvalidRequestError) -> Request | None:
    """The request without a default of ours that the error names; None where it names none."""
    text = error.message.lower()
    for name in ("max_tokens", "temperature"):
        named = error.param == name or (error.param is None and name in text)
        named = named or (name == "max_tokens" and exceeds_with_answer(error))
        if named and name not in request.explicit | request.dropped:
            return replace(request, dropped=request.dropped | {name})
    return None


def exceeds_with_answer(error: InvalidRequestError) -> bool:
    """Whether it is prompt and answer together that a context window has no room for: a shorter answer may fit."""
    text = error.message.lower()
    return isinstance(error, ContextLengthError) and any(sign in text for sign in ANSWERS_LENGTH)


def text_of(value: Any) -> str:
    """Text as most servers send it, or as the list of parts that some do; a TypeError for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        return "".join(text_of(part.get("text")) for part in value if isinstance(part, dict))
    raise TypeError(f"{type(value).__name__} in place of text")


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """The token counts that an answer reports."""
    prompt = usage.get("prompt_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cached_tokens=prompt.get("cached_tokens", usage.get("num_cached_tokens")),  # Mistral has said the second
        cache_write_tokens=prompt.get("cache_write_tokens"),
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
    )


def _json_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
