"""A conversation whose turns belong to the notebook's cells.

A cell sends the turns of the cells before it, then its own; run again, it replaces its turns where they stand. The
kernel does not know the notebook, only what is executed: cells stand in the order in which they first ran. A cell
keeps its place when its turns go (reset, deleted, nothing answered), so that a notebook that is run top to bottom
again asks the same.

Without the cell's id (nbclient, papermill, consoles, the terminal) each execution is a cell of its own, and sees
nothing of what was restored from a file: turns follow the order of execution from an empty conversation.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from nbllm.response import Response
from nbllm.types import Message, State, whole_characters

__all__ = ["Conversation", "History", "Slot", "Turn"]

MAX_TURNS: Final = 1000
"""Turns of one conversation; the oldest go."""

MAX_BYTES: Final = 32 << 20
"""Bytes of text and attachments in one conversation; the oldest turns go, but never the last one."""

MAX_SLOTS: Final = 4 * MAX_TURNS
"""Places that are remembered; those of executions that cannot come again go first."""

LONGEST_LABEL: Final = 200
"""Characters of a label that are kept."""

LONGEST_ID: Final = 200
"""Characters of a cell's id; of a longer one its hash is kept."""

_START: Final = ""
"""The digest of nothing before."""

_GIVEN_UP: Final = "\0"
"""In place of a run: whatever still answers belongs to what was reset."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What was asked, and the answer.

    Attributes:
        asked: The user's message as it was sent, with its attachments.
        answer: The text of the answer.
        provider: The provider that answered.
        model: The model that answered.
        state: How the answer ended; one that was stopped or broke off is kept as far as it came.
        label: What the cell is called, such as `[3]`.
        basis: The digest of the turns that it rests on; None where that is not known.
    """

    asked: Message
    answer: str
    provider: str = ""
    model: str = ""
    state: State = "complete"
    label: str = ""
    basis: str | None = None
    _content: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        files = [[file.media_type, file.name, hashlib.sha256(file.data).hexdigest()] for file in self.asked.attachments]
        object.__setattr__(self, "_content", _digest([self.asked.content, files, self.answer]))

    @property
    def messages(self) -> tuple[Message, Message]:
        """The turn as messages."""
        return self.asked, Message("assistant", self.answer)

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return len(self.asked.content) + len(self.answer) + sum(len(file.data) for file in self.asked.attachments)

    def after(self, basis: str) -> str:
        """The digest of what `basis` stands for and this turn."""
        return _digest([basis, self._content])


class History(list[Message]):
    """The messages before a cell, user and assistant by turns, oldest first.

    Attributes:
        digest: Says of which turns.
        left_out: How many messages more there are, which the model's context window has no room for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.digest = _START
        self.left_out = 0

    def add(self, turn: Turn) -> None:
        """Append a turn."""
        self.extend(turn.messages)
        self.digest = turn.after(self.digest)

    def fitting(self, own: Iterable[Message], *, limit: int, count: Callable[[Message], int]) -> History:
        """The newest whole turns that fit into a context window together with what is asked.

        Args:
            own: The system prompt and what is asked now; never left out.
            limit: How many tokens there is room for.
            count: How many tokens a message takes at most.
        """
        left = limit - sum(count(message) for message in own)
        start = len(self)
        while start >= 2:
            left -= count(self[start - 2]) + count(self[start - 1])
            if left < 0:
                break
            start -= 2
        found = History()
        found.extend(self[start:])
        found.digest, found.left_out = self.digest, self.left_out + start  # it rests on all of them still
        return found


@dataclass(slots=True)
class Slot:
    """A cell's place in a conversation.

    Attributes:
        cell: The cell's id; None for an execution without one.
        run: The execution that its turns are of.
        turns: What the cell asked in that execution, mostly once.
        restored: Whether it comes out of a file of an earlier kernel.
        latest: The last execution that began here.
    """

    cell: str | None
    run: str | None = None
    turns: list[Turn] = field(default_factory=list)
    restored: bool = False
    latest: str | None = None


class Conversation:
    """Turns in the order of their cells. Its methods may be called from any thread.

    Args:
        name: What it is called.
        redact: Takes keys out of a text: they are not kept here either.
        changed: Called after each change that a cell made.
        lock: Guards it; that of the registry it belongs to.
    """

    def __init__(
        self,
        name: str = "main",
        *,
        redact: Callable[[str], str] = str,
        changed: Callable[[], None] = lambda: None,
        lock: threading.RLock | None = None,
    ) -> None:
        self.name = name
        self.made_by: tuple[str, str] | None = None
        """The cell that made it as a fork, and the name of what it copied."""
        self._redact, self._changed = redact, changed
        self._lock = lock or threading.RLock()
        self._slots: list[Slot] = []

    def __len__(self) -> int:
        return len(self.turns)

    def __bool__(self) -> bool:
        return True  # an empty one is one, too

    def __repr__(self) -> str:
        return f"<Conversation {self.name!r}, {len(self)} turns>"

    @property
    def turns(self) -> list[Turn]:
        """All turns, oldest first."""
        with self._lock:
            return [turn for slot in self._slots for turn in slot.turns]

    @property
    def restored(self) -> int:
        """How many of the turns are of an earlier kernel."""
        with self._lock:
            return sum(len(slot.turns) for slot in self._slots if slot.restored)

    @property
    def stale(self) -> tuple[str, ...]:
        """The labels of the cells that rest on an older answer than is there now."""
        with self._lock:
            return tuple(dict.fromkeys(turn.label for slot, turn in self._resting() if turn.label))

    def before(self, cell: str | None, run: str | None = None) -> History:
        """What the cell sends before its own prompt; its place is taken from now on.

        Args:
            cell: The cell's id, None where the front end sends none.
            run: What tells this execution from another of the same cell (the request's id). A cell that asks several
                times in one execution goes on from its own earlier turns; without `run` each time counts as a new one.
        """
        with self._lock:
            slot = self._slot(cell, run)
            if slot is not None:
                slot.latest = run
            return self._history(slot, cell, run)

    def record(
        self,
        cell: str | None,
        asked: Message,
        answer: Response,
        *,
        label: str = "",
        run: str | None = None,
        sent: History | None = None,
    ) -> tuple[str, ...]:
        """Keep what the cell asked and was answered, in place of the turns of its earlier execution.

        An answer that was stopped or broke off counts as far as it came. Of one without text nothing is kept, and the
        turns before stay: most providers refuse an empty turn.

        Args:
            cell: The cell's id, as for `before`.
            asked: What was sent.
            answer: The answer.
            label: What to call the cell.
            run: The execution, as for `before`. Where another one of the same cell began meanwhile, or the
                conversation was reset, this one is too late, and nothing is kept.
            sent: What `before` returned; by default what it would return now.

        Returns:
            The labels of later cells that now rest on an older answer.
        """
        text = whole_characters(self._redact(str(answer)))
        if not text.strip():
            return ()
        asked = replace(asked, content=whole_characters(self._redact(asked.content)), tool_calls=(), tool_call_id=None)
        with self._lock:
            slot = self._slot(cell, run)
            if slot is None:
                slot = Slot(None)
                self._slots.append(slot)
            elif run is not None and slot.latest not in (None, run):
                return ()
            basis = self._history(slot, cell, run).digest if sent is None else sent.digest
            label = " ".join(label.split())[:LONGEST_LABEL]
            turn = Turn(asked, text, answer.provider, answer.model, answer.state, label, basis)
            again = run is not None and slot.run == run and slot.turns and not slot.restored
            slot.turns = [*slot.turns, turn] if again else [turn]
            slot.run, slot.restored = run, False
            self._trim()
            self._changed()
            later = self._slots[self._slots.index(slot) + 1 :]
            found = (turn.label for other, turn in self._resting() if any(other is one for one in later))
            return tuple(dict.fromkeys(label for label in found if label))

    def forget(self, cells: Collection[str] | None = None) -> bool:
        """Forget the turns of some cells (their ids) or of all; they keep their places. Whether there were any."""
        with self._lock:
            found = False
            for slot in self._slots:
                if cells is None or slot.cell in cells:
                    found = found or bool(slot.turns)
                    slot.turns, slot.run = [], None if slot.cell is not None else slot.run
                    slot.latest = _GIVEN_UP
            return found

    def slots(self) -> list[Slot]:
        """Copies of all places, for whoever stores or copies them."""
        with self._lock:
            return [replace(slot, turns=list(slot.turns)) for slot in self._slots]

    def take(self, slots: Sequence[Slot]) -> None:
        """Put these places in place of what is here."""
        with self._lock:
            self._slots = list(slots)
            self._trim()

    # -- inside, with the lock held

    def _slot(self, cell: str | None, run: str | None) -> Slot | None:
        """The cell's place, made at the end where it has none; None for an execution that nothing identifies."""
        if cell is None and run is None:
            return None
        if cell is not None and len(cell) > LONGEST_ID:
            cell = hashlib.sha256(cell.encode("utf-8", "replace")).hexdigest()
        for slot in reversed(self._slots):
            if slot.cell == cell and (cell is not None or (slot.run == run and not slot.restored)):
                return slot
        slot = Slot(cell, None if cell is not None else run)
        self._slots.append(slot)
        return slot

    def _history(self, slot: Slot | None, cell: str | None, run: str | None) -> History:
        history = History()
        for other in self._slots:
            if other is slot:
                if run is not None and slot.run == run:
                    for turn in slot.turns:
                        history.add(turn)
                break
            if cell is None and other.restored:
                continue
            for turn in other.turns:
                history.add(turn)
        return history

    def _resting(self) -> Iterator[tuple[Slot, Turn]]:
        """The turns that rest on something else than what stands before them now."""
        digest = without_restored = _START
        for slot in self._slots:
            for turn in slot.turns:
                expected = without_restored if slot.cell is None else digest
                # What was restored without an id belongs to no cell that could be run again.
                settled = turn.basis is None or (slot.cell is None and slot.restored)
                if not settled and turn.basis != expected:
                    yield slot, turn
                digest = turn.after(digest)
                if not slot.restored:
                    without_restored = turn.after(without_restored)

    def _trim(self) -> None:
        turns = [(slot, turn) for slot in self._slots for turn in slot.turns]
        size, number = sum(turn.size for _, turn in turns), len(turns)
        dropped = False
        for slot, turn in turns[:-1]:
            if number <= MAX_TURNS and size <= MAX_BYTES:
                break
            slot.turns.pop(0)
            size, number, dropped = size - turn.size, number - 1, True
        if dropped:  # what rests on them is not older for that
            for slot in self._slots:
                slot.turns = [replace(turn, basis=None) for turn in slot.turns]
        if len(self._slots) > MAX_SLOTS:
            self._slots = [slot for slot in self._slots[:-1] if slot.turns or slot.cell is not None] + self._slots[-1:]
            self._slots = self._slots[-MAX_SLOTS:]


def _digest(form: list[object]) -> str:
    return hashlib.sha256(json.dumps(form).encode("ascii")).hexdigest()
