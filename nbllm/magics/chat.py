"""`%llm chat`: the conversations by name; shown, chosen, copied, exported, and stored beside the notebook."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from IPython.core.getipython import get_ipython

from nbllm.chats import Chats
from nbllm.display.safe import safe_markdown, safe_text
from nbllm.display.table import Table
from nbllm.errors import UsageError
from nbllm.magics.arguments import nearest
from nbllm.magics.cells import Place
from nbllm.session import get_session
from nbllm.transcript import markdown

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell

    from nbllm.conversation import Conversation

__all__ = ["ACTIONS", "Shown", "chat", "install", "uninstall"]


class Shown:
    """A conversation to read: markdown in a notebook, plain text in a terminal."""

    def __init__(self, conversation: Conversation) -> None:
        name, turns = conversation.name, conversation.turns
        empty = f"The conversation {name} is empty."
        shown = markdown(name, turns, stale=conversation.stale, headings=False)
        self._markdown = shown if turns else safe_markdown(empty)
        lines = []
        for turn in turns:
            files = "".join(f" (attached: {file.name or file.media_type})" for file in turn.asked.attachments)
            ending = {"complete": "", "interrupted": "\n(stopped here)"}.get(turn.state, "\n(breaks off here)")
            who = ":".join(filter(None, (turn.provider, turn.model))) or "answer"
            lines.append(f"{turn.label} you{files}: {turn.asked.content}\n{who}: {turn.answer}{ending}".strip())
        self._text = safe_text("\n\n".join(lines) or empty)

    def __str__(self) -> str:
        return self._text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/markdown": self._markdown, "text/plain": self._text}


def chat(action: str = "list", *arguments: str) -> Any:
    """Do with the conversations what ACTION says; by default list them."""
    do = ACTIONS.get(action)
    if do is None:
        close = nearest(action, list(ACTIONS))
        hint = f"Did you mean %llm chat {close}?" if close else f"There are: {', '.join(ACTIONS)}."
        raise UsageError(f"There is no %llm chat {action}.", action=hint)
    wanted = list(inspect.signature(do).parameters.values())[1:]
    needed = [parameter for parameter in wanted if parameter.default is parameter.empty]
    if not len(needed) <= len(arguments) <= len(wanted):
        raise UsageError(f"%llm chat {action} takes {_words(wanted) or 'nothing'}.", action="Correct it.")
    return do(_chats(), *arguments)


def _words(wanted: Sequence[inspect.Parameter]) -> str:
    said = [parameter.name.upper() for parameter in wanted]
    return " ".join(
        word if parameter.default is parameter.empty else f"[{word}]"
        for word, parameter in zip(said, wanted, strict=True)
    )


def _chats() -> Chats:
    session, shell = get_session(), get_ipython()
    if shell is not None and (notebook := shell.user_ns.get("__vsc_ipynb_file__")):
        session.manager.notebook = Path(str(notebook))
    return session.chats


def _say(text: str) -> None:
    print(safe_text(text))


def _turns(number: int) -> str:
    return f"{number:,} turn{'' if number == 1 else 's'}"


def _list(chats: Chats) -> Table:
    rows: list[list[Any]] = []
    for name in chats.names():
        found = chats.existing(name)
        turns = found.turns
        last = " ".join(turns[-1].asked.content.split()) if turns else ""
        restored = f"{found.restored:,} of an earlier kernel" if found.restored else ""
        stale = f"{', '.join(found.stale)} on an older answer" if found.stale else ""
        rows.append(
            [
                name,
                f"{len(turns):,}",
                last if len(last) <= 60 else f"{last[:59]}…",
                "; ".join(filter(None, ("current" if name == chats.current else "", restored, stale))),
            ]
        )
    return Table(["conversation", "turns", "asked last", ""], rows, note=_kept(chats))


def _kept(chats: Chats) -> str:
    if chats.problem:
        return safe_text(f"Not stored: {chats.problem}")
    if chats.file is None:
        return "Kept until the kernel ends. To store them beside the notebook: %llm chat save on"
    return safe_text(f"Stored in {_here(chats.file)}")


def _show(chats: Chats, name: str | None = None) -> Shown:
    return Shown(chats.existing(name))


def _use(chats: Chats, name: str) -> None:
    new = name.strip() not in chats.names()
    found = chats.use(name)
    goes_on = "a new conversation" if new else f"{_turns(len(found))} so far"
    _say(f"The conversation is now {found.name}: {goes_on}.")


def _name(chats: Chats, new: str, old: str | None = None) -> None:
    before = chats.existing(old).name
    _say(f"The conversation {before} is now called {chats.rename(new, old).name}.")


def _fork(chats: Chats, new: str, source: str | None = None) -> None:
    shell = get_ipython()
    copy = chats.fork(new, source, by=None if shell is None else Place.of(shell).cell)
    _say(f"The conversation is now {copy.name}, a copy with {_turns(len(copy))}.")


def _reset(chats: Chats, name: str | None = None) -> None:
    number = chats.reset(name)
    _say(f"The conversation {chats.current if name is None else name} begins anew; {_turns(number)} forgotten.")


def _delete(chats: Chats, name: str) -> None:
    number = chats.delete(name)
    _say(f"The conversation {name} is deleted, with {_turns(number)}. The current one is {chats.current}.")


def _export(chats: Chats, file: str, name: str | None = None) -> None:
    found = chats.export(_path(file), name)
    _say(f"The conversation {found.name} is in {file}, {_turns(len(found))}.")


def _import(chats: Chats, file: str, name: str | None = None) -> None:
    for found in chats.import_(_path(file), name):
        _say(f"There is a conversation {found.name} now, {_turns(len(found))}. To go on with it: %llm chat use")


def _save(chats: Chats, switch: str = "on") -> None:
    if switch not in ("on", "off"):
        raise UsageError(f"There is no %llm chat save {switch}.", action="Write on or off.")
    path = chats.save(switch == "on")
    if switch == "on":
        _say(f"The conversations are stored in {_here(path)} from now on, and are there again after a restart.")
    else:
        _say(f"The conversations are kept until the kernel ends, and not in {_here(path)} any more.")


def _here(path: Path) -> str:
    """The path as it is said in a notebook, which may be given to others: without the folders of this machine."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise UsageError(f"{text!r} is no path.", action="Write where the file is.") from exc


ACTIONS: Final[dict[str, Callable[..., Any]]] = {
    "list": _list,
    "show": _show,
    "use": _use,
    "name": _name,
    "fork": _fork,
    "reset": _reset,
    "delete": _delete,
    "export": _export,
    "import": _import,
    "save": _save,
}
"""What there is to do; its parameters after the first are what follows on the line."""


# -- cells that are deleted


def install(shell: InteractiveShell) -> None:
    """Forget the turns of cells that are deleted: JupyterLab says which with the next cell that it runs."""
    uninstall(shell)
    shell.events.register("pre_run_cell", _forget_deleted)


def uninstall(shell: InteractiveShell) -> None:
    """Take that away again."""
    if _forget_deleted in shell.events.callbacks["pre_run_cell"]:
        shell.events.unregister("pre_run_cell", _forget_deleted)


def _forget_deleted(info: ExecutionInfo) -> None:
    shell = get_ipython()
    parent: Any = getattr(shell, "get_parent", dict)() or {}
    deleted = parent.get("metadata", {}).get("deletedCells")
    if isinstance(deleted, list) and (cells := {cell for cell in deleted if isinstance(cell, str)}):
        get_session().chats.forget(cells)
