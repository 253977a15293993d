"""Tab in the real JupyterLab: what is taken from the list stands where the word stood."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.harness import Notebook
    from tests.wire import Wire

LIST = ".jp-Completer:not(.lm-mod-hidden)"


@pytest.fixture
def nb(notebook: Callable[..., Notebook], wire: Wire) -> Notebook:
    """A notebook with nbllm loaded and a variable, whose last cell is empty."""
    wire.models = ["gpt-5.4", "o9-pro"]
    env = {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-browser-0123456789"}
    opened = notebook("%load_ext nbllm\nalphabet = 'abc'", "", env=env)
    opened.run(0)
    return opened


def take(nb: Notebook, typed: str, wanted: str, seconds: float = 20) -> str:
    """Type into the empty last cell, press Tab until the list has what is wanted, and take it; the cell's source."""
    nb.edit(1, "")
    nb.cell(1).locator(".cm-content").click()
    nb.page.keyboard.type(typed)
    end = time.monotonic() + seconds
    while True:
        nb.page.keyboard.press("Tab")
        nb.page.locator(LIST).wait_for()
        item = nb.page.locator(f"{LIST} .jp-Completer-item").filter(has_text=wanted)
        if item.count():
            break
        assert time.monotonic() < end, nb.page.locator(LIST).all_inner_texts()
        nb.page.keyboard.press("Escape")
        nb.cell(1).locator(".cm-content").click()
        nb.page.keyboard.press("Control+End")
    nb.screenshot("complete-" + "".join(c if c.isalnum() else "-" for c in typed))
    item.first.click()
    nb.page.locator(LIST).wait_for(state="detached")
    return nb.source(1)


def test_what_is_taken_replaces_the_word(nb: Notebook) -> None:
    """Names with colons and hyphens, options, and variables in a prompt's braces."""
    assert take(nb, "%%llm openai:o", "openai:o9-pro") == "%%llm openai:o9-pro"
    assert take(nb, "%llm use huggingface-h", "huggingface-hosted:openai/gpt-oss-20b") == (
        "%llm use huggingface-hosted:openai/gpt-oss-20b"
    )
    assert take(nb, "%%llm openai:m --no-h", "--no-history") == "%%llm openai:m --no-history"
    assert take(nb, "%%llm\nSay {alp", "alphabet") == "%%llm\nSay {alphabet"
