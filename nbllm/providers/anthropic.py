"""Anthropic: the Messages API.

Options: the common ones, `top_p`, `stop`, `tools` and `schema` (there is no `seed`: it is left out); whatever the
Messages API takes (`thinking`, `output_config`, `tool_choice`, `metadata`, `service_tier`, `cache_control`, …); what
the SDK does not know goes into the request's body as it is, and `extra_headers={"anthropic-beta": …}` asks for what is
still in trial.

- **Sampling.** The API's version of 2026-10-21, which the SDK speaks, refuses `temperature`, `top_p` and `top_k`, so
  our default of 0 is not sent. Where one of them is set, the request goes by the version before, which takes them for
  the models that have them; the newest models refuse them there too, and say so.
- **Prompt caching.** `prompt_cache=True` (or `"1h"`, for an hour in place of five minutes) marks the end of the system
  prompt and the end of the conversation, so that the next turn reads what this one wrote. `cache_control` is the API's
  own automatic form; blocks of `system=[…]` and tools in Anthropic's shape may carry marks of their own.
- **Structured output.** `schema` goes as `output_config.format`, in the form that the API takes: `additionalProperties`
  is false, limits it does not check become part of the description. `output_config` goes as it is.
- **Reasoning** is asked for by `thinking={"type": "adaptive"}`. Its signatures, citations and what Anthropic's own
  tools do are `ProviderEvent`s.

Images (PNG, JPEG, GIF, WebP) go as `image` blocks, PDFs and text files as `document` blocks; other files are refused.
Every system message, wherever it stands, is part of the one system prompt.
Protocol: https://platform.claude.com/docs/en/api/messages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

from nbllm import errors
from nbllm.providers import anthropic_messages as protocol
from nbllm.providers.hosted import Decoder, HostedProvider
from nbllm.settings import DEFAULTS
from nbllm.types import Completion, ModelInfo, Request

__all__ = ["AnthropicProvider"]

SAMPLING: Final = frozenset({"temperature", "top_p", "top_k"})
VERSION_WITH_SAMPLING: Final = {"anthropic-version": "2023-06-01"}

STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The status that a type of error stands for, within a stream that began with 200."""

MEANINGS: Final = (
    ("context_length_exceeded", ("prompt is too long", "exceed context limit")),
    ("insufficient_quota", ("billing_error", "credit balance", "spend_limit_reached", "api usage limits")),
    ("content_filter", ("content filtering policy",)),
)
"""Where only the words of an error, or the code in its details, say what it is."""

NAMED: Final = re.compile(r"`?([a-z][a-z_]*(?:\.\w+)*)(?:: |` )")
"""What an error is about: `max_tokens: 9 > 8, which is …`, or `` `temperature` is deprecated for this model``."""


class AnthropicProvider(HostedProvider):
    """The Messages API at Anthropic or at a server that speaks it."""

    label = "Anthropic"
    default_url = "https://api.anthropic.com"
    key_variable = "ANTHROPIC_API_KEY"

    def build(self) -> None:
        import anthropic

        client = self._client = anthropic.AsyncAnthropic(
            base_url=self.base_url,
            api_key=self.key,
            max_retries=0,
            http_client=self.http,
            # Said outright: without, the SDK refuses a long answer that does not stream, and takes 5 s for no setting.
            timeout=self.http.timeout,
            open_telemetry=False,  # its spans would describe the empty body, and its headers go wherever we ask
        )
        # What the environment holds for the SDK was not meant for an address that comes from elsewhere; and where there
        # is a key, no other credential goes with it, of which the API would take the other one.
        own = self.settings.base_url_source in ("default", "environment")
        secret = {"authorization", "x-api-key"} if self.settings.api_key else set()
        given = client._custom_headers.items() if own else ()  # noqa: SLF001 - the SDK has no other way
        client._custom_headers = {name: value for name, value in given if name.lower() not in secret}  # noqa: SLF001
        _ = client.messages, client.models, _parameters()  # imported by the SDK at first use: here, off the loop

    async def send(self, request: Request) -> Any:
        return await self._client.messages.create(**self._arguments(request), stream=True)

    def decoder(self, request: Request) -> Decoder:
        return protocol.EventDecoder(lambda body: self.refusal(body, request.model))

    async def complete(self, request: Request) -> Completion:
        answer = await self._client.messages.create(**self._arguments(request), stream=False)
        found = None
        if hasattr(answer, "model_dump"):
            found = protocol.completion(answer.model_dump(mode="json", exclude_unset=True, warnings=False))
        if found is None:
            raise self.no_protocol(f"an answer of {request.model} that is no message")
        return found

    async def models(self) -> list[ModelInfo]:
        page = await self._client.models.list(limit=1000)
        if not isinstance(getattr(page, "data", None), list):
            raise self.no_protocol("no list of models")
        found: dict[str, ModelInfo] = {}
        async for model in page:
            if model.id in found:  # pages that go round in a circle
                break
            found[model.id] = self._info(model.model_dump(mode="json", exclude_unset=True, warnings=False))
        return list(found.values())

    def adapt(self, request: Request, error: errors.InvalidRequestError) -> Request | None:
        """A temperature of the configuration's is dropped for a model that refuses it."""
        sent = self._temperature(request) is not None and "temperature" not in request.explicit
        if sent and (error.param == "temperature" or (error.param is None and "temperature" in error.message)):
            return replace(request, dropped=request.dropped | {"temperature"})
        return None

    def said(self, body: Any) -> dict[str, Any]:
        said = super().said(body)
        error = body.get("error") if isinstance(body, Mapping) else None
        details = error.get("details") if isinstance(error, Mapping) else None
        message = said["message"] if isinstance(said["message"], str) else ""
        text = (
            f"{said.get('code')} {details.get('error_code') if isinstance(details, Mapping) else ''} {message}".lower()
        )
        said["code"] = next((code for code, words in MEANINGS if any(word in text for word in words)), said.get("code"))
        if named := NAMED.match(message):
            said["param"] = named[1]
        return said

    def refusal(
        self, body: Any, model: str | None, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> errors.ProviderError:
        whole = body if isinstance(body, Mapping) else {}
        error = whole.get("error")
        kind = error.get("type") if isinstance(error, Mapping) else None
        made = super().refusal(body, model, status or STATUS.get(str(kind)), headers)
        if made.request_id is None and isinstance(whole.get("request_id"), str):
            made.request_id = whole["request_id"]
        return made

    def _temperature(self, request: Request) -> float | None:
        """The temperature to send: one that was set, here or in the configuration, and not our own default."""
        if "temperature" in request.explicit:
            return request.temperature
        ours = request.temperature == DEFAULTS["temperature"] or "temperature" in request.dropped
        return None if ours else request.temperature

    def _arguments(self, request: Request) -> dict[str, Any]:
        options = {name: value for name, value in request.options.items() if name != "seed"}
        system, turns = protocol.conversation(request.messages)
        system += protocol.text_blocks(options.pop("system", None))
        if (mark := _cache_mark(options.pop("prompt_cache", None))) is not None:
            options.setdefault("cache_control", mark)
            system[-1:] = [{"cache_control": mark, **block} for block in system[-1:]]
        arguments: dict[str, Any] = {"model": request.model, "max_tokens": request.max_tokens, "messages": turns}
        if system:
            plain = len(system) == 1 and set(system[0]) == {"type", "text"}
            arguments["system"] = system[0]["text"] if plain else system
        if (stop := options.pop("stop", None)) is not None:
            arguments["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
        if (tools := options.pop("tools", None)) is not None:
            arguments["tools"] = [protocol.tool(tool) for tool in tools]
        if (choice := options.pop("tool_choice", None)) is not None:
            arguments["tool_choice"] = protocol.tool_choice(choice)
        if (schema := options.pop("schema", None)) is not None:
            form = {"type": "json_schema", "schema": _schema(schema)}
            options["output_config"] = {**(options.get("output_config") or {}), "format": form}
        extra: dict[str, Any] = {}
        for name, value in options.items():
            (arguments if name in _parameters() else extra)[name] = value
        if (temperature := self._temperature(request)) is not None:
            extra["temperature"] = temperature
        extra |= arguments.pop("extra_body", None) or {}
        if extra:
            arguments["extra_body"] = extra
        headers = arguments.get("extra_headers") or {}
        if SAMPLING & extra.keys() and "anthropic-version" not in map(str.lower, headers):
            arguments["extra_headers"] = {**VERSION_WITH_SAMPLING, **headers}
        return arguments

    def _info(self, model: Mapping[str, Any]) -> ModelInfo:
        can = model.get("capabilities") or {}
        taken = {"image": can.get("image_input") or {}, "pdf": can.get("pdf_input") or {}}
        return ModelInfo(
            id=model["id"],
            provider=self.name,
            name=model.get("display_name"),
            context_window=model.get("max_input_tokens"),
            max_output_tokens=model.get("max_tokens"),
            input_modalities=("text", *(kind for kind, it in taken.items() if it.get("supported"))) if can else None,
            details=model,
        )


def _cache_mark(asked: Any) -> dict[str, str] | None:
    if asked in (None, False):
        return None
    if asked is True or asked in ("5m", "1h"):
        return {"type": "ephemeral"} | ({} if asked is True else {"ttl": asked})
    raise errors.InvalidRequestError(f"prompt_cache is {asked!r}.", action='Give True, "5m" or "1h".')


def _schema(schema: Any) -> Any:
    import anthropic

    try:
        return anthropic.transform_schema(schema)
    except (ValueError, TypeError, AttributeError, AssertionError) as exc:
        raise errors.InvalidRequestError(
            f"Anthropic's SDK cannot use this schema: {exc}",
            action='Correct it ("anyOf" in place of a list of types, say), or give output_config, which goes as it is.',
        ) from exc


@cache
def _parameters() -> frozenset[str]:
    import inspect

    from anthropic.resources.messages import AsyncMessages

    return frozenset(inspect.signature(AsyncMessages.create).parameters) - {"self", "stream"}
