"""OpenAI, and every server that speaks Chat Completions: vLLM, Ollama, llama.cpp, TGI, LM Studio, OpenRouter.

Options: the common ones (`seed`, `top_p`, `stop`, `tools`, `schema`); whatever Chat Completions takes
(`reasoning_effort`, `response_format`, `logprobs`, `prompt_cache_key`, `service_tier`, …); what the SDK does not know
(`top_k` of a local server) goes into the request's body as it is. `api="responses"` asks the Responses API in place of
Chat Completions (`openai_responses.py`); `[providers.openai] api = "responses"` does so for every call. Prompts are
cached by OpenAI itself; `prompt_cache_key` groups those that share a beginning.

A server's own ways are settings of its endpoint (`endpoints.py`): `ends_by`, `usage_option`, `api`.
Images go as `image_url` parts, PDFs and other files as `file` parts.
Protocol: https://platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from nbllm import errors
from nbllm.config import origin
from nbllm.providers import chat_completions, openai_responses
from nbllm.providers.chat_completions import ChunkDecoder
from nbllm.providers.hosted import Decoder, HostedProvider
from nbllm.types import Completion, ModelInfo, Request

if TYPE_CHECKING:
    import openai

__all__ = ["OpenAIProvider"]


LENGTHS: Final = ("max_tokens", "max_completion_tokens")
"""The older and the newer name of the most tokens of an answer. In `Request.dropped`, the first means renamed."""


class OpenAIProvider(HostedProvider):
    """Chat Completions at OpenAI or at a compatible server."""

    label = "OpenAI"
    default_url = "https://api.openai.com/v1"
    key_variable = "OPENAI_API_KEY"

    def build(self) -> None:
        import openai

        with contextlib.suppress(ImportError):
            # The SDK looks for httpx among the loaded modules at each request, and fails on one that another thread
            # is just importing, as Google's SDK does: here it is loaded to its end before the first request.
            import httpx  # noqa: F401

        self.official = origin(self.base_url) == origin(self.default_url)
        self._client: openai.AsyncOpenAI = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.key,
            max_retries=0,
            http_client=self.http,
            timeout=self.http.timeout,  # said, or a client of 5 s everywhere is taken for one that says nothing
        )
        if self.settings.base_url_source not in ("default", "environment"):  # an endpoint's is neither
            # What the environment holds for the SDK was not meant for an address that comes from elsewhere.
            self._client._custom_headers = {}  # noqa: SLF001 - the SDK has no other way
            self._client.organization = self._client.project = self._client.admin_api_key = None

    async def send(self, request: Request) -> Any:
        if self._by_responses(request):
            return await self._client.responses.create(**self._for_responses(request), stream=True)
        arguments = self._arguments(request)
        if self.settings.extra.get("usage_option") is not False:  # some servers refuse what they do not know
            arguments["stream_options"] = {"include_usage": True}
        return await self._client.chat.completions.create(**arguments, stream=True)

    def decoder(self, request: Request) -> Decoder:
        def refusal(body: Any) -> errors.ProviderError:
            return self.refusal(body, request.model)

        if self._by_responses(request):
            return openai_responses.ResponsesDecoder(refusal)
        return ChunkDecoder(refusal, closes=self.settings.extra.get("ends_by") == "close")

    async def complete(self, request: Request) -> Completion:
        answer: Any
        if by_responses := self._by_responses(request):
            answer = await self._client.responses.create(**self._for_responses(request), stream=False)
        else:
            answer = await self._client.chat.completions.create(**self._arguments(request), stream=False)
        found = None
        if hasattr(answer, "model_dump"):
            read = openai_responses.completion if by_responses else chat_completions.completion
            found = read(answer.model_dump(mode="json", warnings=False), lambda body: self.refusal(body, request.model))
        if found is None:
            raise self.no_protocol(f"an answer of {request.model} that is no completion")
        return found

    async def models(self) -> list[ModelInfo]:
        found = (await self._client.models.list()).data
        if not isinstance(found, list):
            raise self.no_protocol("no list of models")
        return [
            ModelInfo(id=model.id, provider=self.name, details=model.model_dump(warnings=False))
            for model in found
            if isinstance(model.id, str)
        ]

    def adapt(self, request: Request, error: errors.InvalidRequestError) -> Request | None:
        """Reasoning models refuse `temperature`, and take `max_completion_tokens` in place of `max_tokens`.

        Our default length is left out where a model takes none of it, or its context window has no room for it.
        """
        if self._by_responses(request):
            return openai_responses.adapted(request, error)
        text = error.message.lower()

        def named(*names: str) -> bool:
            return error.param in names or (not error.param and any(name in text for name in names))

        if isinstance(error, errors.ContextLengthError):
            left = LENGTHS[1] if chat_completions.exceeds_with_answer(error) else None
        elif named(*LENGTHS):
            left = LENGTHS[1] if self._renamed(request) else LENGTHS[0]
        else:
            left = "temperature" if named("temperature") else None
        # Renaming loses nothing, so it is done for a value of the caller's too.
        own = {"temperature": "temperature", LENGTHS[1]: "max_tokens"}.get(left or "")
        if left is None or left in request.dropped or own in request.explicit:
            return None
        return replace(request, dropped=request.dropped | {left})

    def limits(self, request: Request) -> bool:
        return not request.dropped & {LENGTHS[1], "max_output_tokens"}

    def _renamed(self, request: Request) -> bool:
        # OpenAI's newer models know only the second name, older servers only the first.
        return self.official or LENGTHS[0] in request.dropped

    def _by_responses(self, request: Request) -> bool:
        api = request.options.get("api", self.settings.extra.get("api", "chat"))
        if api not in ("chat", "responses"):
            raise errors.InvalidRequestError(
                f"{self.label} has no API {api!r}.", action='Set api to "chat" or "responses".'
            )
        return bool(api == "responses")

    def _for_responses(self, request: Request) -> dict[str, Any]:
        options = {name: value for name, value in request.options.items() if name != "api"}
        known = _parameters(responses=True)
        return openai_responses.arguments(replace(request, options=options), known, official=self.official)

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": request.model,
            "messages": [chat_completions.message(message) for message in request.messages],
        }
        if LENGTHS[1] not in request.dropped:
            arguments[LENGTHS[self._renamed(request)]] = request.max_tokens
        if "temperature" not in request.dropped:
            arguments["temperature"] = request.temperature
        options = {name: value for name, value in request.options.items() if name != "api"}
        if (schema := options.pop("schema", None)) is not None:
            arguments["response_format"] = chat_completions.response_format(schema)
        extra: dict[str, Any] = {}
        for name, value in options.items():
            (arguments if name in _parameters(responses=False) else extra)[name] = value
        if extra:
            arguments["extra_body"] = {**extra, **(arguments.get("extra_body") or {})}
        return arguments


@cache
def _parameters(*, responses: bool) -> frozenset[str]:
    import inspect

    from openai.resources.chat.completions import AsyncCompletions
    from openai.resources.responses import AsyncResponses

    if responses:
        return frozenset(inspect.signature(AsyncResponses.create).parameters) - {"self", "stream"}
    return frozenset(inspect.signature(AsyncCompletions.create).parameters) - {"self", "stream", "stream_options"}
