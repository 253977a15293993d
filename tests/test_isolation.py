"""No test sees the user's keys and folders or reaches the network; nor does a process that it starts."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import isolation
from tests.guard.sitecustomize import NetworkRefusedError, is_local

if TYPE_CHECKING:
    from tests.conftest import Refusals
    from tests.kernel.harness import Kernel

ABROAD = "192.0.2.1"  # TEST-NET-1 of RFC 5737: nobody's address, should the guard fail


def test_keys_and_configuration_are_gone(tmp_path: Path) -> None:
    """Keys, tokens, base URLs and proxies are taken out; folders are private; the rest stays."""
    before = {
        "OPENAI_API_KEY": "sk-1",
        "HF_TOKEN": "hf_1",
        "NBLLM_OPENAI_BASE_URL": "http://x",
        "https_proxy": "http://x",
        "JUPYTER_PATH": "/x",
        "NBLLM_SCREENSHOTS": "/pictures",
        "HOME": "/home/somebody",
        "LANG": "C.UTF-8",
        "PYTHONPATH": "/x",
    }
    env = isolation.environment(before, tmp_path, "mark")
    assert {"OPENAI_API_KEY", "HF_TOKEN", "NBLLM_OPENAI_BASE_URL", "https_proxy", "JUPYTER_PATH"}.isdisjoint(env)
    assert (env["NBLLM_SCREENSHOTS"], env["LANG"]) == ("/pictures", "C.UTF-8")
    assert env["HOME"].startswith(str(tmp_path))
    assert env["PYTHONPATH"].split(os.pathsep) == [str(isolation.GUARD), "/x"]
    assert not any(value in env.values() for value in ("sk-1", "hf_1"))


def test_this_process_is_isolated() -> None:
    """The tests run in the isolated environment."""
    assert Path.home() == Path(os.environ["HOME"])
    assert Path.home().name == "home"
    assert "nbllm-" in os.environ["HF_HOME"]
    assert all(os.environ[name] == value for name, value in isolation.FIXED.items())


def test_changes_to_the_environment_are_undone() -> None:
    """What a test sets is gone in the next one (this one looks first, then sets)."""
    assert "LEFT_BY_A_TEST" not in os.environ
    os.environ["LEFT_BY_A_TEST"] = "1"


test_changes_to_the_environment_are_undone_again = test_changes_to_the_environment_are_undone


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.5.5.5", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        (b"localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("", True),
        (None, True),
        (ABROAD, False),
        ("1270.example", False),
        ("localhost.example", False),
        ("api.openai.com", False),
        ("fe80::1%eth0", False),
    ],
)
def test_what_is_local(host: object, local: bool) -> None:
    """Loopback, by number or name, and nothing else."""
    assert is_local(host) is local


def test_network_is_refused(network_refusals: Refusals) -> None:
    """Connecting and looking up raise, sync and async, UDP too; each refusal is recorded."""
    with socket.socket() as sock, pytest.raises(NetworkRefusedError, match=ABROAD):
        sock.connect((ABROAD, 443))
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(NetworkRefusedError):
        sock.sendto(b"x", (ABROAD, 53))
    with pytest.raises(NetworkRefusedError):
        socket.getaddrinfo("api.openai.com", 443)
    with pytest.raises(NetworkRefusedError):
        asyncio.run(asyncio.wait_for(asyncio.open_connection("api.openai.com", 443), 5))
    refused = network_refusals.take()
    assert len(refused) == 4
    assert all(line.startswith(f"{os.getpid()} socket.") for line in refused)


def test_loopback_and_unix_sockets_work(tmp_path: Path) -> None:
    """What stays on this machine is let through."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as sock:
        server.bind(str(tmp_path / "s"))
        server.listen()
        sock.connect(str(tmp_path / "s"))


def test_children_are_refused_too(fresh_kernel: Kernel, network_refusals: Refusals) -> None:
    """A kernel, and a process started by a kernel, meet the same guard."""
    connect = f"__import__('socket').create_connection(('{ABROAD}', 443), timeout=5)"
    error = fresh_kernel.run(connect).error
    assert error is not None
    assert error.ename == "NetworkRefusedError"
    run = f"subprocess.run([sys.executable, '-c', {connect!r}], capture_output=True)"
    assert "NetworkRefusedError" in fresh_kernel.run(f"import subprocess, sys; print({run})").check().stdout
    assert len(network_refusals.take()) == 2


def test_a_sitecustomize_of_the_machine_still_runs(tmp_path: Path) -> None:
    """The guard's sitecustomize goes on to the one that it hides."""
    (tmp_path / "sitecustomize.py").write_text("print('the other one')")
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])
    env = isolation.child_environment(PYTHONPATH=path)
    done = subprocess.run([sys.executable, "-c", ""], env=env, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "the other one\n"


def test_coverage_is_measured_in_children(tmp_path: Path) -> None:
    """With COVERAGE_PROCESS_START a child measures itself, the guard notwithstanding."""
    pytest.importorskip("coverage")
    (tmp_path / "rc").write_text(f"[run]\ndata_file = {tmp_path}/data\nparallel = true\nsource = {tmp_path}\n")
    (tmp_path / "measured.py").write_text("x = 1\n")
    env = isolation.child_environment(COVERAGE_PROCESS_START=str(tmp_path / "rc"), COVERAGE_FILE=str(tmp_path / "data"))
    subprocess.run([sys.executable, "measured.py"], env=env, cwd=tmp_path, check=True, timeout=30)
    assert len(list(tmp_path.glob("data*"))) == 1


ORPHAN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
INNER = """
import subprocess, sys, threading
def test_leaves_something():
    {code}
"""


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("pass", 0, "1 passed"),
        ("subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])", 1, "LEFT RUNNING"),
        (f"subprocess.run([sys.executable, '-c', {ORPHAN!r}])", 1, "LEFT RUNNING"),
        (
            "import socket\n    try: socket.getaddrinfo('example.org', 80)\n    except OSError: pass",
            1,
            "example.org",
        ),
    ],
)
def test_session_fails_where_something_is_left(tmp_path: Path, code: str, status: int, says: str) -> None:
    """A process left running fails the session and is ended; a swallowed refusal fails its test."""
    tests = tmp_path / "inner"
    tests.mkdir()
    root = Path(__file__).parents[1]
    (tests / "conftest.py").write_text("from tests.conftest import *\n")
    (tests / "test_inner.py").write_text(INNER.format(code=code))
    env = isolation.child_environment(PYTHONPATH=os.pathsep.join([os.environ["PYTHONPATH"], str(root)]))
    del env[isolation.GUARD_LOG]  # this session's guard, which would come before the inner one's
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tests),
        str(tests),
    ]
    done = subprocess.run(command, env=env, cwd=tests, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert says in done.stdout


def test_threads_of_this_process() -> None:
    """No test before this one has left a thread that would keep the process from ending."""
    assert [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()] == []
