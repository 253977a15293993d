"""HuggingFace's hosted models: Inference Providers behind its router, Inference Endpoints, and TGI servers.

Options: the common ones; whatever the SDK's `chat_completion` takes (`frequency_penalty`, `logprobs`, `tool_choice`,
`tool_prompt`, …); anything else, `extra_body={…}` included, goes into the request's body as it is. Two more, which
`[providers.huggingface-hosted]` can set for every call:

- `provider` says which inference provider answers: `"together"`, or a policy such as `"fastest"` or `"cheapest"`. It is
  the same as a model named `openai/gpt-oss-20b:together`.
- `bill_to` names the organization that pays.

The key is `HF_TOKEN`, else the login that `hf auth login` has stored, which goes to HuggingFace's own router alone.
`HF_HUB_OFFLINE` is honoured there; a base URL of one's own, such as `https://….endpoints.huggingface.cloud/v1` or
`http://tgi:8080/v1`, is asked regardless. Images go as `image_url` parts; other files are refused.
Protocol: https://huggingface.co/docs/inference-providers/tasks/chat-completion.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from nbllm import errors
from nbllm.config import Secret, origin
from nbllm.providers import chat_completions
from nbllm.providers.chat_completions import ChunkDecoder
from nbllm.providers.hosted import Decoder, HostedProvider
from nbllm.types import Completion, ModelInfo, Request

if TYPE_CHECKING:
    import httpx2

__all__ = ["HuggingFaceHostedProvider"]

MEANINGS: Final = (
    ("context_length_exceeded", ("`inputs` tokens + `max_new_tokens` must be", "`inputs` must have less than")),
    ("insufficient_quota", ("monthly included credits", "monthly spending limit", "pre-paid credits")),
    ("model_not_found", ("model_not_supported", "not supported by any provider")),
    ("overloaded", ("is currently loading",)),
)
"""Which words of the router's, of TGI's and of the older API's stand for a code that is the same for all providers."""

TYPES: Final = {"validation": "invalid_request", "template_error": "invalid_request", "tool_error": "invalid_request"}
"""What TGI's types of errors stand for: within a stream there is no status that says it."""


class HuggingFaceHostedProvider(HostedProvider):
    """Chat completions at HuggingFace's router, or at an endpoint or server of one's own."""

    label = "HuggingFace"
    default_url = "https://router.huggingface.co/v1"
    key_variable = "HF_TOKEN"

    def stored_key(self) -> Secret | None:
        from huggingface_hub import get_token

        self._refuse_offline()  # first: the login may have to be renewed
        token = get_token()
        return Secret(token) if token else None

    def build(self) -> None:
        import huggingface_hub

        if origin(self.base_url) == origin(self.default_url):
            self._refuse_offline()
        self._sdk = huggingface_hub.AsyncInferenceClient
        _ = _parameters()  # imported by the SDK at first use: here, off the loop

    async def send(self, request: Request) -> Any:
        arguments = self._arguments(request)
        session = _Session(self.http, arguments.get("response_format"))
        # One client for a request: it would hold on to each of its streams until it is closed itself.
        async with self._client(request, session) as client:
            await client.chat_completion(**arguments, stream=True, stream_options={"include_usage": True})

    def decoder(self, request: Request) -> Decoder:
        return ChunkDecoder(lambda body: self.refusal(body, request.model))

    async def complete(self, request: Request) -> Completion:
        arguments = self._arguments(request)
        session = _Session(self.http, arguments.get("response_format"))
        async with self._client(request, session) as client:
            await client.chat_completion(**arguments, stream=False)
        # The SDK's objects leave out of nested objects what they do not know: reasoning, cached tokens.
        found = chat_completions.completion(session.answer, lambda body: self.refusal(body, request.model))
        if found is None:
            raise self.no_protocol(f"an answer of {request.model} that is no completion")
        return found

    async def models(self) -> list[ModelInfo]:
        base = self.base_url.rstrip("/")
        url = f"{base}/models" if base.endswith("/v1") else f"{base}/v1/models"
        answer = await self.http.get(url, headers={"authorization": f"Bearer {self.key}"})
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict) or not isinstance(found.get("data"), list):
            raise self.no_protocol("no list of models")
        return [self._info(card) for card in found["data"] if isinstance(card.get("id"), str)]

    def adapt(self, request: Request, error: errors.InvalidRequestError) -> Request | None:
        """A default of ours that the model refuses is left out."""
        return chat_completions.without_refused(request, error)

    def said(self, body: Any) -> dict[str, Any]:
        """The router's form is OpenAI's, TGI's and the older API's are `{"error": "…", "error_type": "…"}`."""
        said = super().said(body)
        if not isinstance(body, Mapping):
            return said
        inner = body.get("error")
        if isinstance(inner, list):
            said["message"] = " ".join(map(str, inner))
        kind = body.get("error_type") or said.get("code")
        words = f"{kind} {said['message']}".lower()
        known = next((known for known, signs in MEANINGS if any(sign in words for sign in signs)), None)
        said["code"] = known or TYPES.get(str(kind), kind)
        if isinstance(inner, Mapping) and isinstance(inner.get("http_status_code"), int):
            said["status"] = inner["http_status_code"]
        wait = body.get("estimated_time")
        said["retry_after"] = float(wait) if isinstance(wait, (int, float)) else None
        return said

    def _refuse_offline(self) -> None:
        from huggingface_hub import is_offline_mode

        if is_offline_mode():
            error = errors.ConnectionError(
                f"{self.label} is not asked: HF_HUB_OFFLINE is set.",
                action="Unset HF_HUB_OFFLINE and restart the kernel, or use a local model.",
            )
            error.phase, error.retryable = "connect", False
            raise error

    def _client(self, request: Request, session: _Session) -> Any:
        client = self._sdk(base_url=self.base_url, api_key=self.key, bill_to=self._setting(request, "bill_to"))
        # In place of `set_async_client_factory`, which is the whole process's and would reach the user's own calls.
        client._async_client = session  # type: ignore[assignment]  # noqa: SLF001
        return client

    def _setting(self, request: Request, name: str) -> Any:
        return request.options.get(name, self.settings.extra.get(name))

    def _arguments(self, request: Request) -> dict[str, Any]:
        for message in request.messages:
            for attachment in message.attachments:
                if not attachment.media_type.startswith("image/"):
                    raise errors.InvalidRequestError(
                        f"{self.label} takes no {attachment.media_type}.", action="Attach an image, or give its text."
                    )
        arguments: dict[str, Any] = {
            "model": request.model,
            "messages": [chat_completions.message(message) for message in request.messages],
        }
        if (provider := self._setting(request, "provider")) and ":" not in request.model:
            arguments["model"] = f"{request.model}:{provider}"
        for name in {"max_tokens", "temperature"} - request.dropped:
            arguments[name] = getattr(request, name)
        extra: dict[str, Any] = {}
        for name, value in request.options.items():
            if name == "schema":
                arguments["response_format"] = chat_completions.response_format(value)
            elif name == "stop":
                arguments["stop"] = [value] if isinstance(value, str) else value
            elif name not in ("provider", "bill_to"):
                (arguments if name in _parameters() else extra)[name] = value
        if extra:
            arguments["extra_body"] = {**extra, **(arguments.get("extra_body") or {})}
        return arguments

    def _info(self, card: Mapping[str, Any]) -> ModelInfo:
        """What is known of a model wherever the request may go: the smallest window, the highest price."""
        live = [one for one in card.get("providers") or () if one.get("status") == "live"]
        windows = [one["context_length"] for one in live if one.get("context_length")]
        prices = [one["pricing"] for one in live if one.get("pricing")]
        kinds = (card.get("architecture") or {}).get("input_modalities")
        return ModelInfo(
            id=card["id"],
            provider=self.name,
            context_window=min(windows, default=None),
            input_modalities=tuple(kinds) if kinds else None,
            input_price=max((price["input"] for price in prices), default=None),
            output_price=max((price["output"] for price in prices), default=None),
            details=card,
        )


class _Session:
    """Our HTTP client as the SDK's client is to see it during one call.

    Attributes:
        answer: The JSON of an answer that did not stream.
    """

    def __init__(self, http: httpx2.AsyncClient, response_format: Any = None) -> None:
        self._http = http
        self._response_format = response_format
        self.answer: Any = None

    def stream(self, method: str, url: str, **sent: Any) -> Any:
        """As httpx2's."""
        return self._http.stream(method, url, **self._meant(sent))

    async def post(self, url: str, **sent: Any) -> httpx2.Response:
        """As httpx2's."""
        response = await self._http.post(url, **self._meant(sent))
        if response.is_success:
            self.answer = response.json()
        return response

    def _meant(self, sent: dict[str, Any]) -> dict[str, Any]:
        sent.pop("timeout", None)  # the SDK's own is none at all
        if self._response_format is not None:
            # To any base URL the SDK writes a JSON schema in a form of TGI's own, which the router does not know.
            sent["json"] = {**sent["json"], "response_format": self._response_format}
        return sent


@cache
def _parameters() -> frozenset[str]:
    from huggingface_hub import AsyncInferenceClient

    return frozenset(inspect.signature(AsyncInferenceClient.chat_completion).parameters) - {"self", "stream"}
