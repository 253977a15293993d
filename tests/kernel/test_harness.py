"""The harness drives a kernel as a front end does; plain Python and ipywidgets, nothing of nbllm."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.harness import Kernel

CLICKABLE = """
import ipywidgets, threading
button = ipywidgets.Button(description="go")
seen, clicked = [], threading.Event()
def handle(widget, content, buffers):
    seen.append((content, threading.current_thread() is threading.main_thread()))
    clicked.set()
button.on_msg(handle)
display(button)
"""
# ipykernel 7.4 sends messages of a comm to the shell that opened it, whatever the front end asked for.
UNPIN = """
if hasattr(button.comm, "_reply_subshell_for"):
    button.comm._reply_subshell_for = lambda data, default: default
"""


def test_collects_streams_and_the_value(kernel: Kernel) -> None:
    """Both streams and the last expression are told apart."""
    result = kernel.run("import sys\nprint('a'); print('b', file=sys.stderr); print('c')\n6 * 7")
    assert (result.stdout, result.stderr, result.value) == ("a\nc\n", "b\n", "42")
    assert result.ok
    assert result.error is None
    assert result.reply["status"] == "ok"


def test_collects_the_error(kernel: Kernel) -> None:
    """An error has its name, its value and a traceback without colours; `check` raises it."""
    result = kernel.run("def f(): raise ValueError('no')\nf()")
    assert result.error is not None
    assert (result.error.ename, result.error.evalue) == ("ValueError", "no")
    assert "\x1b" not in result.error.traceback
    assert "in f()" in result.error.traceback
    with pytest.raises(AssertionError, match="ValueError: no"):
        result.check()


def test_updates_displays_by_their_id(kernel: Kernel) -> None:
    """An update replaces data and metadata of its output, from another cell too."""
    first = kernel.run("h = display({'text/plain': 'one'}, raw=True, display_id=True); display(2)")
    kernel.run("h.update({'text/plain': 'two'}, metadata={'nbllm': {'a': 1}}, raw=True)").check()
    output, other = first.displays
    assert output.data == {"text/plain": "two"}
    assert output.metadata == {"nbllm": {"a": 1}}
    assert (output.updates, other.updates) == (1, 0)
    assert first.text == "two2"


def test_clears_output(kernel: Kernel) -> None:
    """clear_output empties the outputs, at once or with the next one."""
    clear = "from IPython.display import clear_output\n"
    assert kernel.run(clear + "print(1); clear_output(); print(2)").text == "2\n"
    assert kernel.run(clear + "print(1); clear_output(wait=True)").text == "1\n"


def test_history_has_times(kernel: Kernel) -> None:
    """Every message is kept in order with the time of its arrival, however late the test looks."""
    running = kernel.start("import time\nprint(1, flush=True); time.sleep(.3); print(2, flush=True)")
    result = running.result()
    first, second = [m for m in result.history if m.type == "stream"]
    assert 0.2 < second.time - first.time < 5
    assert [m.type for m in result.history if m.channel == "iopub"][:2] == ["status", "execute_input"]


def test_next_input(kernel: Kernel) -> None:
    """A cell that the code inserts is in the reply's payload."""
    (payload,) = kernel.run("get_ipython().set_next_input('x = 1')").next_inputs
    assert (payload["text"], payload["replace"]) == ("x = 1", False)


def test_sends_the_cell_id(kernel: Kernel) -> None:
    """The kernel sees the cell's id where JupyterLab puts it."""
    code = "print(get_ipython().kernel.get_parent()['metadata'].get('cellId'))"
    assert kernel.run(code, cell_id="abc").stdout == "abc\n"
    assert kernel.run(code).stdout == "None\n"


def test_answers_input(kernel: Kernel) -> None:
    """A cell that asks for input gets the given answers, or the error of a front end without stdin."""
    assert kernel.run("print(input('? '), input())", inputs=("a", "b")).stdout == "a b\n"
    error = kernel.run("input()").error
    assert error is not None
    assert error.ename == "StdinNotImplementedError"


def test_waits_for_an_output_and_interrupts(kernel: Kernel) -> None:
    """A test can wait for an output of a running cell, interrupt it, and know how long that took."""
    running = kernel.start("import time\nfor i in range(600): print(f'tok{i}', flush=True); time.sleep(.05)")
    running.wait(lambda r: "tok2" in r.text)
    assert not running.now.done
    running.interrupt()
    result = running.result()
    assert result.error is not None
    assert result.error.ename == "KeyboardInterrupt"
    assert 0 < running.interrupt_to_idle < 2


def test_waiting_for_what_never_comes(kernel: Kernel) -> None:
    """A wait fails as soon as the cell has ended without it, and a slow cell times out."""
    start = time.monotonic()
    with pytest.raises(AssertionError, match="ended before"):
        kernel.start("print(1)").wait(lambda r: "never" in r.text)
    assert time.monotonic() - start < 5
    running = kernel.start("import time; time.sleep(60)")
    with pytest.raises(TimeoutError, match=r"not in 0\.1 s"):
        running.result(timeout=0.1)
    running.interrupt()
    running.result()


def test_queued_cells(kernel: Kernel) -> None:
    """Cells can be queued; those behind a failing one are aborted, as with Run All."""
    cells = [kernel.start(code) for code in ("import time; time.sleep(.2)", "1/0", "print('not run')")]
    results = [cell.result() for cell in cells]
    assert [r.reply["status"] for r in results] == ["ok", "error", "aborted"]
    assert results[2].text == ""


def test_completes_and_inspects(kernel: Kernel) -> None:
    """Completion and inspection answer."""
    kernel.run("some_long_name = 1")
    reply = kernel.complete("some_lo")
    assert "some_long_name" in reply["matches"]
    assert (reply["cursor_start"], reply["cursor_end"]) == (0, 7)
    assert kernel.complete("some_lo = 1", 7)["matches"] == reply["matches"]
    assert kernel.inspect("some_long_name")["found"]


def test_reads_a_value(kernel: Kernel) -> None:
    """A value of the kernel comes over as JSON and leaves the history alone."""
    before = kernel.value("len(In)")
    assert kernel.value("{'a': [1, None]}") == {"a": [1, None]}
    assert kernel.value("len(In)") == before


def test_tracks_widgets(kernel: Kernel) -> None:
    """Comms are filed with their state; the front end can set a trait and send a custom message."""
    result = kernel.run("import ipywidgets\nw = ipywidgets.IntSlider(value=3)\nw").check()
    (view,) = [o for o in result.displays if "application/vnd.jupyter.widget-view+json" in o.data]
    comm = kernel.comms[view.data["application/vnd.jupyter.widget-view+json"]["model_id"]]
    assert comm in result.comms
    assert (comm.target, comm.state["value"]) == ("jupyter.widget", 3)
    kernel.run("w.value = 5")
    assert comm.state["value"] == 5
    kernel.wait_handled(kernel.comm_update(comm.id, value=9))
    assert kernel.value("w.value") == 9
    kernel.run("w.send({'hello': 1})")
    assert comm.custom == [{"hello": 1}]
    kernel.run("w.close()")
    assert comm.closed


def test_click_on_the_shell_waits_for_the_cell(kernel: Kernel) -> None:
    """A message on the shell channel is handled by the main thread, after the cell that runs."""
    kernel.run(CLICKABLE).check()
    comm = kernel.wait_comm(lambda c: c.state.get("description") == "go" and not c.closed)
    running = kernel.start("print('running', flush=True); print(clicked.wait(.5))")
    running.wait(lambda r: "running" in r.text)
    sent = kernel.comm_send(comm.id, {"event": "stop"})
    assert "False" in running.result().stdout
    kernel.wait_handled(sent)
    assert kernel.value("seen") == [[{"event": "stop"}, True]]


def test_click_on_a_subshell_reaches_a_running_cell(fresh_kernel: Kernel) -> None:
    """A message on a subshell is handled by another thread while a cell runs, where the comm allows it."""
    if not fresh_kernel.has_subshells:
        pytest.skip("this ipykernel has no subshells")
    fresh_kernel.run(CLICKABLE + UNPIN).check()
    comm = fresh_kernel.wait_comm(lambda c: c.state.get("description") == "go")
    running = fresh_kernel.start("print('running', flush=True); print(clicked.wait(20))")
    running.wait(lambda r: "running" in r.text)
    fresh_kernel.comm_send(comm.id, {"event": "stop"}, subshell=True)
    assert "True" in running.result().stdout
    assert fresh_kernel.value("seen") == [[{"event": "stop"}, False]]


def test_flood_loses_nothing(kernel: Kernel) -> None:
    """Thousands of small outputs arrive, although the test looks only at the end."""
    running = kernel.start("for i in range(3000): print(i)")
    assert running.result().stdout.split() == [str(i) for i in range(3000)]


def test_restart_empties_the_kernel(fresh_kernel: Kernel) -> None:
    """A restarted kernel is another process with no names and no comms, and takes new variables."""
    fresh_kernel.run("import ipywidgets; x = ipywidgets.Button()").check()
    pid = fresh_kernel.pid
    fresh_kernel.restart(env={"MY_VARIABLE": "1"})
    assert fresh_kernel.comms == {}
    assert fresh_kernel.pid != pid
    assert not psutil.pid_exists(pid)
    assert fresh_kernel.value("'x' in globals()") is False
    assert fresh_kernel.value("__import__('os').environ['MY_VARIABLE']") == "1"


def test_environment_and_folder(new_kernel: Callable[..., Kernel], tmp_path: Path) -> None:
    """A kernel runs in the isolated environment, with the given variables and folder."""
    kernel = new_kernel(env={"NBLLM_OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, cwd=tmp_path)
    environment = kernel.value("dict(__import__('os').environ)")
    assert environment["NBLLM_OPENAI_BASE_URL"] == "http://127.0.0.1:1/v1"
    assert environment["HOME"] == os.environ["HOME"]
    assert "OPENAI_API_KEY" not in environment
    assert kernel.value("__import__('os').getcwd()") == str(tmp_path.resolve())


def test_a_kernel_that_dies_is_noticed(fresh_kernel: Kernel) -> None:
    """Waiting on a dead kernel fails soon, and not by a time-out."""
    with pytest.raises(RuntimeError, match=r"(?s)the kernel died.*last words"):
        fresh_kernel.run("import os; os.write(2, b'last words'); os._exit(1)")
