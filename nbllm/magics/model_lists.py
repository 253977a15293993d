"""The providers' lists of models, for completion: kept for a while, and fetched in the background.

Nobody waits here: whoever asks gets what is known, and what is not is fetched meanwhile, for the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nbllm._loop import Job, background_loop
from nbllm.errors import NbllmError

if TYPE_CHECKING:
    from nbllm.manager import ProviderManager

__all__ = ["ModelLists"]

KEPT: Final = 600.0
"""Seconds for which a list counts as new."""

AGAIN: Final = 30.0
"""Seconds after a failure in which the provider is left alone."""

PATIENCE: Final = 10.0
"""Seconds that a provider may take."""

ONLY_BY_NAME: Final = frozenset({"google-legacy"})
"""What is asked only where it is named: the models are those of `google`, and its SDK prints warnings."""


class ModelLists:
    """What models each provider has, as far as is known. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lists: dict[str, list[str]] = {}
        self._current: tuple[str, str] | None = None
        self._due: dict[str, float] = {}
        self._guard = threading.Lock()
        self._running: dict[str, Job[None]] = {}

    def known(self) -> Iterator[tuple[str, str]]:
        """Provider and model, of every list that there is."""
        with self._guard:
            lists = list(self._lists.items())
        for provider, models in lists:
            for model in models:
                yield provider, model

    def current(self, manager: ProviderManager) -> tuple[str, str] | None:
        """The provider and the model that answer, once that is known; it is found out for the next time."""
        if self._current is None:
            self._start("", self._ask(manager))
        return self._current

    def refresh(self, manager: ProviderManager, providers: Iterable[str]) -> None:
        """Fetch the lists of these providers that are too old or missing; returns at once."""
        now = time.monotonic()
        for name in providers:
            if self._due.get(name, 0.0) <= now:
                self._start(name, self._fetch(manager, name))

    def close(self) -> None:
        """Stop what is being fetched, and forget the lists."""
        with self._guard:
            running = list(self._running.values())
            self._lists.clear()
            self._due.clear()
            self._current = None
        for job in running:
            job.cancel()

    def _start(self, name: str, coroutine: Coroutine[Any, Any, None]) -> None:
        with self._guard:
            if name in self._running:
                coroutine.close()
                return
            job: Job[None] = background_loop().job()
            self._running[name] = job
        job.ended.add_done_callback(partial(self._end, name))
        job.start(coroutine)

    def _end(self, name: str, _: object) -> None:
        with self._guard:
            self._running.pop(name, None)

    async def _ask(self, manager: ProviderManager) -> None:
        with contextlib.suppress(NbllmError):  # nothing can answer: using it says why
            self._current = await asyncio.to_thread(manager.resolve)

    async def _fetch(self, manager: ProviderManager, name: str) -> None:
        # In a thread: it may ask the keyring, and the loop serves others meanwhile.
        if not await asyncio.to_thread(manager.has_key, name):
            return
        found: list[str] | None = None
        try:
            async with asyncio.timeout(PATIENCE):
                found = [model.id for model in await manager.models(name)]
        except Exception as exc:  # noqa: BLE001 - whatever a provider does: a completion is no place to say so
            manager.config.logger.debug("the models of %s could not be listed: %s", name, type(exc).__name__)
        with self._guard:
            self._due[name] = time.monotonic() + (AGAIN if found is None else KEPT)
            if found is not None:
                self._lists[name] = found
