"""Anthropic's protocol: messages, streaming and not, and the list of models.

https://platform.claude.com/docs/en/api/messages
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.wire.protocol import Call, Event, Protocol
from tests.wire.script import Refusal, Script, Usage, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.wire.connection import Request

BASE = "/anthropic/"
SAMPLING = ("temperature", "top_p", "top_k")
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
MESSAGES = {
    "invalid_api_key": "invalid x-api-key",
    "permission_denied": "Your API key does not have permission to use the specified resource.",
    "model_not_found": "model: {model}",
    "rate_limit": "This request would exceed your organization's rate limit of 50,000 input tokens per minute.",
    "server_error": "Internal server error",
    "overloaded": "Overloaded",
    "context_length_exceeded": "prompt is too long: 209353 tokens > 200000 maximum",
    "content_policy": "Output blocked by content filtering policy",
    "invalid_request": "messages: at least one message is required",
}
BARE = {404: "Not found", 413: "Request exceeds the maximum size"}
CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to purchase credits."
TIER = "You have reached the monthly API usage threshold of your organization's tier."
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class Anthropic(Protocol):
    """Serves `/anthropic/v1/messages`, `/anthropic/v1/models` and `/anthropic/v1/models/ID`."""

    name = "anthropic"

    def route(self, request: Request) -> Call | None:
        """Claim the requests below `/anthropic/`."""
        if not request.path.startswith(BASE):
            return None
        path = request.path.removeprefix(BASE)
        if path == "v1/messages" and request.method == "POST":
            body = request.body if isinstance(request.body, dict) else {}
            return Call("generate", str(body.get("model", "")), stream=bool(body.get("stream")))
        if path == "v1/models" and request.method == "GET":
            return Call("models")
        if path.startswith("v1/models/") and request.method == "GET":
            return Call("model", path.removeprefix("v1/models/"))
        return Call("unknown")

    def key(self, request: Request) -> str:
        """The API key has a header of its own, which counts before a bearer token."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return request.headers.get("x-api-key") or bearer

    def headers(self, request_id: str) -> dict[str, str]:
        """The request's id is told without an x."""
        return {"request-id": request_id}

    def refuse(self, request: Request) -> Refusal | None:
        """What the API itself checks, by the version that the request is made in."""
        version = request.headers.get("anthropic-version")
        if version is None:
            return Refusal(400, "", "anthropic-version: header is required")
        body = request.body if isinstance(request.body, dict) else {}
        if request.method != "POST":
            return None
        for name in SAMPLING if version >= "2026-10-21" else ():
            if name in body:
                return Refusal(400, "", f"{name}: Extra inputs are not permitted")
        for index, message in enumerate(body.get("messages") or ()):
            if not message.get("content"):
                return Refusal(400, "", f"messages.{index}: all messages must have non-empty content")
        return None if body.get("max_tokens") is not None else Refusal(400, "", "max_tokens: Field required")

    def events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[Event]:
        """The events of a streamed answer."""
        usage = self._usage(script, request, answer)
        begun = None if usage is None else usage | {"output_tokens": 1}
        begun = begun and {name: value for name, value in begun.items() if name != "output_tokens_details"}
        message = self._message(request, [], None, begun)
        yield self._event("message_start", message=message)
        index = -1
        if script.reasoning:
            index += 1
            yield self._start(index, {"type": "thinking", "thinking": "", "signature": ""})
            for thought in script.reasoning:
                yield self._delta(index, {"type": "thinking_delta", "thinking": thought})
            yield self._delta(index, {"type": "signature_delta", "signature": "c2lnbmVk"})
            yield self._event("content_block_stop", index=index)
        if answer:
            index += 1
            yield self._start(index, {"type": "text", "text": ""})
            yield self._event("ping")
            for delta in answer:
                yield self._delta(index, {"type": "text_delta", "text": delta}, counts=True)
            yield self._event("content_block_stop", index=index)
        for call in script.tool_calls:
            index += 1
            yield self._start(index, {"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            # The first piece is empty; a call without arguments has no other.
            for part in ["", *(call.parts() if json.loads(call.arguments) else [])]:
                yield self._delta(index, {"type": "input_json_delta", "partial_json": part})
            yield self._event("content_block_stop", index=index)
        end: dict[str, Any] = {"delta": {"stop_reason": self._reason(script), "stop_sequence": None}}
        if usage is not None:
            end["usage"] = {name: usage[name] for name in ("output_tokens", "output_tokens_details")}
        yield self._event("message_delta", **end)
        if script.terminal:
            yield self._event("message_stop")

    def whole(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any]:
        """The answer in one piece."""
        content: list[dict[str, Any]] = []
        if script.reasoning:
            content.append({"type": "thinking", "thinking": "".join(script.reasoning), "signature": "c2lnbmVk"})
        if answer:
            content.append({"type": "text", "text": "".join(answer)})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
            for call in script.tool_calls
        ]
        return self._message(request, content, self._reason(script), self._usage(script, request, answer))

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        """The list of models, as one page."""
        data = [self.model(name) for name in names]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return {"data": data, "has_more": False} | ends

    def model(self, name: str) -> dict[str, Any]:
        """One model."""
        return {
            "type": "model",
            "id": name,
            "display_name": name.title(),
            "created_at": "2026-02-04T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
            "capabilities": {"image_input": {"supported": True}, "pdf_input": {"supported": False}},
        }

    def error(self, refusal: Refusal, model: str) -> dict[str, Any]:
        """The body of an error answer."""
        reason, message, details = refusal.reason, refusal.message, None
        if reason == "insufficient_quota":  # 400 where the credit is spent, 429 where the tier's limit is reached
            message = message or (TIER if refusal.status == 429 else CREDIT)
            details = {"error_code": "enforced_spend_limit_reached"} if refusal.status == 429 else None
        elif reason == "unsupported_parameter" and not message:
            known = refusal.param in SAMPLING
            message = f"`{refusal.param}` is deprecated for this model." if known else ""
            message = message or f"{refusal.param}: Extra inputs are not permitted"
        elif refusal.param and message:
            message = f"{refusal.param}: {message}"
        message = message or MESSAGES.get(reason) or BARE.get(refusal.status, "Something went wrong.")
        other = "api_error" if refusal.status >= 500 else "invalid_request_error"
        kind = "overloaded_error" if reason == "overloaded" else TYPES.get(refusal.status, other)
        return {
            "type": "error",
            "error": {"details": details, "type": kind, "message": message.replace("{model}", model)},
        }

    def error_events(self, script: Script) -> Iterator[Event]:
        """An error inside a stream: an event of that name."""
        error = self.error(Refusal(500, "server_error", script.message), script.model)
        yield Event(json.dumps(error), event="error")

    def malformed(self) -> Event:
        """An event whose JSON breaks off."""
        return Event('{"type":"content_block_delta","index":0,"del', event="content_block_delta")

    def _message(
        self, request: Request, content: list[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": request.body.get("model", ""),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
        }
        return message | ({} if usage is None else {"usage": usage})

    def _event(self, name: str, **content: Any) -> Event:
        return Event(json.dumps({"type": name, **content}, ensure_ascii=False), event=name)

    def _start(self, index: int, block: dict[str, Any]) -> Event:
        return self._event("content_block_start", index=index, content_block=block)

    def _delta(self, index: int, delta: dict[str, Any], counts: bool = False) -> Event:
        content = {"type": "content_block_delta", "index": index, "delta": delta}
        # Not escaped to ASCII, as the API does it: so characters of several bytes are on the wire.
        return Event(json.dumps(content, ensure_ascii=False), event="content_block_delta", counts=counts)

    def _reason(self, script: Script) -> str | None:
        return None if script.finish is None else STOP_REASONS.get(script.finish, script.finish)

    def _usage(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any] | None:
        if script.usage is None:
            return None
        usage = Usage() if script.usage == "auto" else script.usage
        said = " ".join(_said(message.get("content")) for message in request.body.get("messages", ()))
        prompt = len(words(said)) if usage.prompt is None else usage.prompt
        return {
            "input_tokens": prompt - usage.cached,  # those beside the cached ones
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached,
            "output_tokens": len(answer) + usage.reasoning if usage.completion is None else usage.completion,
            "output_tokens_details": {"thinking_tokens": usage.reasoning},
            "service_tier": "standard",
        }


def _said(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(str(block.get("text", "")) for block in content or ())
