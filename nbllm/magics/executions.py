"""What earlier executions were, for prompts: `{In[n]}`, `{Out[n]}` and `{Err[n]}`.

`Out` is IPython's own, and so is `In`, but that a prompt gets each cell as it was typed and not as IPython rewrote
it to run it. Errors IPython does not keep: they are recorded here, as text, since an exception would keep its
frames and all that they hold.
"""

from __future__ import annotations

import linecache
import traceback
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from IPython.core.interactiveshell import ExecutionResult, InteractiveShell

__all__ = ["Errors", "errors", "install", "namespace", "uninstall"]

KEPT = 50
"""Errors on record; the oldest goes first."""

LONGEST = 2000
"""Characters of an error's message that are kept."""

FRAMES = 20
"""Frames of the user's cells that are kept: the last ones, where it happened."""


class Errors(Mapping[int, str]):
    """The error of each execution that failed, by its number, as a short plain traceback; `Errors[-1]` is the last."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}

    def __getitem__(self, number: int) -> str:
        if isinstance(number, int) and number < 0:
            numbers = list(self._texts)
            if -number > len(numbers):
                raise KeyError(number)
            number = numbers[number]
        return self._texts[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        return repr(self._texts)

    def record(self, number: int, text: str | None) -> None:
        """Note how an execution ended: by an error, or well."""
        # After `%reset` the numbers begin anew: what bears this number or a later one is of the time before.
        for later in [known for known in self._texts if known >= number]:
            del self._texts[later]
        if text is not None:
            self._texts[number] = text
            while len(self._texts) > KEPT:
                del self._texts[next(iter(self._texts))]


class _Recorder:
    """Notes the errors of one shell's executions."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell, self.errors = shell, Errors()

    def note(self, result: ExecutionResult | None) -> None:
        """What IPython calls after each execution."""
        # One that leaves no trace in the history has no number of its own; None: it was cancelled.
        if result is None or result.execution_count is None or not getattr(result.info, "store_history", True):
            return
        error = result.error_before_exec or result.error_in_exec
        self.errors.record(int(result.execution_count), None if error is None else self._text(error))

    def _text(self, error: BaseException) -> str:
        said = "".join(traceback.format_exception_only(error)).rstrip()
        said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
        frames = self._frames(error.__traceback__)
        return "\n".join(["Traceback (most recent call last):", *frames, said]) if frames else said

    def _frames(self, trace: TracebackType | None) -> list[str]:
        """The frames of the user's own cells, the libraries' left out."""
        lines = []
        for frame, line in traceback.walk_tb(trace):
            code = frame.f_code
            if cell := self.shell.compile.format_code_name(code.co_filename):
                where = "" if code.co_name.startswith("<module>") else f", in {code.co_name}"
                source = linecache.getline(code.co_filename, line).strip()
                lines.append(f"  {' '.join(cell)}, line {line}{where}" + (f"\n    {source}" if source else ""))
        return lines[-FRAMES:]


_recorder: _Recorder | None = None


def install(shell: InteractiveShell) -> None:
    """Record the errors of the shell's executions from now on."""
    global _recorder  # noqa: PLW0603 - one per kernel is the point
    uninstall(shell)
    _recorder = _Recorder(shell)
    shell.events.register("post_run_cell", _recorder.note)


def uninstall(shell: InteractiveShell) -> None:
    """Record nothing any more, and forget what was recorded."""
    global _recorder  # noqa: PLW0603
    if _recorder is not None and _recorder.note in shell.events.callbacks["post_run_cell"]:
        shell.events.unregister("post_run_cell", _recorder.note)
    _recorder = None


def errors() -> Errors:
    """The errors on record."""
    return _recorder.errors if _recorder else Errors()


def namespace(shell: InteractiveShell) -> Mapping[str, Any]:
    """The names that a prompt may use: the user's, and besides them `In` as it was typed, and `Err`.

    A user's own variable of that name goes before.
    """
    history, own = shell.history_manager, shell.user_ns
    typed = history is not None and own.get("In") is history.input_hist_parsed
    before: dict[str, Any] = {"In": history.input_hist_raw} if history is not None and typed else {}
    return ChainMap(before, own, {"Err": errors()})
