"""Four answers side by side in the real JupyterLab, each at its own speed; a part of the group `cell`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.cell import END, Cell, Drawn, epoch, prose
from tests.benchmarks.figure import Figure
from tests.benchmarks.measure import requests_of
from tests.wire.script import words

if TYPE_CHECKING:
    from tests.browser.harness import LabPage

COLUMNS = 4

WATCH = """
([end, columns]) => {
    const watch = window.nbwatch = {blocked: 0, done: 0};
    watch.observer = new PerformanceObserver(list => {
        for (const entry of list.getEntries()) watch.blocked = Math.max(watch.blocked, entry.duration);
    });
    watch.observer.observe({type: 'longtask'});
    const area = jupyterapp.shell.currentWidget.content.widgets.at(-1).outputArea.node;
    const whole = () => !area.querySelector('.nbllm-compare') && area.textContent.split(end).length > columns;
    const look = () => {
        if (whole()) watch.done = performance.timeOrigin + performance.now();
        else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}
"""


def figures(url: str, page: LabPage) -> Iterator[Figure]:
    """What the bars of one answer are for four."""
    run = Columns(url, page).compared(prose(1000), 200)
    of = f"{COLUMNS} columns of 1,000 tokens at 200/s"
    yield Figure(f"{of}: CPU of the kernel per token", run.cpu, "ms")
    yield Figure(f"{of}: text carried to the page", run.carried, "x the text", 4)
    yield Figure(f"{of}: with Jupyter's envelopes", run.sent, "x the text")
    yield Figure(f"{of}: last token to final DOM", run.lag, "ms", 150)
    yield Figure(f"{of}: longest block", run.blocked, "ms", 100)
    yield Figure(f"{of}: tokens a second that came in each", run.rate, "/s")


class Columns(Cell):
    """Draws comparisons."""

    def compared(self, text: str, rate: int) -> Drawn:
        """Draw one comparison of answers with this text, and measure."""
        from tests.browser.harness import Notebook

        pieces = words(text + END)
        models = [f"column{number}" for number in range(COLUMNS)]
        for model in models:
            self._post("__script", model=model, deltas=pieces, pace=1 / rate)
        cells = ["import time\n%load_ext nbllm", "%%llm openai:ok-2 openai:ok-3\nHi"]
        cells += [f"%%llm {' '.join(f'openai:{model}' for model in models)}\nHi"]
        notebook = Notebook(self._page, self._page.lab.write("columns.ipynb", *cells), Path())
        notebook.run(0)
        notebook.run(1)  # opens the connection, imports the SDK
        try:
            cpu = float(notebook.evaluate("print(time.process_time())"))
            notebook.page.evaluate(WATCH, [END, COLUMNS])
            self._content = self._frames = 0
            notebook.run(2, wait=False)
            notebook.page.wait_for_function("() => nbwatch.done", timeout=180_000)
            notebook.page.wait_for_timeout(300)  # a long task is told after it has ended
            carried, sent = self._content, self._frames
            done, blocked = notebook.page.evaluate("() => [nbwatch.done, nbwatch.blocked]")
            notebook.wait_idle(180)
            cpu = float(notebook.evaluate("print(time.process_time())")) - cpu
        finally:
            self._page.tidy()
        found = [request for request in requests_of(self._url) if request["model"] in models]
        ended = max(request["ended"] for request in found)
        size, tokens = COLUMNS * len((text + END).encode()), COLUMNS * len(pieces)
        took = sum(request["ended"] - request["started"] for request in found)
        lag = done - 1000 * (ended + epoch())
        return Drawn(1000 * cpu / tokens, carried / size, sent / size, lag, blocked, tokens / took)
