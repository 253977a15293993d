"""Background cells and jobs in a real kernel: streaming while others run, stopped, and cancelled with the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.kernel.harness import Kernel
    from tests.wire import Wire


@pytest.fixture
def shell(new_kernel: Callable[..., Kernel], wire: Wire, tmp_path: Path) -> Kernel:
    """A kernel with nbllm loaded, whose OpenAI is the server."""
    env = {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-jobs-0123456789"}
    kernel = new_kernel(env=env, cwd=tmp_path)
    kernel.run("%load_ext nbllm").check()
    return kernel


def jobs(shell: Kernel) -> str:
    """What `%llm jobs` shows."""
    return str(shell.run("%llm jobs").check().outputs[0].data["text/plain"])


@pytest.mark.parametrize("cell_id", ["bg-cell", None], ids=["with widgets", "without"])
def test_a_background_cell_streams_into_its_own_output_while_others_run(
    shell: Kernel, wire: Wire, cell_id: str | None
) -> None:
    """It returns at once; a busy cell meanwhile keeps its own output, and the answer is bound when it is there."""
    script = wire.script("m", deltas=["one ", "two ", "three"], gates=[1, 2])
    background = shell.start("%%llm openai:m --bg -o reply\nCount", cell_id=cell_id)
    background.result().check()
    script.wait_sent(1)
    shell.run("import pathlib, time").check()
    other = shell.start("while not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('other')", cell_id="other")
    script.release(2)
    shell.wait(lambda: "three" in background.now.text, 10, lambda: f"the answer in {background.now}")
    assert not other.now.done
    assert shell.cwd is not None
    (Path(shell.cwd) / "go").touch()
    assert other.result().check().text == "other\n"
    (output,) = background.now.displays
    assert output.data["text/plain"].startswith("one two three")
    assert output.metadata["nbllm"]["state"] == "complete"
    assert shell.value("[type(reply).__name__, str(reply)]") == ["Response", "one two three"]
    assert "complete" in jobs(shell)


def test_jobs_are_listed_and_stopped_by_number(shell: Kernel, wire: Wire) -> None:
    """Each has a number; stopping one closes its socket, keeps its text and leaves the others alone."""
    for name in ("m1", "m2"):
        wire.script(name, deltas=["begun ", "never"], gates=[1])
    cells = [shell.start(f"%%llm openai:{name} --bg\nAsk {name} \x1b[2J", cell_id=name) for name in ("m1", "m2")]
    for cell in cells:
        cell.result().check()
    wire.wait_requests(2)
    shell.wait_comm(lambda comm: any("begun" in str(message) for message in comm.custom))
    table = jobs(shell)
    assert "openai:m1" in table
    assert table.count("in the background") == 2
    assert "\x1b" not in table
    several = shell.run("%llm stop").error
    assert several is not None
    assert "2 jobs run: 1, 2." in several.traceback
    assert "Job 1 is stopped" in shell.run("%llm stop 1").check().stdout
    (closed,) = wire.wait_closed(1)
    assert closed.model == "m1"
    shell.wait(lambda: "Stopped here" in cells[0].now.text, 10, lambda: f"{cells[0].now}")
    assert "begun" in cells[0].now.text
    assert "Stopped" not in cells[1].now.text
    assert "No job 1 runs" in str(shell.run("%llm stop 1").error)
    assert "no job 'x'" in str(shell.run("%llm stop x").error)
    assert "Job 2 is stopped" in shell.run("%llm stop").check().stdout
    wire.wait_closed(2)
    assert "Nothing runs." in shell.run("%llm stop all").check().stdout
    assert jobs(shell).count("interrupted") == 2
    wire.wait_connections(0)


def test_a_subshell_stops_a_cell_that_runs(shell: Kernel, wire: Wire) -> None:
    """A streaming cell is a job too, and `%llm stop` from a subshell reaches it."""
    if not shell.has_subshells:
        pytest.skip("this ipykernel has no subshells")
    script = wire.script("m", deltas=["begun ", "never"], gates=[1])
    running = shell.start("%%llm openai:m\nCount", cell_id="front")
    script.wait_sent(1)
    shell.wait_comm(lambda comm: any("begun" in str(message) for message in comm.custom))
    stopped = shell.start("%llm stop all", subshell=shell.new_subshell(), store_history=False)
    result = running.result().check()
    assert "Stopped here" in result.text
    stopped.result()
    wire.wait_closed(1)


def test_an_interrupt_of_another_cell_leaves_a_background_job_alone(shell: Kernel, wire: Wire) -> None:
    """Interrupting what runs in front, or an idle kernel, stops only that."""
    script = wire.script("m", deltas=["one ", "two"], gates=[1])
    background = shell.start("%%llm openai:m --bg\nCount", cell_id="bg")
    background.result().check()
    script.wait_sent(1)
    running = shell.start("print('begun')\nwhile True: pass")
    running.wait(lambda result: "begun" in result.stdout)
    running.interrupt()
    error = running.result().error
    assert error is not None
    assert error.ename == "KeyboardInterrupt"
    shell.run("%%llm openai:ok-2\nHi", cell_id="front").check()
    assert wire.closed == []
    script.release()
    shell.wait(lambda: "one two" in background.now.text, 10, lambda: f"{background.now}")
    assert "complete" in jobs(shell)


@pytest.mark.parametrize("end", ["shutdown", "restart", "exit"])
def test_the_end_of_the_kernel_cancels_background_jobs(shell: Kernel, wire: Wire, end: str) -> None:
    """Their sockets are closed at once, the process ends by itself, and nothing is printed about it."""
    for name in ("m1", "m2"):
        wire.script(name, tokens=100_000, pace=0.002)
        shell.run(f"%%llm openai:{name} --bg\nCount", cell_id=name).check()
    wire.wait_requests(2)
    shell.wait_comm(lambda comm: any("tok0" in str(message) for message in comm.custom))
    if end == "exit":
        shell.start("exit()")
    else:
        shell.request("shutdown_request", {"restart": end == "restart"}, channel="control")
    wire.wait_closed(2)
    wire.wait_connections(0)
    printed = wait_for_end(shell)
    assert "Traceback" not in printed
    assert "Exception" not in printed
    assert "Task was destroyed" not in printed


def wait_for_end(shell: Kernel, timeout: float = 15) -> str:
    """Wait until the kernel's process has ended; what it printed past Jupyter."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(shell.pid).wait(timeout)
    return shell.printed


def test_a_failing_background_cell_says_so_in_its_own_output(shell: Kernel, wire: Wire) -> None:
    """An error has no cell to be raised in: it is shown where the answer would be, and the job says that it failed."""
    wire.script("bad", status=500, message="out of order")
    background = shell.start("%%llm openai:bad --bg\nCount", cell_id="bg")
    background.result().check()
    shell.wait(lambda: "out of order" in background.now.text, 10, lambda: f"{background.now}")
    shell.run("1")
    assert "failed" in jobs(shell)
    assert "Traceback" not in shell.printed


def test_what_has_ended_is_let_go(shell: Kernel, wire: Wire) -> None:
    """A list of jobs keeps no answer in memory, and forgets the oldest."""
    shell.run("for _ in range(60):\n    get_ipython().run_cell_magic('llm', 'openai:ok-2', 'Hi')").check()
    shell.run("import gc\nfrom nbllm import ResponseStream\nfrom nbllm.session import get_session\n_ = gc.collect()")
    assert shell.value("sum(type(o) is ResponseStream for o in gc.get_objects())") <= 1
    assert shell.value("[len(get_session().jobs.all()), len(get_session().jobs.running())]") == [50, 0]
    assert "60  " in jobs(shell)


def test_a_background_answer_is_a_turn_of_its_cell(shell: Kernel, wire: Wire) -> None:
    """Asked while it streams, the next cell does not wait for it; afterwards it is told of the older state."""
    script = wire.script("m", deltas=["one ", "two"], gates=[1])
    background = shell.start("%%llm openai:m --bg\nCount", cell_id="bg")
    background.result().check()
    script.wait_sent(1)
    shell.run("%%llm openai:ok-2\nMeanwhile", cell_id="front").check()
    assert [message["content"] for message in wire.requests[-1].body["messages"]] == ["Meanwhile"]
    script.release()
    shell.wait(lambda: "one two" in background.now.text, 10, lambda: f"{background.now}")
    shell.run("%%llm openai:ok-2\nAfterwards", cell_id="last").check()
    contents = [message["content"] for message in wire.requests[-1].body["messages"]]
    assert contents == ["Count", "one two", "Meanwhile", "tok0 tok1 ", "Afterwards"]
    assert "on an older answer" in shell.run("%llm chat").check().text
