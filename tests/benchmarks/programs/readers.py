"""Three ways to stream one answer of each provider: nbllm, the plain SDK, and httpx2 with json alone.

Each opens what it keeps between requests and returns a coroutine function that asks a model, hands every piece of
text to `take`, and returns when the answer has ended.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

Read = Callable[[str, Callable[[str], object]], Awaitable[None]]

KEY = "sk-benchmark"
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]

PATHS = {
    "openai": "/v1",
    "anthropic": "/anthropic",
    "mistral": "/mistral",
    "google": "/google",
    "huggingface-hosted": "/huggingface/v1",
}
"""The five hosted providers, and the path of each one's base URL at the local server."""


async def nbllm(url: str, provider: str) -> Read:
    """nbllm, as a user's coroutine reads it; it finds the server in the environment."""
    from nbllm import ProviderManager

    manager = ProviderManager()

    async def read(model: str, take: Callable[[str], object]) -> None:
        async for piece in await manager.generate_response(MESSAGES, f"{provider}:{model}"):
            take(piece)

    return read


async def sdk(url: str, provider: str) -> Read:
    """The SDK, as its documentation says."""
    return SDKS[provider](url + PATHS[provider])


def openai(url: str) -> Read:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key=KEY)

    async def read(model: str, take: Callable[[str], object]) -> None:
        stream = await client.chat.completions.create(
            model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                take(text)

    return read


def anthropic(url: str) -> Read:
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=url, api_key=KEY)

    async def read(model: str, take: Callable[[str], object]) -> None:
        stream = await client.messages.create(model=model, max_tokens=4000, messages=MESSAGES, stream=True)
        async for event in stream:
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                take(event.delta.text)

    return read


def mistral(url: str) -> Read:
    from mistralai.client import Mistral

    client = Mistral(server_url=url, api_key=KEY)

    async def read(model: str, take: Callable[[str], object]) -> None:
        async for event in await client.chat.stream_async(model=model, messages=MESSAGES):
            text = event.data.choices[0].delta.content if event.data.choices else None
            if isinstance(text, str) and text:
                take(text)

    return read


def google(url: str) -> Read:
    from google import genai

    client = genai.Client(api_key=KEY, http_options=genai.types.HttpOptions(base_url=url, api_version="v1beta"))

    async def read(model: str, take: Callable[[str], object]) -> None:
        async for chunk in await client.aio.models.generate_content_stream(model=model, contents="Hi"):
            if text := chunk.text:
                take(text)

    return read


def huggingface(url: str) -> Read:
    import os

    os.environ.pop("HF_HUB_OFFLINE", None)
    from huggingface_hub import AsyncInferenceClient

    client = AsyncInferenceClient(base_url=url, api_key=KEY)

    async def read(model: str, take: Callable[[str], object]) -> None:
        async for chunk in await client.chat_completion(MESSAGES, model=model, stream=True, max_tokens=4000):
            if chunk.choices and (text := chunk.choices[0].delta.content):
                take(text)

    return read


SDKS: dict[str, Callable[[str], Read]] = {
    "openai": openai,
    "anthropic": anthropic,
    "mistral": mistral,
    "google": google,
    "huggingface-hosted": huggingface,
}


async def httpx2(url: str, provider: str) -> Read:
    """The least that can be done in Python on the same HTTP client."""
    import httpx2 as library

    client = library.AsyncClient(timeout=120)  # fifty at once keep the server busy for a while
    request, text_of = RAW[provider]

    async def read(model: str, take: Callable[[str], object]) -> None:
        path, headers, body = request(model)
        async with client.stream("POST", url + PATHS[provider] + path, json=body, headers=headers) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]" and (text := text_of(json.loads(line[6:]))):
                    take(text)

    return read


Asked = tuple[str, dict[str, str], dict[str, Any]]


def _chat(path: str) -> Callable[[str], Asked]:
    def request(model: str) -> Asked:
        body = {"model": model, "messages": MESSAGES, "stream": True, "max_tokens": 4000}
        return path, {"authorization": f"Bearer {KEY}"}, {**body, "stream_options": {"include_usage": True}}

    return request


def _messages(model: str) -> Asked:
    body = {"model": model, "messages": MESSAGES, "stream": True, "max_tokens": 4000}
    return "/v1/messages", {"x-api-key": KEY, "anthropic-version": "2026-10-21"}, body


def _contents(model: str) -> Asked:
    body = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}
    return f"/v1beta/models/{model}:streamGenerateContent?alt=sse", {"x-goog-api-key": KEY}, body


def _of_choice(chunk: Any) -> str | None:
    text: str | None = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
    return text


def _of_delta(event: Any) -> str | None:
    text: str | None = event["delta"].get("text") if event["type"] == "content_block_delta" else None
    return text


def _of_candidate(chunk: Any) -> str:
    return "".join(part.get("text", "") for part in chunk["candidates"][0]["content"].get("parts", ()))


RAW: dict[str, tuple[Callable[[str], Asked], Callable[[Any], str | None]]] = {
    "openai": (_chat("/chat/completions"), _of_choice),
    "anthropic": (_messages, _of_delta),
    "mistral": (_chat("/v1/chat/completions"), _of_choice),
    "google": (_contents, _of_candidate),
    "huggingface-hosted": (_chat("/chat/completions"), _of_choice),
}
"""How each provider is asked, and where the text stands in one of its events."""

READERS = {"nbllm": nbllm, "sdk": sdk, "httpx2": httpx2}
