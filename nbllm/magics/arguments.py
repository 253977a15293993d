"""The grammar of `%%llm` and `%llm`: split by shell rules, with errors that name the nearest option."""

from __future__ import annotations

import argparse
import difflib
import json
import keyword
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nbllm.errors import UsageError

__all__ = ["HelpShown", "cell_parser", "parse", "split"]


TAKEN = {"self", "messages", "model", "max_tokens", "temperature", "stream"}
"""What a call says otherwise than by an option."""


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

    def options(self) -> list[str]:
        """All options."""
        return [name for action in self._actions for name in action.option_strings]


def cell_parser() -> _Parser:
    """The parser of the line `%%llm …`."""
    parser = _Parser(
        prog="%%llm",
        description="Ask the model what the cell says; the answer streams in below.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="whom to ask: provider:model, an alias, a name")
    parser.add_argument("-s", "--system", metavar="SYSTEM", help="a system prompt")
    parser.add_argument("-t", "--temperature", metavar="T", type=_number(float), help="the sampling temperature")
    parser.add_argument("-n", "--max-tokens", metavar="MAX", type=_number(int), help="the most tokens to answer with")
    parser.add_argument("-o", "--output", metavar="NAME", type=_name, help="put the answer into this variable")
    parser.add_argument(
        "-m",
        "--model-options",
        metavar="JSON",
        type=_json,
        default={},
        help="the provider's own options: '{\"seed\": 1}'",
    )
    parser.add_argument("--raw", action="store_true", help="fill in no {variables}")
    return parser


def parse(parser: _Parser, line: str) -> argparse.Namespace:
    """The line's arguments.

    Raises:
        UsageError: where it is not of the grammar; an option that is mistyped is answered with the nearest.
        HelpShown: for `--help`.
    """
    words = split(line, "Close it; the prompt goes on the lines below.")
    _check_options(parser, words)
    return parser.parse_args(words)


def split(line: str, action: str = "Close it.") -> list[str]:
    """The words of a line by shell rules.

    Raises:
        UsageError: where a quote is not closed; `action` says what to do.
    """
    try:
        return shlex.split(line)
    except ValueError as exc:
        raise UsageError(f"A quote is not closed in: {line.strip()}", action=action) from exc


def _check_options(parser: _Parser, words: Sequence[str]) -> None:
    known = parser.options()
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and len(option) > 2 and " " not in option and option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"See {parser.prog} --help."
            raise UsageError(f"There is no option {option}.", action=hint)


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from exc

    return convert


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
    if taken := sorted(TAKEN & set(value)):
        raise argparse.ArgumentTypeError(f"{', '.join(taken)} has a place of its own, not in the options")
    return value
