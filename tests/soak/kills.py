"""Kernels killed in mid-stream: the provider's socket closes, and a new kernel answers."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from typing import TYPE_CHECKING

from tests.kernel.harness import Kernel
from tests.wire import Wire

if TYPE_CHECKING:
    from tests.soak.report import Report


def run(report: Report) -> None:
    """Ten kills; the folder is the same, so that whatever one left there meets the next."""
    times = report.times or 10
    moments = random.Random(7)
    seen: list[float] = []
    answered = 0
    with Wire() as wire, tempfile.TemporaryDirectory(prefix="nbllm-kills-") as folder:
        env = {"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": "sk-soak"}
        with Kernel(env=env, cwd=folder) as kernel:
            for turn in range(times):
                kernel.run("%load_ext nbllm").check()
                script = wire.script(f"m{turn}", tokens=2000, pace=0.005)
                kernel.start(f"%%llm openai:m{turn}\nHi", cell_id=f"cell-{turn}")
                script.wait_sent(1 + moments.randrange(100))
                killed = time.monotonic()
                os.kill(kernel.pid, signal.SIGKILL)
                ended = wire.wait_closed(turn + 1)[-1].ended
                assert ended is not None
                seen.append(ended - killed)
                kernel.restart(now=True)
                kernel.run("%load_ext nbllm").check()
                answered += "tok9" in kernel.run("%%llm openai:ok\nHi", cell_id="after").text
        wire.wait_connections(0)
    report.seconds("SIGKILL until the server saw it", seen, at_most=1)
    report.all_of("SIGKILL: the server saw the disconnect", len(seen), times)
    report.all_of("SIGKILL: a new kernel answered", answered, times)
