"""What `%%llm` puts into the notebook besides its answer, in the real JupyterLab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.harness import Notebook
    from tests.wire import Wire


@pytest.fixture
def openai(wire: Wire) -> dict[str, str]:
    """Variables for a kernel whose OpenAI is the wire server."""
    return {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-browser-0123456789"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_code_and_mended_cells_appear_below_and_do_not_run(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str], theme: str
) -> None:
    """`-f code` and `%llm fix` each put one cell below theirs, which has not run; the answer stays in the output."""
    code = wire.script("coder", text="```python\nprimes = [2, 3, 5]\n```", gates=[2])
    said = "The list is empty, so its mean has no divisor.\n\n```python\nmean = 0\n```"
    mended = wire.script("mender", text=said, gates=[4])
    nb = notebook(
        "%load_ext nbllm\n%llm use openai:mender",
        "%%llm openai:coder -f code\nThree primes",
        "values = []\nmean = sum(values) / len(values)",
        "%llm fix",
        env=openai,
    )
    nb.theme(theme)
    nb.run(0)
    nb.run(1, wait=False)
    nb.output(1).locator(".nbllm-answer-body").get_by_text("primes").wait_for()
    assert len(nb) == 4
    code.release()
    nb.wait_idle()
    assert len(nb) == 5
    assert nb.source(2) == "# Written by openai:coder; nothing of it has run.\nprimes = [2, 3, 5]"
    nb.run(3)
    nb.run(4, wait=False)
    nb.output(4).locator(".nbllm-answer-body").get_by_text("The list").wait_for()
    mended.release()
    nb.wait_idle()
    assert len(nb) == 6
    assert nb.source(5) == "# Written by openai:mender; nothing of it has run.\nmean = 0"
    nb.output(4).get_by_text("The list is empty").wait_for()
    assert nb.evaluate("print([name in globals() for name in ('primes', 'mean')])").strip() == "[False, False]"
    nb.output(1).locator(".nbllm-answer").wait_for(state="detached")
    nb.output(4).locator(".nbllm-answer").wait_for(state="detached")
    nb.screenshot(f"grammar-cells-{theme}")
    assert nb.errors == []


def test_commands_and_a_dry_run_are_readable(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """What would be sent, the settings and the help stand in the output as text and tables."""
    nb = notebook(
        "%load_ext nbllm\n%llm alias fast openai:ok\ncity = 'Paris'",
        "%%llm fast -s 'Be brief.' --dry-run\nWhat is {city}?",
        "%llm config",
        "%%llm --temprature 1\nHi",
        "%llm help",
        env=openai,
    )
    for cell in range(5):
        nb.run(cell)
    nb.wait_idle()
    assert "What is Paris?" in nb.output(1).inner_text()
    assert wire.requests == []
    nb.output(2).locator("table").wait_for()
    assert "Did you mean --temperature?" in nb.output(3).inner_text()
    for cell in range(1, 5):
        nb.screenshot(f"grammar-command-{cell}", of=nb.cell(cell))
    assert nb.errors == []
