"""`%%llm` asks; `%llm` commands. Both only parse, call the session and hand the stream to a view."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from nbllm.errors import UsageError
from nbllm.magics.arguments import HelpShown, cell_parser, parse
from nbllm.magics.commands import COMMANDS, run_command
from nbllm.session import get_session

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
        from nbllm.display.answer import follow, open_view
        from nbllm.display.safe import safe_text
        from nbllm.magics.interpolate import interpolate

        session = get_session()
        shell = self.shell
        assert shell is not None  # noqa: S101 - a registered magic has its shell
        prompt, filled = cell.strip("\n"), tuple[str, ...]()
        if not arguments.raw:
            found = interpolate(prompt, shell.user_ns, redact=session.manager.config.redact)
            prompt, filled = found.text, tuple(found.filled)
            for hint in found.hints:
                print(safe_text(hint))
        stream = session.manager.start(
            session.messages(prompt, arguments.system),
            arguments.model,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            **arguments.model_options,
        )
        response = follow(stream, lambda: open_view(shell, stream), filled)
        if arguments.output:
            shell.user_ns[arguments.output] = response
