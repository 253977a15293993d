"""The providers that are built, each with its client, and when they are closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

from nbllm.config import ProviderSettings
from nbllm.providers import ProviderSpec, provider_class
from nbllm.providers.base import Provider
from nbllm.providers.transport import surroundings

__all__ = ["ProviderPool"]

logger = logging.getLogger("nbllm.providers")


class _Slot:
    """A built provider and how many calls use it, so that it can be closed when the last of them is through."""

    def __init__(self, provider: Provider, made_from: object) -> None:
        self.provider = provider
        self.made_from = made_from
        self.users = 0
        self.retired = False

    async def retire(self) -> None:
        """No new calls; close once those under way have ended."""
        if not self.retired:
            self.retired = True
            await self._close_unused()

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[Provider]:
        self.users += 1
        try:
            yield self.provider
        finally:
            self.users -= 1
            if self.retired:
                await asyncio.shield(self._close_unused())

    async def _close_unused(self) -> None:
        if self.users == 0:
            try:
                await self.provider.aclose()
            except Exception:  # what else was under way is not to fail for that
                logger.warning("a provider did not close", exc_info=True)


class ProviderPool:
    """One built provider of each name. Belongs to one event loop, as the clients do.

    Args:
        settings: What a provider is to be built from now.
    """

    def __init__(self, settings: Callable[[ProviderSpec], ProviderSettings]) -> None:
        self._settings = settings
        self._looked_up: set[str] = set()
        self._slots: dict[str, _Slot] = {}
        self._building: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __len__(self) -> int:
        return len(self._slots)

    async def settings(self, spec: ProviderSpec) -> ProviderSettings:
        """What the provider is to be built from now.

        The first look is taken in a thread: it may ask the keyring, which may ask the user to unlock it.
        """
        if spec.name in self._looked_up:
            return self._settings(spec)
        found = await asyncio.to_thread(self._settings, spec)
        self._looked_up.add(spec.name)
        return found

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
        await asyncio.gather(*(slot.retire() for slot in slots.values()))

    async def _slot(self, spec: ProviderSpec) -> _Slot:
        """The built provider, made anew where its key, its base URL or the environment's proxies have changed since."""
        async with self._building[spec.name]:  # two first calls at once are to share one client
            settings = await self.settings(spec)
            made_from = (settings, () if spec.local else surroundings())
            slot = self._slots.get(spec.name)
            if slot is not None and slot.made_from == made_from:
                return slot
            # In a thread, since importing an SDK takes a second or more.
            fresh = _Slot(await asyncio.to_thread(lambda: provider_class(spec)(settings)), made_from)
            if slot is not None:
                await slot.retire()
            # Last: nothing is awaited from here to the lease, so nobody retires it in between.
            self._slots[spec.name] = fresh
            return fresh
