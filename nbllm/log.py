"""The log: what calls were made, a JSON line each, in a file of the user's own; no content unless asked.

The file is `nbllm.log` in the platform's log folder, readable by its owner alone. All kernels of a user write to it.
`logging.handlers.RotatingFileHandler` would lose records there: it keeps the file open, so that after one process has
rotated it the others go on writing to the old file, and rotate it once more. So each line is one append by a
descriptor of its own, which every system keeps whole, and the file is rotated under a lock, by whoever finds it too
large. A process that had just opened the file writes its line into what is by then the first old file, where it is
found as well.

Warnings of nbllm's go into the same file once the first call has been made, and to where they went before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import platformdirs

from nbllm.config import ConfigManager
from nbllm.types import Message

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["CallLog", "RedactingFilter"]

LARGEST: Final = 1 << 20
"""Bytes of the file from which on it is rotated."""

OLD: Final = 3
"""How many old files are kept."""

LONGEST: Final = 256
"""Characters of a value: what a server says of itself is not to fill the disk."""

LONGEST_CONTENT: Final = 1 << 16
"""Characters of a prompt's message and of an answer, where they are logged."""

FIELDS: Final = (
    "provider",
    "model",
    "state",
    "latency",
    "time_to_first_token",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost",
    "cached",
    "request_id",
    "attempts",
    "fallback_of",
    "error",
)
"""What is recorded of a call beside its time: these and no others."""

calls = logging.getLogger("nbllm.calls")


class RedactingFilter(logging.Filter):
    """Takes keys out of a log record: of its message, its arguments, and the tracebacks that go with it.

    Args:
        redact: Takes the known keys out of a text.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record where it holds a key; it is always let through."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - its arguments do not fit
            message = f"{record.msg} {record.args!r}"
        clean = self._redact(message)
        if clean != message or self._redact(repr(record.args)) != repr(record.args):
            # The arguments are in the message by now, and some might show the key by another format.
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        for name in ("exc_text", "stack_info"):
            text = getattr(record, name)
            if text and (clean := self._redact(text)) != text:
                setattr(record, name, clean)
                record.exc_info = None  # its exception has the key, for whoever formats it anew
        return True


class CallLog:
    """The record of calls. Its methods may be called from any thread, and raise nothing.

    Args:
        config: The settings: `log`, `log_content`, and the keys to take out.
    """

    def __init__(self, config: ConfigManager) -> None:
        self._config = config

    @property
    def path(self) -> Path:
        """The file."""
        return Path(platformdirs.user_log_dir("nbllm", appauthor=False)) / "nbllm.log"

    @property
    def problem(self) -> str | None:
        """Why the last record could not be written, or None."""
        return _file(self.path).problem

    def record(self, call: Mapping[str, Any], *, prompt: Sequence[Message] | None, answer: str | None) -> None:
        """Put a call on record.

        Args:
            call: What is known of it, by the names of `FIELDS`, and `time`, in seconds since 1970. Others are left out.
            prompt: What was asked; recorded only where `log_content` says so.
            answer: What was answered; the same.
        """
        try:
            self._record(call, prompt, answer)
        except Exception as exc:  # noqa: BLE001 - a call is not to fail for its record
            logging.getLogger("nbllm.log").debug("a call was not recorded: %s", type(exc).__name__)

    def tail(self, number: int) -> list[dict[str, Any]]:
        """The last calls on record, of every kernel, oldest first; lines that are torn are left out."""
        found: list[dict[str, Any]] = []
        for line in _file(self.path).lines():
            if len(found) >= number:
                break
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and "provider" in record:
                    found.append(record)
        return found[::-1]

    def _record(self, call: Mapping[str, Any], prompt: Sequence[Message] | None, answer: str | None) -> None:
        logger, file = logging.getLogger("nbllm"), _file(self.path)
        if self._config.get("log") != "on":
            _detach(logger)
            return
        if file not in logger.handlers:
            _detach(logger)
            file.filters[:] = [RedactingFilter(self._config.redact)]
            logger.addHandler(file)
        redact = self._config.redactor()
        fields = {"time": _iso(call.get("time"))} | {name: _plain(call.get(name), redact) for name in FIELDS}
        content: dict[str, Any] = {}
        if self._config.get("log_content") is True:
            content["prompt"] = [
                {"role": message.role, "content": _cut(redact(message.content), LONGEST_CONTENT)}
                for message in prompt or ()
            ]
            content["answer"] = _cut(redact(answer or ""), LONGEST_CONTENT)
        what = f"{fields['provider']}:{fields['model']} {fields['state']}"
        file.write(fields | content)
        # For whoever listens: without the content, which is for the file alone.
        calls.info("%s", what, extra={"call": fields})


def _plain(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(part, redact) for part in value[:16]]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _cut(redact(str(value)), LONGEST)


def _cut(clean: str, longest: int) -> str:
    """A text that is redacted already, shortened: cut before, it could keep the beginning of a key."""
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


# -- the file


class _LogFile(logging.Handler):
    """Appends a line of JSON for each record."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.problem: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == calls.name:
            return  # it has been written, in full
        said = {"level": record.levelname, "logger": record.name, "message": record.getMessage()[:LONGEST_CONTENT]}
        if record.exc_text:
            said["traceback"] = record.exc_text[-LONGEST_CONTENT:]
        self.write({"time": _iso(record.created)} | said)
        # Python prints the warnings of loggers without handlers, and by this one the logger has one.
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and not _has_other_handlers(record.name):
            last.handle(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        return  # it would print to stderr, in the midst of an answer

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, if that can be."""
        # ASCII alone: what a server sent cannot command the terminal that the file is shown in.
        line = json.dumps(record, ensure_ascii=True).encode() + b"\n"
        try:
            self._append(line)
            self.problem = None
        except OSError as exc:  # no room, no permission: `%llm log` says so
            self.problem = exc.strerror or type(exc).__name__

    def lines(self) -> Iterator[bytes]:
        """The lines, newest first, those of the old files after the file's own."""
        for path in (self.path, *(_old(self.path, number) for number in range(1, OLD + 1))):
            try:
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - 4 * LARGEST))  # all of it, unless it could not be rotated
                    content = file.read(4 * LARGEST)
            except OSError:
                continue
            yield from reversed(content.splitlines())

    def _append(self, line: bytes) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except FileNotFoundError:  # the folder
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.path, flags, 0o600)
        try:
            found = os.fstat(descriptor)
            if os.name != "nt" and stat.S_ISREG(found.st_mode):  # a link to /dev/null is left as it is
                if found.st_mode & 0o077:
                    os.fchmod(descriptor, 0o600)
                if found.st_size and os.pread(descriptor, 1, found.st_size - 1) != b"\n":
                    line = b"\n" + line  # the line before was torn by a full disk, say; this one is not to be lost too
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_size + len(line) >= LARGEST:
            self._rotate()

    def _rotate(self) -> None:
        with contextlib.suppress(OSError), _locked(self.path.with_name(f"{self.path.name}.lock")):
            if self.path.stat().st_size < LARGEST:
                return  # another process has done it
            for number in range(OLD, 1, -1):
                with contextlib.suppress(FileNotFoundError):
                    _old(self.path, number - 1).replace(_old(self.path, number))
            self.path.replace(_old(self.path, 1))


_files: dict[Path, _LogFile] = {}
_guard = threading.Lock()


def _file(path: Path) -> _LogFile:
    """The process's one handler for the file."""
    with _guard:
        if path not in _files:
            _files[path] = _LogFile(path)
        return _files[path]


def _detach(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        if isinstance(handler, _LogFile):
            logger.removeHandler(handler)


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock, or raise `BlockingIOError`: then another process is at it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if fcntl is not None:  # Windows refuses to rename a file that another process has open: next time, then
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _has_other_handlers(name: str) -> bool:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(not isinstance(handler, _LogFile) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _iso(seconds: Any) -> str | None:
    if not isinstance(seconds, (int, float)):
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
