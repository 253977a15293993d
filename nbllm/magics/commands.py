"""The commands of `%llm`: a table, so that help, completion and the README's reference come from one place."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbllm._loop import allow_nested_loops, background_loop
from nbllm.display.safe import safe_text
from nbllm.display.table import Table
from nbllm.errors import UsageError
from nbllm.magics.arguments import split
from nbllm.providers import registry
from nbllm.session import get_session

__all__ = ["COMMANDS", "Command", "run_command"]


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
    command = COMMANDS.get(name)
    if command is None:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean %llm {close[0]}?" if close else "Run %llm help to see the commands."
        raise UsageError(f"There is no command %llm {name}.", action=f"{hint} To ask a model, start a cell with %%llm.")
    needed = [argument for argument in command.arguments if not argument.endswith("?")]
    if not len(needed) <= len(arguments) <= len(command.arguments):
        raise UsageError(f"%llm {name} takes {_shown(command) or 'nothing'}.", action="Correct it.")
    return command.run(*arguments)


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
            model.context_window or "",
            "current" if (model.provider, model.id) == current else "",
        ]
        for model in sorted(models, key=lambda model: model.id)
    ]
    return Table(["model", "context window", ""], rows, note="Switch with: %llm use MODEL")


def _providers() -> Table:
    session = get_session()
    rows = [
        [
            name,
            spec.label,
            "runs here"
            if spec.local
            else "key found"
            if session.manager.has_key(name)
            else f"set {spec.key_variables[0]}",
            "current" if name == session.provider else "",
        ]
        for name, spec in registry().items()
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
    print("%%llm [MODEL] [options]   asks what the cell says; see %%llm --help\n")
    for name, command in COMMANDS.items():
        print(f"%llm {f'{name} {_shown(command)}'.ljust(width)}   {command.help}")


def _shown(command: Command) -> str:
    return " ".join(f"[{name[:-1]}]" if name.endswith("?") else name for name in command.arguments)


COMMANDS = {
    "use": Command(("MODEL",), "make another model answer: provider:model, a provider, an alias", _use),
    "models": Command(("PROVIDER?",), "list the models of the current provider, or of another", _models),
    "providers": Command((), "list the providers, and which have a key", _providers),
    "status": Command((), "show what answers, and with which parameters", _status),
    "trust": Command((), "trust this project's nbllm.toml as it is now", _trust),
    "nest": Command((), "let asyncio.run work inside a cell", _nest),
    "version": Command((), "show nbllm's version", _version),
    "help": Command((), "show this", _help),
}
