"""Mistral: its chat completions, a dialect of OpenAI's.

Options: the common ones (`seed` goes as `random_seed`, `schema` as `response_format`); whatever the SDK's
`chat.stream_async` takes: `reasoning_effort` and `prompt_mode="reasoning"`, `tool_choice`, `parallel_tool_calls`,
`safe_prompt`, `guardrails`, `prediction`, `presence_penalty`, `service_tier`, `http_headers`, … The SDK sends nothing
that it does not know, so an option of another name is refused. Prompts that begin alike are cached by Mistral where
they bear the same `prompt_cache_key`.

Images go as `image_url` parts, PDFs as `document_url` parts with a `data:` URL; other files are refused. What Magistral
models think comes as `ReasoningDelta`s.
Protocol: https://docs.mistral.ai/api/#tag/chat.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from nbllm import errors
from nbllm.providers import chat_completions
from nbllm.providers.chat_completions import ChunkDecoder
from nbllm.providers.hosted import Decoder, HostedProvider
from nbllm.types import Attachment, Completion, Event, Message, ModelInfo, ReasoningDelta, Request, TextDelta

if TYPE_CHECKING:
    import httpx2
    from mistralai.client import Mistral

__all__ = ["MistralProvider"]

logger = logging.getLogger("nbllm.providers")

NO_OPTIONS: Final = frozenset({"self", "model", "messages", "stream", "retries", "server_url", "timeout_ms"})
"""Arguments of the SDK's call that are not the caller's to set."""

MEANINGS: Final = {
    "3051": "context_length_exceeded",
    "1500": "model_not_found",
    "invalid_model": "model_not_found",
    "3505": "overloaded",
    "service_tier_capacity_exceeded": "overloaded",
    "payment_required": "insufficient_quota",
    "guardrail_violation": "content_filter",
}
"""Which of Mistral's codes and types stand for a code that is the same for all providers."""


class MistralProvider(HostedProvider):
    """Chat completions at Mistral or at a server that speaks its dialect."""

    label = "Mistral"
    default_url = "https://api.mistral.ai"
    key_variable = "MISTRAL_API_KEY"

    def build(self) -> None:
        from mistralai.client import Mistral

        http: Any = _Client(self.http)
        client: Mistral = Mistral(
            api_key=self.key,
            # The SDK's paths begin with /v1; other libraries' base URL for Mistral ends with it.
            server_url=self.base_url.rstrip("/").removesuffix("/v1"),
            async_client=http,
            client=http,  # never called: without one, the SDK would make one for synchronous calls, and its TLS context
        )
        # One of them reads the body of a deprecated model's answer, which fails while it streams; others make threads,
        # and spans that would describe the empty body which the SDK is left with.
        hooks = client.sdk_configuration.__dict__["_hooks"]
        for kind in (hooks.before_request_hooks, hooks.after_success_hooks, hooks.after_error_hooks):
            kind.clear()
        self._client = client
        _ = client.chat, client.models, _options()  # imported by the SDK at first use: here, off the loop

    async def send(self, request: Request) -> Any:
        return await self._client.chat.stream_async(**self._arguments(request))

    def decoder(self, request: Request) -> Decoder:
        return _Decoder(lambda body: self.refusal(body, request.model))

    async def complete(self, request: Request) -> Completion:
        answer = await self._client.chat.complete_async(**self._arguments(request))
        raw = answer.model_dump(mode="json", by_alias=True)
        found = chat_completions.completion(raw, lambda body: self.refusal(body, request.model))
        if found is None:
            raise self.no_protocol(f"an answer of {request.model} that is no completion")
        pieces = _pieces(raw["choices"][0]["message"].get("content"))
        return replace(
            found,
            text="".join(text for reasons, text in pieces if not reasons),
            reasoning="".join(text for reasons, text in pieces if reasons),
        )

    async def models(self) -> list[ModelInfo]:
        found = (await self._client.models.list_async()).data
        if found is None:
            raise self.no_protocol("no list of models")
        # What the SDK does not know it keeps as it came; what did not come, it fills with defaults that are none.
        cards = [getattr(card, "raw", None) or card.model_dump(mode="json", exclude_unset=True) for card in found]
        return [self._info(card) for card in cards if isinstance(card.get("id"), str)]

    def adapt(self, request: Request, error: errors.InvalidRequestError) -> Request | None:
        """A default of ours that the model refuses is left out."""
        return chat_completions.without_refused(request, error)

    def said(self, body: Any) -> dict[str, Any]:
        """Mistral's several forms: `{"detail": …}`, a list of FastAPI's, or `{"object": "error", "message": …}`."""
        said = super().said(body)
        if not isinstance(body, Mapping):
            return said
        message = said["message"]
        if isinstance(message, Mapping):
            message = message.get("detail") or message
        if isinstance(message, list) and message and isinstance(message[0], Mapping):
            # `input`, beside these, repeats what was sent.
            where = message[0].get("loc") or [None]
            said["param"], message = where[-1], f"{where[-1]}: {message[0].get('msg')}"
        code, kind = str(said["code"] or ""), str(body.get("type") or "")
        # Its codes are numbers of its own, and are not to be read as a status.
        said["code"] = MEANINGS.get(code) or MEANINGS.get(kind) or kind or ("" if code.isdigit() else code)
        status = body.get("raw_status_code")
        return {**said, "message": message, "status": status if isinstance(status, int) else None}

    def _info(self, card: Mapping[str, Any]) -> ModelInfo:
        able = card.get("capabilities") or {}
        kinds = {"text": True, "image": able.get("vision"), "audio": able.get("audio")}
        return ModelInfo(
            id=card["id"],
            provider=self.name,
            name=card.get("name"),
            context_window=card.get("max_context_length"),
            input_modalities=tuple(kind for kind, can in kinds.items() if can) if able else None,
            details=card,
        )

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": request.model,
            "messages": [_message(message) for message in request.messages],
        }
        for name in {"max_tokens", "temperature"} - request.dropped:
            arguments[name] = getattr(request, name)
        options = dict(request.options)
        if (schema := options.pop("schema", None)) is not None:
            arguments["response_format"] = chat_completions.response_format(schema)
        if (seed := options.pop("seed", None)) is not None:
            arguments["random_seed"] = seed
        if tools := options.pop("tools", None):
            arguments["tools"] = [_tool(tool) for tool in tools]
        for name in options:
            if name not in _options():
                close = difflib.get_close_matches(name, _options() | {"seed", "schema"}, n=1)
                error = errors.InvalidRequestError(
                    f"{self.label} has no option {name!r}.",
                    action=f"Did you mean {close[0]}?" if close else f"It has: {', '.join(sorted(_options()))}.",
                )
                error.param = name
                raise error
        return arguments | options


class _Decoder(ChunkDecoder):
    objects = True

    def content(self, delta: Mapping[str, Any], events: list[Event]) -> None:
        content = delta.get("content")
        if type(content) is str:  # nearly always
            if content:
                events.append(TextDelta(content))
            return
        for reasons, text in _pieces(content):
            events.append(ReasoningDelta(text) if reasons else TextDelta(text))


class _Client:
    """Our HTTP client as the SDK is to see it; in place of its synchronous one as well."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    def build_request(self, method: str, url: str, **arguments: Any) -> httpx2.Request:
        # The SDK's own timeout is one for everything, five minutes for a connection that is not made included.
        arguments.pop("timeout", None)
        return self._http.build_request(method, url, **arguments)

    async def send(self, request: httpx2.Request, **arguments: Any) -> httpx2.Response:
        response = await self._http.send(request, **arguments)
        if when := response.headers.get("x-model-deprecation-timestamp"):
            logger.warning("Mistral says that the model it answers with is deprecated and will be gone on %s", when)
        return response

    def close(self) -> None:
        """Nothing: the provider closes it."""

    async def aclose(self) -> None:
        """Nothing: the provider closes it."""


def _pieces(content: Any) -> list[tuple[bool, str]]:
    """The texts of a message's or a delta's content, each with whether it is reasoning."""
    if content is None or isinstance(content, str):
        return [(False, content)] if content else []
    if not isinstance(content, list):
        raise TypeError(f"{type(content).__name__} in place of text")
    found = []
    for part in content:
        if part.get("type") == "thinking":
            found.append((True, chat_completions.text_of(part.get("thinking"))))
        elif part.get("type") == "text":
            found.append((False, chat_completions.text_of(part.get("text"))))
        # References and files are not text.
    return [(reasons, text) for reasons, text in found if text]


def _tool(tool: Any) -> Any:
    """The tool with parameters, which Mistral wants said even where there are none."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        return tool
    return {**tool, "function": {"parameters": {"type": "object", "properties": {}}, **function}}


def _message(said: Message) -> dict[str, Any]:
    sent = chat_completions.message(replace(said, attachments=()))
    if said.attachments:
        parts = [{"type": "text", "text": said.content}] if said.content else []
        sent["content"] = [*parts, *(_part(attachment) for attachment in said.attachments)]
    return sent


def _part(attachment: Attachment) -> dict[str, Any]:
    url = chat_completions.data_url(attachment)
    if attachment.media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    if attachment.media_type == "application/pdf":
        return {"type": "document_url", "document_url": url, "document_name": attachment.name or "attachment.pdf"}
    raise errors.InvalidRequestError(
        f"Mistral takes no {attachment.media_type}.", action="Attach an image or a PDF, or give its text."
    )


@cache
def _options() -> frozenset[str]:
    from mistralai.client.chat import Chat

    return frozenset(inspect.signature(Chat.stream_async).parameters) - NO_OPTIONS
