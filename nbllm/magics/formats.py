"""`-f`: what the model is told about the form of its answer, and what is done with the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from nbllm.display.safe import safe_text
from nbllm.errors import UsageError
from nbllm.response import CodeBlock, Response

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["INSTRUCTIONS", "checked_json", "code_of", "done", "insert", "instructed", "proposed"]

INSTRUCTIONS: Final[Mapping[str, str]] = {
    "markdown": "",
    "text": "Answer in plain text, without Markdown.",
    "code": "Answer with Python code for one notebook cell, in a single fenced code block, and nothing else.",
    "json": "Answer with one JSON value and nothing else: no explanation, no code fence.",
    "html": "Answer with a fragment of HTML and nothing else: no explanation, no code fence, no scripts, no links to "
    "files elsewhere.",
    "math": "Answer with formulas in LaTeX, each between $$ and $$, and nothing else.",
}
"""What goes behind the system prompt, by format."""

PYTHON: Final = frozenset({"", "python", "python3", "py", "ipython", "ipython3"})
"""How a block of Python may be marked."""

# A cell that holds `%%llm`, perhaps below `%%time` or `%%capture`, after what IPython would strip from a line.
_ASKS = re.compile(r"^([ \t]*(?:(?:>>>|\.\.\.|In \[\d+\]:|   \.+:)[ \t]*)*%%llm)\b(?![^\n]*\s--raw\b)", re.MULTILINE)
_CELL_MAGIC = re.compile(r"%%(?!llm\b)[A-Za-z]")


def instructed(system: str | None, form: str) -> str | None:
    """The system prompt with what it has to say of the format."""
    said = [part for part in (system, INSTRUCTIONS[form]) if part]
    return "\n\n".join(said) or None


def code_of(answer: Response) -> str:
    """The code of an answer: its blocks of Python, else all its blocks, else all of it; empty where it says nothing."""
    blocks = answer.code_blocks
    wanted: list[CodeBlock] = [block for block in blocks if block.language.lower().strip("{}") in PYTHON] or blocks
    return "\n\n".join(block.code.strip("\n") for block in wanted) if blocks else str(answer).strip("\n")


def proposed(code: str, writer: str) -> str:
    """Model code as the text of a cell, for a person to read and run.

    Nothing of it runs by itself, and of the notebook's variables nothing is filled into it: a `%%llm` in it gets
    `--raw`. The first line says who wrote it, which also keeps a `%%llm` at the top from being a question before
    somebody has taken that line away. Characters that make code read other than it runs are left out.
    """
    code = _ASKS.sub(r"\1 --raw", safe_text(code))
    if _CELL_MAGIC.match(code):  # it has to stay the first line, and is no question
        return code
    head = f"# Written by {safe_text(writer)}; nothing of it has run."
    if code.lstrip().startswith("%%"):
        head += " Take this line away to use the magic."
    return f"{' '.join(head.split())}\n{code}"


def insert(shell: InteractiveShell, code: str, writer: str) -> None:
    """Put code into a new cell below; in the thread that runs the cell, once a cell: of two the last would stay."""
    shell.set_next_input(proposed(code, writer), replace=False)


def done(
    shell: InteractiveShell, answer: Response, form: str, *, cell: str | None, background: bool
) -> tuple[str, ...]:
    """Do with an answer that has ended what its format asks for; sentences to say below it.

    Args:
        shell: Where the cell runs.
        answer: What had arrived at the end.
        form: The format.
        cell: The cell's id, which front ends send that can put a cell below.
        background: Whether the cell has ended already.
    """
    if form == "code":
        if answer.state != "complete":
            return ()
        if answer.finish_reason == "length":
            return ("The code was cut at the most tokens, so it was put into no cell: raise -n.",)
        if code := code_of(answer):
            insert(shell, code, f"{answer.provider}:{answer.model}")
            return ("The code is in a new cell below.",) if cell is not None else ()
    if form == "json" and background and answer.state == "complete":
        try:
            checked_json(answer, None)
        except UsageError as exc:
            return (exc.message,)
    return ()


def checked_json(answer: Response, output: str | None) -> None:
    """Make sure that the answer is JSON.

    Raises:
        UsageError: where it is not; the text is shown and kept all the same.
    """
    try:
        answer.json()
    except UsageError:
        where = f"in {output}" if output else "above"
        cut = " It was cut at the most tokens: raise -n." if answer.finish_reason == "length" else ""
        raise UsageError(
            f"The answer is not JSON.{cut}",
            action=f"Its text is {where}. Ask again, or give a schema: -m '{{\"schema\": …}}'.",
        ) from None
