"""Several models side by side in the real JupyterLab: columns that stream, Stop of one of them, what is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.harness import Notebook
    from tests.wire import Wire

COMPARE = """
%load_ext nbllm
from nbllm.display.compare import compare, named
from nbllm.display.note import Note
from nbllm.session import get_manager

def side_by_side(*models):
    streams = [get_manager().start("What is a median?", f"openai:{model}") for model in models]
    return compare(get_ipython(), named(streams), Note())
"""

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
    nb = notebook(COMPARE, "both = side_by_side('long', 'short', 'e401')", env=openai)
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
    assert nb.errors == []
