"""Mistral's protocol: its chat completions, streaming and not, and its models.

https://docs.mistral.ai/api/#tag/chat; the bodies of errors are as its users report them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.wire.protocol import Call, Event, Protocol
from tests.wire.script import Refusal, Script, Usage, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.wire.connection import Request

CREATED = 1700000000
BASE = "/mistral/v1/"
MESSAGES = {
    "permission_denied": ("You are not allowed to access this model.", "forbidden", None),
    "model_not_found": ("Invalid model: {model}", "invalid_model", "1500"),
    "rate_limit": ("Rate limit exceeded", "rate_limited", "1300"),
    "insufficient_quota": ("The monthly spending limit of this workspace is reached.", "payment_required", None),
    "server_error": ("Internal server error", "internal_server_error", "1000"),
    "overloaded": ("Service tier capacity exceeded for this model.", "service_tier_capacity_exceeded", "3505"),
    "context_length_exceeded": (
        "Prompt contains 9000 tokens and 0 draft tokens, too large for model with 8192 maximum context length",
        "invalid_request_prompt",
        "3051",
    ),
    "content_policy": ("The request was blocked by a guardrail.", "guardrail_violation", None),
    "invalid_request": ("Expected last role User or Tool for serving.", "invalid_request_message_order", "3230"),
}
"""Words, type and code of each reason."""


class Mistral(Protocol):
    """Serves `/mistral/v1/chat/completions`, `/mistral/v1/models` and `/mistral/v1/models/ID`."""

    name = "mistral"

    def route(self, request: Request) -> Call | None:
        """Claim the requests below Mistral's base path."""
        if not request.path.startswith(BASE):
            return None
        path = request.path.removeprefix(BASE)
        if path == "chat/completions" and request.method == "POST":
            body = request.body if isinstance(request.body, dict) else {}
            return Call("generate", str(body.get("model", "")), stream=bool(body.get("stream")))
        if path == "models" and request.method == "GET":
            return Call("models")
        if path.startswith("models/") and request.method == "GET":
            return Call("model", path.removeprefix("models/"))
        return Call("unknown")

    def key(self, request: Request) -> str:
        """The API key is a bearer token."""
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def headers(self, request_id: str) -> dict[str, str]:
        """Mistral names the request in a header of its own."""
        return {"mistral-correlation-id": request_id, "x-envoy-upstream-service-time": "1"}

    def events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[Event]:
        """The chunks of a streamed answer: the first is empty, the last bears the reason and the usage."""
        yield self._chunk(request, {"role": "assistant", "content": ""})
        for thought in script.reasoning:
            yield self._chunk(request, {"content": [_thinking(thought)]})
        for delta in answer:
            yield self._chunk(request, {"content": delta}, counts=True)
        last: dict[str, Any] = {"content": ""}
        if script.tool_calls:  # whole, and together with the reason
            last["tool_calls"] = _calls(script)
        usage = self._usage(script, request, answer)
        if script.finish is not None or script.tool_calls or usage is not None:
            yield self._chunk(request, last, script.finish, usage)
        if script.terminal:
            yield Event("[DONE]")

    def whole(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any]:
        """The answer in one piece."""
        text = "".join(answer)
        content: Any = text
        if script.reasoning:
            content = [_thinking("".join(script.reasoning)), {"type": "text", "text": text}]
        message = {"role": "assistant", "tool_calls": _calls(script) or None, "content": content, "prefix": False}
        choice = {"index": 0, "finish_reason": script.finish, "message": message}
        usage = self._usage(script, request, answer)
        body = self._envelope(request, "chat.completion", choices=[choice])
        return body if usage is None else body | {"usage": usage}

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        """The list of models."""
        return {"object": "list", "data": [self.model(name) for name in names]}

    def model(self, name: str) -> dict[str, Any]:
        """One model's card."""
        able = {"completion_chat": True, "function_calling": True, "reasoning": False, "vision": True, "audio": False}
        return {
            "id": name,
            "object": "model",
            "created": CREATED,
            "owned_by": "mistralai",
            "capabilities": able,
            "name": name,
            "description": "A model of the tests.",
            "max_context_length": 131072,
            "aliases": [],
            "deprecation": None,
            "default_model_temperature": 0.3,
            "type": "base",
        }

    def error(self, refusal: Refusal, model: str) -> dict[str, Any]:
        """The body of an error answer, in one of three forms."""
        reason, param, message = refusal.reason, refusal.param, refusal.message
        if reason == "invalid_api_key":
            return {"detail": message or "Unauthorized"}
        if reason == "unsupported_parameter":
            detail = {
                "type": "extra_forbidden",
                "loc": ["body", param],
                "msg": message or "Extra inputs are not permitted",
                "input": 1,
            }
            said: Any = {"detail": [detail]}
            kind, code, param = "invalid_request_error", None, None
        else:
            said, kind, code = MESSAGES.get(reason, ("Something went wrong.", "invalid_request_error", None))
            said = message or said.format(model=model)
        return {
            "object": "error",
            "message": said,
            "type": kind,
            "param": param,
            "code": code,
            "raw_status_code": refusal.status,
        }

    def error_events(self, script: Script) -> Iterator[Event]:
        """An error inside a stream: its body as a data event."""
        yield Event(json.dumps(self.error(Refusal(500, script.reason or "server_error", script.message), script.model)))

    def malformed(self) -> Event:
        """An event whose JSON breaks off."""
        return Event('{"id": "c1", "choi')

    def _envelope(self, request: Request, kind: str, **content: Any) -> dict[str, Any]:
        model = request.body.get("model", "")
        return {"id": "c0ffee", "object": kind, "created": CREATED, "model": model} | content

    def _chunk(
        self,
        request: Request,
        delta: dict[str, Any],
        finish: str | None = None,
        usage: dict[str, Any] | None = None,
        *,
        counts: bool = False,
    ) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        envelope = self._envelope(request, "chat.completion.chunk", choices=[choice])
        if usage is not None:
            envelope["usage"] = usage
        return Event(json.dumps(envelope, ensure_ascii=False), counts=counts)

    def _usage(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any] | None:
        if script.usage is None:
            return None
        usage = Usage() if script.usage == "auto" else script.usage
        said = "".join(f"{m.get('content', '')} " for m in request.body.get("messages", ()))
        prompt = len(words(said)) if usage.prompt is None else usage.prompt
        completion = len(answer) + usage.reasoning if usage.completion is None else usage.completion
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
            "num_cached_tokens": usage.cached,
        }


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _calls(script: Script) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}, "index": index}
        for index, call in enumerate(script.tool_calls)
    ]
