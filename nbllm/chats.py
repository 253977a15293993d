"""The conversations of a kernel by name, which of them is current, and the file that keeps them where asked."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from nbllm import chat_file, transcript
from nbllm.cache import cache_path
from nbllm.conversation import Conversation, Slot
from nbllm.errors import UsageError

__all__ = ["MAIN", "Chats", "chats_path"]

logger = logging.getLogger("nbllm.chats")

MAIN: Final = "main"
"""The conversation that is current unless another is chosen."""

ALONE: Final = ".nbllm-chats.json"
"""The file's name where the notebook's is not known."""


def chats_path(notebook: Path | None, environ: Mapping[str, str]) -> Path:
    """Where conversations are kept: `NAME.chats.json` beside the notebook NAME.

    Args:
        notebook: The notebook, where the front end says which.
        environ: The environment: Jupyter puts the notebook's path into `JPY_SESSION_NAME`.
    """
    folder = cache_path("notebook", notebook=notebook, environ=environ).parent
    name = notebook.name if notebook is not None else environ.get("JPY_SESSION_NAME", "")
    stem = Path(name).name.removesuffix(".ipynb") if name.endswith(".ipynb") and "\0" not in name else ""
    return folder / (f"{stem}.chats.json" if stem else ALONE)


class Chats:
    """All conversations of a kernel. Its methods may be called from any thread.

    Made, it takes in what an earlier kernel stored beside the notebook, where this user had asked for that, and goes on
    storing there.

    Args:
        redact: Takes keys out of a text.
        place: Says where the file is, or would be.
    """

    def __init__(
        self, *, redact: Callable[[str], str] = str, place: Callable[[], Path] = lambda: Path.cwd() / ALONE
    ) -> None:
        self._redact, self._place = redact, place
        self._lock = threading.RLock()
        self._known: dict[str, Conversation] = {}
        self._current = MAIN
        self._file: Path | None = None
        self._stamp: chat_file.Stamp | None = None
        self._content = b""
        self.problem: str | None = None
        """Why what is asked to be stored is not, where it is not."""
        self._restore()

    @property
    def current(self) -> str:
        """The name of the current conversation."""
        return self._current

    @property
    def file(self) -> Path | None:
        """Where the conversations are kept; None where they are not."""
        return self._file

    def names(self) -> list[str]:
        """The names of all, the current one among them, the oldest first."""
        with self._lock:
            return list(dict.fromkeys([*self._known, self._current]))

    def conversation(self, name: str | None = None) -> Conversation:
        """The conversation of this name, a new one where there is none; by default the current one.

        Raises:
            UsageError: where it cannot be a name.
        """
        with self._lock:
            name = self._current if name is None else _checked(name)
            if name not in self._known:
                if len(self._known) >= chat_file.MOST_CHATS:
                    raise UsageError(
                        f"There are {len(self._known)} conversations.", action="Delete some: %llm chat delete NAME."
                    )
                self._known[name] = Conversation(name, redact=self._redact, changed=self.store, lock=self._lock)
            return self._known[name]

    def existing(self, name: str | None = None) -> Conversation:
        """The conversation of this name.

        Raises:
            UsageError: where there is none; it names the closest.
        """
        with self._lock:
            if name is None or name == self._current:
                return self.conversation(name)
            if name not in self._known:
                close = difflib.get_close_matches(name, self.names(), n=1)
                hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(self.names())}."
                raise UsageError(f"There is no conversation {name!r}.", action=hint)
            return self._known[name]

    def use(self, name: str) -> Conversation:
        """Make a conversation current, a new one where there is none of this name."""
        with self._lock:
            found = self.conversation(name)
            self._current = found.name
            return found

    def rename(self, new: str, old: str | None = None) -> Conversation:
        """Give a conversation, by default the current one, another name.

        Raises:
            UsageError: where there is none, or the new name is taken.
        """
        with self._lock:
            found, new = self.existing(old), self._free(new)
            self._known.pop(new, None)  # there may be one without turns
            self._known = {new if chat is found else name: chat for name, chat in self._known.items()}
            if self._current == found.name:
                self._current = new
            found.name = new
            self.store()
            return found

    def fork(self, new: str, source: str | None = None, *, by: str | None = None) -> Conversation:
        """Copy a conversation, by default the current one, and make the copy current.

        Args:
            new: The copy's name.
            source: What is copied.
            by: The cell that asks for it: run again, it makes the copy anew.

        Raises:
            UsageError: where there is no such conversation, or the new name is taken.
        """
        with self._lock:
            taken = self._known.get(new)
            if taken is not None and by is not None and taken.made_by is not None and taken.made_by[0] == by:
                original = taken.made_by[1] if source is None and self._current == new else source
                found = self.existing(original)
            else:
                found, new = self.existing(source), self._free(new)
            slots = found.slots()
            for slot in slots:
                slot.latest = None
            copy = self.conversation(new)
            copy.take(slots)
            copy.made_by = None if by is None else (by, found.name)
            self._current = copy.name
            self.store()
            return copy

    def reset(self, name: str | None = None) -> int:
        """Forget all turns of a conversation, by default the current one; how many there were.

        Its cells keep their places. What still answers is not recorded any more.
        """
        with self._lock:
            found = self.existing(name)
            number = len(found)
            found.forget()
            self.store()
            return number

    def delete(self, name: str) -> int:
        """Delete a conversation with its cells' places; how many turns it had. Deleted, the current one is `main`."""
        with self._lock:
            found = self.existing(name)
            number = len(found)
            found.forget()
            self._known.pop(found.name, None)
            if self._current == found.name:
                self._current = MAIN
            self.store()
            return number

    def forget(self, cells: Collection[str]) -> None:
        """Forget the turns of cells that were deleted from the notebook, in every conversation."""
        with self._lock:
            found = [chat.forget(cells) for chat in self._known.values()]
            if any(found):
                self.store()

    # -- files

    def export(self, path: Path, name: str | None = None) -> Conversation:
        """Write a conversation, by default the current one, to a file: `.md` to read, `.json` to import again.

        Raises:
            UsageError: where it cannot be written, or the file is there and no such export.
        """
        found = self.existing(name)
        suffix = path.suffix.lower()
        if suffix == ".json":
            content = _encoded({found.name: found.slots()})
        elif suffix == ".md":
            text = transcript.markdown(found.name, found.turns, stale=found.stale)
            content = f"{transcript.MARKER}\n\n{text}".encode()
        else:
            raise UsageError(f"{path.name} is neither .md nor .json.", action="Name the file so.")
        try:
            _require_an_export(path)
            chat_file.write(path, content)
        except OSError as exc:
            raise UsageError(f"{path} cannot be written: {exc.strerror or exc}.", action="Name another file.") from exc
        return found

    def import_(self, path: Path, name: str | None = None) -> list[Conversation]:
        """Take in the conversations of a file, as copies that belong to no cell.

        Args:
            path: An export as JSON, or the file beside a notebook.
            name: What to call it, where it is one.

        Raises:
            UsageError: where it cannot be read, is none, or a name is taken.
        """
        try:
            stored = chat_file.read(path)
        except (chat_file.NotOursError, chat_file.BrokenError, OSError) as exc:
            said = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise UsageError(
                f"{path} cannot be imported: {said}.", action="Export one: %llm chat export FILE."
            ) from exc
        if stored is None or not stored.chats:
            raise UsageError(f"There is no conversation in {path}.", action="Look where it is.")
        if name is not None and len(stored.chats) > 1:
            raise UsageError(f"{path} holds {len(stored.chats)} conversations.", action="Import it without a name.")
        with self._lock:
            names = [self._free(name or found) for found in stored.chats]
            made = []
            for new, slots in zip(names, stored.chats.values(), strict=True):
                chat = self.conversation(new)
                turns = [turn for slot in slots for turn in slot.turns]
                chat.take([Slot(None, turns=[dataclasses.replace(turn, basis=None)]) for turn in turns])
                made.append(chat)
            self.store()
            return made

    def save(self, on: bool) -> Path:
        """Store the conversations beside the notebook from now on, or no longer; then the file is deleted.

        Raises:
            UsageError: where that file is somebody else's, or cannot be written.
        """
        with self._lock:
            path = self._file or self._place()
            if not on:
                if self._file is not None:
                    try:
                        path.unlink(missing_ok=True)
                    except OSError as exc:
                        raise UsageError(f"{path} cannot be deleted: {exc.strerror}.", action="Delete it.") from exc
                self._file = self._stamp = self.problem = None
                return path
            if self._file is None:
                try:
                    stored = chat_file.read(path)
                except chat_file.BrokenError:
                    chat_file.set_aside(path, "broken")
                except (chat_file.NotOursError, OSError) as exc:
                    raise UsageError(f"{path} is in the way: {exc}.", action="Move it away.") from exc
                else:
                    if stored is not None and not stored.signed:
                        raise UsageError(
                            f"{path} was not stored by you.",
                            action=f"Take it in by %llm chat import {path.name}, then move it away.",
                        )
                    if stored is not None and stored.stamp != self._stamp:
                        chat_file.set_aside(path, "other")  # another kernel's, or of another notebook of this name
                self._file, self._stamp = path, chat_file.stamp_of(path)
            self._content, self.problem = b"", None
            self.store()
            if self.problem:
                said, self._file, self.problem = self.problem, None, None
                raise UsageError(said, action="Mend that, or go on without.")
            return path

    def store(self) -> None:
        """Write the file, where the conversations are kept in one; what fails is said in `problem` and warned of."""
        with self._lock:
            path = self._file
            if path is None:
                return
            try:
                content = chat_file.encoded({name: chat.slots() for name, chat in self._known.items()}, sign=True)
                if content == self._content and chat_file.stamp_of(path) == self._stamp:
                    return
                there = chat_file.stamp_of(path)
                if there is not None and there != self._stamp:
                    # Two kernels that took turns in setting each other's file aside would fill the folder.
                    self._file, self.problem = None, f"{path} was written by another kernel."
                    logger.warning("%s From this one it is stored no longer; %%llm chat save on", self.problem)
                    return
                self._stamp, self._content = chat_file.write(path, content), content
                self.problem = None
            except OSError as exc:
                said = f"{path} cannot be written: {exc.strerror or exc}."
                if self.problem is None:
                    logger.warning("conversations are not stored: %s", said)
                self.problem = said

    # -- inside

    def _restore(self) -> None:
        path = self._place()
        try:
            stored = chat_file.read(path)
        except chat_file.BrokenError as exc:
            aside = chat_file.set_aside(path, "broken")
            logger.warning("%s cannot be used: %s; it is kept as %s", path, exc, aside and aside.name)
            return
        except (chat_file.NotOursError, OSError) as exc:
            logger.warning("the conversations beside the notebook are left alone: %s", exc)
            return
        if stored is None:
            return
        if not stored.signed:
            logger.warning(
                "%s holds conversations that you have not stored, so they are not used. "
                "To take them in: %%llm chat import %s",
                path,
                path.name,
            )
            return
        for name, slots in stored.chats.items():
            self.conversation(name).take(slots)
        self._file, self._stamp = path, stored.stamp

    def _free(self, name: str) -> str:
        name = _checked(name)
        if name in self._known and (len(self._known[name]) or name == self._current):
            raise UsageError(
                f"There is a conversation {name!r} already.", action=f"Take another name, or %llm chat delete {name}."
            )
        return name


def _checked(name: str) -> str:
    try:
        return chat_file.checked_name(name)
    except ValueError as exc:
        raise UsageError(
            f"{name!r} cannot be the name of a conversation.",
            action=f"Take at most {chat_file.MOST_OF_A_NAME} characters that can be seen.",
        ) from exc


def _encoded(chats: chat_file.Chats) -> bytes:
    try:
        return chat_file.encoded(chats, sign=False)
    except OSError as exc:
        raise UsageError(f"This cannot be exported: {exc}.", action="Export it as Markdown.") from exc


def _require_an_export(path: Path) -> None:
    """Nothing but an earlier export is written over.

    Raises:
        UsageError: where something else is there.
    """
    if not os.path.lexists(path):
        return
    ours = False
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            head = file.read(200)
        ours = head.startswith((transcript.MARKER.encode(), b'{\n "nbllm": "conversations"'))
    if not ours:
        raise UsageError(f"{path} is there already, and no export of nbllm.", action="Name another file.")
