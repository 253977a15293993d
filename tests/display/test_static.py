"""What is kept of an answer: its form in each format, the line below it, and its provenance."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm._loop import background_loop
from nbllm.display.html import sandboxed
from nbllm.display.note import Note
from nbllm.display.static import static_form, usage_line
from nbllm.errors import NbllmError, ServerError
from nbllm.manager import ProviderManager
from tests.display.attacks import ATTACKS, FRAGMENTS, compositions
from tests.display.test_safe import RENDERERS, Page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbllm.response import ResponseStream
    from tests.wire import Wire

Answered = "Callable[..., ResponseStream]"


@pytest.fixture
def answered(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ResponseStream]]:
    """Ask a scripted model: `answered("text", fault=…)`; the stream, ended."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{wire.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-static-0123456789")
    manager = ProviderManager()
    manager.config.set("prices", {"openai:m": {"input": 100.0, "output": 100.0}})

    def ask(text: str = "", model: str = "m", call: dict[str, Any] | None = None, **script: Any) -> ResponseStream:
        wire.script(model, text=text, **script)
        stream = manager.start("A secret prompt", f"openai:{model}", **(call or {}))
        try:
            for _ in stream:
                pass
        except NbllmError:
            pass
        return stream

    yield ask
    background_loop().run(manager.close())


def markdown(stream: ResponseStream, **note: Any) -> str:
    return static_form(stream, Note(**note))[0]["text/markdown"]


# The line below ---------------------------------------------------------------------------------


def test_the_line_says_model_tokens_and_cost_as_far_as_they_are_known(answered: Callable[..., ResponseStream]) -> None:
    """Counts with their thousands, dollars; what is unknown is left out, and what is plain has no line."""
    from tests.wire.script import Usage

    stream = answered("Hi", usage=Usage(prompt=1234, completion=5678))
    assert usage_line(stream) == "openai:m · 1,234 → 5,678 tokens · $0.69"
    assert usage_line(answered("Hi", model="n", usage=None)) == "openai:n"
    form, _ = static_form(stream)
    assert form == {
        "text/markdown": "Hi\n\n*openai:m · 1,234 → 5,678 tokens · &#36;0.69*",
        "text/plain": "Hi",
    }


def test_the_line_says_what_is_not_as_usual(answered: Callable[..., ResponseStream]) -> None:
    """Limits, fallbacks, what was filled in, what was sent along, what it makes stale, what else there is to say."""
    said = "stopped at max_tokens · filled in: {a}, {=b()} · 1 earlier message sent along · "
    said += "resting on an older answer now: [3], [4] · It was long."
    note = Note(filled=("a", "=b()"), history=1, stale=("[3]", "[4]"), lines=("It was long.",))
    form, _ = static_form(answered("Hi", finish="length"), note)
    assert form["text/plain"] == f"Hi\n\n*{said}*"
    shown = Page(RENDERERS["nbconvert"](form["text/markdown"]))
    assert " ".join(shown.text.split()) == f"Hi openai:m · 3 → 1 tokens · $0.0004 · {said}"
    stream = answered("Hi", call={"fallback": ["openai:m"]}, model="gone", status=404)
    assert stream.fallback_of == ("openai:gone",)
    assert "instead of openai:gone" in static_form(stream)[0]["text/plain"]


def test_an_answer_that_ends_early_or_says_nothing_is_marked(answered: Callable[..., ResponseStream]) -> None:
    """Half an answer never looks like a whole one, an empty one is no mystery, and an error alone needs no line."""
    from tests.wire.script import ToolCall

    cut = static_form(answered("a b c d e f", fault="cut"))[0]
    assert cut["text/plain"] == "a b c d e \n\n*The answer breaks off here.*"
    assert "\n\n*The answer breaks off here.*\n\n*openai:m" in cut["text/markdown"]
    assert static_form(answered("", finish="length"))[0]["text/plain"] == (
        "*The answer is empty.*\n\n*stopped at max_tokens*"
    )
    tools = answered("", tool_calls=(ToolCall("get_weather"),), finish="tool_calls")
    assert static_form(tools)[0]["text/plain"] == "*asks for get_weather*"
    failed = answered("", status=500, call={"max_tokens": 5})
    assert static_form(failed)[0] == {"text/plain": ""}
    error = ServerError("It <b>broke</b>.", action="Ask again.")
    assert static_form(failed, Note(), error)[0]["text/plain"] == "ServerError: It <b>broke</b>.\n\n→ Ask again."
    assert "<b>" not in static_form(failed, Note(), error)[0]["text/markdown"]


@pytest.mark.parametrize("name", RENDERERS)
def test_nothing_in_a_name_is_markup(answered: Callable[..., ResponseStream], name: str) -> None:
    """Names of models, variables and cells come from servers and users: each is shown to the letter, and is inert."""
    stream = answered("It costs $5.")
    odd = ["*a* _b_ `c` ~~d~~ | e", "www.example.org http://a.example me@a.example", "$x$ \\(y\\)", "&lt; # - 1. + >"]
    for text in [*odd, *ATTACKS.values(), *compositions(5, 60), *FRAGMENTS]:
        for note in ({"stale": (text,)}, {"filled": (text,)}, {"lines": (text,)}):
            shown = Page(RENDERERS[name](markdown(stream, **note)))
            assert not shown.dangers, (text, note)
            assert "a" not in shown.tags, (text, note)
            assert shown.tags.count("em") == 1, (text, note)
    shown = Page(RENDERERS[name](markdown(stream, stale=tuple(odd))))
    assert all(" ".join(text.split()) in shown.text for text in odd)


# Formats ----------------------------------------------------------------------------------------


def test_code_is_one_block_whatever_stands_around_it(answered: Callable[..., ResponseStream]) -> None:
    """Fences of a model are taken off and one is put around; without any, all of it is code."""
    text = "Sure:\n```python\nx = 1\n```\nand\n```python\ny = '```'\n```\n"
    assert markdown(answered(text), format="code").startswith("````python\nx = 1\n\ny = '```'\n````\n\n*openai:m")
    assert markdown(answered("x = '<b>'"), format="code").startswith("```\nx = '<b>'\n```")


def test_json_is_indented_where_it_is_json(answered: Callable[..., ResponseStream]) -> None:
    """Else it is shown as it is; `text/plain` keeps what the model wrote."""
    form, _ = static_form(answered('{"a":[1,"ä"]}'), Note(format="json"))
    assert form["text/markdown"].startswith('```json\n{\n  "a": [\n    1,\n    "ä"\n  ]\n}\n```\n\n')
    assert form["text/plain"] == '{"a":[1,"ä"]}'
    assert markdown(answered("{none"), format="json").startswith("```\n{none\n```")
    assert markdown(answered("NaN"), format="json").startswith("```\nNaN\n```")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\frac{1}{2}", "$$\n\\frac{1}{2}\n$$"),
        ("E = m c^2", "$$\nE = m c^2\n$$"),
        ("```latex\n\\sqrt{2}\n```", "$$\n\\sqrt{2}\n$$"),
        (r"\[x^2\]", "$$x^2$$"),
        ("The root is $x^2$.", "The root is $x^2$."),
        ("There is no formula in it", "There is no formula in it"),
        ("The value is then x_1 = 2", "The value is then x_1 = 2"),
    ],
)
def test_a_bare_formula_gets_its_dollars(answered: Callable[..., ResponseStream], text: str, shown: str) -> None:
    """What is a formula and nothing else is set as one; prose and what has its signs already is left alone."""
    assert markdown(answered(text), format="math").startswith(shown + "\n\n*openai:m")


def test_text_is_plain_and_html_is_framed(answered: Callable[..., ResponseStream]) -> None:
    """Plain text is no markdown at all; HTML, out of its fence, stands in a frame, with the line below it."""
    form, _ = static_form(answered("**a** <b>"), Note(format="text"))
    assert form == {"text/plain": "**a** <b>\n\nopenai:m · 3 → 2 tokens · $0.0005"}
    form, _ = static_form(answered("```html\n<p>Hi</p>\n```"), Note(format="html", stale=("<b>$x$",)))
    assert set(form) == {"text/html", "text/plain"}
    assert "&lt;p&gt;Hi&lt;/p&gt;" in form["text/html"]
    assert "```" not in form["text/html"]
    assert "<b>" not in form["text/html"]
    assert "$x$" not in form["text/html"]


# Provenance -------------------------------------------------------------------------------------


def test_provenance_tells_the_call_and_nothing_of_the_prompt(answered: Callable[..., ResponseStream]) -> None:
    """Parameters by their common names, a hash of the prompt, tokens and cost, as plain JSON."""
    call = {
        "max_tokens": 9, "temperature": 0.5, "seed": 3, "stop": ["END"], "user": "a secret name",
        "tools": [{"type": "function", "function": {"name": "f", "description": "a secret", "parameters": {}}}],
    }  # fmt: skip
    stream = answered("Hi", call=call)
    _, metadata = static_form(stream, Note(filled=("a",), history=2))
    found = json.loads(json.dumps(metadata))["nbllm"]
    assert re.fullmatch(r"[0-9a-f]{64}", found.pop("prompt_hash"))
    assert found.pop("request_id") == stream.request_id is not None
    assert found == {
        "provider": "openai", "model": "m", "state": "complete", "finish_reason": "stop", "fallback_of": [],
        "parameters": {"max_tokens": 9, "temperature": 0.5, "seed": 3, "stop": ["END"], "tools": ["f"]},
        "usage": {"input_tokens": 3, "output_tokens": 1, "cached_tokens": 0, "reasoning_tokens": 0},
        "cost": 0.0004, "filled_in": ["a"], "history": 2,
    }  # fmt: skip
    assert "secret" not in str(metadata)


# The frame --------------------------------------------------------------------------------------


class Frames(HTMLParser):
    """The attributes of each element."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def framed(text: str) -> list[tuple[str, dict[str, str | None]]]:
    """The elements of the page in the frame, and what they have."""
    ((tag, attributes),) = Frames(sandboxed(text)).found
    assert (tag, attributes["sandbox"]) == ("iframe", "")
    return Frames(attributes["srcdoc"] or "").found


HOSTILE = [
    *ATTACKS.values(),
    "<link rel=dns-prefetch href=//secret.example><base href=//x.example><meta http-equiv=refresh content=0;url=//x>",
    "<form action=//x><input name=a autofocus onfocus=x()><button formaction=javascript:x>b</button></form>",
    "<a href=//x ping=//y target=_top>a</a><a href='javascript:x'>b</a><area href=//x><a href=#in>c</a>",
    "<img src=//x/a.png srcset=//y><img src='data:image/svg+xml,<svg onload=x>'><video src=//x poster=//y></video>",
    "<svg><use href=//x#a /><image href=//x /><style><img src=x onerror=y></style><foreignObject><img src=//x></svg>",
    "<table background=//x><td background=//x></table><object data=//x></object><embed src=//x><frameset><frame src=y>",
    "\"'><script>x</script> $$ \\( <![CDATA[ x ]]> <!doctype x> <?php x ?> <!-- <script> -->",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_frame_holds_nothing_that_acts_or_loads(text: str) -> None:
    """Beside the sandbox and the policy: no element and no attribute that could, not even a hint for the browser."""
    policy, prefetch, referrer, body, *rest = framed(text)
    assert policy[1]["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert (prefetch[1]["content"], referrer[1]["content"], body[0]) == ("off", "no-referrer", "body")
    for tag, attributes in rest:
        assert tag not in {
            "script",
            "link",
            "base",
            "meta",
            "form",
            "input",
            "iframe",
            "object",
            "embed",
            "use",
            "video",
        }
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in {"ping", "target", "background", "srcset", "action", "data", "poster", "srcdoc"}
            assert name != "href" or (value or "").startswith("#")
            assert name != "src" or (value or "").startswith("data:image/png")
    assert not re.search(r"[$\\]", sandboxed(text))  # JupyterLab looks for formulas in HTML too


def test_a_frame_shows_what_the_model_made() -> None:
    """Structure, style, small drawings and pictures within the page are kept."""
    page = "<!DOCTYPE html><html><head><title>T</title><style>p > b {color: red}</style></head>"
    page += "<body><h1 id='a'>A &amp; B</h1>"
    page += "<p style='margin:0'>x <b>y</b><br>"
    page += "<img src='data:image/png;base64,AAAA' alt=z></p><a href='#a'>up</a>"
    page += "<svg viewBox='0 0 1 1'><circle r=1 fill=red /></svg></body></html>"
    tags = [tag for tag, _ in framed(page)[4:]]
    assert tags == ["title", "style", "h1", "p", "b", "br", "img", "a", "svg", "circle"]
    source = html.unescape(sandboxed(page))
    assert "p > b {color: red}" in source
    assert "A &amp; B" in source
    assert "viewbox=" in source  # HTML's parser knows its right spelling


@given(st.text(alphabet=st.sampled_from("<>!-/[]'\"=&#;ab \n?$\\"), max_size=60))
def test_a_frame_takes_any_text(text: str) -> None:
    """It never raises, and what comes out is one frame."""
    framed(text)
