"""Google's protocol, the Gemini API: `generateContent`, streamed as server-sent events or as a JSON array, and models.

https://ai.google.dev/api/generate-content, https://ai.google.dev/api/models; errors as google.rpc.Status in JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.wire.protocol import Call, Event, Protocol
from tests.wire.script import Refusal, Script, Usage, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.wire.connection import Request

BASE = "/google/v1beta/"
PAGE = 50
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
MESSAGES = {
    "invalid_api_key": "API key not valid. Please pass a valid API key.",
    "permission_denied": "The caller does not have permission",
    "model_not_found": "models/{model} is not found for API version v1beta, or is not supported for generateContent. "
    "Call ListModels to see the list of available models and their supported methods.",
    "rate_limit": "Resource has been exhausted (e.g. check quota).",
    "insufficient_quota": "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.",
    "server_error": "An internal error has occurred. Please retry or report in "
    "https://developers.generativeai.google/guide/troubleshooting",
    "overloaded": "The model is overloaded. Please try again later.",
    "context_length_exceeded": "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
    "invalid_request": "Please ensure that the contents are not empty.",
}
REASONS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
NUMBERS = {"STOP": 1, "MAX_TOKENS": 2, "SAFETY": 3}
PARAMETERS = {"maxOutputTokens": "max_tokens", "topP": "top_p", "topK": "top_k", "stopSequences": "stop"}


def query(request: Request) -> dict[str, list[str]]:
    """The parameters of the URL."""
    return parse_qs(urlsplit(request.target).query)


class Google(Protocol):
    """Serves `/google/v1beta/models/ID:generateContent`, `:streamGenerateContent?alt=sse` and `/google/v1beta/models`.

    As the real one does, it names values of enumerations by numbers for clients that ask for it.
    """

    name = "google"

    def route(self, request: Request) -> Call | None:
        """Claim the requests below Google's base path."""
        if not request.path.startswith(BASE):
            return None
        path = request.path.removeprefix(BASE)
        name, _, method = path.removeprefix("models/").rpartition(":")
        if request.method == "POST" and path.startswith("models/"):
            if method == "generateContent":
                return Call("generate", name)
            if method == "streamGenerateContent":
                return Call("generate", name, stream=True)
        if request.method == "GET" and path == "models":
            return Call("models")
        if request.method == "GET" and path.startswith("models/"):
            return Call("model", path.removeprefix("models/"))
        return Call("unknown")

    def key(self, request: Request) -> str:
        """The API key is a header of its own."""
        return request.headers.get("x-goog-api-key", "")

    def headers(self, request_id: str) -> dict[str, str]:
        """Google's answers bear no id of the request."""
        return {"server": "scaffolding on HTTPServer2", "server-timing": "gfet4t7; dur=12"}

    def parameters(self, request: Request) -> set[str]:
        """Those of the body's `generationConfig`."""
        body = request.body if isinstance(request.body, dict) else {}
        return {PARAMETERS.get(name, name) for name in body.get("generationConfig", {})} | set(body)

    def events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[Event]:
        """The responses of a streamed answer; each reports the usage, the last bears the reason to finish."""
        for thought in script.reasoning:
            yield self._event(script, request, answer, [{"text": thought, "thought": True}])
        for delta in answer:
            yield self._event(script, request, answer, [{"text": delta}], counts=True)
        if script.tool_calls:
            yield self._event(script, request, answer, _calls(script))
        if script.terminal:
            yield self._event(script, request, answer, [{"text": ""}], last=True)

    def whole(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any]:
        """The answer in one piece."""
        thoughts = "".join(script.reasoning)
        parts: list[dict[str, Any]] = [{"text": thoughts, "thought": True}] if thoughts else []
        if answer:
            parts.append({"text": "".join(answer)})
        return self._response(script, request, answer, [*parts, *_calls(script)], last=True)

    def page(self, request: Request, names: Sequence[str]) -> dict[str, Any]:
        """One page of the list of models."""
        asked = query(request)
        begin = int(asked.get("pageToken", ["0"])[0])
        end = begin + min(int(asked.get("pageSize", [str(PAGE)])[0]), 1000)
        body: dict[str, Any] = self.models(names[begin:end])
        if begin == 0:
            body["models"].append(self.model("embedding") | {"supportedGenerationMethods": ["embedContent"]})
        return body | ({"nextPageToken": str(end)} if end < len(names) else {})

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        """The list of models."""
        return {"models": [self.model(name) for name in names]}

    def model(self, name: str) -> dict[str, Any]:
        """One model."""
        return {
            "name": f"models/{name}",
            "version": "001",
            "displayName": f"The model {name}",
            "description": "A model of the tests.",
            "inputTokenLimit": 1048576,
            "outputTokenLimit": 65536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
            "temperature": 1,
            "topP": 0.95,
            "topK": 64,
            "maxTemperature": 2,
        }

    def error(self, refusal: Refusal, model: str) -> Any:
        """The body of an error answer."""
        reason, param = refusal.reason, refusal.param
        message = refusal.message or MESSAGES.get(reason, "Something went wrong.").format(model=model)
        details: list[dict[str, Any]] = []
        if reason == "invalid_api_key":
            details = [_detail("ErrorInfo", reason="API_KEY_INVALID", domain="googleapis.com")]
        elif reason == "insufficient_quota":
            details = [_detail("Help", links=[{"description": "Learn more about Gemini API quotas"}])]
        elif reason == "unsupported_parameter":
            field = {"max_tokens": "max_output_tokens"}.get(str(param), param)
            message = refusal.message or f'Invalid JSON payload received. Unknown name "{field}": Cannot find field.'
            violation = {"field": f"generation_config.{field}", "description": message}
            details = [_detail("BadRequest", fieldViolations=[violation])]
        body = {"code": refusal.status, "message": message, "status": STATUSES.get(refusal.status, "UNKNOWN")}
        return {"error": body | ({"details": details} if details else {})}

    def error_events(self, script: Script) -> Iterator[Event]:
        """An error inside a stream: its body as a data event."""
        yield Event(json.dumps(self._error_within(script)))

    def malformed(self) -> Event:
        """An event whose JSON breaks off."""
        return Event('{"candidates": [{"content"')

    def _error_within(self, script: Script) -> Any:
        status = 503 if script.reason == "overloaded" else 500
        return Google.error(self, Refusal(status, script.reason or "server_error", script.message), script.model)

    def _event(
        self, script: Script, request: Request, *content: Any, counts: bool = False, last: bool = False
    ) -> Event:
        body = self._response(script, request, *content, last=last)
        return Event(json.dumps(body, ensure_ascii=False), counts=counts)

    def _response(
        self,
        script: Script,
        request: Request,
        answer: Sequence[str],
        parts: list[dict[str, Any]],
        *,
        last: bool = False,
    ) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
        if last and script.finish is not None:
            reason = REASONS.get(script.finish, script.finish.upper())
            numbered = "enum-encoding=int" in "".join(query(request).get("$alt", []))
            candidate["finishReason"] = NUMBERS[reason] if numbered else reason
        body: dict[str, Any] = {"candidates": [candidate]}
        if script.usage is not None:
            body["usageMetadata"] = _usage(script, request, answer, last=last)
        model = request.path.rpartition("/")[2].partition(":")[0]
        return body | {"modelVersion": model, "responseId": "c0ffee"}


class GoogleArray(Google):
    """The same without `alt=sse`: the responses of a stream are the elements of a JSON array, sent one by one."""

    name = "google-legacy"
    content_type = "application/json; charset=UTF-8"

    def route(self, request: Request) -> Call | None:
        """Claim the streams that are asked for as an array."""
        call = super().route(request)
        return call if call is not None and call.stream and query(request).get("alt") != ["sse"] else None

    def events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[Event]:
        """The array's elements, each but the first with the comma before it, and its brackets."""
        between = b"["
        for event in super().events(script, request, answer):
            yield Event(raw=between + event.data.encode(), counts=event.counts)
            between = b"\n,\r\n"
        yield Event(raw=b"\n]\n")

    def error(self, refusal: Refusal, model: str) -> Any:
        """The error is the only element of an array."""
        return [super().error(refusal, model)]

    def error_events(self, script: Script) -> Iterator[Event]:
        """An error inside a stream: the array's last element."""
        yield Event(raw=b",\n" + json.dumps(self._error_within(script)).encode() + b"]\n")

    def malformed(self) -> Event:
        """An element whose JSON breaks off."""
        return Event(raw=b',\n{"candidates": [{"content": "}, \n')


def _usage(script: Script, request: Request, answer: Sequence[str], *, last: bool) -> dict[str, Any]:
    usage = Usage() if script.usage in ("auto", None) else script.usage
    assert isinstance(usage, Usage)
    said = json.dumps([part.get("text", "") for turn in request.body.get("contents", ()) for part in turn["parts"]])
    prompt = len(words(said)) if usage.prompt is None else usage.prompt
    found = {"promptTokenCount": prompt}
    if usage.cached:
        found["cachedContentTokenCount"] = usage.cached
    if last:
        completion = len(answer) + usage.reasoning if usage.completion is None else usage.completion
        found["candidatesTokenCount"] = completion - usage.reasoning
        if usage.reasoning:
            found["thoughtsTokenCount"] = usage.reasoning
        prompt += completion
    return found | {"totalTokenCount": prompt}


def _calls(script: Script) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = [
        {"functionCall": {"name": call.name, "args": json.loads(call.arguments), "id": call.id}}
        for call in script.tool_calls
    ]
    if calls:
        calls[0]["thoughtSignature"] = "c2lnbmVk"
    return calls


def _detail(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}
