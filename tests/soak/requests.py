"""Thousands of requests to all hosted providers, in every way that they can end: nothing may be left of them."""

from __future__ import annotations

import asyncio
import collections
import gc
import os
import random
from typing import TYPE_CHECKING, Any

import psutil

from nbllm import ProviderManager
from nbllm._loop import background_loop
from nbllm.errors import IncompleteStreamError, NbllmError, ProviderError
from nbllm.response import Record, ResponseStream
from tests.benchmarks.measure import requests_of, wire
from tests.faults.matrix import PROVIDERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.soak.report import Report

    Kind = Callable[[ProviderManager, str], Awaitable[None]]

TOTAL = 20_000
AT_ONCE = 8
WARM_UP = 5000
"""Requests before the first look at the memory: caches fill, and the allocator takes what it needs."""

GROWTH = 3.0
"""MiB that the memory may grow from there to the end: less than 200 bytes a request."""


async def _whole(manager: ProviderManager, provider: str) -> None:
    stream = await manager.generate_response("Hi", f"{provider}:ok-20")
    assert len("".join([piece async for piece in stream]).split()) == 20
    assert stream.state == "complete"


async def _plain(manager: ProviderManager, provider: str) -> None:
    assert len((await manager.generate_response("Hi", f"{provider}:ok-20", stream=False)).split()) == 20


async def _left(manager: ProviderManager, provider: str) -> None:
    async with await manager.generate_response("Hi", f"{provider}:slow") as stream:
        async for _ in stream:
            break
    assert stream.state == "interrupted"


async def _dropped(manager: ProviderManager, provider: str) -> None:
    stream = await manager.generate_response("Hi", f"{provider}:slow")
    await anext(stream)
    del stream


async def _cancelled(manager: ProviderManager, provider: str) -> None:
    task = asyncio.ensure_future(_slow(manager, provider))
    await asyncio.sleep(random.uniform(0, 0.05))
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def _slow(manager: ProviderManager, provider: str) -> None:
    async for _ in await manager.generate_response("Hi", f"{provider}:slow"):
        pass


async def _blocking(manager: ProviderManager, provider: str) -> None:
    def read() -> int:
        with manager.start("Hi", f"{provider}:ok-20") as stream:
            return len("".join(stream).split())

    assert await asyncio.to_thread(read) == 20


def _faulty(model: str, expected: type[NbllmError] = ProviderError) -> Kind:
    async def ask(manager: ProviderManager, provider: str) -> None:
        try:
            async for _ in await manager.generate_response("Hi", f"{provider}:{model}"):
                pass
        except expected:
            return
        raise AssertionError(f"{model} did not fail")

    ask.__name__ = f"_{model}"
    return ask


KINDS: list[tuple[int, Kind]] = [
    (30, _whole),
    (10, _plain),
    (10, _left),
    (10, _dropped),
    (10, _cancelled),
    (10, _blocking),
    (2, _faulty("cut", IncompleteStreamError)),
    *((2, _faulty(model)) for model in ("drop", "reset", "malformed", "errorevent", "notsse", "empty")),
    *((1, _faulty(model)) for model in ("close", "e401", "e404", "e429", "e500", "context")),
]


def run(report: Report) -> None:
    """Twenty thousand, eight at once, in random order, to each provider alike."""
    with wire() as url:
        asyncio.run(_run(report, url, report.times or TOTAL))


async def _run(report: Report, url: str, total: int) -> None:
    order = random.Random(7)
    weights, kinds = [weight for weight, _ in KINDS], [kind for _, kind in KINDS]
    ended: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    manager = await ProviderManager.create()

    async def some(requests: int) -> None:
        remaining = zip(order.choices(kinds, weights, k=requests), order.choices(PROVIDERS, k=requests), strict=True)

        async def worker() -> None:
            for kind, provider in remaining:
                try:
                    await asyncio.wait_for(kind(manager, provider), 30)
                    ended[kind.__name__.strip("_")] += 1
                except Exception as exc:  # noqa: BLE001 - counted and shown
                    failed.append(f"{provider} {kind.__name__}: {exc!r}")

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    warm_up = min(WARM_UP, total // 2)
    await some(warm_up)
    start = await _now()
    report.figure(f"after {warm_up} requests", start)
    steps = 4
    for step in range(steps):
        await some((total - warm_up) // steps)
        report.figure(f"after {warm_up + (step + 1) * (total - warm_up) // steps} requests", await _now())
    end = await _now()

    report.figure("how they ended", dict(ended.most_common()))
    report.check("requests that did not end as they should", not failed, f"{len(failed)} {failed[:3] or ''}")
    grown = end["MiB"] - start["MiB"]
    report.check("memory grown", grown <= GROWTH, f"{grown:+.1f} MiB (<= {GROWTH})")
    # Idle connections are kept for the next request, never more than requests ran at once.
    report.check("descriptors grown", end["files"] - start["files"] <= AT_ONCE, end["files"] - start["files"])
    report.check("streams, records and tasks left", end["left"] == 0, end["left"])
    open_requests = [request for request in requests_of(url) if request["outcome"] == "open"]
    report.check("requests open at the server", not open_requests, len(open_requests))
    await manager.close()
    files = (await _now())["files"]
    report.check("descriptors less after close()", files <= end["files"], files - end["files"])


async def _now() -> dict[str, Any]:
    """Memory, open files, and what should be gone, of this process."""
    await asyncio.sleep(0.5)
    gc.collect()
    me = psutil.Process(os.getpid())

    async def tasks() -> int:
        return len(asyncio.all_tasks()) - 1

    waiting = await background_loop().bridge(tasks())
    # Not isinstance, which asks an SDK's lazy proxies for their class and so imports 80 MB.
    left = sum(type(thing) in (ResponseStream, Record) for thing in gc.get_objects())
    mib = round(me.memory_info().rss / 2**20, 1)
    return {"MiB": mib, "files": me.num_fds(), "threads": me.num_threads(), "left": left + waiting}
