"""Keys: kept out of sight, kept by nbllm itself for those who ask it to, and taken out of any text.

nbllm keeps a key in one of three places, the first one wins: this session (the memory of this process), the system's
keyring, and the user's `keys.toml` (`nbllm.key_file`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from nbllm.errors import ConfigError, MissingExtraError, NbllmError

__all__ = [
    "Secret",
    "checked",
    "forget_in_session",
    "forget_lookups",
    "forget_on_keyring",
    "from_keyring",
    "in_session",
    "keep_in_session",
    "keep_on_keyring",
    "keyring_name",
    "note",
    "noted",
    "redacted",
    "require_keyring",
]

logger = logging.getLogger("nbllm")

SERVICE: Final = "nbllm"
"""The name that the keyring files nbllm's keys under."""

LEAST: Final = 8
"""Characters of the shortest key that is taken out of a text: a word such as `none`, which servers of one's own are
given for a key, is to stay."""


class Secret:
    """A key, kept out of every repr, log line and traceback: only `reveal()` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('…')"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a key is not pickled")


def checked(value: object, where: str) -> Secret:
    """The key, without the white space around it.

    Raises:
        ConfigError: where it holds what no key does; it names `where`, not the key.
    """
    if isinstance(value, Secret):
        return value
    text = str(value).strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"The key in {where} holds a character that no key has: a line break, a space or a curly quote.",
            action="Copy it again.",
        )
    return Secret(text)


# -- taking keys out of a text

_noted: dict[Secret, str] = {}


def note(key: Secret, name: str) -> Secret:
    """Remember a key that is in use in this process, so that it is taken out of texts; the same key.

    It stays remembered when it is forgotten: it may stand in a variable or in an answer by now.
    """
    _noted[key] = name
    return key


def noted() -> dict[str, str]:
    """What was noted: the name of each key by the key itself. For `redacted`, and nothing else."""
    return {key.reveal(): name for key, name in list(_noted.items())}


def redacted(text: str, known: Mapping[str, str]) -> str:
    """The text with `[NAME]` in place of each key.

    All occurrences are found before one is replaced. Keys that overlap are replaced together, so that no end of one
    is left over, and what was put in is not looked at again.

    Args:
        text: Any text.
        known: The names of the keys, by the keys; those shorter than `LEAST` are left.
    """
    found: list[tuple[int, int, str]] = []
    for value, name in known.items():
        at = text.find(value) if len(value) >= LEAST else -1
        while at >= 0:
            found.append((at, at + len(value), name))
            at = text.find(value, at + 1)
    if not found:
        return text
    pieces, done = [], 0
    for start, end, name in sorted(found, key=lambda span: (span[0], -span[1])):
        if start >= done:
            pieces += [text[done:start], f"[{name}]"]
        done = max(done, end)
    return "".join([*pieces, text[done:]])


# -- this session

_session: dict[str, Secret] = {}


def keep_in_session(name: str, key: Secret) -> None:
    """Keep a key until this process ends, for every configuration in it."""
    _session[name] = note(key, name)


def in_session(name: str) -> Secret | None:
    """The key that this session keeps, or None."""
    return _session.get(name)


def forget_in_session(name: str) -> bool:
    """Let go of it; whether there was one."""
    return _session.pop(name, None) is not None


# -- the keyring

_looked_up: dict[str, Secret | None] = {}
"""What the keyring said. It is asked once for each name, since it may ask the user to unlock it, again and again."""


def forget_lookups() -> None:
    """Ask the keyring again from now on."""
    _looked_up.clear()


def from_keyring(name: str) -> Secret | None:
    """The key that the keyring has, or None where there is none, or no keyring.

    Raises:
        ConfigError: where what it has is no key.
    """
    if name not in _looked_up:
        _looked_up[name] = _asked_of_keyring(name)
    return _looked_up[name]


def _asked_of_keyring(name: str) -> Secret | None:
    try:
        import keyring

        found = keyring.get_password(SERVICE, name)
    except ImportError:  # the extra is optional; without it there is no keyring to ask
        return None
    except Exception as exc:  # noqa: BLE001 - locked, broken, none here: as good as no key there, whatever its library
        logger.debug("the keyring was asked in vain: %s", type(exc).__name__)
        return None
    return note(checked(found, "the keyring"), name) if found else None


def keyring_name() -> str | None:
    """The name of the keyring that can keep keys on this machine; None where there is none."""
    try:
        import keyring

        backend = keyring.get_keyring()
        name, priority = str(backend.name), float(backend.priority)
    except Exception:  # noqa: BLE001 - whatever keeps it from working
        return None
    return name if priority > 0 else None  # `null` and `fail`, which keep nothing, have none


def require_keyring() -> str:
    """The name of the keyring.

    Raises:
        MissingExtraError: where the extra `keyring` is not installed.
        ConfigError: where this machine has no keyring that can be used.
    """
    try:
        import keyring  # noqa: F401 - whether it is there
    except ImportError as exc:
        raise MissingExtraError("keyring", "keyring") from exc
    name = keyring_name()
    if name is None:
        raise ConfigError(
            "This machine has no keyring that can be used.",
            action="Say `file` in place of `keyring`: a file that only you can read.",
        )
    return name


def keep_on_keyring(name: str, key: Secret) -> None:
    """Store a key on the keyring.

    Raises:
        NbllmError: where there is no keyring, or it refuses.
    """
    require_keyring()
    import keyring

    try:
        keyring.set_password(SERVICE, name, key.reveal())
    except Exception as exc:  # noqa: BLE001 - each keyring has errors of its own
        raise _keyring_refused("store the key", exc) from None  # what caused it has the key in its frames
    finally:
        _looked_up.pop(name, None)
    note(key, name)


def forget_on_keyring(name: str) -> bool:
    """Delete a key on the keyring; whether there was one.

    Raises:
        ConfigError: where the keyring refuses.
    """
    if keyring_name() is None:
        return False
    import keyring

    try:
        if keyring.get_password(SERVICE, name) is None:
            return False
        keyring.delete_password(SERVICE, name)
    except Exception as exc:  # noqa: BLE001 - each keyring has errors of its own
        raise _keyring_refused("delete the key", exc) from None
    finally:
        _looked_up.pop(name, None)
    return True


def _keyring_refused(what: str, exc: Exception) -> NbllmError:
    return ConfigError(
        f"The keyring ({keyring_name()}) did not {what}: {type(exc).__name__}.",
        action="Unlock it and try again, or say `file` or `session` in place of `keyring`.",
    )
