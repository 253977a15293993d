"""HuggingFace's router and TGI: OpenAI's chunks, errors and lists of their own.

https://huggingface.co/docs/inference-providers/tasks/chat-completion; the bodies of errors are TGI's
(`router/src/server.rs`) and the router's, as its users report them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.wire.openai import CREATED, OpenAI
from tests.wire.protocol import Call, Event
from tests.wire.script import Refusal, Script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.wire.connection import Request

BASE = "/huggingface/v1/"
PLAIN = {
    "invalid_api_key": "Invalid username or password.",
    "permission_denied": "This authentication method does not have sufficient permissions to call Inference Providers "
    "on behalf of user tests",
    "rate_limit": "We had to rate limit you. Please slow down.",
    "insufficient_quota": "You have exceeded your monthly included credits for Inference Providers. Subscribe to PRO "
    "to get 20x more monthly included credits.",
}
"""Errors of the router's that are a mere text."""
TGI = {
    "server_error": ("generation", "Request failed during generation: Server error: Out of memory"),
    "overloaded": ("overloaded", "Model is overloaded"),
    "context_length_exceeded": (
        "validation",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 5000 and 4000",
    ),
}
"""Type and words of TGI's errors."""


class HuggingFace(OpenAI):
    """Serves `/huggingface/v1/chat/completions` and `/huggingface/v1/models`."""

    name = "huggingface"

    def route(self, request: Request) -> Call | None:
        """Claim the requests below HuggingFace's base path."""
        if not request.path.startswith(BASE):
            return None
        path = request.path.removeprefix(BASE)
        if path == "chat/completions" and request.method == "POST":
            body = request.body if isinstance(request.body, dict) else {}
            # What follows the model's name says who is to serve it.
            return Call("generate", str(body.get("model", "")).partition(":")[0], stream=bool(body.get("stream")))
        if path == "models" and request.method == "GET":
            return Call("models")
        return Call("unknown")

    def model(self, name: str) -> dict[str, Any]:
        """One model, with who serves it."""
        served = {"status": "live", "supports_tools": True, "supports_structured_output": True}
        return {
            "id": name,
            "object": "model",
            "created": CREATED,
            "owned_by": "tests",
            "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
            "providers": [
                {"provider": "one", "context_length": 131072, "pricing": {"input": 0.1, "output": 0.5}, **served},
                {"provider": "two", "context_length": 32768, "pricing": {"input": 0.2, "output": 0.4}, **served},
                {"provider": "gone", "status": "error", "context_length": 8, "pricing": {"input": 9, "output": 9}},
            ],
        }

    def error(self, refusal: Refusal, model: str) -> dict[str, Any]:
        """The body of an error answer, in one of three forms."""
        reason, message = refusal.reason, refusal.message
        if reason in PLAIN:
            return {"error": message or PLAIN[reason]}
        if reason in TGI:
            kind, words = TGI[reason]
            return {"error": message or words, "error_type": kind}
        if reason == "model_not_found":
            words = f"The requested model '{model}' is not supported by any provider you have enabled."
            error = {"message": message or words, "type": "invalid_request_error", "param": "model"}
            return {"error": error | {"code": "model_not_supported"}}
        return super().error(refusal, model)

    def error_events(self, script: Script) -> Iterator[Event]:
        """An error inside a stream: TGI's body as a data event."""
        yield Event(json.dumps(self.error(Refusal(500, script.reason or "server_error", script.message), script.model)))

    def models(self, names: Sequence[str]) -> dict[str, Any]:
        """The list of models."""
        return {"object": "list", "data": [self.model(name) for name in names]}
