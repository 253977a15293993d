"""OpenAI's Chat Completions, by the official SDK, and every server that speaks the same protocol.

Options passed through by keyword: all parameters of `chat.completions.create` (`seed`, `top_p`, `stop`,
`reasoning_effort`, `response_format`, `tools`, …); what the SDK does not know (`top_k` of a local server) goes into the
request's body as it is. Protocol: https://platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncGenerator
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from nbllm import errors
from nbllm.config import ProviderSettings, origin
from nbllm.errors import Phase, ProviderError
from nbllm.providers import mapping
from nbllm.providers.base import Provider
from nbllm.providers.sse import SSEDecoder
from nbllm.providers.transport import async_client, drained
from nbllm.types import (
    Completion,
    Event,
    Finish,
    FinishReason,
    Message,
    ModelInfo,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageUpdate,
)

if TYPE_CHECKING:
    import openai

DEFAULT_URL: Final = "https://api.openai.com/v1"

FINISH: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class OpenAIProvider(Provider):
    """Chat Completions at OpenAI or at a compatible server."""

    label = "OpenAI"

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(settings)
        self.base_url = settings.base_url or DEFAULT_URL
        self.official = origin(self.base_url) == origin(DEFAULT_URL)
        if settings.api_key is None and self.official:
            raise errors.MissingKeyError(
                "There is no key for OpenAI.",
                action="Set OPENAI_API_KEY (in a notebook: %env OPENAI_API_KEY=…, not in a cell that you save).",
                provider=settings.name,
            )
        import openai

        self._client: openai.AsyncOpenAI = openai.AsyncOpenAI(
            base_url=self.base_url,
            # A server of one's own mostly wants no key, but the SDK wants a word.
            api_key=settings.api_key.reveal() if settings.api_key else "not-needed",
            max_retries=0,  # retries are the manager's alone
            http_client=async_client(settings.name, self.base_url, settings.timeout),
        )
        if settings.base_url_source not in ("default", "environment"):
            # What the environment holds for the SDK was not meant for an address that comes from elsewhere.
            self._client._custom_headers = {}  # noqa: SLF001 - the SDK has no other way
            self._client.organization = self._client.project = self._client.admin_api_key = None

    async def open(self, request: Request) -> Any:
        return await self._client.chat.completions.create(
            **self._arguments(request), stream=True, stream_options={"include_usage": True}
        )

    async def decode(self, stream: Any, request: Request) -> AsyncGenerator[list[Event], None]:
        """Decodes the response itself: the SDK's object for each event costs six times what its JSON does."""
        decoder, head, finished = SSEDecoder(), b"", False
        seen = done = False
        async with contextlib.aclosing(stream.response.aiter_bytes()) as body:
            while not done:
                chunk = await anext(body, b"")
                received = decoder.feed(chunk) if chunk else decoder.end()
                seen = seen or bool(received)
                if not seen:
                    head = (head + chunk)[:2000]
                events: list[Event] = []
                try:
                    for _, data in received:
                        if done := data.startswith("[DONE]"):
                            break
                        finished = self._events(data, events, request) or finished
                except ProviderError:
                    yield events  # what came before the fault in the same read is kept
                    raise
                if done and not finished:  # some compatible servers never name a reason
                    events.append(Finish("stop"))
                if events:
                    yield events
                if not chunk:
                    break
            if not seen:
                raise errors.ResponseFormatError(
                    f"{self.label} answered {request.model} with something that is no stream: {_preview(head)}",
                    action=f"Check the base URL, {self.base_url}: a proxy or another service may answer there.",
                )
            await drained(body)

    def _events(self, data: str, events: list[Event], request: Request) -> bool:
        """Append one chunk's events; whether the chunk names a reason to finish."""
        try:
            chunk = json.loads(data)
            choices = chunk.get("choices") or ()
            if error := chunk.get("error"):
                raise self._error(error, None, request.model)
            finished = False
            for choice in choices:
                if choice.get("index"):  # `n` of more than one: a stream is one answer, the first
                    continue
                delta = choice.get("delta") or {}
                if text := _text(delta.get("content") or delta.get("refusal")):
                    events.append(TextDelta(text))
                if text := _text(delta.get("reasoning_content") or delta.get("reasoning")):
                    events.append(ReasoningDelta(text))
                for call in delta.get("tool_calls") or ():
                    function = call.get("function") or {}
                    events.append(
                        ToolCallDelta(
                            int(call.get("index") or 0),
                            _text(call.get("id")) or None,
                            _text(function.get("name")) or None,
                            _text(function.get("arguments")),
                        )
                    )
                if reason := choice.get("finish_reason"):
                    finished = True
                    events.append(Finish(FINISH.get(reason, "other"), reason))
            if usage := chunk.get("usage"):
                events.append(UsageUpdate(_usage(usage)))
        except (ValueError, AttributeError, TypeError) as exc:
            raise errors.ResponseFormatError(
                f"{self.label} sent a chunk that is not of its protocol: {_preview(data.encode())}",
                action="What had arrived is kept; run it again, and look at the server if it stays so.",
            ) from exc
        return finished

    async def close(self, stream: Any) -> None:
        await stream.response.aclose()

    async def complete(self, request: Request) -> Completion:
        answer = await self._client.chat.completions.create(**self._arguments(request), stream=False)
        raw = answer.model_dump() if hasattr(answer, "model_dump") else {}
        if not raw.get("choices") or not raw["choices"][0].get("message"):
            raise errors.ResponseFormatError(
                f"{self.label} answered {request.model} with something that is no completion.",
                action=f"Check the base URL, {self.base_url}: a proxy or another service may answer there.",
            )
        choice = raw["choices"][0]
        message = choice["message"]
        reason = choice.get("finish_reason")
        return Completion(
            text=_text(message.get("content") or message.get("refusal")),
            finish=Finish(FINISH.get(reason, "other"), reason),
            usage=_usage(raw.get("usage") or {}),
            model=raw.get("model"),
            tool_calls=tuple(
                ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
                for call in message.get("tool_calls") or ()
                if call.get("function")
            ),
            reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
            raw=raw,
        )

    async def models(self) -> list[ModelInfo]:
        try:
            found = (await self._client.models.list()).data
            return [
                ModelInfo(id=model.id, provider=self.name, details=model.model_dump(warnings=False))
                for model in found
                if isinstance(model.id, str)
            ]
        except (AttributeError, TypeError, ValueError) as exc:  # what the SDK makes of an answer that is no list
            raise errors.ResponseFormatError(
                f"{self.label} sent no list of models.", action=f"Check the base URL, {self.base_url}."
            ) from exc

    def adapt(self, request: Request, error: errors.InvalidRequestError) -> Request | None:
        """Reasoning models refuse `temperature`, and take `max_completion_tokens` in place of `max_tokens`."""
        from dataclasses import replace

        text = error.message.lower()
        for name in ("max_tokens", "temperature"):
            named = error.param == name or (error.param is None and name in text)
            # Renaming loses nothing, so it is done for a value of the caller's too; dropping would.
            may = name == "max_tokens" or name not in request.explicit
            if named and may and name not in request.dropped:
                return replace(request, dropped=request.dropped | {name})
        return None

    def map_error(self, exc: Exception, request: Request | None, phase: Phase) -> ProviderError | None:
        import httpx2
        import openai

        model = request.model if request else None
        if isinstance(exc, openai.APIStatusError):
            return self._error(exc.body, exc.response, model, fallback=exc.message)
        cause = exc.__cause__ if isinstance(exc, openai.APIConnectionError) else exc  # the SDK's, or httpx2's own
        if isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            return mapping.connection_error(self.label, self.base_url, exc, "connect")
        if isinstance(exc, (openai.APITimeoutError, httpx2.TimeoutException)):
            return mapping.timeout_error(self.label, self.settings.timeout, phase)
        if isinstance(exc, (openai.APIConnectionError, httpx2.TransportError)):
            return mapping.connection_error(self.label, self.base_url, exc, phase)
        if isinstance(exc, openai.APIResponseValidationError):
            return errors.ResponseFormatError(
                f"{self.label} sent an answer that is not of its protocol.",
                action=f"Check the base URL, {self.base_url}.",
            )
        if isinstance(exc, TypeError) and request is not None and phase == "open":
            return errors.InvalidRequestError(f"{self.label}: {exc}.", action="Correct that option.")
        return None

    async def aclose(self) -> None:
        await self._client.close()

    def _error(
        self, body: Any, response: Any, model: str | None, *, fallback: str = "the server reported an error"
    ) -> ProviderError:
        said = body if isinstance(body, dict) else {"message": body if isinstance(body, str) else fallback}
        code = str(said.get("code") or said.get("type") or "")
        status = response.status_code if response is not None else None
        if status is None and str(said.get("code", "")).isdigit():
            status = int(said["code"])
        return mapping.error_for(
            mapping.Failure(
                label=self.label,
                key_variable="OPENAI_API_KEY",
                message=str(said.get("message") or fallback),
                status=status,
                code=code,
                param=said.get("param"),
                headers=response.headers if response is not None else None,
                base_url=self.base_url,
            ),
            model=model,
        )

    def _arguments(self, request: Request) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": request.model,
            "messages": [_message(message) for message in request.messages],
        }
        # OpenAI's newer models know only the second name, older servers only the first.
        renamed = self.official or "max_tokens" in request.dropped
        arguments["max_completion_tokens" if renamed else "max_tokens"] = request.max_tokens
        if "temperature" not in request.dropped:
            arguments["temperature"] = request.temperature
        extra: dict[str, Any] = {}
        for name, value in request.options.items():
            (arguments if name in _parameters() else extra)[name] = value
        if extra:
            arguments["extra_body"] = {**extra, **(arguments.get("extra_body") or {})}
        return arguments


@cache
def _parameters() -> frozenset[str]:
    import inspect

    from openai.resources.chat.completions import AsyncCompletions

    return frozenset(inspect.signature(AsyncCompletions.create).parameters) - {
        "self",
        "stream",
        "stream_options",
    }


def _message(message: Message) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.attachments:
        parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}]
        for attachment in message.attachments:
            url = f"data:{attachment.media_type};base64,{base64.b64encode(attachment.data).decode()}"
            if attachment.media_type.startswith("image/"):
                parts.append({"type": "image_url", "image_url": {"url": url}})
            else:
                name = attachment.name or "attachment"
                parts.append({"type": "file", "file": {"filename": name, "file_data": url}})
        sent["content"] = parts
    if message.tool_calls:
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    return sent


def _text(value: Any) -> str:
    """Text as most servers send it, or as the list of parts that some do; a TypeError for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, dict))
    raise TypeError(f"{type(value).__name__} in place of text")


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
    )


def _preview(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text[:80] + ("…" if len(text) > 80 else "")) if text else "an empty body."
