"""The user's `keys.toml`: keys in a file that only its owner may read.

It lies beside the user's `config.toml`. No project can name another file, and no other file holds a table `[keys]`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nbllm.errors import ConfigError
from nbllm.keys import Secret, checked, note

__all__ = ["KeyFile", "shown", "warn_if_loose"]

logger = logging.getLogger("nbllm")

LARGEST: Final = 1 << 20
"""Bytes of the file that are read."""


@dataclass(frozen=True, slots=True)
class _Content:
    """What the file holds.

    Attributes:
        keys: The key of each name; None for a value that is no text.
        loose: Whether others may read the file.
        problem: Why it cannot be used at all.
        others: Tables that are not nbllm's.
    """

    keys: Mapping[str, Secret | None] = field(default_factory=dict)
    loose: bool = False
    problem: str | None = None
    others: tuple[str, ...] = ()


class KeyFile:
    """The user's `keys.toml`: a table `[keys]` of names and keys, which only its owner may read.

    It is read again when it has changed, so that a key that another kernel stored is seen. Its comments are not kept
    when nbllm writes it.

    Args:
        path: Where it is; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: tuple[object, _Content] = (None, _Content())

    def find(self, name: str) -> Secret | None:
        """The key of this name, or None.

        Raises:
            ConfigError: where there is one, but it cannot be used: others may read the file, or it is no key. A file
                that is no TOML is only warned of: it may be about quite another provider.
        """
        content, name = self._content(), name.lower()
        if name not in content.keys:
            return None
        if content.loose:
            raise self._loose()
        where = f"{self.path}: [keys] {name}"
        key = content.keys[name]
        if key is None:
            raise ConfigError(f"{where} must be str.", action="Correct it.")
        return note(checked(key.reveal(), where), name)

    def known(self) -> dict[str, str]:
        """The names of its keys by the keys, usable or not: for `redacted`."""
        return {key.reveal().strip(): name for name, key in self._content().keys.items() if key}

    def require(self) -> None:
        """Look whether a key can be stored here.

        Raises:
            ConfigError: where it cannot.
        """
        content = self._content()
        if content.loose:
            raise self._loose()
        self._require_ours(content)

    def store(self, name: str, key: Secret) -> None:
        """Keep a key here; the file is made if need be, such that nobody else could read it at any moment.

        Raises:
            ConfigError: where it cannot be written, or holds what is not nbllm's.
        """
        self.require()
        self._write({**self._content().keys, name.lower(): note(key, name)})

    def forget(self, name: str) -> bool:
        """Delete a key here; whether there was one.

        Raises:
            ConfigError: where it cannot be written, or holds what is not nbllm's.
        """
        content, name = self._content(), name.lower()
        if name not in content.keys:
            return False
        self._require_ours(content)
        self._write({other: key for other, key in content.keys.items() if other != name})
        return True

    def _loose(self) -> ConfigError:
        return ConfigError(
            f"{self.path} can be read by others, so its keys are not used.",
            action=f"Run: chmod 600 {self.path}",
        )

    def _require_ours(self, content: _Content) -> None:
        problem = content.problem
        if content.others:
            problem = f"it holds more than [keys]: {', '.join(content.others)}"
        elif None in content.keys.values():
            problem = "not all that it holds is text"
        if problem:
            raise ConfigError(f"{self.path} is left alone: {problem}.", action="Mend it by hand, or remove it.")

    def _content(self) -> _Content:
        """What it holds now."""
        try:
            found = self.path.stat()
        except OSError:  # not there, or not to be seen
            return _Content()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
        before, content = self._read
        if stamp != before:
            content = self._parsed(found)
            self._read = (stamp, content)
            if content.problem:
                logger.warning("%s is not used: %s", self.path, content.problem)
        return content

    def _parsed(self, found: os.stat_result) -> _Content:
        if not stat.S_ISREG(found.st_mode):
            return _Content(problem="it is not a file")
        try:
            with self.path.open("rb") as file:
                loose = _is_loose(os.fstat(file.fileno()))
                whole = tomllib.loads(file.read(LARGEST).decode("utf-8-sig"))
        except OSError as exc:
            return _Content(problem=f"it cannot be read: {exc.strerror}")
        except (ValueError, RecursionError):  # what it says of the place might hold a part of a key
            return _Content(problem="it is no valid TOML")
        table = whole.pop("keys", {})
        if not isinstance(table, dict):
            return _Content(problem="its [keys] is no table")
        keys = {name.lower(): Secret(key) if isinstance(key, str) else None for name, key in table.items()}
        return _Content(keys, loose, others=tuple(shown(name) for name in whole))

    def _write(self, keys: Mapping[str, Secret | None]) -> None:
        lines = [f"{_quoted(name)} = {_quoted(key.reveal())}\n" for name, key in sorted(keys.items()) if key]
        text = "# Written by %llm key; comments are not kept.\n[keys]\n" + "".join(lines)
        target = Path(os.path.realpath(self.path))  # a link to where one keeps such files stays one
        temporary: str | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # It is made for its owner alone, and takes the old file's place when it is whole.
            number, temporary = tempfile.mkstemp(prefix=".keys-", dir=target.parent)
            with open(number, "w", encoding="utf-8") as file:  # noqa: PTH123 - it is open already
                if _is_loose(os.fstat(number)):
                    raise ConfigError(
                        f"{target.parent} is on a file system on which others could read the file.",
                        action="Say `keyring` or `session` in place of `file`.",
                    )
                file.write(text)
                file.flush()
                os.fsync(number)
            os.replace(temporary, target)  # noqa: PTH105 - it is a str
            temporary = None
        except OSError as exc:
            raise ConfigError(
                f"{self.path} cannot be written: {exc.strerror}.", action="Mend its permissions."
            ) from exc
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108 - it is a str


def _quoted(text: str) -> str:
    # JSON's strings are TOML's but for this control character and for surrogates, which ensure_ascii would write.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def shown(name: str) -> str:
    """A name out of a file, as it may be shown in a terminal."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _is_loose(found: os.stat_result) -> bool:
    """Whether others than its owner may do anything with the file; Windows has no such modes."""
    return os.name != "nt" and bool(found.st_mode & 0o077)


_warned: set[Path] = set()


def warn_if_loose(path: Path) -> None:
    """Warn, once, of a file with a key in it that others may read."""
    with contextlib.suppress(OSError):
        if path not in _warned and _is_loose(path.stat()):
            _warned.add(path)
            logger.warning("%s holds a key and can be read by others. Run: chmod 600 %s", path, path)
