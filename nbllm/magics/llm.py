"""`%%llm` asks; `%llm` commands. Both only parse, call the session and hand the stream to a view."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from nbllm.errors import UsageError
from nbllm.magics.arguments import HelpShown, cell_parser, check_models, parse
from nbllm.magics.commands import COMMANDS, run_command
from nbllm.session import get_session

if TYPE_CHECKING:
    from nbllm.display.compare import Comparison
    from nbllm.display.note import Note
    from nbllm.magics.prompt import Prompt
    from nbllm.response import ResponseStream
    from nbllm.session import LLM

__all__ = ["LLMMagics"]


@magics_class
class LLMMagics(Magics):
    """The magics `%llm` and `%%llm`."""

    @no_var_expand  # IPython would evaluate what stands in braces, calls included
    @line_cell_magic
    def llm(self, line: str, cell: str | None = None) -> Any:
        """Ask a language model, or command nbllm.

        `%%llm [MODEL] [options]` asks what the cell says; see `%%llm --help`.
        `%llm COMMAND` commands; see `%llm help`.
        """
        try:
            return run_command(line) if cell is None else self._ask(line, cell)
        except HelpShown as shown:
            print(str(shown).rstrip())
            return None

    def _ask(self, line: str, cell: str) -> None:
        arguments = parse(cell_parser(), line)
        if not cell.strip():
            command = line.split()[:1]
            hint = f"For the command write %llm {line.strip()}." if command and command[0] in COMMANDS else None
            raise UsageError("The cell has no prompt.", action=hint or "Write what you want to ask below %%llm.")
        from nbllm.display.safe import safe_text
        from nbllm.magics.prompt import composed

        session = get_session()
        manager = session.manager
        check_models(arguments.models, {*manager.specs(), *manager.config.aliases})
        shell = self.shell
        assert shell is not None  # noqa: S101 - a registered magic has its shell
        if notebook := shell.user_ns.get("__vsc_ipynb_file__"):  # VS Code's way to say it; Jupyter sets a variable
            manager.notebook = Path(str(notebook))
        prompt = composed(shell, session, arguments, cell)
        for hint in prompt.hints:
            print(safe_text(hint))
        models = arguments.models or [None]
        prompts = [prompt.fitting(session, model, arguments.max_tokens) for model in models]
        calls = [
            {**_call(arguments), "model": model, "messages": each.messages}
            for model, each in zip(models, prompts, strict=True)
        ]
        plans = [manager.plan(**call) for call in calls]  # raises before anything is sent
        if arguments.dry_run:
            from nbllm.magics.dry_run import described

            print(described(manager, plans, prompts[0].note))
            return
        if (arguments.no_history or len(models) > 1) and prompt.place.cell:
            session.chats.forget({prompt.place.cell})  # no turn of this cell any more, so none of before either
        if len(models) > 1:
            self._compare(session, [manager.start(**call) for call in calls], prompts[0], arguments)
        else:
            self._follow(session, manager.start(**calls[0]), prompts[0], arguments)

    def _follow(self, session: LLM, stream: ResponseStream, prompt: Prompt, arguments: argparse.Namespace) -> None:
        """One answer, in the cell or in the background."""
        from nbllm.display.answer import follow, follow_in_background, open_view
        from nbllm.magics.formats import checked_json, done

        shell, name = self.shell, arguments.output
        assert shell is not None  # noqa: S101
        if name and arguments.bg:
            shell.user_ns[name] = stream

        def ended(stream: ResponseStream) -> Note:
            answer = stream.response()
            # In the background somebody may have put something else there meanwhile.
            ours = not arguments.bg or shell.user_ns.get(name) is stream
            if name and ours and (answer or stream.state == "complete"):
                shell.user_ns[name] = answer
            lines = done(shell, answer, arguments.format, cell=prompt.place.cell, background=arguments.bg)
            return dataclasses.replace(prompt.note, stale=prompt.record(answer), lines=(*prompt.note.lines, *lines))

        try:
            session.jobs.add(stream, label=prompt.label, cell=prompt.place.cell, background=arguments.bg)
            if arguments.bg:
                follow_in_background(stream, open_view(shell, stream, prompt.note), prompt.note, ended=ended)
                return
            answer = follow(stream, lambda: open_view(shell, stream, prompt.note), prompt.note, ended=ended)
        except BaseException:  # an interrupt before the view is open
            stream.cancel()
            raise
        if arguments.format == "json" and answer.state == "complete":
            checked_json(answer, name)

    def _compare(
        self, session: LLM, streams: list[ResponseStream], prompt: Prompt, arguments: argparse.Namespace
    ) -> None:
        """Several answers side by side; none of them becomes a turn of the conversation."""
        from nbllm.display.compare import compare, named

        shell = self.shell
        assert shell is not None  # noqa: S101

        def ended(comparison: Comparison) -> Note:
            if arguments.output:
                shell.user_ns[arguments.output] = comparison
            return prompt.note

        try:
            for stream in streams:
                session.jobs.add(stream, label=prompt.label, cell=prompt.place.cell)
            compare(shell, named(streams), prompt.note, ended=ended)
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise


def _call(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the line says of how the call is made."""
    several = len(arguments.models) > 1
    return {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "stream": not arguments.no_stream,
        "cache": "refresh" if arguments.fresh else "off" if arguments.no_cache else None,
        "fallback": () if several else arguments.fallback,
        **arguments.model_options,
    }
