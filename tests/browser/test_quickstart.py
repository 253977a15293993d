"""The quickstart as a newcomer sees it: the notebook in JupyterLab, answered by the bundled model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nbformat
import pytest

from nbllm.__main__ import tutorials

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.harness import Notebook


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_quickstart_runs_from_top_to_bottom(notebook: Callable[..., Notebook], theme: str) -> None:
    """Every cell runs, every answer is drawn as markdown, and nothing is left of the live views."""
    pytest.importorskip("torch")
    cells = nbformat.read(tutorials() / "01_quickstart.ipynb", as_version=4).cells
    nb = notebook(*(("markdown", cell.source) if cell.cell_type == "markdown" else cell.source for cell in cells))
    nb.theme(theme)
    nb.run_all(timeout=120)
    answers = [index for index, cell in enumerate(cells) if cell.source.startswith("%%llm")]
    for index in answers:
        nb.output(index).locator(".jp-RenderedMarkdown").first.wait_for()
        nb.output(index).locator(".nbllm-answer").wait_for(state="detached")
    for part, index in enumerate((0, 6, 11, len(cells) - 1)):
        nb.cell(index).scroll_into_view_if_needed()
        nb.screenshot(f"quickstart-{theme}-{part}")
    assert not [
        output for cell in nb.saved().cells for output in cell.get("outputs", []) if output.output_type == "error"
    ]
    assert nb.errors == []
