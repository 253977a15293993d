"""The group `core`: importing nbllm, and streaming through its OpenAI provider."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from tests.benchmarks.figure import Figure
from tests.benchmarks.measure import difference, interleaved, medians, program, ratio, requests_of, wire
from tests.isolation import GUARD_LOG

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENS = 2000


def figures() -> Iterator[Figure]:
    """All figures of the group."""
    yield from _import()
    with wire() as url:
        yield from _tokens(url)
        yield _first_token(url)
        yield _connections(url)


def _import() -> Iterator[Figure]:
    heavy: set[str] = set()

    def shell() -> float:
        run = program("load_ext")
        heavy.update(run["heavy"])
        return float(run["ms"])

    # Measured within a process that has IPython and ipywidgets already: the difference, without the noise of two.
    cost = interleaved({"InteractiveShell": shell, "ipykernel": _in_a_kernel}, rounds=9)
    for where, values in cost.items():
        spread = f"{min(values):.0f} to {max(values):.0f}"
        name = f"import nbllm + %load_ext in {where} with ipywidgets, CPU"
        yield Figure(name, median(values), "ms more", bar=60, detail=spread)
    found = ", ".join(sorted(heavy))
    yield Figure("SDKs, HTTP and torch imported by it", len(heavy), "modules", bar=0, detail=found)


def _in_a_kernel() -> float:
    from tests.kernel.harness import Kernel

    # Empty is off, for both: see measure.environment, which a kernel does not go through.
    with Kernel(env={GUARD_LOG: "", "PYTHONDONTWRITEBYTECODE": ""}) as kernel:
        kernel.run("import ipywidgets, time").check()
        code = "start = time.process_time()\n%load_ext nbllm\nprint(1000 * (time.process_time() - start))"
        return float(kernel.run(code).check().stdout)


def _tokens(url: str) -> Iterator[Figure]:
    def cost(contender: str, model: str) -> float:
        return float(program("stream", contender=contender, url=url, model=model, tokens=TOKENS)["us"])

    # The bar against the raw reader is for a burst alone: elsewhere it is the socket reads that cost.
    for scenario, name, bar in (
        ("burst", f"CPU per token, {TOKENS} tokens in a burst", 1.5),
        ("ok", f"CPU per token, {TOKENS} tokens, one write each", None),
    ):
        contenders = {who: partial(cost, who, f"{scenario}-{TOKENS}") for who in ("nbllm", "httpx2", "sdk")}
        runs = interleaved(contenders, rounds=9)
        yield Figure(name, ratio(runs, "nbllm", "httpx2"), "x raw httpx2", bar, detail=medians(runs, "µs"))
        yield Figure(name, ratio(runs, "nbllm", "sdk"), "x the SDK", 1.0)


def _first_token(url: str) -> Figure:
    # All in one warm process, by turns: only there are differences of a millisecond larger than the noise.
    runs = program("first_token", url=url, rounds=300)
    detail = medians(runs, "ms")
    return Figure("time to first token", difference(runs, "nbllm", "sdk"), "ms more than SDK", 3, detail=detail)


def _connections(url: str) -> Figure:
    # Each costs a TCP and a TLS handshake, two round trips, before the next request is sent; here they are invisible.
    opened = {}
    for who in ("nbllm", "sdk"):
        before = len(requests_of(url))
        program("stream", contender=who, url=url, model="ok-50", tokens=50)
        opened[who] = len({request["connection"] for request in requests_of(url)[before:]})
    name = "connections opened for 10 requests in a row"
    return Figure(name, opened["nbllm"] - opened["sdk"], "more than SDK", 0, detail=f"{opened}"[1:-1])
