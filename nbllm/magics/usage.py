"""`%llm usage`, `%llm budget` and `%llm cache`: what calls used, what they may cost, and which answers are kept."""

from __future__ import annotations

from typing import Any

from nbllm.accounting import usd
from nbllm.display.safe import safe_text
from nbllm.display.table import Table
from nbllm.errors import UsageError
from nbllm.session import get_session

__all__ = ["budget", "cache", "usage"]


def usage() -> Table:
    """What was used since the kernel started, a row for each model."""
    manager = get_session().manager
    rows: list[list[Any]] = []
    for used in manager.usage():
        made = used["calls"] - used["cached_calls"]
        unknown = used["unknown_cost_calls"]
        known = usd(used["cost"]) if made > unknown or used["cost"] else ""
        cost = " + ".join(part for part in (known, f"{unknown} of unknown price" if unknown else "") if part)
        rows.append(
            [
                f"{used['provider']}:{used['model']}",
                used["calls"],
                used["cached_calls"] or "",
                used["failed"] or "",
                f"{used['input_tokens']:,}",
                f"{used['output_tokens']:,}",
                cost,
            ]
        )
    headings = ["model", "calls", "from the cache", "failed", "tokens in", "tokens out", "cost"]
    return Table(headings, rows, note=_budget_line() if rows else "Nothing was asked yet.")


def budget(limit: str | None = None) -> None:
    """Show the budget, set it to so many US dollars from now on, or end it by `off`."""
    manager = get_session().manager
    if limit is not None:
        manager.set_budget(_dollars(limit))
    print(_budget_line())


def _dollars(text: str) -> float | None:
    if text.lower() in ("off", "none"):
        return None
    try:
        amount = float(text.removeprefix("$"))
    except ValueError:
        amount = -1.0
    if not 0 <= amount < 1e9:
        raise UsageError(
            f"{text!r} is no amount.", action="Write US dollars, such as %llm budget 2.50, or %llm budget off."
        )
    return amount


def _budget_line() -> str:
    found = get_session().manager.calls.budget
    if found.limit is None:
        return "There is no budget. Set one in US dollars: %llm budget 2.50"
    running = f", {usd(found.reserved)} held back for calls that run" if found.reserved else ""
    return f"Of the budget of {usd(found.limit)}, {usd(found.spent)} is spent{running}, {usd(found.left)} left."


def cache(action: str = "info") -> None:
    """Say what the response cache holds, empty it by `clear`, or turn it `on`, `off` or `auto`."""
    manager = get_session().manager
    if action in ("on", "off", "auto"):
        manager.config.set("cache", action)
    elif action == "clear":
        print(f"{_count(manager.response_cache().clear())} deleted.")
    elif action != "info":
        raise UsageError(f"There is no %llm cache {action}.", action=f"There are: {', '.join(CACHE_ACTIONS)}.")
    found = manager.response_cache().info()
    when = _WHEN[manager.config.get("cache")]
    print(safe_text(f"{when} {found.path}: {_count(found.entries)}, {_size(found.bytes)}."))
    if found.problem:
        print(safe_text(f"It is not in use: {found.problem}"))


CACHE_ACTIONS = ("info", "clear", "on", "off", "auto")

_WHEN: dict[str, str] = {
    "auto": "Answers that are repeatable (temperature 0, or a seed) are kept.",
    "on": "All answers are kept.",
    "off": "The cache is off.",
}


def _count(answers: int) -> str:
    return f"{answers:,} answer{'' if answers == 1 else 's'}"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
