"""The cache's file: made, looked at before SQLite may read it, and set aside where it is broken.

SQLite with its rollback journal, not its write-ahead log: the log needs memory that processes share, which network
file systems (the home folders of most JupyterHubs) do not have, and leaves two more files beside the notebook.

**Whose file it is.** A cache beside a notebook may have come with a cloned repository, and a place that the user
names may hold something else by mistake. So, before anything is opened:

- no file, or an empty one: a new cache is made there, readable by its owner alone;
- a database with nbllm's mark (`APPLICATION`) is a cache. Damaged, or with other tables, it is renamed to
  `NAME.broken-TIME`, and a new one is made; one of a newer nbllm is left alone;
- what is no database, under a name that only nbllm uses (`NAMES`), is the rest of a torn cache, and renamed as well;
- anything else, a link too, is somebody else's: it is never written, renamed or removed, and there is no cache.

SQLite trusts a journal beside the file: one that names a super-journal was found to make it *delete* the file named
there, when the database was merely read. nbllm never leaves such a journal, so one is renamed before SQLite sees it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import time
from pathlib import Path
from typing import Final

__all__ = ["LARGEST", "NAMES", "BrokenError", "NotOursError", "connect", "identity_of", "set_aside"]

logger = logging.getLogger("nbllm.cache")

APPLICATION: Final = 0x6E626C6D
"""`nblm`: what SQLite's header holds of the application that a file belongs to (offset 68)."""

VERSION: Final = 1
"""The version of the tables."""

NAMES: Final = frozenset({"responses.sqlite", ".nbllm-cache.sqlite"})
"""The names of the caches in the user's folder and beside a notebook."""

LARGEST: Final = 4 << 20
"""Bytes of the largest answer that is stored or read: about a million tokens."""

WAIT: Final = 1.0
"""Seconds to wait while another process writes; a write takes milliseconds."""

TABLE: Final = "CREATE TABLE answers (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, record BLOB NOT NULL)"

SCHEMA: Final = [
    (b"index", b"sqlite_autoindex_answers_1", b"answers", None),
    (b"table", b"answers", b"answers", TABLE.encode()),
]
"""All that the file's schema may hold: no trigger, no view."""

JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
"""What begins a journal, and also ends one that names a super-journal (SQLite's pager.c)."""

Identity = tuple[int, int]


class NotOursError(Exception):
    """The file is somebody else's, or of a newer nbllm: it is left alone."""


class BrokenError(Exception):
    """The file is a cache that cannot be used: it is set aside."""


def identity_of(path: Path) -> Identity | None:
    """Which file lies there, by device and number; None where there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def connect(path: Path, *, create: bool) -> sqlite3.Connection | None:
    """A connection to the cache at this path; None where there is no cache and `create` does not ask for one.

    Raises:
        NotOursError: where the file is to be left alone.
        BrokenError, sqlite3.Error: where it cannot be used.
        OSError: where the folder cannot.
    """
    size = _looked_at(path)
    if size is None:
        if not create:
            return None
        _made(path)
    elif size == 0 and not create:
        return None
    _without_foreign_journal(path)
    # Its own lock sees to it that the threads take turns.
    connection = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
    try:
        _set_up(connection, path, create=create)
    except BaseException:
        connection.close()
        raise
    return connection


def _looked_at(path: Path) -> int | None:
    """The size of a file that may be opened; None where there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise NotOursError(f"{path} is a link, a folder or a device, not a file")
    if found.st_size == 0:
        return 0
    with path.open("rb") as file:
        head = file.read(100)
    if len(head) == 100 and head.startswith(b"SQLite format 3\0"):
        if int.from_bytes(head[68:72], "big") != APPLICATION:
            raise NotOursError(f"{path} is a database of another program")
        if head[18:20] != b"\1\1":
            raise BrokenError("it is in a mode that nbllm does not use")
    elif path.name in NAMES:
        raise BrokenError("it is no database")
    else:
        raise NotOursError(f"{path} is no database")
    return found.st_size


def _made(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(FileExistsError):  # another kernel was faster
        os.close(os.open(path, flags, 0o600))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _without_foreign_journal(path: Path) -> None:
    """Rename a journal that nbllm cannot have left; its own, of a crash, are SQLite's to roll back."""
    journal = _beside(path, "-journal")
    foreign = [other for other in (_beside(path, "-wal"), _beside(path, "-shm")) if os.path.lexists(other)]
    try:
        found = journal.lstat()
    except FileNotFoundError:
        pass
    else:
        ours = stat.S_ISREG(found.st_mode)
        if ours and found.st_size >= len(JOURNAL_MAGIC):
            with journal.open("rb") as file:
                file.seek(-len(JOURNAL_MAGIC), os.SEEK_END)
                ours = file.read() != JOURNAL_MAGIC
        if not ours:
            foreign.append(journal)
    for other in foreign:
        _renamed(other)


def _set_up(connection: sqlite3.Connection, path: Path, *, create: bool) -> None:
    connection.text_factory = bytes  # nothing of the file is decoded before it is checked
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
    for setting in (
        "trusted_schema = OFF",  # before the schema is read
        "cell_size_check = ON",
        "secure_delete = ON",  # what is deleted is not to be found in the file
        "synchronous = NORMAL",
    ):
        connection.execute(f"PRAGMA {setting}")
    if create and _state(connection) == (0, 0, []):
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            if _state(connection) == (0, 0, []):  # still: another kernel may have been faster
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute(TABLE)
    application, version, schema = _state(connection)
    if application == APPLICATION and version > VERSION:
        raise NotOursError(f"{path} is of a newer nbllm")
    if (application, version, schema) != (APPLICATION, VERSION, SCHEMA):
        raise BrokenError("it has other tables")


def _state(connection: sqlite3.Connection) -> tuple[int, int, list[tuple[bytes | None, ...]]]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type LIMIT 9").fetchall()
    return application, version, rows


def set_aside(path: Path, identity: Identity | None, reason: object) -> bool:
    """Rename a broken file with its journal, so that a new one can be made.

    Args:
        path: Where it is.
        identity: Which file was found broken: not the new one that another kernel has made meanwhile.
        reason: What is wrong with it.

    Returns:
        Whether another try is worth it.
    """
    if identity is None or identity_of(path) != identity:
        return True
    aside = _renamed(path)
    if aside is None:
        return False
    for suffix in ("-journal", "-wal", "-shm"):
        _renamed(_beside(path, suffix))
    logger.warning("the response cache %s cannot be used: %s; it is kept as %s", path, reason, aside.name)
    return True


def _renamed(path: Path) -> Path | None:
    stamp = time.strftime("%Y%m%dT%H%M%S")
    for number in range(100):
        aside = _beside(path, f".broken-{stamp}" + (f"-{number}" if number else ""))
        if os.path.lexists(aside):
            continue
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None
        except OSError as exc:
            logger.debug("%s cannot be renamed: %s", path, exc)
            return None
        return aside
    return None
