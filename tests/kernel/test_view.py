"""The view of an answer in a real kernel: replays, reasoning, the background, and what a page may ask for."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.harness import Comm, Kernel, Output, Result
    from tests.wire import Wire


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    """One server for all tests of this module."""
    from tests.wire import Wire

    with Wire() as wire:
        yield wire


@pytest.fixture(scope="module")
def shell(server: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with nbllm loaded, whose OpenAI is the server."""
    from tests.kernel.harness import Kernel

    env = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "sk-view-0123456789"}
    with Kernel(env=env, cwd=tmp_path_factory.mktemp("kernel")) as kernel:
        kernel.run("%load_ext nbllm").check()
        yield kernel


@pytest.fixture(autouse=True)
def _cleared(server: Wire) -> None:
    server.clear()


def only(result: Result) -> Output:
    """The one output of a cell that went well."""
    result.check()
    (output,) = result.displays
    return output


def view(result: Result) -> Comm:
    """The comm of the cell's view; its layout has one of its own."""
    (comm,) = (comm for comm in result.comms if "key" in comm.state)
    return comm


def sent(result: Result) -> list[dict[str, Any]]:
    """What the cell's view was sent."""
    return view(result).custom


@pytest.mark.parametrize("cell_id", [None, "cell-1"])
def test_a_replay_out_of_the_cache_is_the_same_to_the_byte(
    new_kernel: Callable[..., Kernel], server: Wire, tmp_path: Path, cell_id: str | None
) -> None:
    """Run again, in this kernel or another, a cell's output does not change: nothing in it tells times or caches."""
    from tests.wire.script import ToolCall, Usage

    config = tmp_path / "nbllm" / "config.toml"
    config.parent.mkdir()
    config.write_text('[prices."openai:m"]\ninput = 1.1\noutput = 2.3\n')
    env = {
        "XDG_CONFIG_HOME": str(tmp_path), "NBLLM_CACHE": "", "NBLLM_CACHE_PLACE": str(tmp_path / "c.sqlite"),
        "OPENAI_API_KEY": "k-0123456789", "OPENAI_BASE_URL": f"{server.url}/v1",
    }  # fmt: skip
    server.script("m", text="# Hi\n\n$x$ is {y}.", reasoning=("Let me ", "think."), usage=Usage(9, 7, 4, 2))
    server.script("tools", text="", tool_calls=(ToolCall("f"),), finish="tool_calls")
    server.script("length", text="Half an", finish="length")
    cells = [f"%%llm openai:{model} --no-history\nHi {{y}}" for model in ("m", "tools", "length")]
    seen = []
    for _ in range(2):
        kernel = new_kernel(env=env, cwd=tmp_path)
        kernel.run("y = 5\n%load_ext nbllm").check()
        seen += [[only(kernel.run(cell, cell_id=cell_id)) for cell in cells] for _ in range(2)]
    assert len(server.requests) == len(cells)
    for again in seen[1:]:
        assert [(output.data, output.metadata) for output in again] == [(o.data, o.metadata) for o in seen[0]]
    found = seen[0][0].metadata["nbllm"]
    assert found["usage"] == {"input_tokens": 9, "output_tokens": 7, "cached_tokens": 4, "reasoning_tokens": 2}
    assert found["cost"] > 0
    assert found["filled_in"] == ["y"]
    assert found["request_id"]


def test_reasoning_streams_beside_the_text_and_is_not_saved(shell: Kernel, server: Wire) -> None:
    """It has deltas of its own that join without a gap; the notebook keeps none of it, the Response all."""
    server.script("m", text="So it is.", reasoning=("Let me ", "think ", "it over. "), pace=0.02)
    result = shell.run("%%llm openai:m -o kept\nHi", cell_id="r-1")
    for part, whole in (("reasoning", "Let me think it over. "), ("text", "So it is.")):
        deltas = [content for content in sent(result) if content.get("part") == part]
        assert "".join(delta["delta"] for delta in deltas) == whole
        assert [delta["at"] for delta in deltas] == [0, *(delta["next"] for delta in deltas[:-1])]
    output = only(result)
    assert "think" not in str(output.data)
    assert output.data["text/plain"] == "So it is."
    assert shell.value("kept.reasoning") == "Let me think it over. "


def test_without_widgets_a_word_says_that_it_thinks(shell: Kernel, server: Wire) -> None:
    """One line until the text comes; the reasoning itself is not shown."""
    script = server.script("m", text="So it is.", reasoning=("Hm. ", "Well. "), gates=[0])
    running = shell.start("%%llm openai:m --no-history\nHi")
    running.wait(lambda result: "thinking…" in result.text)
    assert "Hm" not in running.now.text
    script.release()
    assert only(running.result()).data["text/plain"] == "So it is."


def test_a_page_gets_what_there_is_by_now_and_the_finished_form_when_it_asks(shell: Kernel, server: Wire) -> None:
    """The text so far is in the state that a loaded page asks for; what the output is at the end is sent on request."""
    script = server.script("m", deltas=["abc", "def"], reasoning=("hm",), gates=[1])
    running = shell.start("%%llm openai:m\nHi", cell_id="p-1")
    shell.wait_comm(lambda comm: {"part": "text", "at": 0, "next": 3, "delta": "abc"} in comm.custom)
    comm = view(running.now)
    assert comm.state["snapshot"] == {}
    # As a front end that is loaded does; ipykernel 7 answers it while the cell runs, on a subshell.
    if shell.has_subshells:
        shell.comm_message(comm.id, {"method": "request_state"}, subshell=True)
        told = {"text": {"text": "abc", "at": 3}, "reasoning": {"text": "hm", "at": 2}}
        shell.wait_comm(lambda comm: comm.state.get("snapshot") == told)
    script.release()
    output = only(running.result())
    assert comm.state["final"] is True
    shell.comm_send(comm.id, {"ask": "final"})
    static = {"data": output.data, "metadata": output.metadata}
    shell.wait_comm(lambda comm: {"static": static} in comm.custom)
    shell.comm_send(comm.id, {"ask": "close"})
    shell.wait_comm(lambda found: found is comm and found.closed)


def test_half_a_character_waits_for_its_other_half(shell: Kernel) -> None:
    """A character that arrives in two pieces, the first of which shows as U+FFFD for a moment, is sent whole."""
    code = """
    from nbllm.display.answer_widget import AnswerWidget
    widget = AnswerWidget(stop=print)
    for text in ("a", "a\\ufffd", "a\\U0001f600", "a\\U0001f600b"): widget.push("text", text)
    """
    deltas = sent(shell.run(textwrap.dedent(code)).check())
    assert [(delta["at"], delta["delta"]) for delta in deltas] == [(0, "a"), (1, "\U0001f600"), (2, "b")]


def test_an_error_in_the_background_is_said_in_its_own_output(shell: Kernel, server: Wire) -> None:
    """Name, message and next action stand in the cell that asked; no other cell gets anything, nothing is printed."""
    script = server.script("m", text="one two three", fault="reset", at=2, gates=[0])
    asked = shell.run("%%llm openai:m --bg\nHi", cell_id="b-1").check()
    other = shell.start("x = input()", inputs=("go",))
    script.release()
    shell.wait(lambda: "ConnectionError" in asked.text, 10, lambda: asked.text)
    (output,) = asked.displays
    assert output.data["text/plain"].startswith("one two ")
    assert "The answer breaks off here." in output.data["text/plain"]
    assert "→ " in output.data["text/plain"]
    assert output.metadata["nbllm"]["state"] == "failed"
    assert other.result().check().outputs == []
    refused = shell.run("%%llm openai:e401 --bg\nHi").check()
    shell.wait(lambda: "AuthenticationError" in refused.text, 10, lambda: refused.text)
    assert "→ Set OPENAI_API_KEY" in refused.displays[0].data["text/plain"]


def test_what_goes_wrong_at_the_end_in_the_background_is_said_too(shell: Kernel, server: Wire) -> None:
    """`ended` may fail, in the cell and behind it: the answer is drawn all the same."""
    server.script("m", text="Hi there")
    code = """
    from nbllm.display.answer import follow, follow_in_background, open_view
    from nbllm.session import get_manager
    shell = get_ipython()
    def ended(stream): raise ZeroDivisionError("what <b>now</b>")
    def begin(): return get_manager().start("Hi", "openai:m")
    """
    shell.run(textwrap.dedent(code)).check()
    result = shell.run("stream = begin()\nfollow_in_background(stream, open_view(shell, stream), ended=ended)").check()
    shell.wait(lambda: "ZeroDivisionError" in result.text, 10, lambda: result.text)
    assert result.displays[0].data["text/plain"] == "Hi there\n\nZeroDivisionError: what <b>now</b>"
    assert "<b>" not in result.displays[0].data["text/markdown"]
    assert not result.stderr
    failed = shell.run("stream = begin()\nfollow(stream, lambda: open_view(shell, stream), ended=ended)")
    assert failed.error is not None
    assert failed.error.ename == "ZeroDivisionError"
    assert failed.displays[0].data["text/plain"] == "Hi there"


def test_the_live_view_says_what_answers_and_that_it_comes_from_the_cache(
    new_kernel: Callable[..., Kernel], server: Wire, tmp_path: Path
) -> None:
    """While it is live the view may say more than what is saved."""
    env = {
        "NBLLM_CACHE": "", "NBLLM_CACHE_PLACE": str(tmp_path / "c.sqlite"),
        "OPENAI_API_KEY": "k-0123456789", "OPENAI_BASE_URL": f"{server.url}/v1",
    }  # fmt: skip
    kernel = new_kernel(env=env, cwd=tmp_path)
    kernel.run("%load_ext nbllm").check()
    server.script("m", text="Hi there")
    code = """
    from nbllm.display.answer import WidgetView, follow
    from nbllm.session import get_manager
    stream = get_manager().start("Hi", "openai:m")
    follow(stream, lambda: WidgetView(stream))
    """
    for cached in (False, True):
        result = kernel.run(textwrap.dedent(code)).check()
        status = view(result).state["status"]
        assert status.startswith("openai:m · 1 → 2 tokens")
        assert ("from the cache" in status) is cached
        kept = result.displays[0]
        assert "cache" not in re.sub("cached_tokens", "", str((kept.data, kept.metadata)))


def test_an_answer_that_is_there_at_once_is_not_drawn_live(shell: Kernel, server: Wire) -> None:
    """Out of the cache, or an error: one output and no view that would only flicker."""
    server.script("m", text="Hi there", write="burst")
    result = shell.run("%%llm openai:m --no-history\nHi", cell_id="q-1")
    assert (only(result).data["text/plain"], only(result).updates, result.comms) == ("Hi there", 0, [])
    assert only(result).display_id
    refused = shell.run("%%llm openai:e401 --no-history\nHi", cell_id="q-2")
    assert refused.error is not None
    assert (refused.comms, refused.displays) == ([], [])


@pytest.mark.parametrize("cell_id", [None, "cell-1"])
@pytest.mark.parametrize("moment", ["opening", "ended"])
def test_an_interrupt_strikes_only_between_what_belongs_together(
    shell: Kernel, server: Wire, moment: str, cell_id: str | None
) -> None:
    """While the view opens or the end is drawn, it waits: no output is left behind that nobody finishes."""
    server.script("m", text="Hi there", pace=0.05)
    code = f"""
    import os, signal
    from nbllm.display.answer import follow, open_view
    from nbllm.display.note import Note
    from nbllm.session import get_manager
    stream = get_manager().start("Hi", "openai:m")
    def strike(moment):
        if moment == {moment!r}: os.kill(os.getpid(), signal.SIGINT)
    def opening():
        strike("opening")
        return open_view(get_ipython(), stream)
    def ended(stream):
        strike("ended")
        return Note(lines=("It is over.",))
    follow(stream, opening, ended=ended)
    """
    result = shell.run(textwrap.dedent(code), cell_id=cell_id)
    assert result.error is not None
    assert result.error.traceback == "Interrupted: what had arrived is kept."
    (output,) = result.displays
    assert output.data["text/plain"].endswith("*It is over.*")
    state = {"opening": "interrupted", "ended": "complete"}[moment]
    assert output.metadata["nbllm"]["state"] == state
