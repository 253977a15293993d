"""The providers that are built, each with its client, and when they are closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from nbllm.config import ProviderSettings
from nbllm.providers import ProviderSpec, provider_class
from nbllm.providers.base import Provider

__all__ = ["ProviderPool"]

logger = logging.getLogger("nbllm.providers")


class _Slot:
    """A built provider and how many calls use it, so that it can be closed when the last of them is through."""

    def __init__(self, provider: Provider, settings: ProviderSettings) -> None:
        self.provider = provider
        self.settings = settings
        self.users = 0
        self.retired = False

    async def retire(self) -> None:
        """No new calls; close once those under way have ended."""
        self.retired = True
        if self.users == 0:
            await self.provider.aclose()

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[Provider]:
        self.users += 1
        try:
            yield self.provider
        finally:
            self.users -= 1
            if self.retired and self.users == 0:
                await asyncio.shield(self.provider.aclose())


class ProviderPool:
    """One built provider of each name. Belongs to one event loop, as the clients do.

    Args:
        settings: What a provider is to be built from now.
    """

    def __init__(self, settings: Callable[[ProviderSpec], ProviderSettings]) -> None:
        self._settings = settings
        self._slots: dict[str, _Slot] = {}
        self._building = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    async def build(self, spec: ProviderSpec) -> None:
        """Build the provider unless it is.

        Raises:
            NbllmError: where it cannot be.
        """
        await self._slot(spec)

    @contextlib.asynccontextmanager
    async def lease(self, spec: ProviderSpec) -> AsyncIterator[Provider]:
        """The provider, kept open while it is used."""
        slot = await self._slot(spec)
        async with slot.lease() as provider:
            yield provider

    async def retire(self, name: str) -> None:
        """Let go of a provider: it closes when its calls have ended."""
        if (slot := self._slots.pop(name, None)) is not None:
            await slot.retire()

    async def close(self) -> None:
        """Let go of all; one that does not close keeps no other open."""
        slots, self._slots = self._slots, {}
        for failed in await asyncio.gather(*(slot.retire() for slot in slots.values()), return_exceptions=True):
            if failed is not None:
                logger.warning("a provider did not close", exc_info=failed)

    async def _slot(self, spec: ProviderSpec) -> _Slot:
        """The built provider, made anew where its key or base URL has changed since."""
        async with self._building:  # two first calls at once are to share one client
            settings = self._settings(spec)
            slot = self._slots.get(spec.name)
            if slot is not None and slot.settings == settings:
                return slot
            # In a thread, since importing an SDK takes a second or more.
            provider = await asyncio.to_thread(lambda: provider_class(spec)(settings))
            fresh = self._slots[spec.name] = _Slot(provider, settings)
        if slot is not None:
            await slot.retire()
        return fresh
