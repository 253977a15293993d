"""Several models side by side in a real kernel, against a server that speaks the protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from nbllm.display.answer import SETTLING

if TYPE_CHECKING:
    from tests.kernel.harness import Kernel, Output, Result
    from tests.wire import Wire

SETUP = """
%load_ext nbllm
import dataclasses
from nbllm.display.compare import Comparison, compare, named
from nbllm.display.note import Note
from nbllm.session import get_manager

def side_by_side(*models, note=Note(), **options):
    options = {"cache": "off", **options}
    streams = named(get_manager().start("Hi", f"openai:{model}", **options) for model in models)
    return compare(get_ipython(), streams, note)
"""


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

    env = {
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "OPENAI_API_KEY": "sk-kernel-0123456789abcdef",
        "NBLLM_MAX_RETRIES": "0",
    }
    with Kernel(env=env, cwd=tmp_path_factory.mktemp("kernel")) as kernel:
        kernel.run(SETUP).check()
        yield kernel


@pytest.fixture(autouse=True)
def _cleared(server: Wire) -> None:
    server.clear()


def the_output(result: Result) -> Output:
    """The one output that a comparison leaves."""
    (output,) = result.displays
    return output


def outside_fences(markdown: str) -> str:
    """What is no code."""
    return re.sub(r"^(`{3,})\w*\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def columns(output: Output) -> list[str]:
    """The headings of the static form, in their order."""
    return re.findall(r"^#### (.*)$", output.data["text/markdown"], re.MULTILINE)


def test_answers_stand_in_the_order_asked_whichever_ends_first(shell: Kernel, server: Wire) -> None:
    """All run at once; the static form has a table and a part for each, and one provenance for each in its metadata."""
    slow = server.script("slow", text="**slow** answer", gates=[1])
    server.script("quick", text="quick answer")
    running = shell.start("both = side_by_side('slow', 'quick', note=Note(filled=('name',)))")
    running.wait(lambda result: "quick answer" in result.text and "**slow**" in result.text)
    assert "slow** answer" not in running.now.text
    slow.release()
    output = the_output(running.result().check())
    assert set(output.data) == {"text/markdown", "text/plain"}
    assert columns(output) == ["openai:slow", "openai:quick"]
    assert output.data["text/markdown"].index("slow** answer") < output.data["text/markdown"].index("quick answer")
    rows = [line for line in output.data["text/markdown"].splitlines() if line.startswith("| openai:")]
    assert [row.split(" | ")[:2] for row in rows] == [["| openai:slow", "done"], ["| openai:quick", "done"]]
    assert re.search(r"\d\.\d\d\u00a0s \|", rows[0])
    assert "1\u00a0→\u00a02" in rows[0]
    assert output.data["text/markdown"].endswith("*Filled in: &#123;name&#125;*")
    provenance = output.metadata["nbllm"]["compare"]
    assert [(call["model"], call["state"]) for call in provenance] == [("slow", "complete"), ("quick", "complete")]
    assert shell.value("list(both.items())") == [["openai:slow", "**slow** answer"], ["openai:quick", "quick answer"]]


@pytest.mark.parametrize("cell_id", [None, "cell-1"], ids=["redrawn", "widget"])
def test_one_that_fails_or_is_cut_leaves_the_others_alone(shell: Kernel, cell_id: str | None) -> None:
    """The cell ends well; each column says what became of it and what to do, and a partial answer is kept."""
    result = shell.run("three = side_by_side('ok', 'e500', 'cut', 'ok')", cell_id=cell_id).check()
    output = the_output(result)
    assert columns(output) == ["openai:ok", "openai:e500", "openai:cut", "openai:ok &#35;2"]
    plain = output.data["text/plain"]
    assert "ServerError: OpenAI (500)" in plain
    assert re.search(r"── openai:cut ──\n\ntok0 tok1 tok2 tok3 tok4 \n\nIncompleteStreamError: .*\n\n→ ", plain)
    assert shell.value("[(name, answer.state, str(answer)) for name, answer in three.items()]") == [
        ["openai:ok", "complete", "".join(f"tok{i} " for i in range(10))],
        ["openai:e500", "failed", ""],
        ["openai:cut", "incomplete", "tok0 tok1 tok2 tok3 tok4 "],
        ["openai:ok #2", "complete", "".join(f"tok{i} " for i in range(10))],
    ]
    assert shell.value("{name: type(error).__name__ for name, error in three.errors.items()}") == {
        "openai:e500": "ServerError",
        "openai:cut": "IncompleteStreamError",
    }


def test_where_all_fail_the_cell_fails(shell: Kernel) -> None:
    """A notebook that is run unattended stops there; what happened to each is in the output."""
    result = shell.run("side_by_side('e401', 'e500')")
    assert result.error is not None
    assert result.error.ename == "AuthenticationError"
    assert len(result.error.traceback.splitlines()) == 2
    assert "ServerError" in the_output(result).data["text/plain"]


@pytest.mark.parametrize("cell_id", [None, "cell-2"], ids=["redrawn", "widget"])
def test_an_interrupt_stops_all_and_keeps_what_had_arrived(shell: Kernel, server: Wire, cell_id: str | None) -> None:
    """Every socket is closed, the texts so far stay, and one line says what happened."""
    for name in ("a", "b", "c"):
        server.script(name, tokens=1000, pace=0.01)
    running = shell.start("side_by_side('a', 'b', 'c')", cell_id=cell_id)
    if cell_id is None:
        running.wait(lambda result: result.text.count("tok2 ") >= 3)
    else:
        comm = shell.wait_comm(lambda comm: len(comm.state.get("names", ())) == 3 and not comm.state["final"])
        shell.wait_comm(lambda _: str(comm.custom).count("tok2 ") == 3)
    running.interrupt()
    result = running.result()
    server.wait_closed(3)
    assert result.error is not None
    assert result.error.traceback == "Interrupted: what had arrived is kept."
    output = the_output(result)
    assert output.data["text/plain"].count("tok0 tok1 tok2") == output.data["text/plain"].count("Stopped here.") == 3
    assert [call["state"] for call in output.metadata["nbllm"]["compare"]] == ["interrupted"] * 3
    assert shell.value("1 + 1") == 2


def test_with_widgets_one_message_carries_what_is_new_in_all_columns(shell: Kernel, server: Wire) -> None:
    """The deltas of each column join without a gap; what a view missed it gets again."""
    texts = {"a": "naïve 日本語 👩‍🔬 " * 40, "b": "plain words " * 40}
    scripts = [server.script(name, text=text, pace=0.003, gates=[100]) for name, text in texts.items()]
    running = shell.start("side_by_side('a', 'b')", cell_id="cell-3")
    comm = shell.wait_comm(lambda comm: comm.state.get("names") == ["openai:a", "openai:b"] and not comm.state["final"])
    shell.wait_comm(lambda _: comm.custom)
    sent = shell.comm_send(comm.id, {"ask": "resync", "part": "1", "at": 3}, subshell=shell.has_subshells)
    shell.wait_handled(sent)
    again = next(content for content in comm.custom if content.get("at") == 3 and content.get("part") == "1")
    assert texts["b"][3:].startswith(again["delta"])
    for script in scripts:
        script.release()
    running.result().check()
    messages = [content["parts"] for content in comm.custom if "parts" in content]
    assert any(len(parts) == 2 for parts in messages)
    for part, text in enumerate(texts.values()):
        deltas = [parts[str(part)] for parts in messages if str(part) in parts]
        assert "".join(delta for _, delta in deltas) == text
        assert all(text[at:].startswith(delta) for at, delta in deltas)
    assert [row["state"] for row in comm.state["rows"]] == ["complete", "complete"]


def test_stop_of_one_column_leaves_the_others(shell: Kernel, server: Wire) -> None:
    """A click reaches the kernel while the cell runs, closes that one's socket only, and `Stop all` ends the rest."""
    for name in ("a", "b", "c"):
        server.script(name, tokens=1000, pace=0.01)
    running = shell.start("kept = side_by_side('a', 'b', 'c')", cell_id="cell-4")
    comm = shell.wait_comm(lambda comm: len(comm.state.get("names", ())) == 3 and not comm.state.get("final"))
    shell.wait_comm(lambda _: len({part for content in comm.custom for part in content["parts"]}) == 3)
    shell.comm_send(comm.id, {"ask": "stop", "part": "1"}, subshell=shell.has_subshells)
    server.wait_closed(1)
    assert [request.model for request in server.closed] == ["b"]
    shell.wait_comm(lambda _: [row["state"] for row in comm.state["rows"]] == ["streaming", "interrupted", "streaming"])
    shell.comm_send(comm.id, {"ask": "stop", "part": "nonsense"}, subshell=shell.has_subshells)
    shell.comm_send(comm.id, {"ask": "stop"}, subshell=shell.has_subshells)
    running.result().check()
    server.wait_closed(3)
    assert shell.value("[answer.state for answer in kept.values()]") == ["interrupted"] * 3


def test_a_mapping_of_responses_and_a_table(shell: Kernel, server: Wire) -> None:
    """`.to_dataframe()` has a row for each model; what is not known is missing there, never 0."""
    server.script("paced", tokens=20, pace=0.02)
    shell.run("three = side_by_side('paced', 'e401', 'nousage')").check()
    assert shell.value("[type(answer).__name__ for answer in three.values()]") == ["Response"] * 3
    assert shell.value("[len(three), 'openai:paced' in three, three['openai:paced'].usage.output_tokens]") == [
        3,
        True,
        20,
    ]
    table = json.loads(shell.value("three.to_dataframe().to_json(orient='records')"))
    assert [row["model"] for row in table] == ["openai:paced", "openai:e401", "openai:nousage"]
    paced, failed, unknown = table
    assert (paced["state"], paced["error"], paced["input_tokens"], paced["output_tokens"]) == ("complete", None, 1, 20)
    assert 0 < paced["time_to_first_token"] < paced["seconds"]
    assert paced["tokens_per_second"] == pytest.approx(50, rel=0.5)
    assert failed["state"] == "failed"
    assert "Set OPENAI_API_KEY" in failed["error"]
    assert failed["text"] == ""
    assert (failed["time_to_first_token"], failed["tokens_per_second"], failed["output_tokens"]) == (None, None, None)
    assert (unknown["output_tokens"], unknown["tokens_per_second"], unknown["cost"]) == (None, None, None)
    shown = shell.run("three").outputs[-1].data
    assert set(shown) == {"text/markdown", "text/plain"}
    assert shell.value("repr(three)") == "<Comparison 'openai:paced' done, 'openai:e401' failed, 'openai:nousage' done>"


def test_pandas_is_asked_for_only_by_the_table(shell: Kernel) -> None:
    """Without it the comparison is the same, and the table's error names the extra."""
    shell.run("import sys; known = sys.modules.get('pandas'); sys.modules['pandas'] = None")
    error = shell.run("side_by_side('ok').to_dataframe()").error
    shell.run("sys.modules.pop('pandas')\nif known: sys.modules['pandas'] = known")
    assert error is not None
    assert "pip install 'nbllm[data]'" in error.traceback


def test_a_replay_from_the_cache_has_the_same_texts_tokens_and_cost_and_no_timings(shell: Kernel, server: Wire) -> None:
    """Timings of a replay would be taken for the model's: they are left out, and nothing is sent."""
    run = "cached = side_by_side('ok-7', 'markdown', cache='on')"
    first = the_output(shell.run(run).check())
    again = the_output(shell.run(run).check())
    assert len(server.requests) == 2
    assert shell.value("[answer.cached for answer in cached.values()]") == [True, True]
    timings = r"(?:—|[\d.]+\u00a0s) \| (?:—|[\d.]+\u00a0s) \| (?:—|[\d,.]+) \|"
    without = [re.sub(timings, "TIMED", output.data["text/markdown"]) for output in (first, again)]
    assert without[0] == without[1]
    assert without[0].count("TIMED") == 2
    assert "| — | — | — | 1\u00a0→\u00a07 |" in again.data["text/markdown"]
    assert shell.value("cached.to_dataframe()[['time_to_first_token', 'seconds']].isna().all().all().item()") is True


def test_hostile_texts_and_names_are_harmless_before_they_leave_the_kernel(shell: Kernel, server: Wire) -> None:
    """Live HTML, links, images, escapes, formulas that reach from one answer into the next: nothing of it is left."""
    name = "m</div><script>x</script>|$a^2$\x1b[2J![i](http://evil.example)"
    server.script(name, text="</div><img src=x onerror=y> costs $5\n```js\n</div></div>")
    server.script("n", text="![i](http://evil.example/?q) [a](javascript:z) \x1b[2J <b>$\n```\n<!--")
    result = shell.run(f"side_by_side({name!r}, 'n', 'e401')").check()
    for message in result.history:
        data = message.content.get("data", {})
        markdown = data.get("text/markdown", "")
        outside = outside_fences(markdown)
        assert not re.search(
            r"<(?!/?div|span>&#36;</span>|/span>|code>|/code>)[a-zA-Z!/]|!\[|\]\((?!http:)", outside
        )  # an image is a link
        assert outside.count("<div") == outside.count("</div>")
        assert outside.count("$") < 2  # a formula has two; one alone is a price, before the next answer has one as well
        assert "\x1b" not in str(data)
    for output in result.displays:  # at the end both answers have theirs, in the output and as the value
        assert "$" not in outside_fences(output.data["text/markdown"])


def test_views_do_not_pile_up(shell: Kernel) -> None:
    """Where no front end asks for finished views to be closed, the oldest are; their streams are let go."""
    for _ in range(SETTLING + 3):
        shell.run("side_by_side('ok-2', 'ok-2')", cell_id="cell-9").check()
    assert len([comm for comm in shell.comms.values() if "names" in comm.state and not comm.closed]) <= SETTLING
    shell.run("import gc; from nbllm import ResponseStream; gc.collect()")
    assert shell.value("sum(type(o) is ResponseStream for o in gc.get_objects())") == 0


def test_nothing_to_compare_is_said(shell: Kernel) -> None:
    """Two lines, the second of which helps."""
    error = shell.run("side_by_side()").error
    assert error is not None
    assert "%%llm MODEL MODEL" in error.traceback
