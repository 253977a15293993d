"""Gemini's protocol, which both of Google's SDKs speak: conversations into it, answers and errors out of it.

Protocol: https://ai.google.dev/api/generate-content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from nbllm.errors import InvalidRequestError, ProviderError
from nbllm.providers.chat_completions import text_of
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
    Request,
    TextDelta,
    ToolCall,
    Usage,
    UsageUpdate,
)

__all__ = ["FINISH", "ResponseDecoder", "completion", "contents", "declarations", "said", "system_of", "usage_of"]

FINISH: Final[dict[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",  # of one request; `continuation_token` in another goes on from there
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
"""Reasons to finish; what is not here (MALFORMED_FUNCTION_CALL, LANGUAGE, OTHER, …) is another."""

NO_SIGNATURE: Final = b"skip_thought_signature_validator"
"""What Google documents for a call whose signature is not at hand, without which Gemini 3 refuses the conversation:
https://ai.google.dev/gemini-api/docs/thought-signatures."""

TAKEN: Final = ("image/", "audio/", "video/", "text/", "application/pdf", "application/json")
"""How the media types begin that Gemini takes."""

OF_A_CANDIDATE: Final = ("groundingMetadata", "citationMetadata", "urlContextMetadata", "continuationToken")
"""What a candidate holds beside its parts that is worth an event."""


def system_of(request: Request) -> str:
    """The system prompt: every system message, wherever it stands."""
    found = [message for message in request.messages if message.role == "system"]
    if any(message.attachments for message in found):
        raise InvalidRequestError("Google's system prompt is text alone.", action="Attach the file to a user message.")
    return "\n\n".join(message.content for message in found if message.content)


def contents(messages: Iterable[Message], *, signatures: bool = True) -> list[dict[str, Any]]:
    """The conversation without its system messages; turns of one role in a row are one, as results of tools must be.

    Args:
        messages: The conversation.
        signatures: Whether a call of a tool bears a signature.

    Raises:
        InvalidRequestError: where something in it cannot be said in this protocol.
    """
    found: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in messages:
        if message.role == "system":
            continue
        names.update((call.id, call.name) for call in message.tool_calls)
        role = "model" if message.role == "assistant" else "user"
        parts = _parts(message, names, signatures=signatures)
        if found and found[-1]["role"] == role:
            found[-1]["parts"] += parts
        elif parts:
            found.append({"role": role, "parts": parts})
    return found


def _parts(message: Message, names: Mapping[str, str], *, signatures: bool) -> list[dict[str, Any]]:
    if message.role == "tool":
        name = names.get(message.tool_call_id or "")
        if name is None:
            raise InvalidRequestError(
                f"A tool's result answers the call {message.tool_call_id!r}, which the conversation does not hold.",
                action="Put the assistant's message with its tool_calls before it.",
            )
        response = {"id": message.tool_call_id, "name": name, "response": _result(message)}
        return [{"functionResponse": response}, *map(_file, message.attachments)]
    parts: list[dict[str, Any]] = [{"text": message.content}] if message.content else []
    parts += map(_file, message.attachments)
    for index, call in enumerate(message.tool_calls):
        part: dict[str, Any] = {"functionCall": {"id": call.id, "name": call.name, "args": _object(call)}}
        if signatures and index == 0:  # of calls made at once, the first alone bears one
            part["thoughtSignature"] = NO_SIGNATURE
        parts.append(part)
    return parts


def _file(attachment: Attachment) -> dict[str, Any]:
    if not attachment.media_type.startswith(TAKEN):
        raise InvalidRequestError(
            f"Google takes no {attachment.media_type}.",
            action="Attach an image, a PDF, audio, video or text.",
        )
    return {"inlineData": {"mimeType": attachment.media_type, "data": attachment.data}}


def _result(message: Message) -> dict[str, Any]:
    """What a tool gave, as the object that the protocol wants."""
    try:
        found = json.loads(message.content)
    except ValueError:
        found = message.content
    return found if isinstance(found, dict) else {"result": found}


def _object(call: ToolCall) -> dict[str, Any]:
    try:
        found = json.loads(call.arguments or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidRequestError(
            f"The arguments of the call of {call.name} are no JSON object.", action="Correct them."
        )
    return found


def declarations(tools: Iterable[Any], parameters: Callable[[Any], dict[str, Any]]) -> list[Any]:
    """The tools in Google's shape: functions in OpenAI's shape become declarations, the others stay as they are.

    Args:
        tools: The tools.
        parameters: Makes the field of a declaration that holds its parameters, from their JSON Schema.
    """
    functions: list[dict[str, Any]] = []
    found: list[Any] = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            found.append(tool)
            continue
        declared = {name: function[name] for name in ("name", "description") if function.get(name)}
        schema = function.get("parameters")
        functions.append({**declared, **(parameters(schema) if schema else {})})
    return [{"functionDeclarations": functions}, *found] if functions else found


class ResponseDecoder(Decoder):
    """Decodes the responses of one answer: each holds what is new, the last the reason to finish.

    Nothing follows that reason by the protocol, but some models have said it in every response: the end of the body
    ends the answer, where a reason was given.

    Args:
        refusal: Makes an error of an error's body.
        finish_reason: The name of a reason to finish.
        block_reason: The name of a reason to block a prompt.
    """

    def __init__(
        self,
        refusal: Callable[[Any], ProviderError],
        *,
        finish_reason: Callable[[Any], str] = str,
        block_reason: Callable[[Any], str] = str,
    ) -> None:
        self._refusal = refusal
        self._finish_reason = finish_reason
        self._block_reason = block_reason
        self._calls = 0
        self._reason: str | None = None
        self._usage: Mapping[str, Any] | None = None
        self._told = False

    def feed(self, name: str, data: str, events: list[Event]) -> None:
        self.take(json.loads(data), events)

    def take(self, response: Mapping[str, Any], events: list[Event]) -> None:
        """Append what one response means."""
        if candidates := response.get("candidates"):
            for candidate in candidates:
                if not candidate.get("index"):  # of several, the first is the answer
                    self._candidate(candidate, events)
        elif response.get("error"):
            raise self._refusal(response)
        elif blocked := (response.get("promptFeedback") or {}).get("blockReason"):
            why = f"The prompt was blocked: {self._block_reason(blocked)}"
            raise self._refusal({"error": {"message": why, "code": "content_filter"}})
        if usage := response.get("usageMetadata"):
            self._usage = usage
            if not self._told:  # each response reports it: the first, and the last, which `end` tells
                self._told = True
                events.append(UsageUpdate(usage_of(usage)))

    def _candidate(self, candidate: Mapping[str, Any], events: list[Event]) -> None:
        for part in (candidate.get("content") or {}).get("parts") or ():
            text = part.get("text")
            if len(part) == 1 and type(text) is str:  # nearly always
                if text:
                    events.append(TextDelta(text))
            else:
                self._part(part, events)
        if reason := candidate.get("finishReason"):
            self._reason = self._finish_reason(reason)
        events += [ProviderEvent(_snake(name), candidate[name]) for name in OF_A_CANDIDATE if candidate.get(name)]

    def _part(self, part: Mapping[str, Any], events: list[Event]) -> None:
        if text := text_of(part.get("text")):
            events.append(ReasoningDelta(text) if part.get("thought") else TextDelta(text))
        call_id = None
        if call := part.get("functionCall"):
            self._calls += 1
            call_id = text_of(call.get("id")) or f"call_{self._calls}"
            events.append(ToolCall(call_id, call["name"], json.dumps(call.get("args") or {}, ensure_ascii=False)))
        if signature := part.get("thoughtSignature"):
            events.append(ProviderEvent("thought_signature", {"signature": signature, "tool_call_id": call_id}))
        known = ("text", "thought", "functionCall", "thoughtSignature")
        events += [ProviderEvent(_snake(name), value) for name, value in part.items() if name not in known]

    def end(self, events: list[Event]) -> None:
        if self._usage is not None:
            events.append(UsageUpdate(usage_of(self._usage)))
        if self._reason is not None:
            called = self._reason == "STOP" and self._calls
            events.append(Finish("tool_calls" if called else FINISH.get(self._reason, "other"), self._reason))


def completion(raw: Mapping[str, Any], decoder: ResponseDecoder) -> Completion | None:
    """The completion that an answer without streaming holds; None where it holds none.

    Raises:
        ProviderError: where the answer is a refusal.
        ValueError, TypeError, AttributeError, LookupError: where it is not of the protocol.
    """
    events: list[Event] = []
    decoder.take(raw, events)
    if not raw.get("candidates"):
        return None
    decoder.end(events)
    return Completion(
        text="".join(event.text for event in events if isinstance(event, TextDelta)),
        finish=next((event for event in events if isinstance(event, Finish)), Finish("other")),
        usage=usage_of(raw.get("usageMetadata") or {}),
        model=raw.get("modelVersion"),
        tool_calls=tuple(event for event in events if isinstance(event, ToolCall)),
        reasoning="".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        raw=raw,
    )


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """The token counts that an answer reports: what tools put into the prompt is input, thoughts are output."""
    return Usage(
        input_tokens=_sum(usage, "promptTokenCount", "toolUsePromptTokenCount"),
        output_tokens=_sum(usage, "candidatesTokenCount", "thoughtsTokenCount"),
        cached_tokens=usage.get("cachedContentTokenCount"),
        reasoning_tokens=usage.get("thoughtsTokenCount"),
    )


def _sum(usage: Mapping[str, Any], *names: str) -> int | None:
    known = [usage[name] for name in names if usage.get(name) is not None]
    return sum(known) if known else None


def said(body: Any) -> dict[str, Any]:
    """What an error says: google.rpc.Status as JSON, alone or in a list (https://cloud.google.com/apis/design/errors).

    A bad key is a 400 of Google's, told only by its details. A 429 is said in the same words for a limit of a minute
    and for an account that has nothing: details and `limit: 0` tell them apart.
    """
    while isinstance(body, list) and body:
        body = body[0]
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return {"message": error if isinstance(error, str) else ""}
    message, number = error.get("message") or "", error.get("code")
    words = message.lower() if isinstance(message, str) else ""
    details = [detail for detail in error.get("details") or () if isinstance(detail, Mapping)]
    status = number if isinstance(number, int) and 400 <= number < 600 else None
    code = error.get("status") or ("" if status else number)
    waits = next((_seconds(detail.get("retryDelay")) for detail in details if "retryDelay" in detail), None)
    if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
        status = 401
    elif status == 429 and (_spent(details, words) or ("billing" in words and waits is None)):
        code = "insufficient_quota"
    elif "maximum number of tokens allowed" in words:
        code = "context_length_exceeded"
    return {"message": message, "code": code, "param": _named(details), "status": status, "retry_after": waits}


def _spent(details: Iterable[Mapping[str, Any]], words: str) -> bool:
    """Whether a quota is one that no wait of minutes helps: of a day, or of nothing."""
    violations = [one for detail in details for one in detail.get("violations") or () if isinstance(one, Mapping)]
    of_a_day = any("perday" in str(one.get("quotaId")).lower() for one in violations)
    return of_a_day or any(str(one.get("quotaValue")) == "0" for one in violations) or "limit: 0" in words


def _seconds(duration: Any) -> float | None:
    """Seconds of a google.protobuf.Duration as JSON: `7s`, `0.5s`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(duration))
    return float(found[1]) if found else None


def _named(details: Iterable[Mapping[str, Any]]) -> str | None:
    """The parameter that an error names, by its name here: `generation_config.max_output_tokens` is `max_tokens`."""
    for detail in details:
        for violation in detail.get("fieldViolations") or ():
            field = _snake(str(violation.get("field") or "").rpartition(".")[2])
            if field:
                return "max_tokens" if field == "max_output_tokens" else field
    return None


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()
