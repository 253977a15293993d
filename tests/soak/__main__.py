"""`python -m tests.soak [PART …] [--times N]`: prints what was measured; exit status 1 where something failed."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from typing import TYPE_CHECKING

from tests import isolation
from tests.soak.report import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = ("interrupts", "requests", "kills", "browser")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts named, or all.

    Returns:
        The exit status: 1 where a part failed.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--times", type=int, help="how often each part repeats what it does; by default its own number")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}")

    session = isolation.begin()
    report = Report(arguments.times, session.before)
    try:
        for name in dict.fromkeys(arguments.parts or PARTS):
            print(f"--- {name}", flush=True)
            try:
                importlib.import_module(f"tests.soak.{name}").run(report)
            except Exception as exc:  # noqa: BLE001 - the other parts are still worth running
                traceback.print_exc()
                report.check(name, False, f"{type(exc).__name__}: {exc}")
    finally:
        session.end()
    for failure in report.failures:
        print(f"FAILED {failure}")
    print(f"{len(report.failures)} failed")
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
