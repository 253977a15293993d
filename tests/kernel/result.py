"""What a kernel sends back, as a front end holds it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.kernel.harness import Kernel

ANSI = re.compile(r"\x1b\[[0-9;]*m")
DISPLAYS = ("display_data", "execute_result")


@dataclass(frozen=True)
class Message:
    """One message from the kernel; `time` is `time.monotonic()` at its arrival."""

    channel: str
    type: str
    content: dict[str, Any]
    metadata: dict[str, Any]
    parent: str
    time: float
    buffers: tuple[bytes, ...] = ()
    subshell: str | None = None


@dataclass(frozen=True)
class Error:
    """An error output; `traceback` is one text without colours."""

    ename: str
    evalue: str
    traceback: str


@dataclass
class Output:
    """An output of a cell as a front end holds it.

    `data` and `metadata` are what the last update made of them. `type` is "stream" (then `text` and `name`),
    "display_data", "execute_result" or "error" (then `text`).
    """

    type: str
    data: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    name: str = ""
    display_id: str | None = None
    updates: int = 0


@dataclass(eq=False)
class Comm:
    """A comm as the front end sees it: its messages in order, the widget's `state` folded from them."""

    id: str
    target: str
    opened: Message
    messages: list[Message] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    closed: bool = False

    @property
    def custom(self) -> list[Any]:
        """The contents of the custom messages that the widget sent."""
        return [m.content["data"]["content"] for m in self.messages if m.content["data"].get("method") == "custom"]


class Result:
    """What one execute request has produced so far; complete when `done`."""

    def __init__(self, kernel: Kernel, request: str, cell_id: str | None) -> None:
        self._kernel = kernel
        self.id, self.cell_id = request, cell_id
        self.sent = time.monotonic()
        self.history: list[Message] = []
        self.outputs: list[Output] = []
        self.reply: dict[str, Any] = {}
        self.idle: float | None = None
        self._clear_next = False

    def __repr__(self) -> str:
        state = "done" if self.done else "running"
        return f"<Result {state} outputs={self.outputs} error={self.error}>"

    @property
    def done(self) -> bool:
        """Whether the reply and the idle status have both come: they travel on two sockets."""
        return bool(self.reply) and self.idle is not None

    @property
    def ok(self) -> bool:
        """Whether the cell ended without an error."""
        return self.reply.get("status") == "ok"

    @property
    def stdout(self) -> str:
        """What the cell printed."""
        return "".join(o.text for o in self.outputs if o.name == "stdout")

    @property
    def stderr(self) -> str:
        """What the cell wrote to stderr."""
        return "".join(o.text for o in self.outputs if o.name == "stderr")

    @property
    def error(self) -> Error | None:
        """The error that ended the cell."""
        for message in self.history:
            if message.type == "error":
                c = message.content
                return Error(c["ename"], c["evalue"], ANSI.sub("", "\n".join(c["traceback"])))
        return None

    @property
    def displays(self) -> list[Output]:
        """The outputs that are mime bundles."""
        return [o for o in self.outputs if o.type in DISPLAYS]

    @property
    def text(self) -> str:
        """All that a reader sees, as text: streams, the markdown or plain text of displays, tracebacks."""
        return "".join(o.text or str(o.data.get("text/markdown", o.data.get("text/plain", ""))) for o in self.outputs)

    @property
    def value(self) -> Any:
        """text/plain of the cell's last expression."""
        return next((o.data.get("text/plain") for o in self.outputs if o.type == "execute_result"), None)

    @property
    def next_inputs(self) -> list[dict[str, Any]]:
        """The `set_next_input` payloads of the reply."""
        return [p for p in self.reply.get("payload", []) if p.get("source") == "set_next_input"]

    @property
    def comms(self) -> list[Comm]:
        """The comms that this cell opened."""
        return [comm for comm in self._kernel.comms.values() if comm.opened.parent == self.id]

    def check(self) -> Result:
        """Raise AssertionError, with the traceback of the cell, unless it ended well."""
        assert self.ok, f"the cell failed:\n{self.error.traceback if self.error else self.reply}\n{self.text}"
        return self

    def _add(self, message: Message) -> None:
        self.history.append(message)
        content = message.content
        if message.type == "execute_reply":
            self.reply = content
        elif message.type == "status" and content["execution_state"] == "idle":
            self.idle = message.time
        elif message.type == "clear_output":
            if content.get("wait"):
                self._clear_next = True
            else:
                self.outputs.clear()
        elif message.type in ("stream", "error", *DISPLAYS):
            if self._clear_next:
                self.outputs.clear()
                self._clear_next = False
            self._add_output(message)

    def _add_output(self, message: Message) -> None:
        content = message.content
        if message.type == "stream":
            last = self.outputs[-1] if self.outputs else None
            if last is None or last.name != content["name"]:
                last = Output("stream", name=content["name"])
                self.outputs.append(last)
            last.text += content["text"]
        elif message.type == "error":
            self.outputs.append(Output("error", text=ANSI.sub("", "\n".join(content["traceback"]))))
        else:
            display_id = content.get("transient", {}).get("display_id")
            self.outputs.append(Output(message.type, content["data"], content["metadata"], display_id=display_id))
