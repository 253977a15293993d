"""Three ways to stream one answer: nbllm, the plain SDK, and httpx2 with json alone.

Each opens what it keeps between requests and returns a coroutine function that asks a model, hands every piece of
text to `take`, and returns when the answer has ended.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

Read = Callable[[str, Callable[[str], object]], Awaitable[None]]

MESSAGES = [{"role": "user", "content": "Hi"}]


async def nbllm(url: str) -> Read:
    """nbllm, as a user's coroutine reads it; it finds the server in the environment."""
    from nbllm import ProviderManager

    manager = await ProviderManager.create()

    async def read(model: str, take: Callable[[str], object]) -> None:
        async for piece in await manager.generate_response(MESSAGES, f"openai:{model}"):
            take(piece)

    return read


async def openai(url: str) -> Read:
    """The SDK, as its documentation says."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-benchmark")

    async def read(model: str, take: Callable[[str], object]) -> None:
        stream = await client.chat.completions.create(
            model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                take(text)

    return read


async def httpx2(url: str) -> Read:
    """The least that can be done in Python on the same HTTP client."""
    import httpx2 as library

    client = library.AsyncClient()

    async def read(model: str, take: Callable[[str], object]) -> None:
        body = {"model": model, "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    if choices and (text := choices[0]["delta"].get("content")):
                        take(text)

    return read


READERS = {"nbllm": nbllm, "openai": openai, "httpx2": httpx2}
