"""Google: Gemini, by google-genai.

Options: the common ones (`stop` goes as `stop_sequences`, `schema` as `response_json_schema`); every field of the SDK's
`GenerateContentConfig` that the Gemini API takes: `thinking_config={"include_thoughts": True}` (thoughts come as
`ReasoningDelta`s), `safety_settings`, `top_k`, `tool_config`, `response_modalities`, `service_tier`, … An option of
another name is refused.

- **Tools** of Google's own go beside functions: `tools=[{"google_search": {}}]`, `url_context`, `code_execution`. Where
  an answer is grounded, and which code was run, are `ProviderEvent`s, as are pictures that a model makes
  (`inline_data`). Functions are never called by the SDK itself.
- **Thought signatures** are `ProviderEvent`s. A conversation that goes on after calls of tools is sent with the word
  that Google documents for a signature which is not at hand.
- **Prompt caching** is implicit with most models; `cached_content="cachedContents/…"` names a cache of one's own.

Images, PDFs, audio, video and text go as inline data; other files are refused. Every system message, wherever it
stands, is part of the one system instruction. Models are named with or without `models/`.
Protocol: https://ai.google.dev/api/generate-content.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import ssl
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from nbllm import errors
from nbllm.providers import chat_completions
from nbllm.providers import google_messages as protocol
from nbllm.providers.google_messages import ResponseDecoder
from nbllm.providers.hosted import Decoder, HostedProvider
from nbllm.types import Completion, ModelInfo, Request

if TYPE_CHECKING:
    import httpx2
    from google import genai

__all__ = ["GoogleProvider"]

NO_OPTIONS: Final = {
    "http_options": "Set the base_url of the provider, or leave it out.",
    "should_return_http_response": "Leave it out: `Response.raw` is what came.",
    "automatic_function_calling": "Leave it out: functions are yours to call.",
    "automatic_continuation": "Leave it out: to go on, send the continuation_token that came.",
    "system_instruction": "Give it as a message with the role system.",
    "max_output_tokens": "Set max_tokens.",
    "stop_sequences": "Set stop.",
}
"""Fields of the SDK's configuration that are not options here, and what to do in their place."""


class GoogleProvider(HostedProvider):
    """The Gemini API at Google or at a server that speaks it."""

    label = "Google"
    default_url = "https://generativelanguage.googleapis.com"
    key_variable = "GEMINI_API_KEY"

    def build(self) -> None:
        import httpx2
        from google import genai
        from google.genai import client, types

        # The SDK wants a client and a context for calls that are never made: these trust nobody.
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._idle = httpx2.Client(verify=nobody, trust_env=False)
        self.http.event_hooks["request"].append(self._timed)
        with _no_false_words():
            self._client: genai.Client = genai.Client(
                vertexai=False,  # whatever the environment says: that is another service, with other credentials
                api_key=self.key,
                debug_config=client.DebugConfig(client_mode=None, replays_directory=None, replay_id=None),
                http_options=types.HttpOptions(
                    base_url=self.base_url.rstrip("/").removesuffix("/v1beta"),
                    api_version="v1beta",
                    # With a client of ours the SDK does not use aiohttp, which it makes wait and try again by itself.
                    httpx_async_client=self.http,
                    httpx_client=self._idle,
                    async_client_args={"ssl": nobody},
                    retry_options=types.HttpRetryOptions(attempts=1),
                ),
            )
        # Its models of requests are built by pydantic at first use: here, off the loop.
        types.GenerateContentConfig.model_rebuild()
        types.Content.model_validate({"role": "user", "parts": [{"text": "Hi"}]})

    async def aclose(self) -> None:
        self._idle.close()
        await super().aclose()

    async def send(self, request: Request) -> Any:
        stream: Any = await self._client.aio.models.generate_content_stream(**self._arguments(request))
        with contextlib.suppress(StopAsyncIteration):  # nothing is sent before this, and nothing is left to come
            await anext(stream)
        return stream

    def decoder(self, request: Request) -> Decoder:
        return ResponseDecoder(lambda body: self.refusal(body, request.model))

    async def complete(self, request: Request) -> Completion:
        arguments = self._arguments(request)
        # As it came: the SDK's model of it loses what the SDK does not know.
        arguments["config"].should_return_http_response = True
        answer = await self._client.aio.models.generate_content(**arguments)
        raw = json.loads((answer.sdk_http_response and answer.sdk_http_response.body) or "null")
        decoder = ResponseDecoder(lambda body: self.refusal(body, request.model))
        if not isinstance(raw, dict) or (found := protocol.completion(raw, decoder)) is None:
            raise self.no_protocol(f"an answer of {request.model} that is no completion")
        return found

    async def models(self) -> list[ModelInfo]:
        found = [
            ModelInfo(
                id=model.name.removeprefix("models/"),
                provider=self.name,
                name=model.display_name,
                context_window=model.input_token_limit,
                max_output_tokens=model.output_token_limit,
                details=model.model_dump(mode="json", exclude_none=True),
            )
            async for model in await self._client.aio.models.list(config={"page_size": 1000})
            if model.name and "generateContent" in (model.supported_actions or ("generateContent",))
        ]
        if not found:  # what the SDK makes of the lists of other services
            raise self.no_protocol("no list of models")
        return found

    def adapt(self, request: Request, error: errors.InvalidRequestError) -> Request | None:
        """A default of ours that the model refuses is left out."""
        return chat_completions.without_refused(request, error)

    def said(self, body: Any) -> dict[str, Any]:
        return protocol.said(body)

    async def _timed(self, request: httpx2.Request) -> None:
        # The SDK asks for no timeout at all where it is given none, and tells the server of one that it is given.
        request.extensions["timeout"] = self.http.timeout.as_dict()

    def _arguments(self, request: Request) -> dict[str, Any]:
        from google.genai import types

        config: dict[str, Any] = {"automatic_function_calling": {"disable": True}, "automatic_continuation": False}
        if system := protocol.system_of(request):
            config["system_instruction"] = system
        for name, field in (("max_tokens", "max_output_tokens"), ("temperature", "temperature")):
            if name not in request.dropped:
                config[field] = getattr(request, name)
        options = dict(request.options)
        if (stop := options.pop("stop", None)) is not None:
            config["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
        if (schema := options.pop("schema", None)) is not None:
            config |= {"response_mime_type": "application/json", "response_json_schema": schema}
        if tools := options.pop("tools", None):
            config["tools"] = protocol.declarations(tools, lambda schema: {"parametersJsonSchema": schema})
        for name in options:
            self._check_option(name)
        return {
            "model": request.model,
            "contents": protocol.contents(request.messages),
            "config": types.GenerateContentConfig(**config | options),
        }

    def _check_option(self, name: str) -> None:
        if name in _options():
            return
        action = NO_OPTIONS.get(name)
        if action is None:
            close = difflib.get_close_matches(name, _options() | {"stop", "schema"}, n=3)
            action = f"Did you mean {' or '.join(close)}?" if close else f"It has: {', '.join(sorted(_options()))}."
        error = errors.InvalidRequestError(f"{self.label} has no option {name!r}.", action=action)
        error.param = name
        raise error


@contextlib.contextmanager
def _no_false_words() -> Iterator[None]:
    """Where two variables hold a key, the SDK says that it uses one of them, even where it is given another."""

    def true(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Both GOOGLE_API_KEY")

    sdks = logging.getLogger("google_genai._api_client")
    sdks.addFilter(true)
    try:
        yield
    finally:
        sdks.removeFilter(true)


@cache
def _options() -> frozenset[str]:
    from google.genai import types

    return frozenset(types.GenerateContentConfig.model_fields) - frozenset(NO_OPTIONS)
