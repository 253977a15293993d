"""The static form of a comparison, its numbers, and its view in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from nbllm._loop import background_loop
from nbllm.display.compare import named
from nbllm.display.compare_views import TerminalColumns
from nbllm.display.comparison import Comparison, Row, static_columns
from nbllm.display.note import Note
from nbllm.errors import ServerError
from nbllm.manager import ProviderManager
from nbllm.response import Record, Response
from nbllm.types import Finish, TextDelta, Usage, UsageUpdate
from tests.display.attacks import ATTACKS, FRAGMENTS, compositions
from tests.display.test_safe import RENDERERS, Page
from tests.wire import Wire

BASE: dict[str, Any] = {
    "answered_by": None, "state": "complete", "finish_reason": "stop", "error": None, "cached": False,
    "time_to_first_token": 0.213, "seconds": 12.34, "tokens_per_second": 48.4, "input_tokens": 12, "output_tokens": 512,
    "cost": 0.0123, "words": 2000, "characters": 2000,
}  # fmt: skip


def row(model: str = "openai:m", **fields: Any) -> Row:
    """A row of a call that went well, but for what is given."""
    return Row(model, **{**BASE, **fields})


def comparison(*texts: str, names: tuple[str, ...] = (), **fields: Any) -> Comparison:
    """Texts of models with these names, by default `p:0`, `p:1` and so on."""
    rows = [row(name, **fields) for name in names or [f"p:{number}" for number in range(len(texts))]]
    return Comparison(rows, [Response(text) for text in texts])


# Numbers ----------------------------------------------------------------------------------------


def plain(cells: tuple[str, ...]) -> list[str]:
    """The cells with ordinary spaces, but for the model's name."""
    return [cell.replace("\u00a0", " ") for cell in cells[1:]]


@pytest.mark.parametrize(
    ("fields", "cells"),
    [
        ({}, ["done", "0.21 s", "12.3 s", "48", "12 → 512", "$0.0123"]),
        ({"cost": None, "tokens_per_second": 3.21}, ["done", "0.21 s", "12.3 s", "3.2", "12 → 512", "—"]),
        ({"output_tokens": None, "cost": 0.0}, ["done", "0.21 s", "12.3 s", "48", "12 → ≈ 500", "$0.00"]),
        (
            {"input_tokens": None, "output_tokens": None, "characters": 0},
            ["done", "0.21 s", "12.3 s", "48", "—", "$0.0123"],
        ),
        ({"finish_reason": "length"}, ["done (length)", "0.21 s", "12.3 s", "48", "12 → 512", "$0.0123"]),
        ({"state": "interrupted"}, ["stopped", "0.21 s", "12.3 s", "48", "12 → ≈ 500", "$0.0123"]),
        ({"seconds": 123.4, "tokens_per_second": 1234.5}, ["done", "0.21 s", "123 s", "1,234", "12 → 512", "$0.0123"]),
    ],
)  # fmt: skip
def test_what_is_not_known_is_a_dash_and_an_estimate_is_marked(fields: dict[str, Any], cells: list[str]) -> None:
    """Nothing is said as 0 that is not known to be, and only the provider's own count of tokens goes without an ≈."""
    assert plain(row(**fields).cells()) == cells


class Timed:
    """What `Row.of` asks of a stream, with times that are set."""

    provider, model, fallback_of, error = "openai", "m", (), None

    def __init__(
        self, *, first: float, duration: float, reasoning: str = "", cached: bool = False, **usage: int
    ) -> None:
        record = Record("openai", "m")
        record.add([TextDelta("words"), UsageUpdate(Usage(**usage)), Finish("stop")])
        record.end("complete")
        self.usage, self.text, self.state, self.cost = record.usage, record.text, record.state, record.cost
        self.finish_reason, self.cached, self.reasoning = "stop", cached, reasoning
        self.time_to_first_token, self.duration = first, duration


@pytest.mark.parametrize(
    ("timed", "speed"),
    [
        (Timed(first=1.0, duration=3.0, output_tokens=100), 50.0),
        (Timed(first=1.0, duration=3.0, output_tokens=100, reasoning_tokens=60), 20.0),  # thought before the first word
        (Timed(first=1.0, duration=3.0, output_tokens=100, reasoning_tokens=60, reasoning="shown"), 50.0),
        (Timed(first=2.0, duration=2.01, output_tokens=100), pytest.approx(49.75, rel=0.01)),  # all in one piece
        (Timed(first=1.0, duration=3.0), None),
        (Timed(first=1.0, duration=3.0, output_tokens=100, cached=True), None),
    ],
)
def test_tokens_a_second_are_those_that_were_seen_over_the_time_in_which_they_came(
    timed: Any, speed: float | None
) -> None:
    """Reasoning that is not shown makes no model look fast, nor does an answer that comes in one piece."""
    assert Row.of("openai:m", timed).tokens_per_second == speed


# The static form --------------------------------------------------------------------------------


def test_the_static_form_has_a_table_and_each_answer_under_its_name() -> None:
    """Side by side where styles are kept, one below the other elsewhere; markdown stays what it is."""
    made = comparison("**a**\n\n```python\nx = 1", "It costs $5.\n\n| a |\n|---|\n| 1 |", names=("p:a", "p:b"))
    data = static_columns(made, Note(filled=("name",), history=2))
    page = Page(RENDERERS["nbconvert"](data["text/markdown"]))
    assert page.tags.count("table") == 2
    assert page.tags.count("h4") == page.tags.count("strong") + 1 == 2
    assert page.code == ["x = 1\n"]
    assert "It costs $5." in page.text
    assert page.text.rstrip().endswith("Filled in: {name} · 2 earlier messages sent along")
    assert data["text/plain"].split()[:8] == ["Model", "State", "First", "token", "Time", "Tokens/s", "Tokens", "Cost"]
    assert "── p:b ──\n\nIt costs $5." in data["text/plain"]


def test_an_error_a_fallback_and_an_empty_answer_are_said() -> None:
    """In the column of the model; the error with what to do about it."""
    rows = [
        row("p:a", state="failed", error=ServerError("It is *down*.", action="Try again.")),
        row("p:b", answered_by="q:c"),
        row("p:d", state="interrupted"),
    ]
    data = static_columns(
        Comparison(rows, [Response(text, Record("p", "m", state="complete")) for text in ("", "", "")])
    )
    text = Page(RENDERERS["nbconvert"](data["text/markdown"])).text
    for said in (
        "ServerError: It is *down*.",
        "→ Try again.",
        "p:b (answered by q:c)",
        "The answer is empty.",
        "Stopped before",
    ):
        assert said in text
        assert said in data["text/plain"]


@pytest.mark.parametrize(
    ("form", "code"), [("json", '{\n  "a": 1\n}\n'), ("text", '{"a": 1}\n'), ("html", '{"a": 1}\n')]
)
def test_other_formats_stand_in_fences(form: str, code: str) -> None:
    """JSON is indented, text is shown to the letter, HTML as its source."""
    data = static_columns(comparison('{"a": 1}'), Note(format=form))
    assert Page(RENDERERS["nbconvert"](data["text/markdown"])).code == [code]
    assert '{"a": 1}' in data["text/plain"]


OURS = re.compile(
    r"<div style='(?:display:grid;grid-template-columns:repeat\(auto-fit,minmax\(220px,1fr\)\);gap:0 16px"
    r"|min-width:0;overflow-x:auto)'>"
)


def assert_harmless(*texts: str, names: tuple[str, ...] = ()) -> None:
    """No renderer makes anything live of it, and each answer stays in its own column."""
    markdown = static_columns(comparison(*texts, names=names))["text/markdown"]
    for renderer, render in RENDERERS.items():
        page = Page(render(markdown))
        dangers = [danger for danger in page.dangers if not OURS.fullmatch(danger)]
        assert not dangers, f"{renderer} makes {dangers} of {markdown!r}"
        assert len(page.dangers) == len(texts) + 1


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_in_a_text_or_a_name_is_harmless(attack: str) -> None:
    """Alone, before and after another answer, and as the name of a model."""
    assert_harmless(attack, f"two\n\n{attack}", "three", names=("p:a", attack, f"p:{attack}"))
    assert_harmless(f"{attack}</div></div>", "```", f"<div>\n\n{attack}")


def test_answers_do_not_work_together() -> None:
    """What is harmless alone stays so beside another: halves of a formula, of a link, of a fence, of an element."""
    halves = [
        "$",
        "$$",
        "\\(",
        "[a",
        "[r]: javascript:x",
        "```",
        "~~~",
        "<!--",
        "\\begin{a}",
        "`",
        '<img src="',
        "> $$",
        "- ```",
    ]
    for first in halves:
        for second in (
            "$",
            "$$\n<b>",
            "\\)",
            "](javascript:x)",
            "[a][r]",
            "```\n<b>",
            "-->",
            "\\end{a}",
            '">',
            "`<b>`",
        ):
            assert_harmless(first, f"{second} <img src=x onerror=y>")
    markdown = static_columns(comparison("It costs $5", "and $6.", cost=None))["text/markdown"]
    assert "$" not in markdown.replace("<span>&#36;</span>", "")


def test_random_compositions_are_harmless_beside_each_other() -> None:
    """Hostile fragments in any order, in texts and names."""
    texts = compositions(seed=5, count=200)
    for first, second in zip(texts[::2], texts[1::2], strict=True):
        assert_harmless(first, second, names=(second[:40] + "a", first[:40] + "b"))
    assert FRAGMENTS


# Streams ----------------------------------------------------------------------------------------


@pytest.fixture
def manager(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderManager]:
    """A manager whose OpenAI is the wire server."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{wire.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    manager = ProviderManager()
    yield manager
    background_loop().run(manager.close())


def test_equal_names_are_told_apart(manager: ProviderManager) -> None:
    """The second call of a model is its `#2`."""
    streams = [manager.start("Hi", f"openai:{model}") for model in ("ok", "echo", "ok", "ok")]
    assert list(named(streams)) == ["openai:ok", "openai:echo", "openai:ok #2", "openai:ok #3"]
    for stream in streams:
        stream.close()


def test_a_terminal_shows_each_answer_when_it_has_ended(
    wire: Wire, manager: ProviderManager, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole, under its name, without escapes; the table comes last, and a file gets no line of progress."""
    slow = wire.script("slow", text="slow \x1b[31manswer\x07", gates=[1])
    wire.script("quick", text="quick answer")
    streams = named(manager.start("Hi", f"openai:{model}", cache="off") for model in ("slow", "quick"))
    view = TerminalColumns()
    streams["openai:quick"].ended.result(10)
    view.push(streams)
    assert capsys.readouterr().out == "── openai:quick ──\n\nquick answer\n\n"
    slow.release()
    streams["openai:slow"].ended.result(10)
    view.push(streams)
    view.finish(Comparison.of(streams), Note(filled=("name",)), {})
    out = capsys.readouterr().out
    assert out.startswith("── openai:slow ──\n\nslow answer\n\nModel ")
    assert out.endswith("*Filled in: {name}*\n")
    assert "\r" not in out
