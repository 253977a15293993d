"""The response cache: whole answers by the identity of their request, replayed as events.

JSON in SQLite, no pickle. Several kernels may share the file. A cache is a convenience: whatever is wrong with it
(locked, read-only, full, damaged, somebody else's) is a miss and a line in the log, never an error. What is read from
it is checked in every field, for a file beside a cloned notebook is somebody else's; its text is model text. No prompt
is stored, only the identity's hash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import platformdirs

from nbllm import cache_file
from nbllm.cache_file import LARGEST, BrokenError, NotOursError
from nbllm.cached import Cached, decoded, encoded
from nbllm.errors import ConfigError
from nbllm.identity import prompt_hash, request_identity
from nbllm.types import Finish

__all__ = ["CacheInfo", "Cached", "ResponseCache", "cache_path", "prompt_hash", "request_identity"]

logger = logging.getLogger("nbllm.cache")

T = TypeVar("T")

MAX_BYTES: Final = 256 << 20

_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
"""SQLite's codes for a file that is not what it was; the last one says that the table is gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class CacheInfo:
    """What there is to say of a cache.

    Attributes:
        path: Its file.
        entries: How many answers it holds.
        bytes: How large the file is.
        problem: Why the last answer was not stored or looked for; None where it was.
    """

    path: Path
    entries: int
    bytes: int
    problem: str | None = None


class ResponseCache:
    """Whole answers, kept in one file. Its methods may be called from any thread, and after a fork.

    Nothing is opened before the first use, and nothing made before the first `put`.

    Args:
        path: The file.
        max_bytes: How large it may grow; the oldest answers make room.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link, which is refused here
        self.max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._identity: cache_file.Identity | None = None
        self._problems: dict[bool, str] = {}  # of the last write that failed, and of the last look
        self._said: set[str] = set()
        _caches.add(self)

    def get(self, key: str) -> Cached | None:
        """The answer to the request of this identity, or None. One that cannot be read is deleted."""

        def look(connection: sqlite3.Connection) -> bytes | None:
            try:
                row = connection.execute("SELECT record FROM answers WHERE key = ?", (key,)).fetchone()
            except sqlite3.DataError:  # larger than anything nbllm stores
                row = (None,)
            if row is None:
                return None
            return row[0] if isinstance(row[0], bytes) else b""

        record = self._use(look, create=False)
        if record is None:
            return None
        try:
            return decoded(record)
        except ValueError:
            logger.debug("an answer in %s cannot be read", self.path)
            self.delete(key)
            return None

    def put(self, key: str, cached: Cached) -> bool:
        """Store a whole answer in place of an older one; whether it is there now.

        An answer without a `Finish` is not whole, and one of many megabytes is not kept.
        """
        if not any(isinstance(event, Finish) for event in cached.events):
            return False
        try:
            record = encoded(cached)
        except ValueError:
            return False
        if len(record) > min(LARGEST - 1024, self.max_bytes // 4):
            return False

        def store(connection: sqlite3.Connection) -> bool:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                connection.execute("INSERT OR REPLACE INTO answers (key, record) VALUES (?, ?)", (key, record))
                while _used(connection) > self.max_bytes:
                    (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
                    connection.execute(
                        "DELETE FROM answers WHERE id IN (SELECT id FROM answers ORDER BY id LIMIT ?)",
                        (min(count - 1, count // 10 + 1),),
                    )
                    if count <= 1:
                        break
            return True

        return bool(self._use(store, create=True))

    def delete(self, key: str) -> bool:
        """Delete one answer; whether it was there."""
        return bool(
            self._use(lambda c: c.execute("DELETE FROM answers WHERE key = ?", (key,)).rowcount > 0, create=False)
        )

    def clear(self) -> int:
        """Delete all answers and give their space back; how many there were."""

        def empty(connection: sqlite3.Connection) -> int:
            count = connection.execute("DELETE FROM answers").rowcount
            with contextlib.suppress(sqlite3.OperationalError):  # another kernel reads just now: the space is reused
                connection.execute("VACUUM")
            return count

        return self._use(empty, create=False) or 0

    def info(self) -> CacheInfo:
        """How full it is, and whether it can be used."""
        count = self._use(lambda c: int(c.execute("SELECT count(*) FROM answers").fetchone()[0]), create=False)
        try:
            size = self.path.lstat().st_size
        except (OSError, ValueError):
            size = 0
        return CacheInfo(self.path, count or 0, size, self._problems.get(True) or self._problems.get(False))

    def close(self) -> None:
        """Close the file; it is opened again when it is used again."""
        with _lock:
            self._close()

    def _use(self, work: Callable[[sqlite3.Connection], T], *, create: bool) -> T | None:
        """Do something with the file; None where it is not there or cannot be used."""
        with _lock:
            for last in (False, False, True):
                fresh = self._connection is None
                try:
                    connection = self._connected(create=create)
                    found = None if connection is None else work(connection)
                except BrokenError as exc:
                    damage: Exception = exc
                except NotOursError as exc:
                    self._failed(f"{exc}; set cache_place to another place", exc, create)
                    return None
                except sqlite3.Error as exc:
                    # What the code says in its lower byte; locked, full and read-only are not the file's fault.
                    if getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF not in _DAMAGE:
                        self._failed(str(exc), exc, create)
                        return None
                    damage = exc
                except (OSError, ValueError) as exc:
                    self._failed(str(exc), exc, create)
                    return None
                else:
                    self._problems.pop(False, None)
                    self._problems.pop(create, None)
                    return found
                self._close()
                # What was open may have been overwritten meanwhile, by what is not ours to rename: look again first.
                if last or (fresh and not cache_file.set_aside(self.path, self._identity, damage)):
                    self._failed(str(damage), damage, create)
                    return None
            return None

    def _connected(self, *, create: bool) -> sqlite3.Connection | None:
        # Deleted or set aside by someone else, the file lives on in our hands: then the one at the path counts.
        found = cache_file.identity_of(self.path)
        if self._connection is not None and found is not None and found == self._identity:
            return self._connection
        self._close()
        self._identity = found
        self._connection = cache_file.connect(self.path, create=create)
        self._identity = cache_file.identity_of(self.path)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failed(self, problem: str, exc: Exception, create: bool) -> None:
        self._problems[create] = problem
        said_before = problem in self._said
        self._said.add(problem)
        logger.log(
            logging.DEBUG if said_before else logging.WARNING,
            "the response cache %s is not used: %s (%s)",
            self.path,
            problem,
            type(exc).__name__,
        )


def _used(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


# One lock for all caches of the process: POSIX gives a process, not a connection, its locks on a file, and closing any
# descriptor of the file drops them all. Two caches on one file must not look at it while the other one writes.
_lock = threading.Lock()
_caches: weakref.WeakSet[ResponseCache] = weakref.WeakSet()
_of_the_parent: list[sqlite3.Connection] = []


def _after_fork() -> None:
    # A connection does not survive a fork: even closing it here could remove the journal of the parent. It is kept
    # unused, and the child opens its own.
    for cache in list(_caches):
        if cache._connection is not None:  # noqa: SLF001 - this module's own class
            _of_the_parent.append(cache._connection)  # noqa: SLF001
            cache._connection = None  # noqa: SLF001
    _lock.release()


if hasattr(os, "register_at_fork"):
    # Held over the fork: no write is under way in the moment of it, and the lock is free in the child.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork)


def cache_path(place: str, *, notebook: Path | None, environ: Mapping[str, str]) -> Path:
    """Where the cache lies.

    Args:
        place: `user` for the user's cache folder; `notebook` for beside the notebook; else a path.
        notebook: The notebook, where the front end says which.
        environ: The environment: Jupyter puts the notebook's path into `JPY_SESSION_NAME`.

    Raises:
        ConfigError: where it is no path.
    """
    in_the_users_folder = Path(platformdirs.user_cache_dir("nbllm", appauthor=False)) / "responses.sqlite"
    if place == "user":
        return in_the_users_folder
    if place == "notebook":
        folder = _folder_of_the_notebook(notebook, environ)
        return folder / ".nbllm-cache.sqlite" if folder is not None else in_the_users_folder
    try:
        path = Path(os.path.abspath(Path(place).expanduser()))  # noqa: PTH100 - a link is to be seen as one
    except (RuntimeError, OSError):  # nobody's home; the working folder was deleted
        path = None
    if path is None or not place.strip() or "\0" in place:
        raise ConfigError(
            f"cache_place is {place!r}, which is no place.", action='Set it to "user", "notebook" or a path.'
        )
    return path / "responses.sqlite" if path.is_dir() else path


def _folder_of_the_notebook(notebook: Path | None, environ: Mapping[str, str]) -> Path | None:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the working folder was deleted
        return notebook.parent if notebook is not None and notebook.is_absolute() else None
    if notebook is not None:
        return (here / notebook).parent
    named = environ.get("JPY_SESSION_NAME", "")
    if named.endswith(".ipynb") and "\0" not in named:
        # Relative to the server's folder it may be, of which the kernel knows nothing: then only what is there counts.
        named_path = here / named
        if named_path.is_file() or (Path(named).is_absolute() and named_path.parent.is_dir()):
            return named_path.parent
    return here
