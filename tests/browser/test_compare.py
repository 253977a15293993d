"""Several models side by side in the real JupyterLab: columns that stream, Stop of one of them, what is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nbllm.display.comparison import static_columns
from tests.browser.test_safe_browser import FIND, OUTPUTS, PER_CELL, cell, show, watched
from tests.display.attacks import ATTACKS, compositions
from tests.display.test_compare import comparison

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.harness import Notebook
    from tests.wire import Wire

LONG = """The **median** is the middle of sorted values, $m = x_{(n+1)/2}$ for odd $n$:

1. sort them
2. take the one in the middle

```python
def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
```

It is *robust*: one outlier does not move it.
"""

SHORT = """Half of the values lie below it, half above.

| values  | median |
|---------|-------:|
| 1, 2, 9 |      2 |
"""


@pytest.fixture
def openai(wire: Wire) -> dict[str, str]:
    """Variables for a kernel whose OpenAI is the wire server."""
    return {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-browser-0123456789"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_answers_stream_side_by_side_and_are_saved_as_markdown(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str], theme: str
) -> None:
    """Each in its own column with its timings, wide and narrow; one that fails leaves the others alone."""
    scripts = [wire.script("long", text=LONG, gates=[30]), wire.script("short", text=SHORT, gates=[20])]
    nb = notebook("%load_ext nbllm", "%%llm openai:long openai:short openai:e401\nWhat is a median?", env=openai)
    nb.theme(theme)
    nb.run(0)
    nb.run(1, wait=False)
    for script in scripts:
        script.wait_gate()
    live = nb.output(1).locator(".nbllm-compare")
    columns = live.locator(".nbllm-column")
    columns.nth(0).locator("pre").wait_for()  # rendered while the rest is still held back
    columns.nth(1).locator("table").wait_for()
    columns.nth(2).get_by_text("Set OPENAI_API_KEY").wait_for()
    live.locator("td", has_text="writing").first.wait_for()
    boxes = [column.bounding_box() for column in columns.all()]
    assert len({box["y"] for box in boxes if box}) == 1
    nb.screenshot(f"compare-streaming-{theme}")
    nb.page.set_viewport_size({"width": 700, "height": 900})
    nb.screenshot(f"compare-streaming-narrow-{theme}")
    nb.page.set_viewport_size({"width": 1280, "height": 900})
    for script in scripts:
        script.release()
    nb.wait_idle()
    live.wait_for(state="detached")
    nb.output(1).locator("mjx-container").first.wait_for()
    nb.screenshot(f"compare-{theme}")
    nb.page.set_viewport_size({"width": 700, "height": 900})
    nb.screenshot(f"compare-narrow-{theme}")
    nb.page.set_viewport_size({"width": 1280, "height": 900})
    (output,) = nb.saved().cells[1].outputs
    assert set(output.data) == {"text/markdown", "text/plain"}
    assert LONG in output.data["text/plain"]
    assert SHORT in output.data["text/plain"]
    assert [call["model"] for call in output.metadata["nbllm"]["compare"]] == ["long", "short", "e401"]
    assert nb.errors == []


def test_stop_of_one_column_leaves_the_others(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """By the keyboard: the server sees that one client leave; Stop all then ends the rest, and the cell."""
    for name in ("a", "b", "c"):
        wire.script(name, tokens=5000, pace=0.01)
    nb = notebook("%load_ext nbllm", "%%llm openai:a openai:b openai:c -o three\nHi", "print(list(three))", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    live = nb.output(1).locator(".nbllm-compare")
    for column in range(3):
        live.locator(".nbllm-column").nth(column).get_by_text("tok3 ").wait_for()
    stop = live.get_by_role("button", name="Stop openai:b")
    stop.focus()
    nb.page.keyboard.press("Enter")
    wire.wait_closed(1)
    assert [request.model for request in wire.closed] == ["b"]
    live.get_by_role("row", name="openai:b stopped").wait_for()
    live.get_by_text("1 of 3 have ended").wait_for(state="attached")
    sent = {request.model: request.sent for request in wire.requests}
    live.locator(".nbllm-column").nth(2).get_by_text(f"tok{sent['c'] + 20} ").wait_for()
    assert not stop.is_visible()
    live.get_by_role("button", name="Stop all").click()
    nb.wait_idle()
    wire.wait_closed(3)
    live.wait_for(state="detached")
    assert nb.output(1).get_by_text("Stopped here.").count() == 3
    nb.run(2)
    assert nb.output(2).inner_text().strip() == "['openai:a', 'openai:b', 'openai:c']"
    assert nb.errors == []


def test_hostile_texts_and_names_do_nothing_while_they_stream_nor_afterwards(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """Scripts, handlers, links and images in texts and in models' names: nothing runs, and nothing is fetched."""
    names = ["m</div><img src=x onerror=window.__pwned=1>", "n|<script>window.__pwned=1</script>$a$"]
    attack = (
        f"</div></div><img src='{wire.url}/leak' onerror=window.__pwned=1> [go](javascript:window.__pwned=1)\n\n"
        f"![leak]({wire.url}/leak?secret) <script>window.__pwned=1</script> seen\n\n```\n</div><img src=x>\n"
    )
    scripts = [wire.script(name, text=f"{attack}\n\nlast words", gates=[9]) for name in names]
    # The magic takes no such names; they may come from a configuration all the same.
    start = "named(get_manager().start('Hi', 'openai:' + name) for name in names)"
    nb = notebook(
        "%load_ext nbllm\nfrom nbllm.display.compare import compare, named\nfrom nbllm.display.note import Note\n"
        f"from nbllm.session import get_manager\nnames = {names!r}",
        f"both = compare(get_ipython(), {start}, Note())",
        env=openai,
    )
    nb.run(0)
    with watched(nb) as watch:
        nb.run(1, wait=False)
        for script in scripts:
            script.wait_gate()
        live = nb.output(1).locator(".nbllm-compare")
        live.get_by_text("seen").nth(1).wait_for()
        assert nb.page.evaluate(FIND, ".nbllm-compare .nbllm-column") == []
        assert live.get_by_role("row", name="m</div><img src=x onerror=window.__pwned=1>").is_visible()
        for script in scripts:
            script.release()
        nb.wait_idle()
        live.wait_for(state="detached")
        nb.output(1).get_by_text("last words").nth(1).wait_for()
        for link in nb.output(1).get_by_text("go").all():
            link.dispatch_event("click")
        assert nb.page.evaluate("() => window.__pwned") is None
        assert nb.page.evaluate(FIND, OUTPUTS) == []
        assert watch.dialogs == []
        assert watch.requests == []
    assert {request.path for request in wire.requests} == {"/v1/chat/completions"}


def test_attacks_do_nothing_in_the_static_form(notebook: Callable[..., Notebook]) -> None:
    """In a trusted output, beside each other: nothing runs, opens a dialog or sends a request."""
    texts = [*ATTACKS.values(), *compositions(seed=6, count=120)]
    trios = [texts[start : start + 3] for start in range(0, len(texts) - 2, 3)]
    shown = [static_columns(comparison(*trio, names=(trio[1], trio[2], "p:m")))["text/markdown"] for trio in trios]
    groups = [shown[start : start + PER_CELL] for start in range(0, len(shown), PER_CELL)]
    nb = notebook(*[cell(group) for group in groups])
    with watched(nb) as watch:
        for index, group in enumerate(groups):
            show(nb, index, len(group))
            assert nb.page.evaluate("() => window.__pwned") is None
        assert nb.page.evaluate(FIND, OUTPUTS) == []
        assert watch.dialogs == []
        assert watch.requests == []


def test_four_columns_at_full_speed_end_with_the_right_texts(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """200 tokens a second in each: drawn as they come, without a long block, and complete; a reload loses nothing."""
    texts = [
        f"{name} " + "".join(f"word{i}{chr(10) * 2 if i % 40 == 39 else ' '}" for i in range(800)) for name in "abcd"
    ]
    scripts = [wire.script(f"m{i}", text=text, pace=0.005, gates=[600]) for i, text in enumerate(texts)]
    nb = notebook("%load_ext nbllm", "%%llm openai:m0 openai:m1 openai:m2 openai:m3\nHi", env=openai)
    nb.run(0)
    nb.page.evaluate(
        """() => { window.blocks = []; new PerformanceObserver(list => list.getEntries().forEach(
               entry => window.blocks.push(entry.duration))).observe({entryTypes: ['longtask']}); }"""
    )
    nb.run(1, wait=False)
    live = nb.output(1).locator(".nbllm-compare")
    for script in scripts:
        script.wait_gate()
    for column in range(4):
        live.locator(".nbllm-column").nth(column).get_by_text("word598").wait_for()
    print("long tasks", nb.page.evaluate("() => window.blocks"))
    nb.screenshot("compare-four")
    nb.reload(idle=False)
    for script in scripts:
        script.release()
    nb.output(1).get_by_text("word799").nth(3).wait_for()
    live.wait_for(state="detached")
    (output,) = nb.saved().cells[1].outputs
    assert set(output.data) == {"text/markdown", "text/plain"}
    assert all(text in output.data["text/plain"] for text in texts)
    assert nb.errors == []
