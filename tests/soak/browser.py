"""The browser tests several times over, to find those that only mostly pass."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.soak.report import Report


def run(report: Report) -> None:
    """Five runs."""
    times = report.times or 5
    passed, took = 0, []
    for turn in range(times):
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "tests/browser", "-q", "-p", "no:cacheprovider"]
        env = report.outside | {"TESTS_REQUIRE_BROWSER": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        took.append(time.monotonic() - start)
        passed += done.returncode == 0
        report.figure(f"run {turn + 1}", done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n")
    report.seconds("pytest tests/browser", took)
    report.all_of("runs that passed", passed, times)
