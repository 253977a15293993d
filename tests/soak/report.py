"""What the parts measured, printed as it comes, and whether it held."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Report:
    """Given to each part.

    Attributes:
        times: How often a part repeats what it does; None leaves it to the part.
        outside: The environment before the isolation, for what may reach the network, such as pip.
        failures: What did not hold.
    """

    times: int | None = None
    outside: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    def figure(self, name: str, value: Any) -> None:
        """Print a figure."""
        print(f"[{time.monotonic() - self._started:6.1f} s] {name:<56} {value}", flush=True)

    def seconds(self, name: str, values: Sequence[float], at_most: float | None = None) -> None:
        """Print median, 95th percentile and maximum; the percentile is checked against `at_most`."""
        if not values:
            self.check(name, False, "nothing was measured")
            return
        ordered = sorted(values)
        p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]
        shown = f"median {median(ordered):.3f}, p95 {p95:.3f}, max {ordered[-1]:.3f} s of {len(ordered)}"
        if at_most is None:
            self.figure(name, shown)
        else:
            self.check(name, p95 <= at_most, f"{shown} (p95 <= {at_most:g})")

    def check(self, name: str, held: object, value: Any) -> None:
        """Print a figure that must hold."""
        self.figure(name, f"{value}  {'ok' if held else 'FAILED'}")
        if not held:
            self.failures.append(f"{name}: {value}")

    def all_of(self, name: str, n: int, of: int) -> None:
        """Check that something held each time."""
        self.check(name, n == of, f"{n} of {of}")
