"""`%%llm` in the real JupyterLab: streaming, Stop, interrupt, reload, and what is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.harness import Notebook
    from tests.wire import Wire

ANSWER = """## What a *median* is

The **median** is the middle of sorted values, $m = x_{(n+1)/2}$ for odd $n$:

1. sort them
2. take the one in the middle

```python
def median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
```

| values  | median |
|---------|-------:|
| 1, 2, 9 |      2 |

It is *robust*: one outlier does not move it.
"""


@pytest.fixture
def openai(wire: Wire) -> dict[str, str]:
    """Variables for a kernel whose OpenAI is the wire server."""
    return {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-browser-0123456789"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_answer_streams_as_markdown_and_is_saved_as_markdown(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str], theme: str
) -> None:
    """Rendered while it arrives, static markdown afterwards; the saved file holds no widget."""
    script = wire.script("m", text=ANSWER, gates=[60])
    nb = notebook("%load_ext nbllm", "%%llm openai:m\nWhat is a median?", env=openai)
    nb.theme(theme)
    nb.run(0)
    nb.run(1, wait=False)
    script.wait_gate()
    live = nb.output(1).locator(".nbllm-answer")
    live.locator("h2").wait_for()  # rendered while the rest is still held back
    live.locator("pre").wait_for()
    assert live.locator("button.nbllm-stop").is_visible()
    nb.screenshot(f"answer-streaming-{theme}")
    script.release()
    nb.wait_idle()
    nb.output(1).locator("table").wait_for()
    nb.output(1).locator(".nbllm-answer").wait_for(state="detached")
    nb.output(1).locator("mjx-container").first.wait_for()
    nb.screenshot(f"answer-{theme}")
    (output,) = nb.saved().cells[1].outputs
    assert output.data["text/plain"] == ANSWER
    assert set(output.data) == {"text/markdown", "text/plain"}
    assert output.metadata["nbllm"]["model"] == "m"
    assert nb.errors == []


def test_stop_stops_the_provider_and_keeps_the_text(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """A click on Stop while the cell runs closes the provider's socket; what had arrived stays, marked."""
    nb = notebook("%load_ext nbllm", "%%llm openai:slow\nHi", "print('on we go')", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    nb.output(1).get_by_text("tok3").wait_for()
    nb.output(1).locator("button.nbllm-stop").click()
    nb.wait_idle()
    wire.wait_closed(1)
    nb.output(1).get_by_text("Stopped here.").wait_for()
    (output,) = nb.outputs(1)
    assert output["data"]["text/plain"].startswith("tok0 tok1 tok2 tok3")
    assert output["metadata"]["nbllm"]["state"] == "interrupted"
    nb.screenshot("answer-stopped")
    nb.run(2)
    assert nb.output(2).inner_text().strip() == "on we go"


def test_an_interrupt_keeps_the_text(notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]) -> None:
    """The kernel's interrupt ends the cell with one line; the text is kept and the socket closed."""
    nb = notebook("%load_ext nbllm", "%%llm openai:slow\nHi", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    nb.output(1).get_by_text("tok3").wait_for()
    nb.interrupt()
    nb.wait_idle()
    wire.wait_closed(1)
    answer, error = nb.outputs(1)
    assert answer["data"]["text/plain"].startswith("tok0 tok1 tok2 tok3")
    assert error["traceback"] == ["Interrupted: what had arrived is kept."]
    nb.screenshot("answer-interrupted")


def test_a_page_reloaded_in_mid_stream_has_the_whole_answer(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """The answer goes on while nobody looks; the reloaded page shows all of it, and so does the saved file."""
    script = wire.script("m", text=ANSWER, gates=[20])
    nb = notebook("%load_ext nbllm", "%%llm openai:m\nWhat is a median?", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    script.wait_gate()
    nb.output(1).locator("h2").wait_for()
    nb.reload(idle=False)
    script.release()
    nb.output(1).locator("table").wait_for()
    nb.output(1).locator(".nbllm-answer").wait_for(state="detached")
    assert nb.saved().cells[1].outputs[0].data["text/plain"] == ANSWER


def test_hostile_text_does_nothing_while_it_streams_nor_afterwards(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """Scripts, event handlers, links and images in a model's text: nothing runs and nothing is fetched."""
    attack = (
        "<script>window.pwned=1</script> <img src=x onerror='window.pwned=2'> [go](javascript:window.pwned=3)\n\n"
        f"![leak]({wire.url}/leak?secret)\n\n![leak][r]\n\n[r]: {wire.url}/leak2\n\n"
        f"<img src='{wire.url}/leak3'> end of it\n\nlast words"
    )
    script = wire.script("m", text=attack, gates=[14])
    nb = notebook("%load_ext nbllm", "%%llm openai:m\nHi", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    script.wait_gate()
    nb.output(1).get_by_text("end of it").wait_for()
    script.release(20)
    nb.wait_idle()
    nb.output(1).get_by_text("last words").wait_for()
    nb.output(1).locator(".nbllm-answer").wait_for(state="detached")
    for link in nb.output(1).get_by_text("go").all():
        link.dispatch_event("click")
    assert nb.page.evaluate("() => window.pwned") is None
    assert [request.path for request in wire.requests] == ["/v1/chat/completions"]


def test_an_error_is_two_plain_lines(notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]) -> None:
    """A refused key: what happened, and what to do."""
    nb = notebook("%load_ext nbllm", "%%llm openai:e401\nHi", env=openai)
    nb.run(0)
    nb.run(1)
    outputs: list[dict[str, Any]] = nb.outputs(1)
    assert [line.split(":")[0] for line in outputs[-1]["traceback"]] == [
        "AuthenticationError",
        "→ Set OPENAI_API_KEY to a valid key (%llm key openai in a notebook), then run it again.",
    ]
    nb.screenshot("answer-error")


def test_status_and_lists_read_well(notebook: Callable[..., Notebook], openai: dict[str, str]) -> None:
    """The commands show tables."""
    nb = notebook("%load_ext nbllm", "%llm status", "%llm providers", "%llm models", "%llm help", env=openai)
    for index in range(5):
        nb.run(index)
    assert nb.output(1).locator("table").is_visible()
    nb.screenshot("commands")
