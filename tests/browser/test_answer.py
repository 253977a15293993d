"""`%%llm` in the real JupyterLab: streaming, Stop, interrupt, reload, and what is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.wire.script import words

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


def test_nothing_jumps_when_the_answer_ends(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """What is live has the place and the height of what is saved, the line below included."""
    script = wire.script("m", text=ANSWER, gates=[len(words(ANSWER))])
    nb = notebook("%load_ext nbllm", "%%llm openai:m\nWhat is a median?", "1 + 1", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    script.wait_gate()
    live = nb.output(1).locator(".nbllm-answer")
    live.get_by_text("does not move it.").wait_for()
    live.locator("mjx-container").nth(1).wait_for()
    before = places(nb)
    nb.screenshot("answer-last-moment")
    script.release()
    nb.wait_idle()
    live.wait_for(state="detached")
    nb.output(1).locator("mjx-container").nth(1).wait_for()
    after = places(nb)
    assert [name for name, _ in before] == [name for name, _ in after]
    assert before == [(name, pytest.approx(top, abs=1.5)) for name, top in after]


def places(nb: Notebook) -> list[tuple[str, float]]:
    """The blocks of the answer and where each begins; the cell below last."""
    found = nb.page.evaluate(
        """() => {
            const cells = jupyterapp.shell.currentWidget.content.widgets;
            const page = cells[1].node.querySelector('.jp-RenderedMarkdown');
            return [...page.children, cells[2].node].map(
                node => [node.localName, node.getBoundingClientRect().top]);
        }"""
    )
    return [(name, top) for name, top in found]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_reasoning_is_folded_away_and_can_be_unfolded(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str], theme: str
) -> None:
    """While only reasoning arrives, that is said; unfolded it streams; the saved output has none of it."""
    thoughts = tuple(f"Step {n}: look at <b>part</b> {n} of the question.\n" for n in range(1, 40))
    script = wire.script("m", text=ANSWER, reasoning=thoughts, gates=[0, 30])
    nb = notebook("%load_ext nbllm", "%%llm openai:m\nWhat is a median?", env=openai)
    nb.theme(theme)
    nb.run(0)
    nb.run(1, wait=False)
    script.wait_gate()
    part = nb.output(1).locator("details.nbllm-reasoning")
    part.get_by_text("Thinking…").wait_for()
    assert not part.get_by_text("Step 1:").is_visible()
    nb.screenshot(f"answer-thinking-{theme}")
    part.locator("summary").click()
    part.get_by_text("Step 39: look at <b>part</b> 39").wait_for()
    nb.screenshot(f"answer-reasoning-{theme}")
    script.release()
    nb.output(1).locator(".nbllm-answer h2").wait_for()
    part.get_by_text("Thinking…").wait_for(state="detached")
    assert part.locator("div").is_visible()  # it stays as the reader left it
    nb.screenshot(f"answer-reasoned-{theme}")
    script.release()
    nb.wait_idle()
    nb.output(1).locator(".nbllm-answer").wait_for(state="detached")
    assert "Step" not in str(nb.saved().cells[1].outputs)
    assert nb.errors == []


@pytest.mark.parametrize("kind", ["code", "list", "paragraph"])
def test_one_long_block_looks_whole_while_it_streams(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str], kind: str
) -> None:
    """Drawn in pieces so that the page stays quick, it reads as the one block that it is."""
    lines = [f"value_{n} = total(value_{n - 1}, {n})  # number {n}\n" for n in range(1, 301)]
    text = {
        "code": f"Look:\n\n```python\n{''.join(lines)}",
        "list": "".join(f"{n}. the *item* number {n}\n" for n in range(1, 301)),
        "paragraph": " ".join(f"Item {n} is **larger** than `item {n - 1}` (it seems)." for n in range(1, 301)),
    }[kind]
    script = wire.script("m", text=text + "last", write=4000, gates=[len(words(text + "last"))])
    nb = notebook("%load_ext nbllm", "%%llm openai:m\nHi", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    script.wait_gate()
    page = nb.output(1).locator(".nbllm-answer-body > *")
    page.get_by_text("last", exact=False).last.wait_for()
    live, pieces, gap = nb.page.evaluate(
        """kind => {
            const page = document.querySelector('.nbllm-answer-body > *');
            const blocks = [...page.querySelectorAll({code: ':scope > pre', list: ':scope > ol',
                                                      paragraph: ':scope > p:not(.nbllm-foot)'}[kind])];
            const box = node => node.getBoundingClientRect();
            const gaps = blocks.slice(1).map((block, i) => box(block).top - box(blocks[i]).bottom);
            return [blocks.map(block => block.innerText).join(kind === 'list' ? '\\n' : ''), blocks.length,
                    Math.max(...gaps)];
        }""",
        kind,
    )
    assert pieces > 1
    assert gap < 2
    nb.screenshot(f"answer-long-{kind}")
    script.release()
    nb.wait_idle()
    nb.output(1).locator(".nbllm-answer").wait_for(state="detached")
    block = nb.output(1).locator({"code": "pre", "list": "ol", "paragraph": "p >> nth=0"}[kind])
    assert "".join(live.split()) == "".join(block.inner_text().split())


def test_html_in_its_frame_runs_nothing_fetches_nothing_and_stays_there(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str]
) -> None:
    """A page that tries everything is drawn, styled, and dead; its source is what streams."""
    at = wire.url
    attack = f"""<h1 id=top>A page</h1><style>@import url({at}/a.css);
h1 {{color: rgb(200, 0, 0); background: url({at}/b.png)}} @font-face {{font-family: f; src: url({at}/f.woff)}}
p {{font-family: f; cursor: url({at}/c)}}
</style><p style="background:url({at}/d.png); filter:url({at}/e.svg#f)">text</p><script>top.pwned=1</script>
<img src=x onerror="top.pwned=2"><img src="{at}/g.png"><svg onload="top.pwned=3"><use href="{at}/h.svg#a"/><image
href="{at}/i.png"/></svg><iframe src="{at}/j"></iframe><object data="{at}/k"></object><embed src="{at}/l">
<link rel=stylesheet href="{at}/m.css"><link rel=prefetch href="{at}/n"><meta http-equiv=refresh content="0;url={at}/o">
<base href="{at}/"><form action="{at}/p" method=post><input name=q autofocus><button id=go>send</button></form>
<a id=out href="{at}/r" target=_top ping="{at}/s">out</a><a id=js href="javascript:top.pwned=4">js</a>
<video src="{at}/t" autoplay poster="{at}/u"></video><p>The end of it.</p>"""
    script = wire.script("m", text=f"```html\n{attack}\n```", gates=[len(words(attack)) - 3])
    nb = notebook("%load_ext nbllm", "%%llm openai:m -f html\nA page", env=openai)
    nb.run(0)
    nb.run(1, wait=False)
    script.wait_gate()
    nb.output(1).locator(".nbllm-answer-body").get_by_text("<h1 id=top>").wait_for()  # its source, as text
    nb.screenshot("answer-html-streaming")
    script.release()
    nb.wait_idle()
    frame = nb.output(1).frame_locator("iframe")
    frame.get_by_text("The end of it.").wait_for()
    assert frame.locator("h1").evaluate("h1 => getComputedStyle(h1).color") == "rgb(200, 0, 0)"
    for text in ("send", "out", "js"):
        for node in frame.get_by_text(text, exact=True).all():
            node.click()
    frame.get_by_text("The end of it.").wait_for()  # it has gone nowhere
    nb.screenshot("answer-html")
    assert nb.page.evaluate("() => window.pwned") is None
    assert "/lab" in nb.page.url
    assert [request.path for request in wire.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_each_format_is_readable(
    notebook: Callable[..., Notebook], wire: Wire, openai: dict[str, str], theme: str
) -> None:
    """Plain text, code, JSON and a formula, and answers that stopped, broke off, or have more to say below."""
    wire.script("text", text="**Not** bold, <b>nor</b> this: " + "a long line of plain text, " * 12)
    wire.script("code", text="Here:\n```python\ndef double(x):\n    return 2 * x\n```\n")
    wire.script("json", text='{"name": "Ada", "born": 1815, "known for": ["notes", "programs"]}')
    wire.script("math", text=r"\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}")
    wire.script("cut", text="An answer that is *not* whole, since its", fault="cut", at=8)
    wire.script("length", text="As much of it as fits into", finish="length")
    forms = ["text", "json", "math"]
    cells = [f"%%llm openai:{form} -f {form} --no-history\nHi" for form in forms]
    cells += ["%%llm openai:cut --no-history\nHi", "year = 1815\nname = 'Ada'"]
    cells += ["%%llm openai:e404 --fallback openai:length --no-history\nWho was {name}, born in {year}?"]
    cells += ["%%llm openai:code -f code --no-history\nHi"]  # last: the code gets a cell of its own below
    nb = notebook("%load_ext nbllm", *cells, env=openai)
    nb.theme(theme)
    for index in range(len(cells) + 1):
        nb.run(index)
        nb.wait_idle()
    nb.output(3).locator("mjx-container").wait_for()
    assert nb.output(1).locator("b, strong").count() == 0
    assert nb.output(2).locator("pre").inner_text().count("\n") >= 7
    assert "instead of openai:e404 · stopped at max_tokens · filled in: {name}, {year}" in nb.output(6).inner_text()
    assert nb.output(7).locator("pre").inner_text().startswith("def double(x):")
    nb.cell(0).scroll_into_view_if_needed()
    nb.screenshot(f"answer-formats-{theme}")
    nb.cell(8).scroll_into_view_if_needed()
    nb.screenshot(f"answer-formats-below-{theme}")
    assert nb.errors == []


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
