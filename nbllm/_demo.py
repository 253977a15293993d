"""`nbllm demo`: the quickstart notebook in a real kernel, its answers in the terminal as they stream."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any, TextIO

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from nbllm.display.safe import safe_text
from nbllm.errors import MissingExtraError

__all__ = ["run_demo"]

NEXT_STEPS = """\
What next?
  nbllm lab       open the tutorials in JupyterLab
  nbllm doctor    see what works on this machine, and what to do about what does not"""

BUNDLED_NOTE = """\
The answers above came from a tiny demonstration model. For a capable one, set a key in the
environment (OPENAI_API_KEY) and write in a notebook:  %llm use openai:MODEL"""


class _Terminal:
    """Prints a notebook as it runs. An output that is updated is printed on from where it had come to."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colour = out.isatty() and "NO_COLOR" not in os.environ
        self._shown: dict[str, str] = {}
        self._column = 0

    def markdown(self, text: str) -> None:
        """A cell of prose; its headings stand out."""
        for line in text.splitlines():
            heading = line.startswith("#")
            self._line(re.sub(r"[*`]|\[(.*?)\]\(.*?\)", r"\1", line.lstrip("# ")), "1" if heading else "")
        self._line("")

    def code(self, source: str, number: int) -> None:
        """A cell of code, before it runs."""
        for index, line in enumerate(source.splitlines()):
            prompt = f"In [{number}]: " if index == 0 else " " * len(f"In [{number}]: ")
            self._line(prompt + line, "36")
        self._shown.clear()

    def message(self, kind: str, content: dict[str, Any]) -> None:
        """One message of the kernel."""
        if kind == "stream":
            self._write(safe_text(content["text"]))
        elif kind in ("display_data", "update_display_data", "execute_result"):
            display = content.get("transient", {}).get("display_id", "")
            self._grow(display, safe_text(content["data"].get("text/plain", "")))
        elif kind == "error":
            for line in content["traceback"]:
                self._line(line, "31")

    def end_cell(self) -> None:
        """A cell is through."""
        if self._column:
            self._line("")
        self._line("")

    def _grow(self, display: str, text: str) -> None:
        before = self._shown.get(display, "") if display else ""
        if text == "…":  # the place of an answer that has not begun
            return
        if not text.startswith(before):
            self._write("\n")
            before = ""
        self._write(text[len(before) :])
        self._shown[display] = text
        if not display:
            self._write("\n")

    def _line(self, text: str, style: str = "") -> None:
        self._write(f"\x1b[{style}m{text}\x1b[0m\n" if self._colour and style else f"{text}\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
        self._column = len(text) - text.rfind("\n") - 1 if "\n" in text else self._column + len(text)


class _Client(NotebookClient):  # type: ignore[misc]  # nbclient is untyped
    """Runs a notebook and shows each message as it comes."""

    terminal: _Terminal

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        self.terminal.message(msg["msg_type"], msg["content"])
        return super().process_message(msg, cell, cell_index)

    async def async_execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        if cell.cell_type == "markdown":
            self.terminal.markdown(cell.source)
            return cell
        self.terminal.code(cell.source, self.code_cells_executed + 1)
        try:
            return await super().async_execute_cell(cell, cell_index, *args, **kwargs)
        finally:
            self.terminal.end_cell()


def run_demo(tutorials: Path, folder: Path, model: str, out: TextIO | None = None) -> int:
    """Run the quickstart, write it executed and as a page into `folder`; the exit status.

    Args:
        tutorials: Where the tutorial notebooks are.
        folder: Where to write; made if need be.
        model: Who answers.
        out: Where to show it.
    """
    out = out or sys.stdout
    if model.startswith("huggingface:") and importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "local")
    notebook = nbformat.read(tutorials / "01_quickstart.ipynb", as_version=4)
    folder.mkdir(parents=True, exist_ok=True)
    client = _Client(
        notebook,
        kernel_name="python3",
        timeout=300,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # a kernel's own notes are not for this audience
    )
    client.terminal = _Terminal(out)
    # The demo needs no key and costs nothing, whatever keys there are in the environment.
    environment = {**os.environ, "NBLLM_MODEL": model, "PYTHONWARNINGS": "ignore"}
    failed = False
    print(
        "Starting a kernel. The first answer takes a few seconds more: the model is loaded for it.\n",
        file=out,
    )
    try:
        client.execute(env=environment)
    except CellExecutionError:
        failed = True  # the cell's error is shown already, and the notebook is written as far as it came
    executed, page = folder / "01_quickstart.ipynb", folder / "01_quickstart.html"
    _forget_times(notebook)
    nbformat.write(notebook, executed)
    page.write_text(_page(notebook), "utf-8")
    print(f"The executed notebook: {executed.resolve()}\nThe same as a page:     {page.resolve()}\n", file=out)
    if failed:
        print("The cell above failed: do what its arrow says, or run `nbllm doctor`.", file=out)
        return 1
    print(NEXT_STEPS, file=out)
    if model == "huggingface:bundled":
        print(BUNDLED_NOTE, file=out)
    return 0


def _forget_times(notebook: Any) -> None:
    for cell in notebook.cells:  # two runs of the demo are to give the same file
        cell.metadata.pop("execution", None)


def _page(notebook: Any) -> str:
    from nbconvert import HTMLExporter

    html: str
    html, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    return html
