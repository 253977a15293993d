"""Refuses every connection and every name lookup that leaves this machine.

Python imports a module of this name at its start, before anything else: with this folder on PYTHONPATH the
guard holds in kernels, in JupyterLab and in whatever they start. `tests/conftest.py` installs the same in the
test process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

WATCHED = frozenset(
    {
        "socket.connect",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
    }
)
LOCAL_NAMES = frozenset({"", "localhost", "localhost.localdomain", "ip6-localhost", "0.0.0.0", "::", "::1"})


class NetworkRefusedError(PermissionError):
    """A test, or a process that it started, tried to reach another machine.

    An OSError, so that code under test meets what it would meet without a network. It cannot pass unseen all
    the same: each refusal is logged, and `tests/conftest.py` fails the test in which it happened.
    """


def is_local(host: object) -> bool:
    """Whether a host, as the socket functions take it, is this machine."""
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("latin-1")
    if host is None:
        return True
    name = str(host).lower().rstrip(".").partition("%")[0]
    return name in LOCAL_NAMES or name.startswith(("127.", "::ffff:127."))


def target(event: str, args: tuple[Any, ...]) -> object:
    """The host that an audited call would reach; None where the call reaches none."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        # A path or bytes is AF_UNIX, None a datagram socket that is connected already, a number netlink's.
        return address[0] if isinstance(address, tuple) and address and not isinstance(address[0], int) else None
    return args[0]


def install(log: str) -> None:
    """Install the guard, for good: audit hooks cannot be taken off. Refusals are appended to `log`."""

    def guard(event: str, args: tuple[Any, ...]) -> None:
        if event not in WATCHED or is_local(host := target(event, args)):
            return
        what = f"{event} {host!r}"
        try:
            fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(fd, f"{os.getpid()} {what}\n".encode())
            finally:
                os.close(fd)
        except OSError:
            pass  # the session's folder is gone: the process outlived the tests, and is refused all the same
        raise NetworkRefusedError(f"the tests run without a network: {what} was refused")

    sys.addaudithook(guard)


def _start_coverage() -> None:
    """Measure this process where the tests are measured; a `.pth` of coverage may do it too, without harm."""
    if os.environ.get("COVERAGE_PROCESS_START"):
        try:
            import coverage
        except ImportError:
            return
        coverage.process_startup()


def _run_shadowed() -> None:
    """Run the sitecustomize that this one hides, as Python would have done."""
    import importlib.machinery
    import importlib.util

    # os.path, not pathlib: this runs at the start of every process and imports as little as it can.
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    if _log := os.environ.get("TESTS_NETWORK_GUARD"):
        install(_log)
    _start_coverage()
    _run_shadowed()
