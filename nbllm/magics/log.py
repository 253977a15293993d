"""`%llm log`: the last calls on record."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from nbllm.accounting import usd
from nbllm.display.safe import safe_text
from nbllm.display.table import Table
from nbllm.errors import UsageError
from nbllm.session import get_session

__all__ = ["log"]


def log(what: str = "10") -> Table | None:
    """The last calls of all kernels, so many; or `on`, `off`, or the `path` of the file."""
    manager = get_session().manager
    found = manager.calls.log
    if what in ("on", "off"):
        manager.config.set("log", what)
        print(safe_text(f"The log is {what}. {found.path}"))
        return None
    if what == "path":
        print(safe_text(str(found.path)))
        return None
    if not what.isascii() or not what.isdigit() or not int(what[:9]):
        raise UsageError(f"There is no %llm log {what}.", action="Write how many calls to show, or on, off or path.")
    rows = [_row(record) for record in found.tail(int(what[:9]))]
    headings = ["time", "model", "", "s", "first token s", "tokens in", "tokens out", "cost", "request"]
    return Table(headings, rows, note=_note(manager, bool(rows)))


def _row(record: dict[str, Any]) -> list[str]:
    state = str(record.get("state") or "")
    if record.get("cached") is True:
        state = "from the cache"
    elif record.get("error"):
        state = f"{state}: {record['error']}"
    return [
        _time(record.get("time")),
        f"{record.get('provider')}:{record.get('model')}",
        state,
        _number(record.get("latency"), "{:.2f}"),
        _number(record.get("time_to_first_token"), "{:.2f}"),
        _number(record.get("input_tokens"), "{:,}"),
        _number(record.get("output_tokens"), "{:,}"),
        usd(cost) if _is_number(cost := record.get("cost")) else "",
        str(record.get("request_id") or ""),
    ]


def _note(manager: Any, some: bool) -> str:
    found = manager.calls.log
    said = "" if some else "No call is on record. "
    if manager.config.get("log") == "off":
        said += "The log is off: %llm log on. "
    elif found.problem:
        said += f"It cannot be written: {found.problem}. "
    content = "with prompts and answers" if manager.config.get("log_content") else "without prompts and answers"
    return safe_text(f"{said}{found.path}, {content}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any, form: str) -> str:
    return form.format(value) if _is_number(value) else ""


def _time(value: object) -> str:
    try:
        return datetime.fromisoformat(str(value)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""
