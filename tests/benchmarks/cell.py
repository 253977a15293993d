"""The group `cell`: an answer drawn in the real JupyterLab, against three ways to draw one without nbllm's view.

The contenders read the same stream of nbllm and differ in how they draw it: `view` is `%%llm`; `each` redraws
`update_display(Markdown)` for every piece, `100ms` at most ten times a second; `print` prints. What the page does is
watched in the page itself: when the last word is there, and how long its main thread was blocked at most.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks.figure import Figure
from tests.benchmarks.measure import requests_of, wire
from tests.isolation import GUARD_LOG
from tests.wire.script import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import WebSocket

    from tests.browser.harness import LabPage, Notebook

END = "Here it ends."

WRITES = 250
"""Writes a second of the server at most; more tokens share one, as they do on a real line."""

SECTION = """## Part {n}: about the *median*

The **median** is the middle of sorted values, in part {n} as in all the others. It is robust: one outlier, however far
away it lies, does not move it, which is why it is preferred to the mean
wherever measurements may be wrong now and then.

1. sort the values, in whatever order they came
2. take the one in the middle, or `(a + b) / 2` of the two

```python
def median_{n}(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
```

| values | median |
|--------|-------:|
| 1, 2, {n} | 2 |

"""

DRAW = {
    "view": "%%llm openai:{model} --no-history\nHi",
    "each": """
handle = display(Markdown("…"), display_id=True)
text = ""
for piece in nbllm.ask("Hi", "openai:{model}", stream=True):
    text += piece
    handle.update(Markdown(text))
""",
    "100ms": """
handle = display(Markdown("…"), display_id=True)
text, last = "", 0.0
for piece in nbllm.ask("Hi", "openai:{model}", stream=True):
    text += piece
    if time.monotonic() - last > 0.1:
        last = time.monotonic()
        handle.update(Markdown(text))
handle.update(Markdown(text))
""",
    "print": """
for piece in nbllm.ask("Hi", "openai:{model}", stream=True):
    print(piece, end="", flush=True)
""",
}

WATCH = """
end => {
    const watch = window.nbwatch = {blocked: 0, done: 0};
    watch.observer = new PerformanceObserver(list => {
        for (const entry of list.getEntries()) watch.blocked = Math.max(watch.blocked, entry.duration);
    });
    watch.observer.observe({type: 'longtask'});
    const cell = jupyterapp.shell.currentWidget.content.widgets.at(-1).node;
    // The last blocks of the output: a footer may stand behind the last word.
    const blocks = () => [...cell.querySelectorAll('.jp-OutputArea-output p, .jp-OutputArea-output pre')];
    const whole = () => !cell.querySelector('.nbllm-answer') && blocks().slice(-2)
        .some(block => block.textContent.slice(-200).includes(end));
    const look = () => {
        if (whole()) watch.done = performance.timeOrigin + performance.now();
        else requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}
"""


@dataclass(frozen=True)
class Drawn:
    """One answer drawn.

    Attributes:
        cpu: Of the kernel per token, in ms.
        carried: How often the page got the text: the bytes of text in all messages, by those of the answer.
        sent: All bytes that came over the WebSocket, by those of the answer: with the view's code, and with Jupyter's
            envelopes, of about a kilobyte a message.
        lag: From the server's last byte to the last word in the finished output, in ms.
        blocked: The longest task of the page's main thread, in ms; 0 where none took 50.
        rate: Tokens a second that came.
    """

    cpu: float
    carried: float
    sent: float
    lag: float
    blocked: float
    rate: float


PLAN = (
    (50, 250, 1, ("view", "each", "100ms", "print")),
    (200, 1000, 1, ("view", "each", "100ms", "print")),
    (1000, 2000, 3, ("view", "100ms", "print")),
    (1000, 8000, 3, ("view", "100ms", "print")),
)
"""Tokens a second, tokens, rounds, contenders. A redraw for each token of a long answer would take minutes."""


def figures() -> Iterator[Figure]:
    """All figures of the group."""
    from tests.benchmarks import columns

    with wire() as url, _page() as page:
        cell = Cell(url, page)
        cell.drawn("view", prose(200), 200)  # imports, fonts, the first renderer
        for rate, tokens, rounds, ways in PLAN:
            yield from _against(cell, rate, tokens, rounds, ways)
        for name, text in (("code", code(8000)), ("list", items(8000)), ("paragraph", paragraph(8000))):
            runs = [cell.drawn("view", text, 1000) for _ in range(3)]
            of = f"8,000 tokens of one {name} at 1,000/s"
            yield Figure(f"{of}: longest block", _median(runs, "blocked"), "ms", detail=_all(runs, "blocked"))
            yield Figure(f"{of}: last token to final DOM", _median(runs, "lag"), "ms", detail=_all(runs, "lag"))
        yield from columns.figures(url, page)


def _against(cell: Cell, rate: int, tokens: int, rounds: int, ways: tuple[str, ...]) -> Iterator[Figure]:
    text = prose(tokens)
    runs: dict[str, list[Drawn]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            runs[way].append(cell.drawn(way, text, rate))
    fast = rate >= 1000
    for what, name, unit, bar in (
        ("CPU of the kernel per token", "cpu", "ms", None),
        ("text carried to the page", "carried", "x the text", 4),
        ("all that was sent", "sent", "x the text", None),
        ("last token to final DOM", "lag", "ms", 150 if fast else None),
        ("longest block", "blocked", "ms", 100 if fast else None),
        ("tokens a second that came", "rate", "/s", None),
    ):
        others = ", ".join(f"{way} {_median(found, name):.2f}" for way, found in runs.items())
        yield Figure(f"{tokens:,} tokens at {rate:,}/s: {what}", _median(runs["view"], name), unit, bar, detail=others)


def _median(runs: list[Drawn], name: str) -> float:
    return median(getattr(run, name) for run in runs)


def _all(runs: list[Drawn], name: str) -> str:
    return ", ".join(f"{getattr(run, name):.0f}" for run in runs)


class Cell:
    """Draws answers in a fresh notebook each, with one page and one server."""

    def __init__(self, url: str, page: LabPage) -> None:
        self._url, self._page, self._n = url, page, 0
        self._content = self._frames = 0
        page.page.on("websocket", self._listen)

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framereceived", self._count)

    def _count(self, frame: str | bytes) -> None:
        data = frame.encode() if isinstance(frame, str) else frame
        self._frames += len(data)
        self._content += _text_in(data)

    def drawn(self, way: str, text: str, rate: int) -> Drawn:
        """Draw one answer and measure."""
        from tests.browser.harness import Notebook

        self._n += 1
        model = f"bench{self._n}"
        # Above so many writes a second a sleep of the server takes longer than it should.
        at_once = max(1, rate // WRITES)
        pieces = words(text + END)
        deltas = ["".join(pieces[at : at + at_once]) for at in range(0, len(pieces), at_once)]
        self._post("__script", model=model, deltas=deltas, pace=at_once / rate)
        cells = ["import time, nbllm\nfrom IPython.display import Markdown, display\n%load_ext nbllm"]
        cells += ["%%llm openai:ok-2 --no-history\nHi", DRAW[way].format(model=model).strip("\n")]
        notebook = Notebook(self._page, self._page.lab.write(f"{model}.ipynb", *cells), Path())
        notebook.run(0)
        notebook.run(1)  # opens the connection, imports the SDK
        try:
            return self._measured(notebook, model, len(text.encode()), len(pieces))
        finally:
            self._page.tidy()

    def _measured(self, notebook: Notebook, model: str, size: int, tokens: int) -> Drawn:
        page = notebook.page
        cpu = float(notebook.evaluate("print(time.process_time())"))
        page.evaluate(WATCH, END)
        self._content = self._frames = 0
        notebook.run(2, wait=False)
        page.wait_for_function("() => nbwatch.done", timeout=180_000)
        page.wait_for_timeout(300)  # a long task is told after it has ended
        carried, sent = self._content, self._frames
        found = page.evaluate("() => { nbwatch.observer.disconnect(); return [nbwatch.done, nbwatch.blocked]; }")
        notebook.wait_idle(180)
        cpu = float(notebook.evaluate("print(time.process_time())")) - cpu
        (request,) = [request for request in requests_of(self._url) if request["model"] == model]
        took = request["ended"] - request["started"]
        lag = found[0] - 1000 * (request["ended"] + epoch())
        return Drawn(1000 * cpu / tokens, carried / size, sent / size, lag, found[1], tokens / took)

    def _post(self, path: str, **body: Any) -> None:
        request = urllib.request.Request(f"{self._url}/{path}", data=json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            answer.read()


def epoch() -> float:
    """What turns `time.monotonic()`, the server's clock, into the page's, which counts from 1970."""
    return time.time() - time.monotonic()


def _text_in(frame: bytes) -> int:
    """The bytes of text for the page in a message of the protocol v1.kernel.websocket.jupyter.org."""
    # Where channel, header, parent header, metadata and content begin, and where the last ends.
    at = [int.from_bytes(frame[8 * i : 8 * i + 8], "little") for i in range(1, 7)]
    content = json.loads(frame[at[4] : at[5]])
    data = content.get("data") or {}
    texts: list[Any] = [content.get("text")]  # of a stream
    if "comm_id" in content:
        told = data.get("content", {})
        texts = [told.get("delta"), *(delta for _, delta in told.get("parts", {}).values())]
        texts += _strings(data.get("state", {}).get("snapshot"))
    elif "data" in content:  # a display or its update
        texts = list(data.values())
    return sum(len(text.encode()) for text in texts if isinstance(text, str))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)


@contextlib.contextmanager
def _page() -> Iterator[LabPage]:
    from playwright.sync_api import sync_playwright

    from tests.browser.harness import CHROMIUM_FLAGS, LabPage, find_chromium
    from tests.browser.lab import Lab

    env = {GUARD_LOG: "", "PYTHONDONTWRITEBYTECODE": ""}  # as a user's kernel is: see measure.environment
    with (
        tempfile.TemporaryDirectory(prefix="nbllm-lab-") as folder,
        sync_playwright() as playwright,
        Lab(Path(folder), env=env) as lab,
    ):
        path = find_chromium(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        host = LabPage(browser, lab)
        try:
            yield host
        finally:
            host.discard()
            browser.close()


# -- answers of about so many tokens, of which a word is one


def prose(tokens: int) -> str:
    """Headings, prose, lists, code and tables, as models write."""
    return "".join(SECTION.format(n=n) for n in range(1, 2 + tokens // 105))


def code(tokens: int) -> str:
    """One block of code."""
    lines = "".join(
        f"    total_{n} = sum(value * {n} for value in values)  # number {n}\n" for n in range(tokens // 10)
    )
    return f"```python\ndef totals(values):\n{lines}```\n\n"


def items(tokens: int) -> str:
    """One list."""
    return "".join(f"{n}. the *item* with the number {n} of `all` items\n" for n in range(1, tokens // 10)) + "\n"


def paragraph(tokens: int) -> str:
    """One paragraph."""
    return " ".join(f"The value {n} is **larger** than the one before it." for n in range(tokens // 10)) + " "
