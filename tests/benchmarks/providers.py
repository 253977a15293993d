"""The group `providers`: every hosted provider against its plain SDK and the least that httpx2 and json can do."""

from __future__ import annotations

import urllib.request
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING

from tests.benchmarks.figure import Figure
from tests.benchmarks.measure import difference, interleaved, medians, program, ratio, wire
from tests.benchmarks.programs.readers import PATHS

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENS = 2000
AT_ONCE = 50


def figures() -> Iterator[Figure]:
    """All figures of the group."""
    with wire() as url:
        for provider in PATHS:
            yield from _tokens(url, provider)
            yield _first_token(url, provider)
            yield _cancel(url, provider)
        yield from _cached()


def _tokens(url: str, provider: str) -> Iterator[Figure]:
    def cost(contender: str, tokens: int, **more: int) -> float:
        told = {"contender": contender, "provider": provider, "model": f"burst-{tokens}", "tokens": tokens}
        return float(program("stream", url=url, **told, **more)["us"])

    runs = interleaved({who: partial(cost, who, TOKENS) for who in ("nbllm", "httpx2", "sdk")}, rounds=5)
    name = f"{provider}: CPU per token, {TOKENS} in a burst"
    yield Figure(name, ratio(runs, "nbllm", "httpx2"), "x raw httpx2", 1.5, detail=medians(runs, "µs"))
    yield Figure(name, ratio(runs, "nbllm", "sdk"), "x the SDK", 1.1)

    crowd = {"at_once": AT_ONCE, "requests": 3}
    runs = interleaved({who: partial(cost, who, TOKENS, **crowd) for who in ("nbllm", "httpx2")}, rounds=3)
    name = f"{provider}: CPU per token, {AT_ONCE} streams at once"
    yield Figure(name, ratio(runs, "nbllm", "httpx2"), "x raw httpx2", 1.5, detail=medians(runs, "µs"))
    # Short ones against the SDK, so that those which cost most get through in a bearable time.
    runs = interleaved({who: partial(cost, who, TOKENS // 10, **crowd) for who in ("nbllm", "sdk")}, rounds=3)
    yield Figure(name, ratio(runs, "nbllm", "sdk"), "x the SDK", 1.1, detail=medians(runs, "µs"))


def _first_token(url: str, provider: str) -> Figure:
    runs = program("first_token", url=url, rounds=100, provider=provider)
    name = f"{provider}: time to first token"
    return Figure(name, difference(runs, "nbllm", "sdk"), "ms more than SDK", 3, detail=medians(runs, "ms"))


def _cancel(url: str, provider: str) -> Figure:
    urllib.request.urlopen(f"{url}/__clear").close()
    times = program("cancel", url=url, provider=provider, rounds=20)
    detail = f"median {median(times):.1f}, max {max(times):.1f} ms"
    return Figure(f"{provider}: cancel to closed socket, p95", quantiles(times, n=20)[-1], "ms", 100, detail=detail)


def _cached() -> Iterator[Figure]:
    times = program("cached", model=f"openai:burst-{TOKENS}", tokens=TOKENS, rounds=50)
    detail = f"first piece {median(times['first']):.1f}, p95 of the whole {quantiles(times['whole'], n=20)[-1]:.1f} ms"
    yield Figure(f"a cached answer of {TOKENS} tokens", median(times["whole"]), "ms", 5, detail=detail)
