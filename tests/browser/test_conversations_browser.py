"""Conversations in the real JupyterLab: the ids that it sends, deleted cells, and the file beside the notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.test_conversations import NOTEBOOK, SENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.harness import Notebook
    from tests.wire import Wire


@pytest.fixture
def env(wire: Wire) -> dict[str, str]:
    """Variables for a kernel whose OpenAI is the server; model `m1` answers `1`, and so on."""
    for number in range(1, 10):
        wire.script(f"m{number}", text=str(number))
    return {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-browser-0123456789"}


def said(wire: Wire) -> list[list[str]]:
    """The contents of the messages of each request so far."""
    return [[message["content"] for message in request.body["messages"]] for request in wire.requests]


def test_run_all_asks_what_nbclient_asks_however_often(
    notebook: Callable[..., Notebook], wire: Wire, env: dict[str, str]
) -> None:
    """What `tests/kernel/test_conversations.py` finds of nbclient and papermill: the same requests, twice in a row."""
    nb = notebook(*NOTEBOOK, env=env)
    for turn in range(2):
        nb.run_all()
        nb.wait_idle()
        assert said(wire)[turn * len(SENT) :] == SENT
    assert nb.errors == []


def test_a_deleted_cell_is_asked_no_longer_and_comes_back_when_run_again(
    notebook: Callable[..., Notebook], wire: Wire, env: dict[str, str]
) -> None:
    """JupyterLab tells of it with the next cell; undone and run again, the cell stands where it stood."""
    nb = notebook("%load_ext nbllm", "%%llm openai:m1\none", "%%llm openai:m2\ntwo", "%%llm openai:m3\nthree", env=env)
    nb.run_all()
    nb.page.evaluate(
        """async () => {
            jupyterapp.shell.currentWidget.content.activeCellIndex = 1;
            await jupyterapp.commands.execute('notebook:delete-cell');
        }"""
    )
    assert len(nb) == 3
    nb.run(2)
    assert said(wire)[-1] == ["two", "2", "three"]
    nb.page.evaluate("() => jupyterapp.commands.execute('notebook:undo-cell-action').then(() => null)")
    nb.page.wait_for_function("() => jupyterapp.shell.currentWidget.content.widgets.length === 4")
    nb.run(1)
    assert said(wire)[-1] == ["one"]
    nb.run(3)
    assert said(wire)[-1] == ["one", "1", "two", "2", "three"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_conversation_is_stored_beside_the_notebook_and_read_after_a_restart(
    notebook: Callable[..., Notebook], wire: Wire, env: dict[str, str], theme: str
) -> None:
    """Under the notebook's own name; `%llm chat` and `%llm chat show` are fit to be read."""
    wire.script("m2", text="The **mean** is a sum divided by a count:\n\n```python\nmean = sum(x) / len(x)\n```")
    nb = notebook(
        "%load_ext nbllm", "%%llm openai:m1\none", "%llm chat save on", "%%llm openai:m2\nWhat is a mean?",
        "%llm chat", "%llm chat show", "%llm jobs", "%%llm openai:m3\nthree", env=env,
    )  # fmt: skip
    nb.theme(theme)
    nb.run_all()
    nb.output(5).locator("pre").first.wait_for()
    nb.cell(4).scroll_into_view_if_needed()
    nb.screenshot(f"chat-{theme}")
    assert nb.path.with_suffix(".chats.json").is_file()
    nb.restart()
    nb.run(0)
    nb.run(7)
    assert len(said(wire)[-1]) == 5
    nb.run(4)
    assert "of an earlier kernel" in nb.output(4).inner_text()
    nb.run(1)
    assert said(wire)[-1] == ["one"]
    assert nb.errors == []
