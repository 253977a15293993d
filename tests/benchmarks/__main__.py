"""`python -m tests.benchmarks [GROUP …] [--json]`: a row per figure, and exit status 1 where one is short."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from typing import TYPE_CHECKING

from tests import isolation
from tests.benchmarks.figure import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.benchmarks.figure import Figure

GROUPS = ("core", "providers", "cell", "local", "finetune")
"""The groups that are planned; one exists once its module does."""


def existing() -> list[str]:
    """The groups that have figures."""
    return [name for name in GROUPS if importlib.util.find_spec(f"tests.benchmarks.{name}")]


def load(name: str) -> Callable[[], Iterable[Figure]]:
    """What measures a group."""
    measure: Callable[[], Iterable[Figure]] = importlib.import_module(f"tests.benchmarks.{name}").figures
    return measure


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the groups named, or all that exist.

    Returns:
        The exit status: 0 where every bar is held, 1 where one is short.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(existing())}; all by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of rows")
    arguments = parser.parse_args(argv)
    for name in arguments.groups:
        if name not in existing():
            why = "has no figures yet" if name in GROUPS else "is no group"
            parser.error(f"{name} {why}; there are: {', '.join(existing())}")

    measured: dict[str, list[Figure]] = {}
    session = isolation.begin()
    try:
        for name in dict.fromkeys(arguments.groups or existing()):
            found = measured[name] = []
            for figure in load(name)():
                found.append(figure)
                if not arguments.json:
                    print(f"{name:<10} {figure.row}", flush=True)
    finally:
        session.end()

    figures = [figure for found in measured.values() for figure in found]
    short = any(figure.verdict == "short" for figure in figures)
    if arguments.json:
        groups = {name: [figure.to_json() for figure in found] for name, found in measured.items()}
        print(json.dumps({"groups": groups, "summary": count(figures), "held": not short}, indent=1))
    else:
        print(count(figures))
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
