"""A real ipykernel in a process of its own, driven as JupyterLab drives one.

A thread reads every channel all the time, as a front end does: so nothing is lost in a flood, and the times
of messages are those of their arrival, whatever the test is doing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Self

import zmq
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session

from tests.isolation import child_environment
from tests.kernel.result import Comm, Error, Message, Output, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType


__all__ = ["Comm", "Error", "Kernel", "Message", "Output", "Result", "Running"]


class Running:
    """An execute request under way."""

    def __init__(self, kernel: Kernel, result: Result) -> None:
        self._kernel, self.now = kernel, result
        self.interrupted: float | None = None

    def wait(self, predicate: Callable[[Result], object], timeout: float = 10) -> Result:
        """Wait until the predicate holds for what has come; fail at once where the cell ends without it."""
        self._kernel.wait(lambda: predicate(self.now) or self.now.done, timeout, lambda: f"in {self.now}")
        with self._kernel.changed:
            if not predicate(self.now):
                raise AssertionError(f"the cell ended before what was waited for came: {self.now}")
        return self.now

    def interrupt(self) -> None:
        """Interrupt as a front end does: SIGINT, sent by the kernel's manager."""
        self.interrupted = time.monotonic()
        self._kernel.interrupt()

    def result(self, timeout: float = 30) -> Result:
        """Wait for the end."""
        self._kernel.wait(lambda: self.now.done, timeout, lambda: f"end of {self.now}")
        return self.now

    @property
    def interrupt_to_idle(self) -> float:
        """Seconds from the interrupt until the kernel was idle again."""
        assert self.interrupted is not None, "it was not interrupted"
        assert self.now.idle is not None, "it still runs"
        return self.now.idle - self.interrupted


class _Link(threading.Thread):
    """Owns the sockets to a kernel: ZeroMQ's are for one thread only, the others hand over what to send."""

    def __init__(
        self, manager: KernelManager, session: Session, receive: Callable[[str, dict[str, Any]], None]
    ) -> None:
        super().__init__(name="kernel link", daemon=True)
        self._session, self._receive = session, receive
        self._context = zmq.Context()
        identity = session.bsession
        self._sockets = {
            "shell": self._connect(manager, "shell", zmq.DEALER, identity),
            "control": self._connect(manager, "control", zmq.DEALER, identity),
            "stdin": self._connect(manager, "stdin", zmq.DEALER, identity),
            "iopub": self._connect(manager, "iopub", zmq.SUB, None),
        }
        self._wake_out: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._wake_in: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._wake_in.bind("inproc://wake")
        self._wake_out.connect("inproc://wake")
        self._queue: deque[tuple[str, dict[str, Any]] | None] = deque()
        self._lock = threading.Lock()
        self.start()

    def _connect(self, manager: KernelManager, channel: str, kind: int, identity: bytes | None) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self._context.socket(kind)
        sock.linger = 0
        sock.rcvhwm = 0
        if identity is None:
            sock.setsockopt(zmq.SUBSCRIBE, b"")
        else:
            sock.setsockopt(zmq.IDENTITY, identity)
        sock.connect(f"tcp://{manager.ip}:{getattr(manager, channel + '_port')}")
        return sock

    def send(self, channel: str, message: dict[str, Any] | None) -> None:
        """Send a message; None ends the thread."""
        with self._lock:
            self._queue.append(None if message is None else (channel, message))
            self._wake_out.send(b"")

    def close(self) -> None:
        """End the thread and close the sockets."""
        if self.is_alive():
            self.send("", None)
            self.join(10)
        for sock in (*self._sockets.values(), self._wake_in, self._wake_out):
            sock.close(0)
        self._context.term()

    def run(self) -> None:
        """Pump messages both ways."""
        poller = zmq.Poller()
        for sock in (*self._sockets.values(), self._wake_in):
            poller.register(sock, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._wake_in in ready:
                self._wake_in.recv()
                item = self._queue.popleft()
                if item is None:
                    return
                channel, message = item
                self._session.send(self._sockets[channel], message)
            for channel, sock in self._sockets.items():
                if sock in ready:
                    _, received = self._session.recv(sock, zmq.NOBLOCK)
                    if received is not None:
                        self._receive(channel, received)


class _Specs(KernelSpecManager):
    """The kernel of one interpreter, whatever kernel specs are installed on the machine."""

    def __init__(self, python: str) -> None:
        super().__init__()
        self._python = python

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The one there is."""
        command = [self._python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name=kernel_name, language="python", interrupt_mode="signal")


class Kernel:
    """A kernel process and a front end's side of it; a context manager.

    Args:
        env: variables added to the isolated environment.
        cwd: its working folder.
        python: the interpreter whose ipykernel is run; this one by default.
    """

    def __init__(
        self, env: dict[str, str] | None = None, cwd: str | Path | None = None, python: str = sys.executable
    ) -> None:
        self.env, self.cwd, self.python = dict(env or {}), cwd, python
        self.changed = threading.Condition()
        self.comms: dict[str, Comm] = {}
        self.info: dict[str, Any] = {}
        self._results: dict[str, Result] = {}
        self._replies: dict[str, Message] = {}
        self._idle: set[str] = set()
        self._subshells: dict[str, str] = {}
        self._inputs: deque[str] = deque()
        self._link: _Link | None = None
        self._manager: KernelManager | None = None
        self._printed: IO[bytes] | None = None

    # Life ---------------------------------------------------------------------------------------

    def open(self, timeout: float = 60) -> Self:
        """Start the process and wait until it answers."""
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._manager = KernelManager(kernel_spec_manager=_Specs(self.python))
        try:
            self._manager.start_kernel(
                env=child_environment(**self.env),
                stdout=self._printed,
                stderr=self._printed,
                **({"cwd": str(self.cwd)} if self.cwd else {}),
            )
            self._connect(timeout)
        except BaseException:
            self.close(now=True)
            raise
        return self

    def close(self, now: bool = False) -> None:
        """End the process: politely, so that its exit handlers run (coverage's is one), unless `now`."""
        self._disconnect()
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.shutdown_kernel(now=now)
            manager.cleanup_resources()
            manager.context.destroy(linger=0)
        if self._printed is not None:
            self._printed.close()
            self._printed = None

    def restart(self, env: dict[str, str] | None = None, now: bool = False, timeout: float = 60) -> None:
        """Restart as a front end does; what it knew of outputs and comms is gone. `env` adds variables."""
        assert self._manager is not None, "the kernel is closed"
        self._disconnect()
        self.env |= env or {}
        self._manager.restart_kernel(now=now, env=child_environment(**self.env))
        self._connect(timeout)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The kernel's process."""
        assert self._manager is not None
        assert self._manager.provisioner is not None
        return int(self._manager.provisioner.pid)  # type: ignore[attr-defined]

    @property
    def printed(self) -> str:
        """What the process wrote to its own stdout and stderr, past Jupyter: warnings, crashes."""
        if self._printed is None:
            return ""
        # pread leaves the position alone, at which the process goes on writing.
        return os.pread(self._printed.fileno(), 2**20, 0).decode(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._manager is not None and bool(self._manager.is_alive())

    def _connect(self, timeout: float) -> None:
        manager = self._manager
        assert manager is not None
        # A session of its own, as every front end has, with the kernel's key.
        self._session = Session(key=manager.session.key, signature_scheme=manager.session.signature_scheme)
        self._link = _Link(manager, self._session, self._receive)
        end = time.monotonic() + timeout
        # Until a reply *and* its idle status have come: iopub subscribes a moment after shell answers.
        while True:
            sent = self._send("shell", "kernel_info_request", {})
            with self.changed:
                if self.changed.wait_for(partial(self._answered, sent), 0.5):
                    self.info = self._replies[sent].content
                    return
            if not self.alive:
                raise RuntimeError(f"the kernel died while starting\n{self.printed}")
            if time.monotonic() > end:
                raise TimeoutError(f"the kernel did not answer in {timeout} s")

    def _answered(self, sent: str) -> bool:
        return sent in self._replies and sent in self._idle

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        with self.changed:
            for known in (self.comms, self._results, self._replies, self._idle, self._subshells):
                known.clear()

    # Executing ----------------------------------------------------------------------------------

    def run(self, code: str, timeout: float = 30, cell_id: str | None = None, **options: Any) -> Result:
        """Execute code and wait for its end; for the options see `start`."""
        return self.start(code, cell_id=cell_id, **options).result(timeout)

    def start(
        self,
        code: str,
        cell_id: str | None = None,
        silent: bool = False,
        store_history: bool = True,
        stop_on_error: bool = True,
        subshell: str | None = None,
        inputs: tuple[str, ...] = (),
        deleted: tuple[str, ...] = (),
    ) -> Running:
        """Execute code without waiting. `cell_id` goes into the metadata, where JupyterLab puts it.

        So do the ids of `deleted` cells, which it sends with the next cell that it runs.
        `inputs` are the answers to `input()`, in order; without any, the front end offers no stdin.
        """
        content = {
            "code": code,
            "silent": silent,
            "store_history": store_history,
            "user_expressions": {},
            "allow_stdin": bool(inputs),
            "stop_on_error": stop_on_error,
        }
        metadata: dict[str, Any] = {"deletedCells": list(deleted), "recordTiming": False}
        if cell_id is not None:
            metadata["cellId"] = cell_id
        self._inputs = deque(inputs)
        message = self._message("execute_request", content, metadata, subshell)
        result = Result(self, message["header"]["msg_id"], cell_id)
        with self.changed:
            self._results[result.id] = result
        self._post("shell", message)
        return Running(self, result)

    def value(self, expression: str, timeout: float = 30) -> Any:
        """The value of an expression in the kernel, handed over as JSON; leaves no trace in the history."""
        code = f"import json as _json; print(_json.dumps({expression}))"
        return json.loads(self.run(code, timeout, store_history=False).check().stdout)

    def interrupt(self) -> None:
        """Interrupt what runs: SIGINT, sent by the kernel's manager."""
        assert self._manager is not None
        self._manager.interrupt_kernel()

    def complete(self, code: str, pos: int | None = None, timeout: float = 10) -> dict[str, Any]:
        """The content of a `complete_reply`: matches, cursor_start, cursor_end, metadata."""
        at = len(code) if pos is None else pos
        return self.request("complete_request", {"code": code, "cursor_pos": at}, timeout=timeout)

    def inspect(self, code: str, pos: int | None = None, timeout: float = 10) -> dict[str, Any]:
        """The content of an `inspect_reply`."""
        at = len(code) if pos is None else pos
        return self.request("inspect_request", {"code": code, "cursor_pos": at, "detail_level": 0}, timeout=timeout)

    def request(
        self, kind: str, content: dict[str, Any], channel: str = "shell", timeout: float = 10
    ) -> dict[str, Any]:
        """Send any request and return the content of its reply."""
        sent = self._send(channel, kind, content)
        self.wait(lambda: sent in self._replies, timeout, lambda: f"reply to {kind}")
        return self._replies[sent].content

    # Comms and subshells ------------------------------------------------------------------------

    @property
    def has_subshells(self) -> bool:
        """Whether the kernel has subshells (ipykernel 7)."""
        return "kernel subshells" in self.info.get("supported_features", [])

    def new_subshell(self) -> str:
        """Create a subshell, as JupyterLab does for comms; returns its id."""
        return str(self.request("create_subshell_request", {}, "control")["subshell_id"])

    def comm_send(self, comm_id: str, data: Any, subshell: bool | str = False, buffers: tuple[bytes, ...] = ()) -> str:
        """Send a widget's custom message, as a click does; returns the message's id.

        `subshell` True: on a subshell that all comms of this target share, created at the first message, as
        JupyterLab does by default where the kernel has them (`commsOverSubshells: perCommTarget`); a str: on
        that one; False: on the shell channel.
        """
        return self.comm_message(comm_id, {"method": "custom", "content": data}, subshell, buffers)

    def comm_update(self, comm_id: str, subshell: bool | str = False, **state: Any) -> str:
        """Set traits from the front end's side."""
        return self.comm_message(comm_id, {"method": "update", "state": state, "buffer_paths": []}, subshell)

    def comm_message(
        self, comm_id: str, data: Any, subshell: bool | str = False, buffers: tuple[bytes, ...] = ()
    ) -> str:
        """Send any comm message; see `comm_send`."""
        if subshell is True:
            target = self.comms[comm_id].target
            if target not in self._subshells:
                self._subshells[target] = self.new_subshell()
            subshell = self._subshells[target]
        message = self._message("comm_msg", {"comm_id": comm_id, "data": data}, {}, subshell or None)
        message["buffers"] = list(buffers)
        return self._post("shell", message)

    def wait_handled(self, sent: str, timeout: float = 10) -> None:
        """Wait until the kernel has handled a message that has no reply (the return value of `comm_send`)."""
        self.wait(lambda: sent in self._idle, timeout, lambda: "end of the handling of a message")

    def wait_comm(self, predicate: Callable[[Comm], object], timeout: float = 10) -> Comm:
        """Wait until a comm fulfils the predicate."""

        def found() -> Comm | None:
            return next((comm for comm in self.comms.values() if predicate(comm)), None)

        self.wait(found, timeout, lambda: f"such comm among {list(self.comms.values())}")
        comm = found()
        assert comm is not None
        return comm

    def wait(self, predicate: Callable[[], object], timeout: float, what: Callable[[], str] = lambda: "change") -> None:
        """Wait until the predicate holds; it is looked at after each message from the kernel."""
        end = time.monotonic() + timeout
        with self.changed:
            while not predicate():
                left = end - time.monotonic()
                # Woken now and then, to notice a kernel that died.
                if not self.changed.wait(min(left, 0.5)) and not self.alive:
                    raise RuntimeError(f"the kernel died; waited for: {what()}\n{self.printed}")
                if left <= 0:
                    raise TimeoutError(f"not in {timeout} s: {what()}")

    # Messages -----------------------------------------------------------------------------------

    def _message(
        self, kind: str, content: dict[str, Any], metadata: dict[str, Any], subshell: str | None
    ) -> dict[str, Any]:
        header = self._session.msg_header(kind)
        header["msg_id"] = uuid.uuid4().hex
        if subshell is not None:
            header["subshell_id"] = subshell
        return self._session.msg(kind, content, header=header, metadata=metadata)

    def _send(self, channel: str, kind: str, content: dict[str, Any]) -> str:
        return self._post(channel, self._message(kind, content, {}, None))

    def _post(self, channel: str, message: dict[str, Any]) -> str:
        assert self._link is not None, "the kernel is closed"
        self._link.send(channel, message)
        return str(message["header"]["msg_id"])

    def _receive(self, channel: str, raw: dict[str, Any]) -> None:
        """In the link's thread: file a message."""
        parent = raw["parent_header"].get("msg_id", "")
        message = Message(
            channel,
            raw["header"]["msg_type"],
            raw["content"],
            raw["metadata"],
            parent,
            time.monotonic(),
            tuple(bytes(b) for b in raw["buffers"]),
            raw["parent_header"].get("subshell_id"),
        )
        with self.changed:
            if channel in ("shell", "control"):
                self._replies[parent] = message
            elif message.type == "status" and message.content["execution_state"] == "idle":
                self._idle.add(parent)
            elif message.type == "update_display_data":
                self._update_displays(message)
            elif message.type.startswith("comm_"):
                self._file_comm(message)
            elif message.type == "input_request" and self._inputs:
                self._post("stdin", self._message("input_reply", {"value": self._inputs.popleft()}, {}, None))
            if parent in self._results:
                self._results[parent]._add(message)
            self.changed.notify_all()

    def _update_displays(self, message: Message) -> None:
        """Apply an update to every output with that display id, in whichever cell, as front ends do."""
        display_id = message.content.get("transient", {}).get("display_id")
        for result in self._results.values():
            for output in result.outputs:
                if display_id is not None and output.display_id == display_id:
                    output.data, output.metadata = message.content["data"], message.content["metadata"]
                    output.updates += 1

    def _file_comm(self, message: Message) -> None:
        comm_id = message.content["comm_id"]
        data = message.content.get("data") or {}
        if message.type == "comm_open":
            self.comms[comm_id] = Comm(
                comm_id, message.content["target_name"], message, state=dict(data.get("state", {}))
            )
        elif comm_id in self.comms:
            comm = self.comms[comm_id]
            comm.messages.append(message)
            if message.type == "comm_close":
                comm.closed = True
            elif data.get("method") in ("update", "echo_update"):
                comm.state |= data["state"]
