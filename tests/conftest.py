"""Isolation of every test, and the fixtures that more than one folder uses."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests import isolation
from tests.guard import sitecustomize as guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.harness import Kernel
    from tests.wire import Wire

# At import, not in a fixture: libraries read some of these variables when they are imported, and test modules
# import them during collection.
SESSION = isolation.begin()
guard.install(str(SESSION.refusals))
LEFTOVERS = pytest.StashKey[list[str]]()
THREADS_BEFORE = frozenset(threading.enumerate())


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Undo what a test changes in the environment and the working folder."""
    environment, folder = dict(os.environ), Path.cwd()
    yield
    if dict(os.environ) != environment:
        os.environ.clear()
        os.environ.update(environment)
    os.chdir(folder)


class Refusals:
    """What the network guard refused, here and in child processes."""

    def __init__(self, log: Path) -> None:
        self._log, self._read = log, self._size(log)

    @staticmethod
    def _size(log: Path) -> int:
        try:
            return log.stat().st_size
        except FileNotFoundError:
            return 0

    def take(self) -> list[str]:
        """The refusals since the last call, each as `PID EVENT HOST`; a test that expects some takes them."""
        size = self._size(self._log)
        if size == self._read:
            return []
        with self._log.open() as file:
            file.seek(self._read)
            self._read = size
            return file.read().splitlines()


@pytest.fixture(autouse=True)
def network_refusals() -> Iterator[Refusals]:
    """No test reaches for the network unnoticed: it fails, unless it takes the refusals itself."""
    refusals = Refusals(SESSION.refusals)
    yield refusals
    if lines := refusals.take():
        pytest.fail("reached for the network during this test:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A fresh local server that speaks the providers' protocols (`tests/wire/`)."""
    from tests.wire import Wire

    with Wire() as server:
        yield server


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A real ipykernel in its own process, shared by the tests of a module; `kernel.restart()` empties it."""
    from tests.kernel.harness import Kernel

    with Kernel() as running:
        yield running


@pytest.fixture
def new_kernel() -> Iterator[Callable[..., Kernel]]:
    """Start kernels of one's own: `new_kernel(env={...}, cwd=...)`. They end with the test."""
    from contextlib import ExitStack

    from tests.kernel.harness import Kernel

    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Kernel(**settings))


@pytest.fixture
def fresh_kernel(new_kernel: Callable[..., Kernel]) -> Kernel:
    """A kernel for this test alone."""
    return new_kernel()


def left_running(patience: float = 2.0) -> list[psutil.Process]:
    """The processes that the tests started and that still run, given a while to end."""
    end = time.monotonic() + patience
    while (processes := _ours()) and time.monotonic() < end:
        psutil.wait_procs(processes, timeout=0.2)
    return processes


def _ours() -> list[psutil.Process]:
    """Living descendants, and processes that left the tree but carry the session's mark."""
    me = psutil.Process()
    found = {process.pid: process for process in me.children(recursive=True)}
    for process in psutil.process_iter():
        try:
            if process.pid != me.pid and process.environ().get(isolation.SESSION_MARK) == SESSION.mark:
                found[process.pid] = process
        except (psutil.Error, OSError):
            continue  # another user's, or gone meanwhile
    return [process for process in found.values() if _counts(process)]


def _counts(process: psutil.Process) -> bool:
    try:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        # multiprocessing's tracker lives as long as this process, by design.
        return "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last fixture: nothing that the tests started may still run."""
    leftovers = []
    for process in left_running():
        try:
            leftovers.append(f"process {process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
        except psutil.Error:
            continue
    for thread in threading.enumerate():
        if thread not in THREADS_BEFORE and not thread.daemon:
            thread.join(2)
            if thread.is_alive():
                leftovers.append(f"thread {thread.name}")
    session.config.stash[LEFTOVERS] = leftovers
    if leftovers and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left running."""
    for line in config.stash.get(LEFTOVERS, []):
        terminalreporter.write_line(f"LEFT RUNNING by the tests (now killed, or a thread): {line}", red=True)


def pytest_unconfigure() -> None:
    """Give the process its environment back."""
    SESSION.end()
