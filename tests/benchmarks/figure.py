"""One measured figure and its bar, as a row of text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["held", "short", "no bar"]


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it should be.

    Attributes:
        name: What it is.
        value: The measured value: a ratio or a difference against the plain SDK or a peer in the same run.
        unit: What stands behind the value, such as `x the SDK` or `ms more`.
        bar: What the value may be at most; None where nothing is promised.
        at_least: The bar is what it must be at least.
        detail: The absolute numbers behind it, for whoever wonders.
    """

    name: str
    value: float
    unit: str = ""
    bar: float | None = None
    at_least: bool = False
    detail: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the bar is held; what could not be measured (NaN) is short of any."""
        if self.bar is None:
            return "no bar"
        held = self.value >= self.bar if self.at_least else self.value <= self.bar
        return "held" if held else "short"

    @property
    def row(self) -> str:
        """The figure as a line: name, value, bar, held or short."""
        bar = "" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}"
        value = f"{self.value:.2f} {self.unit}"
        detail = f"  ({self.detail})" if self.detail else ""
        return f"{self.name:<58} {value:<22} {bar:<9} {self.verdict:<6}{detail}"

    def to_json(self) -> dict[str, Any]:
        """The figure as plain data."""
        return asdict(self) | {"verdict": self.verdict}


def count(figures: list[Figure]) -> str:
    """The last line: how many were held."""
    verdicts = [figure.verdict for figure in figures]
    parts = (f"{verdicts.count('held')} held", f"{verdicts.count('short')} short")
    return f"{len(figures)} figures: {', '.join(parts)}, {verdicts.count('no bar')} without a bar"
