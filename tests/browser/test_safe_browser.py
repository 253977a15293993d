"""Model text in trusted outputs of the real JupyterLab: nothing runs, nothing is fetched."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nbllm.display.safe import safe_markdown
from tests.display.attacks import ATTACKS, compositions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browser.harness import Notebook

# JupyterLab folds away all but the first 50 outputs of a cell.
PER_CELL = 40

FIND = """
selector => [...document.querySelectorAll(selector)].flatMap(
  root => [...root.querySelectorAll('*')].flatMap(node => {
    const found = [];
    if (/^(script|iframe|object|embed|img|image|svg|style|link|form|button|textarea|base|meta|audio|video)$/i
            .test(node.localName)) found.push('<' + node.localName + '>');
    for (const {name, value} of node.attributes) {
        if (/^on|^srcdoc$|commandlinker/i.test(name)) found.push(node.localName + '@' + name);
        // JupyterLab's own spelling of a web address with a host that is none has one slash.
        if (/^(href|src|action|xlink:href)$/i.test(name) && !/^(https?:\\/|mailto:|#)/i.test(value))
            found.push(node.localName + '@' + name + '=' + value);
        if (name === 'href' && value.startsWith(location.origin))
            found.push('a link to this server: ' + value);
    }
    return found;
}))
"""
OUTPUTS = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-RenderedMarkdown"


def cell(texts: list[str]) -> str:
    """A cell's source that shows `texts` as markdown outputs of its execution, which JupyterLab trusts."""
    data = json.dumps(json.dumps(texts))
    return f"import json\nfor text in json.loads({data}):\n    display({{'text/markdown': text}}, raw=True)"


class Watch:
    """What a page did while it was watched."""

    def __init__(self) -> None:
        self.dialogs: list[str] = []
        self.requests: list[str] = []


@contextmanager
def watched(book: Notebook) -> Iterator[Watch]:
    """Note dialogs, and requests that leave this machine."""
    watch = Watch()
    local = book.page.url.split("/lab")[0]

    def note(request) -> None:
        if not request.url.startswith((local, "data:", "blob:")):
            watch.requests.append(request.url)

    def refuse(dialog) -> None:
        watch.dialogs.append(dialog.message)

    book.page.evaluate("() => { delete window.__pwned; }")
    book.page.on("request", note)
    book.page.on("dialog", refuse)
    try:
        yield watch
    finally:
        book.page.remove_listener("request", note)
        book.page.remove_listener("dialog", refuse)


def show(book: Notebook, index: int, count: int) -> None:
    """Run a cell and wait until its outputs are drawn, with whatever they start settled."""
    book.run(index, timeout=120)
    book.page.wait_for_function(
        """([i, count]) => {
            const area = jupyterapp.shell.currentWidget.content.widgets[i].outputArea;
            return area.node.querySelectorAll('.jp-RenderedMarkdown').length >= count;
        }""",
        arg=[index, count],
        timeout=120_000,
    )
    # An image that fails, and MathJax's queue, take a turn or two more.
    book.page.evaluate("() => new Promise(done => requestIdleCallback(() => setTimeout(done, 100)))")
    book.page.wait_for_load_state("networkidle")


def test_attacks_do_nothing_in_a_trusted_output(notebook: Callable[..., Notebook]):
    """No attack runs, opens a dialog, sends a request or leaves an active element, alone or composed."""
    texts = [safe_markdown(text) for text in [*ATTACKS.values(), *compositions(seed=2, count=240)]]
    texts = [text for text in texts if text.strip()]
    groups = [texts[start : start + PER_CELL] for start in range(0, len(texts), PER_CELL)]
    book = notebook(*[cell(group) for group in groups])
    with watched(book) as watch:
        for index, group in enumerate(groups):
            show(book, index, len(group))
            assert book.page.evaluate("() => window.__pwned") is None
        assert book.page.evaluate(FIND, OUTPUTS) == []
        assert watch.dialogs == []
        assert watch.requests == []


def test_attacks_work_on_the_raw_text(notebook: Callable[..., Notebook]):
    """Shown as it is, the same text runs, is fetched and leaves elements: the test above can fail."""
    raw = [
        ATTACKS["an event handler"],
        ATTACKS["an attribute out of math in an image"],
        ATTACKS["a javascript link"],
        ATTACKS["an image that tells a secret"],
    ]
    book = notebook(cell(raw))
    with watched(book) as watch:
        show(book, 0, len(raw))
        book.page.wait_for_function("() => window.__pwned === 1")
        found = book.page.evaluate(FIND, OUTPUTS)
        assert "img@onerror" in found
        assert any("javascript:" in one for one in found)
        assert any("leak.example" in url for url in watch.requests)


def test_code_and_prices_show_to_the_letter(notebook: Callable[..., Notebook]):
    """In JupyterLab, code in lists keeps its characters and columns, and prices are no formulas."""
    text = (
        "Costs $5 and $6, `List<int>` and `$A $B`.\n\n"
        "1. Run:\n   ```sh\n   echo $A <b>\n   echo $B\n   ```\n"
        "2. Then:\n   ```html\n   <b>\n     x\n   ```\n"
    )
    book = notebook(cell([safe_markdown(text)]))
    show(book, 0, 1)
    output = book.output(0)
    assert "Costs $5 and $6, List<int> and $A $B." in output.inner_text()
    assert output.locator("p code").all_inner_texts() == ["List<int>", "$A $B"]
    blocks = [block.rstrip("\n") for block in output.locator("pre code").all_inner_texts()]
    assert blocks == ["echo $A <b>\necho $B", "<b>\n  x"]
    assert output.locator("mjx-container").count() == 0
