"""Tab in `%llm` and `%%llm`: commands and what stands behind them, options, models, chats, files, variables in braces.

A matcher of IPython's completer, so that it works wherever IPython completes: JupyterLab, consoles, the terminal. What
is replaced is our own count of the word before the cursor, since IPython's ends at `:`, `-` and `/`.

In a cell's prose nothing is to be completed, and nobody else may answer either: jedi takes prose for Python.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from IPython.core.completer import SimpleCompletion, context_matcher

from nbllm.magics import candidates
from nbllm.magics.interpolate import in_fence

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext, SimpleMatcherResult
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["Found", "find", "install", "uninstall"]

IDENTIFIER: Final = "nbllm"
FIRST: Final = 1000.0
"""The matcher's priority: what it takes for its own, the others are not asked for."""

MOST: Final = 300
"""Completions in one answer; IPython gives at most 500 on."""

REPEATED: Final = frozenset({"--attach", "--fallback"})
"""Options that may come more than once."""

logger = logging.getLogger("nbllm.magics")

_CELL = re.compile(r"\s*%%llm(?=\s|$)")
_LINE = re.compile(r"\s*(?:[^\W\d][\w.\[\], ]*=\s*)?%llm\s")
_PATH = re.compile(r"((?:[^\W\d]\w*\.)*)([^\W\d]\w*)?$")
_KEY = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)\[(['\"])([^'\"\\\n]*)$")
_PLAIN_WORD = re.compile(r"[\w@%+=:,./~|-]+")


@dataclass(frozen=True, slots=True)
class Found:
    """What may stand in the place of a piece of text.

    Attributes:
        fragment: What stands before the cursor and is replaced.
        texts: What it may become, the likeliest first; where there is nothing, nobody else is to answer.
        kind: What they are, for the front end's list.
    """

    fragment: str = ""
    texts: tuple[str, ...] = ()
    kind: str = ""


class _Nothing(Sequence[SimpleCompletion]):
    """No completions, of which there is one: a matcher without any cannot ask that the others be left out."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, at: object) -> NoReturn:
        raise IndexError(at)


def install(shell: InteractiveShell) -> None:
    """Complete in this shell from now on."""
    uninstall(shell)

    @context_matcher(priority=FIRST, identifier=IDENTIFIER)  # type: ignore[untyped-decorator]
    def match(context: CompletionContext) -> SimpleMatcherResult:
        try:
            found = find(shell, context.full_text, context.cursor_line, context.cursor_position)
        except Exception:  # IPython would print the traceback over what is being typed
            logger.debug("a completion failed", exc_info=True)
            found = None
        if found is None:
            return {"completions": [], "suppress": False}
        shown = [
            SimpleCompletion(text, type="option" if text.startswith("-") else found.kind) for text in found.texts[:MOST]
        ]
        return {
            "completions": shown or _Nothing(),
            "matched_fragment": found.fragment,
            "suppress": True,
            "ordered": True,
        }

    shell.Completer.custom_matchers.append(match)


def uninstall(shell: InteractiveShell) -> None:
    """Complete no more, and fetch no lists."""
    known = shell.Completer.custom_matchers
    known[:] = [matcher for matcher in known if getattr(matcher, "matcher_identifier", None) != IDENTIFIER]
    candidates.LISTS.close()


def find(shell: InteractiveShell, text: str, line: int, column: int) -> Found | None:
    """What may stand at the cursor; None where it is none of our business.

    Args:
        shell: Whose variables there are.
        text: The whole cell.
        line: The line of the cursor, from 0.
        column: The cursor's place in it.
    """
    if "%llm" not in text:  # this is asked in every cell
        return None
    lines = text.split("\n")
    first = next((number for number, content in enumerate(lines) if content.strip()), 0)
    before, behind = lines[line][:column], lines[line][column:]
    if cell := _CELL.match(lines[first]):
        if line > first:
            prompt = _prompt(shell, lines[first][cell.end() :], lines[first + 1 : line], before, behind)
            return prompt or Found()
        return _options(shell, before[cell.end() :]) if line == first and column > cell.end() else None
    if command := _LINE.match(before):
        return _command(before[command.end() :])
    return None


# -- the line of a command


def _command(text: str) -> Found:
    from nbllm.magics.commands import COMMANDS, OTHER_NAMES

    word = _Word.last_of(text)
    if not word.before:
        return word.found([*COMMANDS, *(OTHER_NAMES if word.written else ())], "command")
    name, *given = word.before
    name, *first = OTHER_NAMES.get(name, name).split()
    arguments = COMMANDS[name].arguments if name in COMMANDS else ()
    at = len(first) + len(given)
    if arguments and "…" in arguments[-1]:
        at = min(at, len(arguments) - 1)
    if at >= len(arguments):
        return Found()
    argument = arguments[at].rstrip("?…")
    known = (f"{' '.join([name, *first, *given][:2])} {argument}", f"{name} {argument}", argument)
    source = next((candidates.ARGUMENTS[key] for key in known if key in candidates.ARGUMENTS), None)
    return word.found(source, argument.lower())


# -- the line of a cell


def _options(shell: InteractiveShell, text: str) -> Found:
    from nbllm.magics.arguments import cell_parser

    word = _Word.last_of(text)
    actions = cell_parser().actions()
    option, equals, _ = word.written.partition("=")
    if equals and option in actions:
        return _value(shell, actions[option], word.behind(len(option) + 1))
    waiting = _waiting(actions, word.before)
    if waiting is not None:
        return _value(shell, waiting, word)
    used = [actions[name] for given in word.before if (name := given.partition("=")[0]) in actions]
    open_ = [name for name, action in actions.items() if action not in used or REPEATED & {*action.option_strings}]
    if word.written.startswith("-"):
        return word.found([*(name for name in open_ if name[:2] == "--"), *open_], "option")
    open_ = [] if word.written else [name for name in open_ if name.startswith("--")]
    return word.found(lambda typed: [*candidates.models(typed), *open_], "model")


def _waiting(actions: dict[str, argparse.Action], words: Sequence[str]) -> argparse.Action | None:
    """The option whose value comes next."""
    for number in range(len(words), 0, -1):
        if action := actions.get(words[number - 1]):
            values = len(words) - number
            most = action.nargs if isinstance(action.nargs, int) else 1
            return action if action.nargs in ("+", "*") or values < most else None
        if words[number - 1].startswith("--"):  # --option=value
            return None
    return None


def _value(shell: InteractiveShell, action: argparse.Action, word: _Word) -> Found:
    if action.choices is not None:
        return word.found([str(choice) for choice in action.choices], "value")
    if "--fallback" in action.option_strings:
        return word.behind(word.written.rfind(",") + 1).found(candidates.models, "model")
    if "--context" in action.option_strings:
        return word.found(("last:3", "all"), "value")
    if "--chat" in action.option_strings:
        return word.found(candidates.ARGUMENTS["CHAT"], "chat")
    if "--attach" in action.option_strings:
        return word.found(lambda typed: [*candidates.drawings(shell.user_ns), *candidates.files(typed)], "path")
    return Found()


# -- the prompt


def _prompt(shell: InteractiveShell, options: str, above: Sequence[str], before: str, behind: str) -> Found | None:
    """What may stand at the cursor between the braces of a prompt."""
    opened = before.rfind("{")
    if opened < 0 or "}" in before[opened:] or before[opened - 1 : opened] == "{":
        return None
    if "--raw" in options.split() or in_fence("".join(f"{line}\n" for line in above)):
        return None
    from nbllm.magics.executions import namespace

    known, inner = namespace(shell), before[opened + 1 :]
    if key := _KEY.search(inner):
        value = candidates.value_of(known, key[1].split("."))
        closing = "" if behind.startswith(key[2]) else key[2] if behind.startswith("]") else f"{key[2]}]"
        keys = candidates.keys_of(value[0]) if value else []
        return _beginning(key[3], (f"{name}{closing}" for name in keys if not set(name) & {"'", '"', "\\"}), "key")
    path = _PATH.search(inner.removeprefix("="))
    if path is None or (not inner.startswith("=") and path[0] != inner) or inner[: -len(path[0]) or None][-1:] == ".":
        return None
    written = path[2] or ""
    if not path[1]:
        return _beginning(written, candidates.names(known, hidden=shell.user_ns_hidden), "variable")
    value = candidates.value_of(known, path[1][:-1].split("."))
    return _beginning(written, candidates.attributes(value[0]) if value else (), "attribute")


def _beginning(written: str, texts: Iterable[str], kind: str) -> Found | None:
    """Those that begin with what is written; names with an underscore in front only where one is written."""
    kept = tuple(text for text in texts if text.startswith(written or ""))
    kept = tuple(text for text in kept if kind == "key" or written.startswith("_") or not text.startswith("_"))
    return Found(written, kept, kind) if kept else None


# -- words


@dataclass(frozen=True, slots=True)
class _Word:
    """The word before the cursor, in a line that is split by shell rules.

    Attributes:
        before: The words before it.
        written: The word as it is written, quotes and backslashes included.
    """

    before: tuple[str, ...]
    written: str

    @classmethod
    def last_of(cls, text: str) -> _Word:
        start: int | None = None
        quote = ""
        skip = False
        for at, character in enumerate(text):
            if skip:
                skip = False
            elif quote:
                skip = character == "\\" and quote == '"'
                quote = "" if character == quote else quote
            elif character.isspace():
                start = None
                continue
            else:
                skip = character == "\\"
                quote = character if character in "'\"" else ""
            start = at if start is None else start
        end = len(text) if start is None else start
        return cls(tuple(shlex.split(text[:end])), text[end:])

    def behind(self, length: int) -> _Word:
        """The same without its first so many characters."""
        return _Word(self.before, self.written[length:])

    def found(self, source: Iterable[str] | Callable[[str], Iterable[str]] | None, kind: str) -> Found:
        """What it may become, out of these."""
        typed = self._meant()
        texts = source(typed) if callable(source) else source or ()
        kept = dict.fromkeys(text for text in _matching(typed, texts, kind) if _harmless(text))
        shown = tuple(written for text in kept if (written := self._write(text)))
        return Found(self.written, shown, kind)

    def _meant(self) -> str:
        """The word without its quotes, which may be open."""
        for closing in ("", '"', "'"):
            try:
                return "".join(shlex.split(self.written + closing))
            except ValueError:
                continue
        return self.written.rstrip("\\")

    def _write(self, text: str) -> str:
        """A word so that it is read as the text; empty where it cannot be in this kind of quotes."""
        quote = self.written[:1] if self.written[:1] in ("'", '"') else ""
        if not quote and _PLAIN_WORD.fullmatch(text):
            return text
        if not quote and "\\" in self.written:
            return re.sub(r"([^\w@%+=:,./~|-])", r"\\\1", text)
        quote = quote or ('"' if "'" in text else "'")
        if quote == "'" and quote in text:
            return ""
        inside = re.sub(r'(["\\])', r"\\\1", text) if quote == '"' else text
        return f"{quote}{inside}" + ("" if text.endswith("/") else quote)  # in a folder one goes on


def _matching(typed: str, texts: Iterable[str], kind: str) -> Iterator[str]:
    """The texts that begin so; of models also those whose name behind the provider does, after the others."""
    beginning, later = typed.lower(), []
    for text in texts:
        if text.lower().startswith(beginning):
            yield text
        elif kind == "model" and text.partition(":")[2].lower().startswith(beginning):
            later.append(text)
    yield from later


def _harmless(text: str) -> bool:
    """Whether a server's or a folder's name can be shown in a terminal and stand in one line."""
    return text.isprintable()
