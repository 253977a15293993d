"""`%%llm` and `%llm` in a real kernel, against a server that speaks the protocol."""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.harness import Kernel, Output, Result
    from tests.wire import Wire

KEY = "sk-kernel-0123456789abcdef"


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

    env = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY}
    with Kernel(env=env, cwd=tmp_path_factory.mktemp("kernel")) as kernel:
        assert kernel.run("%load_ext nbllm").error is None
        yield kernel


@pytest.fixture(autouse=True)
def _cleared(server: Wire, shell: Kernel) -> None:
    shell.run("%llm chat reset")  # each test begins a conversation of its own
    server.clear()


def answer(result: Result) -> Output:
    """The one output of a cell that answered."""
    result.check()
    (output,) = result.displays
    return output


def test_an_answer_streams_and_ends_as_static_markdown(shell: Kernel, server: Wire) -> None:
    """Without widgets the output is redrawn as text arrives; at the end it is markdown with its provenance."""
    script = server.script("m", deltas=["**Hel", "lo**", " there"], gates=[1, 2])
    running = shell.start("%%llm openai:m\nHi")
    running.wait(lambda result: "**Hel" in result.text)
    assert "there" not in running.now.text
    script.release(2)
    output = answer(running.result())
    assert output.data["text/plain"] == "**Hello** there"
    assert output.data["text/markdown"] == "**Hello** there\n\n*openai:m · 1 → 3 tokens*"
    provenance = output.metadata["nbllm"]
    known = {"provider": "openai", "model": "m", "state": "complete", "finish_reason": "stop", "filled_in": []}
    assert provenance.items() >= known.items()
    assert (provenance["usage"]["input_tokens"], provenance["usage"]["output_tokens"]) == (1, 3)


def test_with_widgets_deltas_go_to_the_view_and_the_output_is_static_at_the_end(shell: Kernel, server: Wire) -> None:
    """A front end that sends cell ids gets deltas that join without a gap, and no widget in the final output."""
    text = "naïve 日本語 👩‍🔬 " * 50
    server.script("m", text=text, pace=0.002)
    running = shell.start("%%llm openai:m\nHi", cell_id="cell-1")
    result = running.result()
    deltas = [
        message.content["data"]["content"]
        for message in result.history
        if message.type == "comm_msg" and "delta" in message.content["data"].get("content", {})
    ]
    assert "".join(delta["delta"] for delta in deltas) == text
    assert [delta["at"] for delta in deltas] == [0, *(delta["next"] for delta in deltas[:-1])]
    assert len(deltas) > 3
    output = answer(result)
    assert set(output.data) == {"text/markdown", "text/plain"}
    assert output.data["text/plain"] == text


def test_a_view_that_missed_something_asks_for_it(shell: Kernel, server: Wire) -> None:
    """`resync` is answered with all that is missing, and a click on Stop reaches the kernel while the cell runs."""
    server.script("m", deltas=["abc", "def"], gates=[1])
    running = shell.start("%%llm openai:m\nHi", cell_id="cell-2")
    comm = shell.wait_comm(lambda comm: "key" in comm.state and not comm.closed and not comm.state.get("final"))
    shell.wait_comm(lambda comm: {"part": "text", "at": 0, "next": 3, "delta": "abc"} in comm.custom)
    subshell = shell.has_subshells
    shell.comm_send(comm.id, {"ask": "resync", "part": "text", "at": 1}, subshell=subshell)
    shell.wait_comm(lambda comm: {"part": "text", "at": 1, "next": 3, "delta": "bc"} in comm.custom)
    shell.comm_send(comm.id, {"ask": "stop"}, subshell=subshell)
    output = answer(running.result())
    assert output.metadata["nbllm"]["state"] == "interrupted"
    assert output.data["text/plain"].startswith("abc")
    server.wait_closed(1)


def test_an_interrupt_at_any_moment_closes_the_socket_and_keeps_the_text(shell: Kernel, server: Wire) -> None:
    """Ten interrupts at random moments: idle soon, the provider's socket closed, one line of error, and all goes on."""
    moments = random.Random(7)
    for turn in range(10):
        script = server.script(f"m{turn}", tokens=1000, pace=0.01)
        running = shell.start(f"%%llm openai:m{turn}\nHi")
        script.wait_sent(moments.randrange(0, 30) + 1)
        running.interrupt()
        result = running.result()
        server.wait_closed(turn + 1)
        assert result.error is not None
        assert result.error.traceback == "Interrupted: what had arrived is kept."
        (output,) = result.displays
        assert "Stopped" in output.data["text/plain"]
        assert output.metadata["nbllm"]["state"] == "interrupted"
    assert shell.value("1 + 1") == 2
    server.wait_connections(0)


def test_an_interrupt_before_the_answer_begins_closes_the_request(shell: Kernel, server: Wire) -> None:
    """While the provider is silent an interrupt works as well."""
    running = shell.start("%%llm openai:hang\nHi")
    server.wait_requests(1)
    running.interrupt()
    assert running.result().error is not None
    server.wait_closed(1)
    running = shell.start("import nbllm; nbllm.ask('Hi', 'openai:hang')")
    server.wait_requests(2)
    running.interrupt()
    error = running.result().error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    server.wait_closed(2)


def test_an_interrupt_before_the_view_is_open_stops_the_stream(shell: Kernel, server: Wire) -> None:
    """However early the interrupt comes, no request runs on unseen."""
    code = """
    import nbllm.display.answer as answer
    from nbllm.session import get_manager
    def interrupted(): raise KeyboardInterrupt
    answer.follow(get_manager().start("Hi", "openai:slow"), interrupted)
    """
    error = shell.run(textwrap.dedent(code)).error
    assert error is not None
    assert error.ename == "Interrupted"
    server.wait_idle()
    assert all(request.sent < 100 for request in server.requests)


def test_a_view_that_fails_stops_the_stream_and_leaves_no_widget(shell: Kernel, server: Wire) -> None:
    """A fault in drawing is raised; the provider is stopped and the output is static all the same."""
    code = """
    import nbllm.display.answer as answer
    from nbllm.display.text import OutputView
    from nbllm.session import get_manager
    class Broken(OutputView):
        def push(self, text): raise ZeroDivisionError
    answer.follow(get_manager().start("Hi", "openai:slow"), Broken)
    """
    result = shell.run(textwrap.dedent(code))
    assert result.error is not None
    assert result.error.ename == "ZeroDivisionError"
    server.wait_closed(1)
    assert "Stopped here." in result.displays[0].data["text/plain"]


def test_views_do_not_pile_up(shell: Kernel, server: Wire) -> None:
    """Where no front end asks for a finished view to be closed, the oldest are closed all the same."""
    for _ in range(24):
        shell.run("%%llm openai:ok-2-60ms\nHi", cell_id="cell-9").check()
    left = [comm for comm in shell.comms.values() if "key" in comm.state and not comm.closed]
    assert 0 < len(left) <= 20
    code = "import gc; from nbllm import ResponseStream; gc.collect()"
    shell.run(code)
    assert shell.value("sum(type(o) is ResponseStream for o in gc.get_objects())") <= 1


def test_a_cut_answer_is_an_error_that_keeps_the_text(shell: Kernel) -> None:
    """An answer that breaks off is never shown as a whole one."""
    result = shell.run("%%llm openai:cut\nHi")
    (output,) = result.displays
    assert output.data["text/plain"] == "tok0 tok1 tok2 tok3 tok4 \n\n*The answer breaks off here.*"
    assert result.error is not None
    assert result.error.ename == "IncompleteStreamError"
    assert len(result.error.traceback.splitlines()) == 2


def test_hostile_text_is_harmless_before_it_leaves_the_kernel(shell: Kernel, server: Wire) -> None:
    """What the output holds, live and at the end, and what a Response displays, has no live HTML and no escapes."""
    attack = "<script>x</script> <img src=x onerror=y> [a](javascript:z) \x1b[2J\x07 ![i](http://evil.example/?q)"
    server.script("m", text=attack)
    result = shell.run("%%llm openai:m -o kept\nHi")
    shown = shell.run("kept")
    for message in [*result.history, *shown.history]:
        data = message.content.get("data", {})
        assert not re.search(r"<script|<img|!\[|\]\(javascript", data.get("text/markdown", ""))
        assert "\x1b" not in str(data)
        assert "\x07" not in str(data)
    assert shell.value("kept == str(kept)") is True
    assert shell.value("str(kept)") == attack


def test_interpolation_fills_in_names_and_never_calls(shell: Kernel, server: Wire) -> None:
    """Names are filled in, a call needs {=…}, everything else and --raw is sent as it stands."""
    shell.run("name, calls = 'Ada', []\ndef boom(): calls.append(1)")
    cell = '%%llm openai:ok\n{name} {boom()} {=1 + 1} {"a": 1} {name.__class__}\n```\n{name}\n```'
    output = answer(shell.run(cell))
    assert output.metadata["nbllm"]["filled_in"] == ["name", "=1 + 1"]
    assert output.data["text/plain"].endswith("*filled in: {name}, {=1 + 1}*")
    sent = server.requests[0].body["messages"][-1]["content"]
    assert sent == 'Ada {boom()} 2 {"a": 1} {name.__class__}\n```\n{name}\n```'
    assert shell.value("calls") == []
    shell.run("%%llm openai:ok --raw\n{name} {=boom()}")
    assert server.requests[1].body["messages"][-1]["content"] == "{name} {=boom()}"
    assert shell.value("calls") == []
    shell.run("%%llm openai:ok -s {boom()}\nHi")
    assert server.requests[2].body["messages"][0]["content"] == "{boom()}"
    assert shell.value("calls") == []
    hint = shell.run("%%llm openai:ok\nHello {nmae}")
    assert "name" in hint.stdout


def test_a_key_in_a_variable_is_not_sent(shell: Kernel, server: Wire) -> None:
    """What is filled in is searched for known keys first."""
    shell.run("import os")
    shell.run('%%llm openai:ok\nSummarise {os.environ["OPENAI_API_KEY"]} and {=os.environ}').check()
    assert "[OPENAI_API_KEY]" in server.requests[0].body["messages"][0]["content"]
    assert KEY not in str(server.requests[0].body)


def test_a_cell_is_complete_only_with_its_prompt(shell: Kernel) -> None:
    """A console that asks whether the cell is complete goes on to the prompt after the first line."""
    reply = shell.request("is_complete_request", {"code": "%%llm openai:ok"})
    assert reply["status"] == "incomplete"


def test_a_table_holds_no_formula_of_a_servers(shell: Kernel, server: Wire) -> None:
    """A model's name that is TeX or HTML is shown to the letter."""
    server.models = [r"$\href{javascript:alert(1)}{x}$<b>"]
    html = shell.run("%llm models").outputs[0].data["text/html"]
    server.models = ["ok", "echo"]
    assert "$" not in html.replace("&#36;", "")
    assert "\\" not in html
    assert "<b>" not in html


def test_options_reach_the_provider(shell: Kernel, server: Wire) -> None:
    """System prompt, parameters and options of the line; the answer goes into a variable."""
    cell = """%%llm openai:ok -s "Be brief." -t 0.5 -n 7 -m '{"seed": 3}' -o reply\nHi"""
    assert shell.run(cell).error is None
    body = server.requests[0].body
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.5, 7, 3)
    assert shell.value("[type(reply).__name__, reply.model, reply.usage.output_tokens]") == [
        "Response",
        "ok",
        10,
    ]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("%%llm --tempreature 1\nHi", "Did you mean --temperature?"),
        ("%%llm -t hot\nHi", "no number"),
        ("%%llm -o 1x\nHi", "no name of a variable"),
        ("%%llm -m [1]\nHi", "no JSON object"),
        ("%%llm -m {\nHi", "is no JSON"),
        ("%%llm 'a\nHi", "quote is not closed"),
        ("%%llm a b\nHi", "a, b cannot be told from a prompt"),
        ("%%llm What is 2+2?\nHi", "The prompt goes on the lines below"),
        ("%%llm -o class\nHi", "no name of a variable"),
        ("%%llm -m '{\"model\": 1}'\nHi", "model has a place of its own"),
        ("%%llm status", "For the command write %llm status"),
        ("%%llm\n \n", "The cell has no prompt"),
        ("%llm ues openai:x", "Did you mean %llm use?"),
        ("%llm use", "%llm use takes MODEL"),
        ("%llm use 'x", "quote is not closed"),
        ("%llm models nobody", "There is no provider 'nobody'"),
        ("%llm trust", "no nbllm.toml"),
    ],
)
def test_a_mistake_is_answered_with_the_next_action(shell: Kernel, server: Wire, code: str, said: str) -> None:
    """A mistyped option or command: two lines, the second of which helps; nothing is sent."""
    result = shell.run(code)
    assert result.error is not None
    assert len(result.error.traceback.splitlines()) == 2
    assert said in result.error.traceback
    assert server.requests == []


def test_commands_show_and_set_what_answers(shell: Kernel, server: Wire) -> None:
    """`use` switches, and status, models and %config show the same state; Python's switch moves it too."""
    assert shell.run("%llm use openai:ok").stdout == "Now openai:ok answers.\n"
    assert "ok" in shell.run("%llm status").outputs[0].data["text/plain"]
    models = shell.run("%llm models").outputs[0].data
    assert "openai:echo" in models["text/plain"]
    assert "<td" in models["text/html"]
    assert "key found" in shell.run("%llm providers").outputs[0].data["text/plain"]
    shell.run("import nbllm\nawait nbllm.get_manager().set_model('openai:echo')")
    assert "Current: 'echo'" in shell.run("%config LLM").stdout
    shell.run("%config LLM.temperature = 0.25")
    shell.run("%%llm\nHi")
    assert (server.requests[-1].body["model"], server.requests[-1].body["temperature"]) == ("echo", 0.25)
    refused = shell.run("%config LLM.provider = 'opnai'")
    assert "Did you mean openai?" in refused.stderr
    assert shell.value("nbllm.get_manager().get_current_provider()") == "openai"
    shell.run("%config LLM.model = 'openai:ok'\n%config LLM.system = 'Be kind.'\n%config LLM.max_tokens = 5")
    shell.run("%config LLM.provider = 'OpenAI'\nnbllm.ask('Hi')")
    assert server.requests[-1].body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert server.requests[-1].body["max_tokens"] == 5
    shell.run("%config LLM.system = None\n%config LLM.max_tokens = 4000\n%config LLM.temperature = 0")


def test_help_is_shown_not_raised(shell: Kernel) -> None:
    """`--help` and `%llm help` print, `%llm version` too."""
    assert "--max-tokens" in shell.run("%%llm --help").stdout
    assert "%llm use MODEL" in shell.run("%llm --help").stdout
    assert shell.run("%llm version").stdout.startswith("nbllm 0.")


def test_python_asks_in_every_form(shell: Kernel) -> None:
    """`ask` waits, `ask(stream=True)` is iterated over, and `await` works in the cell itself."""
    shell.run("%llm use openai:ok-2")
    assert shell.value("str(__import__('nbllm').ask('Hi'))") == "tok0 tok1 "
    code = "import nbllm\nprint(''.join(nbllm.ask('Hi', stream=True)))"
    assert shell.run(code).stdout == "tok0 tok1 \n"
    code = "async for piece in await nbllm.get_manager().generate_response('Hi'): print(piece, end='')"
    assert shell.run(code).stdout == "tok0 tok1 "
    code = "messages = [{'role': 'user', 'content': 'Hi'}]\nprint(nbllm.ask(messages, 'openai:echo'))"
    assert shell.run(code).stdout == '[{"role": "user", "content": "Hi"}]\n'


def test_unloading_takes_the_magics_away_and_loading_brings_them_back(shell: Kernel) -> None:
    """The extension can be unloaded and reloaded."""
    shell.run("%unload_ext nbllm")
    assert "not found" in shell.run("%llm status").stderr
    shell.run("%load_ext nbllm\n%reload_ext nbllm")
    assert shell.run("%llm version").error is None


def test_nested_loops_are_allowed_on_request(new_kernel: Callable[..., Kernel], server: Wire) -> None:
    """`%llm nest` makes asyncio.run work in a cell, says by which library, and streaming still works."""
    kernel = new_kernel(env={"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY})
    kernel.run("%load_ext nbllm")
    assert "nest_asyncio" in kernel.run("%llm nest").stdout
    code = (
        "import asyncio, nbllm\n"
        "async def f(): return await nbllm.get_manager().generate_response('Hi', 'openai:ok-2', stream=False)\n"
        "print(asyncio.run(f()))"
    )
    assert kernel.run(code).stdout == "tok0 tok1 \n"
    assert kernel.run("%%llm openai:ok-2\nHi").error is None


def test_a_project_file_is_obeyed_only_as_far_as_it_is_trusted(
    new_kernel: Callable[..., Kernel], server: Wire, tmp_path: Path
) -> None:
    """A cloned nbllm.toml chooses the model, but its base URL gets neither key nor prompt before `%llm trust`."""
    from tests.wire import Wire

    home = tmp_path / "home" / "nbllm"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(f'[providers.openai]\nbase_url = "{server.url}/v1"\n')
    with Wire() as theirs:
        (tmp_path / "nbllm.toml").write_text(f'model = "openai:ok"\n[providers.openai]\nbase_url = "{theirs.url}/v1"\n')
        kernel = new_kernel(env={"XDG_CONFIG_HOME": str(home.parent), "OPENAI_API_KEY": KEY}, cwd=tmp_path)
        kernel.run("%load_ext nbllm").check()
        status = kernel.run("%llm status").outputs[0].data["text/plain"]
        assert "not trusted, so ignored: providers.openai.base_url (%llm trust)" in status
        kernel.run("%%llm\nHi").check()
        assert (len(server.requests), theirs.requests) == (1, [])
        assert server.requests[0].body["model"] == "ok"
        assert "It now sets: providers.openai.base_url" in kernel.run("%llm trust").stdout
        kernel.run("%%llm\nHi").check()
        assert (len(server.requests), len(theirs.requests)) == (1, 1)


def test_usage_budget_and_cache_are_shown_and_set(
    new_kernel: Callable[..., Kernel], server: Wire, tmp_path: Path
) -> None:
    """What was used, what may be spent, what is kept: each by a command, and a cached answer is said to be one."""
    config = tmp_path / "nbllm" / "config.toml"
    config.parent.mkdir()
    config.write_text('[prices."openai:ok"]\ninput = 1000.0\noutput = 1000.0\n')
    env = {"XDG_CONFIG_HOME": str(tmp_path), "NBLLM_CACHE": "", "NBLLM_CACHE_PLACE": str(tmp_path / "c.sqlite")}
    shell = new_kernel(
        env={**env, "OPENAI_API_KEY": "k-0123456789", "OPENAI_BASE_URL": f"{server.url}/v1"}, cwd=tmp_path
    )
    shell.run("%load_ext nbllm").check()
    assert "Nothing was asked yet" in shell.run("%llm usage").check().text
    assert "There is no budget" in shell.run("%llm budget").check().stdout
    before = len(server.requests)
    for _ in range(2):
        assert "tok9" in shell.run("%%llm openai:ok --no-history\nHi").check().text
    assert len(server.requests) == before + 1
    table = shell.run("%llm usage").check().text
    assert "openai:ok  2      1" in table
    assert "$0.0110" in table
    assert "1 answer," in shell.run("%llm cache").check().stdout
    assert "1 answer deleted." in shell.run("%llm cache clear").check().stdout
    assert "The cache is off." in shell.run("%llm cache off").check().stdout
    assert "$0.01 is spent" not in shell.run("%llm budget 0.02").check().stdout
    refused = shell.run("%%llm openai:ok --no-history\nHi")
    assert refused.error is not None
    assert refused.error.ename == "BudgetExceededError"
    assert "There is no budget" in shell.run("%llm budget off").check().stdout
    assert "tok9" in shell.run("%%llm openai:ok --no-history\nHi").check().text
    assert "no amount" in str(shell.run("%llm budget plenty").error)
