"""What a cell asks, put together: system prompt, earlier turns, context, attachments, the filled-in prompt."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nbllm.conversation import Conversation, History
from nbllm.display.note import Note
from nbllm.magics.attach import attached
from nbllm.magics.cells import Place, context
from nbllm.magics.executions import namespace
from nbllm.magics.formats import instructed
from nbllm.magics.interpolate import interpolate
from nbllm.response import Response
from nbllm.types import Message

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from nbllm.session import LLM

__all__ = ["Prompt", "composed"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a cell asks.

    Attributes:
        system: The system prompt.
        history: The earlier turns that are sent along.
        asked: The cell's own turn.
        note: What is to be said below the answer.
        hints: Sentences about braces that look like a slip.
        conversation: Where the turn is kept; None where it is not.
        place: Which cell asks.
    """

    system: str | None
    history: History
    asked: Message
    note: Note
    hints: tuple[str, ...] = ()
    conversation: Conversation | None = None
    place: Place = field(default_factory=Place)

    @property
    def messages(self) -> list[Message]:
        """All that is sent, oldest first."""
        return [*self._opening, *self.history, self.asked]

    @property
    def _opening(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def fitting(self, session: LLM, model: str | None, max_tokens: int | None) -> Prompt:
        """The same with as many of the earlier turns as the model has room for; how many are left out is said."""
        history = session.fitting(self.history, [*self._opening, self.asked], model, max_tokens)
        out = history.left_out
        lines = (f"{out} older message{'' if out == 1 else 's'} had no room",) if out else ()
        return replace(self, history=history, note=replace(self.note, history=len(history), lines=lines))

    @property
    def label(self) -> str:
        """What to call the call in a list."""
        return f"{self.place.label} {self.asked.content}".strip()

    def record(self, answer: Response) -> tuple[str, ...]:
        """Keep the turn in its conversation; the labels of later cells that now rest on an older answer."""
        if self.conversation is None:
            return ()
        place = self.place
        return self.conversation.record(
            place.cell, self.asked, answer, label=place.label, run=place.run, sent=self.history
        )


def composed(shell: InteractiveShell, session: LLM, arguments: argparse.Namespace, cell: str) -> Prompt:
    """The cell's prompt.

    Raises:
        NbllmError: where something that it names cannot be sent; the error says what to do.
    """
    redact = session.manager.config.redact
    text, filled, hints = cell.strip("\n"), tuple[str, ...](), tuple[str, ...]()
    if not arguments.raw:
        found = interpolate(text, namespace(shell), redact=redact)
        text, filled, hints = found.text, found.filled, found.hints
    along = attached(arguments.attach, shell.user_ns)
    before = [context(shell, arguments.context)] if arguments.context else []
    # What goes along stands in front of what is asked of it, and is no template: it is put there after the filling.
    asked = Message("user", redact("\n\n".join([*before, *along.texts, text])), along.files)
    place = Place.of(shell)
    conversation = _conversation(session, arguments)
    history = History() if conversation is None else conversation.before(place.cell, place.run)
    system = instructed(session.system if arguments.system is None else arguments.system, arguments.format)
    return Prompt(
        system=system,
        history=history,
        asked=asked,
        note=Note(filled=filled, history=len(history), format=arguments.format),
        hints=hints,
        conversation=conversation,
        place=place,
    )


def _conversation(session: LLM, arguments: argparse.Namespace) -> Conversation | None:
    """The conversation that the cell belongs to; for a dry run a copy, in which it may take its place unseen."""
    if arguments.no_history:
        return None
    if not arguments.dry_run:
        return session.conversation(arguments.chat)
    copy = Conversation()
    if arguments.chat is None or arguments.chat.strip() in session.chats.names():
        copy.take(session.conversation(arguments.chat).slots())
    return copy
