"""OpenAI's protocol: chat completions, streaming and not, and the list of models.

https://platform.openai.com/docs/api-reference/chat
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
TYPES = {
    401: "invalid_request_error",
    403: "invalid_request_error",
    429: "requests",
    500: "server_error",
    503: "server_error",
}
CODES = {
    "rate_limit": "rate_limit_exceeded",
    "invalid_request": None,
    "server_error": None,
    "overloaded": None,
}
MESSAGES = {
    "invalid_api_key": "Incorrect API key provided. You can find your API key at the account page.",
    "permission_denied": "You are not allowed to use this model.",
    "model_not_found": "The model `{model}` does not exist or you do not have access to it.",
    "rate_limit": "Rate limit reached for {model}. Please try again later.",
    "insufficient_quota": "You exceeded your current quota, please check your plan and billing details.",
    "server_error": "The server had an error while processing your request. Sorry about that!",
    "overloaded": "The engine is currently overloaded, please try again later.",
    "context_length_exceeded": "This model's maximum context length is 8192 tokens. However, your messages "
    "resulted in 9000 tokens. Please reduce the length of the messages.",
    "content_policy": "Your request was rejected as a result of our safety system.",
    "invalid_request": "The request is malformed.",
}


class OpenAI(Protocol):
    """Serves `/v1/chat/completions`, `/v1/models` and `/v1/models/ID`."""

    name = "openai"

    def route(self, request: Request) -> Call | None:
        """Claim the requests that are OpenAI's."""
        if request.path.endswith("/chat/completions") and request.method == "POST":
            body = request.body if isinstance(request.body, dict) else {}
            return Call("generate", str(body.get("model", "")), stream=bool(body.get("stream")))
        if request.path.endswith("/models") and request.method == "GET":
            return Call("models")
        head, found, model = request.path.partition("/models/")
        if found and head.endswith("/v1") and request.method == "GET":
            return Call("model", model)
        return None

    def key(self, request: Request) -> str:
        """The API key is a bearer token."""
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[Event]:
        """The chunks of a streamed answer."""
        role: dict[str, Any] = {"role": "assistant"}
        for thought in script.reasoning:
            # Not OpenAI's own: DeepSeek, vLLM and others that speak its protocol name it so.
            yield self._chunk(request, role | {"content": None, "reasoning_content": thought})
            role = {}
        for delta in answer:
            yield self._chunk(request, role | {"content": delta}, counts=True)
            role = {}
        for index, call in enumerate(script.tool_calls):
            head = {
                "index": index,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
            yield self._chunk(request, role | {"tool_calls": [head]})
            role = {}
            for part in call.parts():
                yield self._chunk(request, {"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        if script.finish is not None:
            yield self._chunk(request, {}, finish=script.finish)
        usage = self._usage(script, request, answer)
        if usage is not None and (request.body.get("stream_options") or {}).get("include_usage"):
            yield Event(json.dumps(self._envelope(request, "chat.completion.chunk", choices=[], usage=usage)))
        if script.terminal:
            yield Event("[DONE]")

    def whole(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any]:
        """The answer in one piece."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer) or None, "refusal": None}
        if script.reasoning:
            message["reasoning_content"] = "".join(script.reasoning)
        if script.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in script.tool_calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": script.finish, "logprobs": None}
        usage = self._usage(script, request, answer)
        return self._envelope(
            request, "chat.completion", choices=[choice], **({} if usage is None else {"usage": usage})
        )

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        """The list of models."""
        return {"object": "list", "data": [self.model(name) for name in names]}

    def model(self, name: str) -> dict[str, Any]:
        """One model."""
        return {"id": name, "object": "model", "created": CREATED, "owned_by": "nbllm-tests"}

    def error(self, refusal: Refusal, model: str) -> dict[str, Any]:
        """The body of an error answer."""
        reason, param, message = refusal.reason, refusal.param, refusal.message
        if reason == "unsupported_parameter" and not message:
            message = f"Unsupported parameter: '{param}' is not supported with this model."
            if param == "max_tokens":
                message += " Use 'max_completion_tokens' instead."
        kind = reason if reason == "insufficient_quota" else TYPES.get(refusal.status, "invalid_request_error")
        return {
            "error": {
                "message": message or MESSAGES.get(reason, "Something went wrong.").format(model=model),
                "type": kind,
                "param": param or ("messages" if reason == "context_length_exceeded" else None),
                "code": CODES.get(reason, reason or None),
            }
        }

    def error_events(self, script: Script) -> Iterator[Event]:
        """An error inside a stream: a data event with an `error` object."""
        reason = script.reason or "server_error"
        yield Event(json.dumps(self.error(Refusal(500, reason, script.message), script.model)))

    def malformed(self) -> Event:
        """An event whose JSON breaks off."""
        return Event('{"id": "c1", "choi')

    def _envelope(self, request: Request, kind: str, **content: Any) -> dict[str, Any]:
        model = request.body.get("model", "")
        return {"id": "chatcmpl-1", "object": kind, "created": CREATED, "model": model} | content

    def _chunk(self, request: Request, delta: dict[str, Any], finish: str | None = None, counts: bool = False) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        envelope = self._envelope(request, "chat.completion.chunk", choices=[choice])
        # Not escaped to ASCII, as OpenAI does it: so characters of several bytes are on the wire.
        return Event(json.dumps(envelope, ensure_ascii=False), counts=counts)

    def _usage(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any] | None:
        if script.usage is None:
            return None
        usage = Usage() if script.usage == "auto" else script.usage
        said = "".join(str(m.get("content", "")) + " " for m in request.body.get("messages", ()))
        prompt = len(words(said)) if usage.prompt is None else usage.prompt
        completion = len(answer) + usage.reasoning if usage.completion is None else usage.completion
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
        }
