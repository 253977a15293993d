"""Interrupts and clicks on Stop at random moments of a streaming cell, on each ipykernel that is supported."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.harness import Kernel
from tests.wire import Wire

if TYPE_CHECKING:
    from tests.kernel.harness import Running
    from tests.soak.report import Report
    from tests.wire import Script

VERSIONS = ("6.31", "7.1", "7.3", "7.4")

FALLBACK = 0.4
"""Seconds after which the view, whose click was not answered, interrupts the kernel (`display/view.js`)."""

PROMPT = 0.2
"""Seconds within which an interrupt is answered (DESIGN.md); a click may take the view's fallback longer."""


def run(report: Report) -> None:
    """Twenty of each kind on each version."""
    times = report.times or 20
    with tempfile.TemporaryDirectory(prefix="nbllm-kernels-") as folder:
        for version in VERSIONS:
            python = environment(Path(folder) / version, version, report.outside)
            with Wire() as wire:
                env = {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-soak"}
                with Kernel(env=env, cwd=folder, python=str(python)) as kernel:
                    _on(report, kernel, wire, version, times)


def environment(folder: Path, version: str, outside: dict[str, str]) -> Path:
    """The interpreter of a virtual environment: this one's packages, behind an ipykernel of that version.

    Args:
        folder: Where to make it.
        version: The version's first two numbers; its newest release is taken.
        outside: An environment in which pip finds its index.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # addsitedir, not a plain path: so that an editable nbllm, which is a .pth itself, is found too.
    (own / "shared.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(own)]
    subprocess.run([*pip, f"ipykernel=={version}.*"], check=True, env=outside)
    return folder / "bin" / "python"


def _on(report: Report, kernel: Kernel, wire: Wire, version: str, times: int) -> None:
    kernel.run("%load_ext nbllm").check()
    found = str(kernel.value("__import__('ipykernel').__version__"))
    report.check(f"{version}: ipykernel", found.startswith(f"{version}."), found)
    kernel.run("%%llm openai:ok\nHi", cell_id="warm").check()  # imports the SDK and the widget
    moments = random.Random(7)

    interrupted: list[float] = []
    kept = closed = 0
    for turn in range(times):
        running, script = _streaming(kernel, wire, f"i{turn}", moments)
        running.interrupt()
        result = running.result()
        interrupted.append(running.interrupt_to_idle)
        kept += result.error is not None and "what had arrived is kept" in result.error.traceback
        closed += _left(wire, script)
    report.seconds(f"{version}: interrupt to idle", interrupted, at_most=PROMPT)
    report.all_of(f"{version}: interrupt: socket closed", closed, times)
    report.all_of(f"{version}: interrupt: one line, the text kept", kept, times)

    clicked: list[float] = []
    kept = closed = fallbacks = 0
    for turn in range(times):
        running, script = _streaming(kernel, wire, f"s{turn}", moments)
        (comm,) = (comm for comm in running.now.comms if "key" in comm.state)
        start = time.monotonic()
        kernel.comm_send(comm.id, {"ask": "stop"}, subshell=kernel.has_subshells)
        with contextlib.suppress(TimeoutError):
            kernel.wait(lambda running=running: running.now.done, FALLBACK)
        if not running.now.done:  # as the view does
            fallbacks += 1
            running.interrupt()
        result = running.result()
        assert result.idle is not None
        clicked.append(result.idle - start)
        kept += result.displays[-1].metadata.get("nbllm", {}).get("state") == "interrupted"
        closed += _left(wire, script)
    report.seconds(f"{version}: Stop to idle", clicked, PROMPT + FALLBACK * (not kernel.has_subshells))
    report.all_of(f"{version}: Stop: socket closed", closed, times)
    report.all_of(f"{version}: Stop: the text kept, marked interrupted", kept, times)
    expected = 0 if kernel.has_subshells else times
    report.check(f"{version}: Stop: fell back to an interrupt", fallbacks == expected, f"{fallbacks} of {times}")
    report.check(f"{version}: the kernel goes on", kernel.value("1 + 1") == 2, "1 + 1 == 2")
    wire.wait_connections(0)


def _streaming(kernel: Kernel, wire: Wire, model: str, moments: random.Random) -> tuple[Running, Script]:
    script = wire.script(model, tokens=2000, pace=0.005)
    running = kernel.start(f"%%llm openai:{model}\nHi", cell_id=f"cell-{model}")
    running.wait(lambda result: any("key" in comm.state for comm in result.comms))
    script.wait_sent(1 + moments.randrange(40))
    time.sleep(moments.uniform(0, 0.05))  # anywhere between two looks of the waiting cell
    return running, script


def _left(wire: Wire, script: Script) -> bool:
    """Whether the server saw the client of this request leave."""
    with contextlib.suppress(TimeoutError):
        wire.wait_idle()
    return any(exchange.model == script.model for exchange in wire.closed)
