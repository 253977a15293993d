"""Conversations as files: the one beside the notebook, and exports as JSON.

**Whose file it is.** A file beside a notebook may have come with a cloned repository, and what it holds is sent to a
model. So nbllm signs what it stores with a secret of the user's, and takes in by itself only what bears that
signature; anything else waits for `%llm chat import`. Whatever is read is checked in every field and bounded in size.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import platformdirs

from nbllm.conversation import Slot, Turn
from nbllm.types import Attachment, Message, State, whole_characters

__all__ = [
    "BrokenError",
    "NotOursError",
    "Stored",
    "checked_name",
    "decoded",
    "encoded",
    "read",
    "set_aside",
    "stamp_of",
    "write",
]

logger = logging.getLogger("nbllm.chats")

LARGEST: Final = 64 << 20
"""Bytes of a file that is read or written."""

MOST_CHATS: Final = 100
MOST_SLOTS: Final = 4000
MOST_OF_A_NAME: Final = 64
MOST_OF_AN_ID: Final = 500
MOST_OF_A_LABEL: Final = 200

KIND: Final = "conversations"
"""What the file says it is."""

VERSION: Final = 1

_MEDIA_TYPE: Final = re.compile(r"[\x20-\x7e]{1,200}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|")

Stamp = tuple[int, int, int]
Chats = Mapping[str, Sequence[Slot]]


class NotOursError(Exception):
    """The file is somebody else's, or of a newer nbllm: it is left alone."""


class BrokenError(Exception):
    """The file is one of nbllm's, but torn or altered such that it cannot be used."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds.

    Attributes:
        chats: The places of each conversation, by its name.
        signed: Whether this user stored it.
        stamp: Which state of the file it is.
    """

    chats: dict[str, list[Slot]]
    signed: bool
    stamp: Stamp


def checked_name(name: str) -> str:
    """The name of a conversation.

    Raises:
        ValueError: where it cannot be one.
    """
    name = name.strip()
    if not 0 < len(name) <= MOST_OF_A_NAME or not name.isprintable() or name.startswith("-"):
        raise ValueError(name)
    return name


# -- files


def read(path: Path) -> Stored | None:
    """What the file holds; None where there is none, or an empty one.

    Raises:
        NotOursError: where it is not to be touched.
        BrokenError: where it cannot be used.
        OSError: where it cannot be read.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise NotOursError(f"{path} is a link, a folder or a device, not a file")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
        found = os.fstat(file.fileno())
    if not content:
        return None
    chats, signature = decoded(content)
    return Stored(chats, _is_ours(chats, signature), _stamp(found))


def write(path: Path, content: bytes) -> Stamp:
    """Write the file as a whole or not at all, for its owner alone.

    Raises:
        OSError: where it cannot be.
    """
    temporary: str | None = None
    try:
        number, temporary = tempfile.mkstemp(prefix=".chats-", dir=path.parent)  # made with mode 600
        with open(number, "wb") as file:  # noqa: PTH123 - it is open already
            file.write(content)
            file.flush()
            os.fsync(number)
            found = os.fstat(number)
        os.replace(temporary, path)  # noqa: PTH105 - it is a str
        temporary = None
        return _stamp(found)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - it is a str


def stamp_of(path: Path) -> Stamp | None:
    """Which state of the file is there; None where there is none."""
    try:
        return _stamp(path.lstat())
    except FileNotFoundError:
        return None


def set_aside(path: Path, word: str) -> Path | None:
    """Rename the file to `NAME.WORD-TIME`; the new path, None where it could not be."""
    moment = time.strftime("%Y%m%dT%H%M%S")
    for number in range(100):
        aside = path.with_name(f"{path.name}.{word}-{moment}" + (f"-{number}" if number else ""))
        if not os.path.lexists(aside):
            try:
                path.rename(aside)
            except OSError as exc:
                logger.debug("%s cannot be renamed: %s", path, exc)
                return None
            return aside
    return None


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_ino, found.st_mtime_ns, found.st_size


# -- whose it is


def _secret(*, create: bool) -> bytes | None:
    path = Path(platformdirs.user_data_dir("nbllm", appauthor=False)) / "chats.key"
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with open(number, "w", encoding="ascii") as file:  # noqa: PTH123 - it is open already
                    file.write(secrets.token_hex(32))
        found = path.read_bytes()[:200].strip()
    except OSError:
        return None
    return found if len(found) >= 32 else None


def _signature(chats: Any, *, create: bool) -> str:
    secret = _secret(create=create)
    return hmac.new(secret, _canonical(chats), hashlib.sha256).hexdigest() if secret else ""


def _is_ours(chats: Chats, signature: str) -> bool:
    expected = _signature(_form(chats), create=False)
    return bool(expected) and hmac.compare_digest(expected, signature)


def _canonical(form: Any) -> bytes:
    return json.dumps(form, sort_keys=True, separators=(",", ":")).encode("ascii")


# -- their form


def encoded(chats: Chats, *, sign: bool) -> bytes:
    """The conversations as JSON.

    Raises:
        OSError: where they are larger than a file may be.
    """
    form = _form(chats)
    whole: dict[str, Any] = {"nbllm": KIND, "version": VERSION}
    if sign:
        whole["signature"] = _signature(form, create=True)
    whole["chats"] = form
    content = json.dumps(whole, ensure_ascii=False, indent=1).encode()
    if len(content) > LARGEST:
        raise OSError(f"they take more than {LARGEST >> 20} MB")
    return content


def _form(chats: Chats) -> list[Any]:
    return [
        {
            "name": name,
            "cells": [
                {"cell": slot.cell, "turns": [_turn(turn) for turn in slot.turns]}
                for slot in slots
                if slot.turns or slot.cell is not None
            ],
        }
        for name, slots in chats.items()
    ]


def _turn(turn: Turn) -> dict[str, Any]:
    found: dict[str, Any] = {"label": turn.label, "asked": turn.asked.content}
    if turn.asked.attachments:
        found["attachments"] = [
            {"name": file.name, "media_type": file.media_type, "data": base64.b64encode(file.data).decode("ascii")}
            for file in turn.asked.attachments
        ]
    return found | {
        "answer": turn.answer,
        "provider": turn.provider,
        "model": turn.model,
        "state": turn.state,
        "basis": turn.basis,
    }


def decoded(content: bytes) -> tuple[dict[str, list[Slot]], str]:
    """The conversations of a file, and its signature.

    Raises:
        NotOursError: where it is something else, or of a newer nbllm.
        BrokenError: where it is no JSON, or not every field is what it has to be.
    """
    if len(content) > LARGEST:
        raise NotOursError(f"it has more than {LARGEST >> 20} MB")
    try:
        whole = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as exc:
        raise BrokenError("it is no valid JSON") from exc
    if not isinstance(whole, dict) or whole.get("nbllm") != KIND:
        raise NotOursError("it holds something else than nbllm's conversations")
    version = whole.get("version")
    if isinstance(version, int) and version > VERSION:
        raise NotOursError("it is of a newer nbllm")
    try:
        return _chats_of(whole), _text(whole.get("signature", ""), 200)
    except (TypeError, ValueError, LookupError) as exc:
        raise BrokenError("not all of its fields are what they have to be") from exc


def _chats_of(whole: dict[str, Any]) -> dict[str, list[Slot]]:
    if whole.get("version") != VERSION or set(whole) - {"nbllm", "version", "signature", "chats"}:
        raise ValueError("version")
    chats: dict[str, list[Slot]] = {}
    for chat in _list(whole["chats"], MOST_CHATS):
        name, cells = _fields(chat, "name", "cells")
        if checked_name(_text(name, MOST_OF_A_NAME)) != name or name in chats:
            raise ValueError("name")
        chats[name] = [_slot_of(cell) for cell in _list(cells, MOST_SLOTS)]
        ids = [slot.cell for slot in chats[name] if slot.cell is not None]
        if len(ids) != len(set(ids)):
            raise ValueError("cell")
    return chats


def _no_number(name: str) -> None:
    raise ValueError(name)


def _fields(found: Any, *names: str, optional: str = "") -> list[Any]:
    if not isinstance(found, dict) or set(found) - {optional} != set(names):
        raise TypeError
    return [found[name] for name in names]


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TypeError
    return value


def _text(value: Any, most: int = LARGEST) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise TypeError
    return whole_characters(value)


def _slot_of(found: Any) -> Slot:
    cell, turns = _fields(found, "cell", "turns")
    cell = None if cell is None else _text(cell, MOST_OF_AN_ID)
    return Slot(cell, turns=[_turn_of(turn) for turn in _list(turns, MOST_SLOTS)], restored=True)


def _turn_of(found: Any) -> Turn:
    names = ("label", "asked", "answer", "provider", "model", "state", "basis")
    label, asked, answer, provider, model, state, basis = _fields(found, *names, optional="attachments")
    files = tuple(_attachment(file) for file in _list(found.get("attachments", []), 1000))
    asked, answer = _text(asked), _text(answer)
    if not answer.strip() or not (asked.strip() or files) or state not in get_args(State):
        raise ValueError("turn")
    if basis is not None and not _DIGEST.fullmatch(_text(basis, 64)):
        raise ValueError("basis")
    return Turn(
        Message("user", asked, files),
        answer,
        _text(provider, 200),
        _text(model, 500),
        state,
        _text(label, MOST_OF_A_LABEL),
        basis,
    )


def _attachment(found: Any) -> Attachment:
    name, media_type, data = _fields(found, "name", "media_type", "data")
    if not _MEDIA_TYPE.fullmatch(_text(media_type)):
        raise ValueError("media_type")
    content = base64.b64decode(_text(data).encode("ascii"), validate=True)
    return Attachment(media_type, content, None if name is None else _text(name, 1000))
