"""HuggingFace models on this machine: the bundled one, a folder, or a Hub id.

Options passed through by keyword: `seed`, `top_p`, `top_k`, `min_p`, `repetition_penalty`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from nbllm.errors import InvalidRequestError, Phase, ProviderError, ServerError
from nbllm.local.generate import Generation
from nbllm.local.load import cached, registry
from nbllm.providers.base import Provider
from nbllm.response import Record
from nbllm.types import Completion, Event, Finish, ModelInfo, Request


class HuggingFaceProvider(Provider):
    """Models that run in this process."""

    label = "HuggingFace"

    async def open(self, request: Request) -> Generation:
        # Loading and tokenizing take their time and the loop serves others meanwhile.
        generation = await asyncio.to_thread(lambda: Generation(registry.load(request.model), request))
        generation.start()
        return generation

    async def decode(self, stream: Generation, request: Request) -> AsyncGenerator[list[Event], None]:
        while batch := await stream.channel.get():
            yield batch

    async def close(self, stream: Generation) -> None:
        stream.stop()
        await asyncio.to_thread(stream.join)

    async def complete(self, request: Request) -> Completion:
        # A local model has one way to answer; the record folds the events as it does for a stream.
        record = Record(provider=self.name, model=request.model)
        await self.stream(request, record.add, lambda _: None)
        finish = record.finish or Finish("other")
        return Completion(text=record.text, finish=finish, usage=record.usage, model=request.model)

    async def models(self) -> list[ModelInfo]:
        loaded = {model.name: model for model in registry.loaded()}
        return [
            ModelInfo(id=name, provider=self.name, context_window=getattr(loaded.get(name), "context_window", None))
            for name in await asyncio.to_thread(cached)
        ]

    def map_error(self, exc: Exception, request: Request | None, phase: Phase) -> ProviderError | None:
        if "out of memory" in str(exc).lower():
            return ServerError(
                "The machine ran out of memory.",
                action="Use a smaller model, a shorter prompt or fewer max_tokens.",
            )
        if isinstance(exc, (ValueError, TypeError)):
            return InvalidRequestError(f"The model refused: {exc}.", action="Correct the option that it names.")
        return None
