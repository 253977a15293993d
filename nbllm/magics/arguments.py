"""The grammar of `%%llm` and `%llm`: split by shell rules, with errors that name the nearest option."""

from __future__ import annotations

import argparse
import difflib
import json
import keyword
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from nbllm.errors import UsageError
from nbllm.magics.cells import selection

__all__ = ["FORMATS", "TAKEN", "HelpShown", "cell_parser", "check_models", "nearest", "parse", "split"]

FORMATS: Final = ("markdown", "text", "code", "json", "html", "math")
"""What an answer may be asked for as."""

SHORT_FORMATS: Final = {"md": "markdown"}
"""Names of formats that other magics have."""

TAKEN: Final = {
    "self": "nowhere: it is no option",
    "messages": "in the cell",
    "model": "at the beginning of the line",
    "max_tokens": "behind -n",
    "temperature": "behind -t",
    "stream": "in --no-stream",
    "cache": "in --fresh or --no-cache",
    "fallback": "behind --fallback",
}
"""What a call says otherwise than by an option, and where that is."""

CONFLICTS: Final = (
    ("bg", "dry_run", "--dry-run sends nothing, so there is nothing to do in the background."),
    ("bg", "no_stream", "In the background an answer streams."),
    ("bg", "code", "A cell can be put below only by a cell that still runs."),
    ("fresh", "no_cache", "--fresh puts the new answer into the cache, --no-cache leaves it out."),
    ("chat", "no_history", "--no-history belongs to no conversation."),
    ("several", "bg", "Models are compared in a cell that waits for them."),
    ("several", "no_stream", "Models are compared as they stream."),
    ("several", "code", "Of several answers none is the one to put into a cell."),
    ("several", "fallback", "A comparison shows what each model does itself."),
)
"""What does not go together, and why."""

WRITTEN: Final = {"several": "several models", "code": "-f code"}
"""How to say what is no option of its own."""


class HelpShown(Exception):  # noqa: N818 - not an error: the help was asked for
    """Raised in place of an exit, with the help."""


class _Parser(argparse.ArgumentParser):
    """A parser that raises, and knows what was meant."""

    def error(self, message: str) -> NoReturn:
        below = " The prompt goes on the lines below." if "unrecognized" in message else ""
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", action=f"See {self.prog} --help.{below}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown(message or "")

    def print_help(self, file: Any = None) -> None:
        raise HelpShown(self.format_help())

    def actions(self) -> dict[str, argparse.Action]:
        """All options, by each of their names."""
        return {name: action for action in self._actions for name in action.option_strings}

    def options(self) -> list[str]:
        """The names of all options."""
        return list(self.actions())


def cell_parser() -> _Parser:
    """The parser of the line `%%llm …`."""
    parser = _Parser(
        prog="%%llm",
        usage="%%%%llm [MODEL …] [options]",
        description="Ask the model what the cell says; the answer streams in below.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="whom to ask: provider:model, an alias, a name; several are compared side by side",
    )
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("-s", "--system", metavar="SYSTEM", help="a system prompt")
    asked.add_argument("-t", "--temperature", metavar="T", type=_number(float), help="the sampling temperature")
    asked.add_argument("-n", "--max-tokens", metavar="MAX", type=_number(int), help="the most tokens to answer with")
    asked.add_argument(
        "-m",
        "--model-options",
        metavar="JSON",
        type=_json,
        default={},
        help="the provider's own options: '{\"seed\": 1}'",
    )
    asked.add_argument(
        "--attach",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME|FILE",
        help="send variables (figures, images, arrays, tables, paths) or files along; MODEL goes before it",
    )
    asked.add_argument(
        "--context",
        metavar="CELLS",
        type=selection,
        help="send cells of this notebook along, with their outputs: 5, 1-3, last:3, all",
    )
    asked.add_argument("--raw", action="store_true", help="fill in no {variables}")
    talk = parser.add_argument_group("which conversation")
    talk.add_argument("--chat", metavar="NAME", help="the conversation that this cell belongs to, this once")
    talk.add_argument("--no-history", action="store_true", help="send no earlier turns, and remember none of this one")
    given = parser.add_argument_group("what becomes of the answer")
    given.add_argument(
        "-f",
        "--format",
        metavar="FORMAT",
        type=_one_of("format", FORMATS, SHORT_FORMATS),
        choices=FORMATS,
        default="markdown",
        help=f"{', '.join(FORMATS)}; code goes into a new cell below",
    )
    given.add_argument(
        "-o",
        "--output",
        metavar="NAME",
        type=_name,
        help="put the answer into this variable; with --bg the stream, until the answer is there",
    )
    made = parser.add_argument_group("how the call is made")
    made.add_argument("--fresh", action="store_true", help="a new answer in place of the one in the cache")
    made.add_argument("--no-cache", action="store_true", help="leave the cache alone")
    made.add_argument("--no-stream", action="store_true", help="the whole answer at once, by the provider's other call")
    made.add_argument("--dry-run", action="store_true", help="show what would be sent and may cost; send nothing")
    made.add_argument("--bg", action="store_true", help="answer in the background: the next cells can run meanwhile")
    made.add_argument(
        "--fallback",
        action="extend",
        type=_listed,
        metavar="MODELS",
        help="who answers where MODEL cannot: a,b, in this order",
    )
    return parser


def parse(parser: _Parser, line: str) -> argparse.Namespace:
    """The line's arguments.

    Raises:
        UsageError: where it is not of the grammar, or says what does not go together; an option that is mistyped is
            answered with the nearest.
        HelpShown: for `--help`.
    """
    words = split(line, "Close it; the prompt goes on the lines below.")
    _check_options(parser, words)
    found = parser.parse_intermixed_args(words)
    _check_conflicts(found)
    return found


def split(line: str, action: str = "Close it.") -> list[str]:
    """The words of a line by shell rules.

    Raises:
        UsageError: where a quote is not closed; `action` says what to do.
    """
    try:
        return shlex.split(line)
    except ValueError as exc:
        raise UsageError(f"A quote is not closed in: {line.strip()}", action=action) from exc


_LIKE_A_MODEL = re.compile(r"(?=.*[\d:/-])\w[\w.:/@+-]*")


def check_models(models: Sequence[str], known: set[str]) -> None:
    """Tell a comparison from a prompt that was begun on the wrong line: one word alone is always a model.

    Args:
        models: The words that stand where models do.
        known: The names of providers and the aliases.

    Raises:
        UsageError: where there are several and not each of them is known or looks like a model's name.
    """
    if len(models) < 2:
        return
    strange = [word for word in models if not {word, word.lower()} & known and not _LIKE_A_MODEL.fullmatch(word)]
    if strange:
        raise UsageError(
            f"{', '.join(strange[:3])}{' …' if strange[3:] else ''} cannot be told from a prompt.",
            action="The prompt goes on the lines below. To compare models, name each as provider:model.",
        )


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The one of the known words that was probably meant."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return close[0] if close else None


def _check_options(parser: _Parser, words: Sequence[str]) -> None:
    known = parser.options()
    for word in words:
        if word == "--":
            return
        option = word.partition("=")[0]
        if " " in option or not option.startswith("-") or len(option) < 2 or option[1].isdigit() or option in known:
            continue
        meant = _meant(option, known)
        if option.startswith("--") or option[:2] not in known or meant:
            hint = f"Did you mean {meant}?" if meant else f"See {parser.prog} --help."
            raise UsageError(f"There is no option {option}.", action=hint)


def _meant(option: str, known: Sequence[str]) -> str | None:
    if option.startswith("--"):
        return nearest(option, known)
    if len(option) == 2:
        return next((name for name in known if name.lower() == option.lower()), None)
    return nearest(f"-{option}", [name for name in known if name.startswith("--")], cutoff=0.8)


def _check_conflicts(found: argparse.Namespace) -> None:
    said = {
        **vars(found),
        "several": len(found.models) > 1,
        "code": found.format == "code",
    }
    for one, other, why in CONFLICTS:
        if said[one] and said[other]:
            names = [WRITTEN.get(name, f"--{name.replace('_', '-')}") for name in (one, other)]
            raise UsageError(f"{names[0][:1].upper()}{names[0][1:]} and {names[1]} do not go together.", action=why)


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from exc

    return convert


def _one_of(what: str, known: Sequence[str], short: dict[str, str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        word = short.get(text.lower(), text.lower())
        if word in known:
            return word
        meant = nearest(word, [*known, *short], cutoff=0.5)
        hint = f"Did you mean {meant}? " if meant else ""
        raise UsageError(f"There is no {what} {text!r}.", action=f"{hint}There are: {', '.join(known)}.")

    return convert


def _listed(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _name(text: str) -> str:
    if not text.isidentifier() or keyword.iskeyword(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a variable")
    return text


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    if taken := sorted(TAKEN.keys() & value.keys()):
        places = "; ".join(f"{name} has a place of its own, {TAKEN[name]}" for name in taken)
        raise argparse.ArgumentTypeError(f"{places}; it is not for the options")
    return value
