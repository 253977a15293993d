"""The view in a terminal: text as it comes, nothing that acts, nothing cut in two."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from nbllm._loop import background_loop
from nbllm.display.answer import follow
from nbllm.display.note import Note
from nbllm.display.text import TerminalView
from nbllm.manager import ProviderManager

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.wire import Wire


@pytest.fixture
def manager(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderManager]:
    """A manager whose OpenAI is the local server."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{wire.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-terminal-0123456789")
    found = ProviderManager()
    yield found
    background_loop().run(found.close())


def test_what_the_terminal_would_obey_is_taken_out_wherever_it_is_cut(
    manager: ProviderManager, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    """An escape sequence or a line break that comes in two pieces leaves no half of it behind."""
    wire.script("m", deltas=["one \x1b", "[3", "1mtwo\x1b[0m\r", "\nthree \x1b]0;title\x07", " four\r"], pace=0.05)
    follow(manager.start("Hi", "openai:m"), TerminalView, Note(history=2))
    assert capsys.readouterr().out == (
        "one two\nthree ]0;title four\n\n\n*2 earlier messages sent along*\n\nopenai:m · 1 → 5 tokens\n"
    )


def test_a_word_stands_for_the_reasoning_until_the_text_comes(
    manager: ProviderManager, wire: Wire, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal it is written over; into a file it is not written at all."""
    wire.script("m", text="So it is.", reasoning=("hm", "well"), pace=0.05)
    follow(manager.start("Hi", "openai:m"), TerminalView)
    plain = "So it is.\n\nopenai:m · 1 → 3 tokens\n"
    assert capsys.readouterr().out == plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    follow(manager.start("Hi", "openai:m"), TerminalView)
    assert capsys.readouterr().out == f"thinking…\r         \r{plain}"


def test_stopped_and_broken_off_is_said_below(
    manager: ProviderManager, wire: Wire, capsys: pytest.CaptureFixture[str]
) -> None:
    """What had arrived stands there, marked."""
    wire.script("m", text="one two three", fault="cut", at=2)
    with pytest.raises(Exception, match="without saying that it was complete"):
        follow(manager.start("Hi", "openai:m"), TerminalView)
    assert capsys.readouterr().out == "one two \n\n*The answer breaks off here.*\n\nopenai:m\n"
