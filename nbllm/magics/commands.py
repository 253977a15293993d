"""The commands of `%llm`: a table, so that help, completion and the README's reference come from one place."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nbllm._loop import allow_nested_loops, background_loop
from nbllm.display.safe import safe_text
from nbllm.display.table import Table
from nbllm.errors import UsageError
from nbllm.magics import keys, log, settings, usage
from nbllm.magics.arguments import nearest, split
from nbllm.session import get_session
from nbllm.types import ModelInfo

__all__ = ["COMMANDS", "OTHER_NAMES", "Command", "run_command"]


@dataclass(frozen=True, slots=True)
class Command:
    """A command of `%llm`.

    Attributes:
        arguments: What follows its name, for the help; a trailing `?` marks one that may be left out.
        help: What it does.
        run: Called with the arguments; what it returns is displayed.
    """

    arguments: tuple[str, ...]
    help: str
    run: Callable[..., Any]


def run_command(line: str) -> Any:
    """Run `%llm LINE`.

    Raises:
        UsageError: where there is no such command, or too many or too few arguments.
    """
    name, *arguments = split(line) or ["status"]
    name = {"--help": "help", "-h": "help", "--version": "version"}.get(name, name)
    if name in OTHER_NAMES:
        name, *first = _meant(name, arguments)
        arguments = [*first, *arguments]
    command = COMMANDS.get(name)
    if command is None:
        close = nearest(name, [*COMMANDS, *OTHER_NAMES])
        hint = f"Did you mean %llm {close}?" if close else "Run %llm help to see the commands."
        raise UsageError(f"There is no command %llm {name}.", action=f"{hint} To ask a model, start a cell with %%llm.")
    needed = [argument for argument in command.arguments if not argument.endswith("?")]
    if not len(needed) <= len(arguments) <= len(command.arguments):
        raise UsageError(f"%llm {name} takes {_shown(command) or 'nothing'}.", action="Correct it.")
    return command.run(*arguments)


def _meant(name: str, arguments: Sequence[str]) -> list[str]:
    """What another magic's name of a command is here."""
    if name == "list" and arguments:
        return ["models"]
    return OTHER_NAMES[name].split()


def _use(model: str) -> None:
    session = get_session()
    session.use(model)
    print(safe_text(f"Now {session.provider}:{session.model} answers."))


def _status() -> Table:
    session = get_session()
    config = session.manager.config
    rows: list[list[Any]] = [
        ["provider", session.provider],
        ["model", session.model],
        ["max_tokens", session.max_tokens],
        ["temperature", session.temperature],
        ["system", session.system or "none"],
        ["project file", _project(config)],
    ]
    return Table(["setting", "value"], rows, note=_next_step(session))


def _project(config: Any) -> str:
    if config.project_file is None:
        return "none"
    ignored = f"; not trusted, so ignored: {', '.join(config.ignored)} (%llm trust)" if config.ignored else ""
    return f"{config.project_file}{ignored}"


def _next_step(session: Any) -> str:
    if session.provider == "huggingface" and session.model == "bundled":
        return "This is the small demonstration model. For a capable one: %llm use openai:MODEL"
    return ""


def _models(provider: str | None = None) -> Table:
    session = get_session()
    models = background_loop().run(session.manager.models(provider))
    current = (session.provider, session.model)
    rows = [
        [
            f"{model.provider}:{model.id}",
            f"{model.context_window:,}" if model.context_window else "",
            _price(model),
            "current" if (model.provider, model.id) == current else "",
        ]
        for model in sorted(models, key=lambda model: model.id)
    ]
    headings = ["model", "context window", "US dollars a million tokens, in / out", ""]
    return Table(headings, rows, note="Switch with: %llm use MODEL")


def _price(model: ModelInfo) -> str:
    if model.input_price is None or model.output_price is None:
        return ""
    return f"{model.input_price:g} / {model.output_price:g}"


def _providers() -> Table:
    session = get_session()
    rows = [
        [
            name,
            spec.label,
            "runs here"
            if spec.local
            else "needs none"
            if not spec.key_variables
            else "key found"
            if session.manager.has_key(name)
            else f"set {spec.key_variables[0]}",
            "current" if name == session.provider else "",
        ]
        for name, spec in session.manager.specs().items()
    ]
    return Table(["provider", "", "key", ""], rows)


def _trust() -> None:
    config = get_session().manager.config
    before = config.ignored
    path = config.trust()
    print(safe_text(f"{path} is trusted as it is now." + (f" It now sets: {', '.join(before)}." if before else "")))


def _nest() -> None:
    print(allow_nested_loops())


def _version() -> None:
    import nbllm

    print(f"nbllm {nbllm.__version__}")


def _help() -> None:
    width = max(len(f"{name} {_shown(command)}") for name, command in COMMANDS.items())
    print("%%llm [MODEL …] [options]   asks what the cell says; see %%llm --help\n")
    for name, command in COMMANDS.items():
        print(f"%llm {f'{name} {_shown(command)}'.ljust(width)}   {command.help}")
    print(f"\njupyter-ai's names do as well: {', '.join(f'{name} ({meant})' for name, meant in OTHER_NAMES.items())}")


def _shown(command: Command) -> str:
    return " ".join(f"[{name[:-1]}]" if name.endswith("?") else name for name in command.arguments)


def _lazy(module: str, function: str) -> Callable[..., Any]:
    """A command whose module is imported when it is first run: `%load_ext nbllm` stays light."""

    def run(*arguments: str) -> Any:
        return getattr(importlib.import_module(f"nbllm.magics.{module}"), function)(*arguments)

    return run


COMMANDS = {
    "use": Command(("MODEL",), "make another model answer: provider:model, a provider, an alias", _use),
    "models": Command(("PROVIDER?",), "list the models of the current provider, or of another", _models),
    "providers": Command((), "list the providers, and which have a key", _providers),
    "status": Command((), "show what answers, and with which parameters", _status),
    "fix": Command(
        ("N?",), "explain the last error, or that of cell N, and put the mended cell below", _lazy("fix", "fix")
    ),
    "explain": Command(("N?",), "explain the last error, or that of cell N", _lazy("fix", "explain")),
    "alias": Command(("NAME?", "MODEL?"), "show the short names of models, or make one", settings.alias),
    "dealias": Command(("ALIAS",), "forget a short name", settings.dealias),
    "config": Command((), "show the settings, and where each comes from", settings.config),
    "usage": Command((), "show what was used: calls, tokens and cost by model", usage.usage),
    "budget": Command(("USD?",), "show the budget, or set it; `off` ends it", usage.budget),
    "cache": Command(("ACTION?",), f"the kept answers: {', '.join(usage.CACHE_ACTIONS)}", usage.cache),
    "chat": Command(
        ("ACTION?", "CHAT?", "MORE?"),
        "the conversations: list, show, use, name, fork, reset, export, …",
        _lazy("chat", "chat"),
    ),
    "jobs": Command((), "list the cells that stream, and those that did", _lazy("jobs", "jobs")),
    "stop": Command(("JOB?",), "stop a background cell by its number, or `all`", _lazy("jobs", "stop")),
    "key": Command(("PROVIDER", "WHERE?"), f"ask for a key unseen, and keep it: {', '.join(keys.PLACES)}", keys.key),
    "log": Command(("N?",), "show the last calls on record; `on`, `off`, `path`", log.log),
    "trust": Command((), "trust this project's nbllm.toml as it is now", _trust),
    "nest": Command((), "let asyncio.run work inside a cell", _nest),
    "version": Command((), "show nbllm's version", _version),
    "help": Command((), "show this", _help),
}

OTHER_NAMES = {
    "list": "providers",
    "register": "alias",
    "update": "alias",
    "delete": "dealias",
    "error": "explain",
    "reset": "chat reset",
}
"""What jupyter-ai calls them."""
