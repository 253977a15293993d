"""`%llm jobs` and `%llm stop`: the cells that stream."""

from __future__ import annotations

from typing import Any

from nbllm.display.safe import safe_text
from nbllm.display.table import Table
from nbllm.errors import UsageError
from nbllm.session import get_session

__all__ = ["jobs", "stop"]


def jobs() -> Table:
    """The cells that stream, and those that did."""
    found = get_session().jobs.all()
    rows: list[list[Any]] = [
        [
            job.number,
            job.label,
            job.model,
            f"{job.state}{', in the background' if job.running and job.background else ''}",
            _duration(job.seconds),
            f"{job.characters:,}",
        ]
        for job in found
    ]
    running = any(job.running for job in found)
    note = "Stop one: %llm stop N" if running else "Nothing runs." if found else "Nothing was asked yet."
    return Table(["job", "asked", "model", "", "time", "characters"], rows, note=note)


def stop(which: str | None = None) -> None:
    """Stop the job of this number, `all` of them, or the only one that runs."""
    found = get_session().jobs
    running = found.running()
    if which is None and len(running) > 1:
        numbers = ", ".join(str(job.number) for job in running)
        raise UsageError(f"{len(running)} jobs run: {numbers}.", action="Say which, or %llm stop all.")
    if which not in (None, "all") and not (which.isascii() and which.isdigit()):
        raise UsageError(f"There is no job {which!r}.", action="Write its number (see %llm jobs), or all.")
    stopped = found.stop(None if which in (None, "all") else int(which[:9]))
    for job in stopped:
        print(safe_text(f"Job {job.number} is stopped: {job.label}"))
    if not stopped:
        print("Nothing runs.")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s"
