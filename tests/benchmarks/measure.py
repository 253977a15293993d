"""Measuring: programs in fresh processes, interleaved, compared round by round."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from nbllm.providers import BUILT_IN
from tests import isolation
from tests.benchmarks.programs.readers import KEY, PATHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PROGRAMS = Path(__file__).parent / "programs"

Runs = dict[str, list[float]]
"""The value of each contender in each round."""


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int) -> Runs:
    """Call each contender in turn, round after round (A, B, C, A, B, C, …); the round before the first is discarded.

    So whatever else the machine does meanwhile falls on all of them alike.
    """
    runs: Runs = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, measure in contenders.items():
            value = measure()
            if turn:  # the first one compiles modules and fills the disk's cache
                runs[name].append(value)
    return runs


def ratio(runs: Runs, ours: str, theirs: str) -> float:
    """The median over the rounds of our value divided by theirs in the same round."""
    return median(a / b for a, b in zip(runs[ours], runs[theirs], strict=True))


def difference(runs: Runs, ours: str, theirs: str) -> float:
    """The median over the rounds of our value less theirs in the same round."""
    return median(a - b for a, b in zip(runs[ours], runs[theirs], strict=True))


def medians(runs: Runs, unit: str) -> str:
    """The median of each contender, to show beside a figure."""
    return ", ".join(f"{name} {median(values):.1f}" for name, values in runs.items()) + f" {unit}"


def environment() -> dict[str, str]:
    """What a measured process gets: isolated, as a user's Python is."""
    env = isolation.child_environment()
    # The network guard is an audit hook in Python: it would cost at each import and each socket call.
    env.pop(isolation.GUARD_LOG, None)
    # An installed package has its bytecode.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def program(name: str, **arguments: Any) -> Any:
    """Run `programs/NAME.py` in a fresh process, its arguments as JSON; what it prints, as JSON.

    Raises:
        RuntimeError: where it fails, with what it wrote to stderr.
    """
    # -P: its folder stays off the path, where its name could hide a library's.
    command = [sys.executable, "-P", str(PROGRAMS / f"{name}.py"), json.dumps(arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"the program {name} failed with {arguments}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def wire() -> Iterator[str]:
    """The local server in a process of its own; its URL. nbllm finds it where each hosted provider is expected."""
    command, found = [sys.executable, "-m", "tests.wire"], dict[str, str]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            found = {f"NBLLM_{name.upper().replace('-', '_')}_BASE_URL": url + path for name, path in PATHS.items()}
            found |= {variable: KEY for spec in BUILT_IN for variable in spec.key_variables}
            os.environ |= found
            yield url
        finally:
            for name in found:
                os.environ.pop(name, None)
            server.kill()


def requests_of(url: str) -> list[dict[str, Any]]:
    """The requests that a server of `wire()` has seen."""
    with urllib.request.urlopen(f"{url}/__log") as answer:
        found: list[dict[str, Any]] = json.load(answer)["requests"]
        return found
