"""What the server is to answer: a `Script`, in terms that every protocol shares."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = "every"
"""`gates=EVERY`: the server waits before each delta."""

Fault = Literal[
    "cut",  # a clean end of the body, before the events that end an answer
    "drop",  # FIN inside the chunked body
    "reset",  # RST inside the body
    "malformed",  # an event whose data is broken JSON, then the answer goes on
    "error_event",  # the protocol's error event inside the stream, then a clean end
    "stall",  # nothing more comes, the connection stays open
    "not_sse",  # 200 with a web page
    "empty",  # 200 with an empty body of the right type
    "hang",  # the request is read, nothing is answered
    "close",  # the connection is closed before a byte of the answer
]


@dataclass(frozen=True)
class Usage:
    """Token counts that the server reports; None counts the words of the messages, or the deltas."""

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class ToolCall:
    """A tool call that the model makes; its arguments (JSON text) are streamed in `pieces` deltas."""

    name: str
    arguments: str = "{}"
    id: str = "call_1"
    pieces: int = 2

    def parts(self) -> list[str]:
        """Cut the arguments into about `pieces` consecutive parts."""
        size = max(1, -(-len(self.arguments) // self.pieces))
        return [self.arguments[i : i + size] for i in range(0, len(self.arguments), size)]


@dataclass(frozen=True)
class Refusal:
    """An error answer before it has a protocol's form; `reason` is a kind that protocols know how to word."""

    status: int
    reason: str = ""
    message: str = ""
    param: str | None = None


REASONS = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "model_not_found",
    429: "rate_limit",
    500: "server_error",
    529: "overloaded",
    503: "overloaded",  # the last of its kind: `reason="overloaded"` alone means this one
}
STATUS_OF = {
    "context_length_exceeded": 400,
    "unsupported_parameter": 400,
    "insufficient_quota": 429,
    "content_policy": 400,
    "invalid_request": 400,
} | {reason: status for status, reason in REASONS.items()}


@dataclass(eq=False)
class Script:
    """The behaviour of one model name.

    What it says:
        text: the answer, split into words with their white space.
        deltas: the answer, exactly in these pieces; in place of `text`.
        tokens: with neither, so many deltas `"tok0 "`, `"tok1 "`, …
        echo: answer with JSON instead: of the "messages", or of the whole "body" of the request.
        reasoning: deltas of reasoning that come first.
        tool_calls: come after the text.
        usage: "auto" counts, None never reports.
        finish: the finish reason; None leaves it out.
        terminal: False leaves out the protocol's last event (OpenAI: `[DONE]`).

    When:
        pace: seconds before each delta.
        gates: indices of deltas before which the server waits for `release()`, or `EVERY`: 0 is before the
            first delta, -1 before the headers, `len(deltas)` before the events that end the answer.

    What goes wrong:
        times: for so many requests only, then the answer is right; None: always.
        status, reason, message, param: an error answer; either of status and reason implies the other.
        headers: extra headers of every answer.
        retry_after: that header of an error answer.
        body: raw bytes in place of any body that is not a fault's.
        fault: see `Fault`.
        at: faults inside a stream strike when so many deltas were sent, or at the end of the deltas.
        redirect: a 307 to this URL; one that ends with a slash gets the request's path and query appended.
        rejects: parameters that get a 400 where the request has them.
        key: any other API key gets a 401.

    How it is written:
        write: "token": one write and one chunk an event; "burst": the whole answer in one write; a number:
            chunks of so many bytes, whatever they cut (words, characters).
        newline, comments: the form of the event stream.

    Attributes:
        hits, sent, waiting: requests that came, deltas that were written, requests that stand at a gate.
    """

    text: str | None = None
    deltas: Sequence[str] | None = None
    tokens: int = 10
    echo: Literal["", "messages", "body"] = ""
    reasoning: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    usage: Usage | Literal["auto"] | None = "auto"
    finish: str | None = "stop"
    terminal: bool = True
    pace: float = 0.0
    gates: Collection[int] | Literal["every"] = ()
    status: int = 200
    reason: str = ""
    message: str = ""
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | str | None = None
    body: bytes | None = None
    fault: Fault | None = None
    at: int = 5
    times: int | None = None
    redirect: str | None = None
    rejects: Collection[str] = ()
    key: str | None = None
    write: Literal["token", "burst"] | int = "token"
    newline: str = "\n"
    comments: bool = False

    # What has happened to it so far; written by the server's thread under its condition.
    model: str = field(default="", init=False)
    hits: int = field(default=0, init=False)
    sent: int = field(default=0, init=False)
    waiting: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before a test hangs on it."""
        if self.fault is not None and self.fault not in get_args(Fault):
            raise ValueError(f"fault must be one of {get_args(Fault)}, not {self.fault!r}")
        if self.text is not None and self.deltas is not None:
            raise ValueError("give text or deltas, not both")
        if self.reason and self.status == 200:
            self.status = STATUS_OF[self.reason]
        self._gate = asyncio.Semaphore(0)
        self._condition = threading.Condition()
        self._counter = self
        self._call: Callable[[Callable[[], object]], None] | None = None

    def bind(self, model: str, condition: threading.Condition, call: Callable[[Callable[[], object]], None]) -> None:
        """Called by the server: its condition guards the counters, `call` runs a function on its loop."""
        self.model, self._condition, self._call = model, condition, call

    def answer(self, body: Mapping[str, Any]) -> list[str]:
        """The deltas of the answer to this request."""
        if self.echo:
            said = body if self.echo == "body" else body.get("messages")
            return words(json.dumps(said, ensure_ascii=False))
        if self.deltas is not None:
            return list(self.deltas)
        return [f"tok{i} " for i in range(self.tokens)] if self.text is None else words(self.text)

    def refusal(self) -> Refusal | None:
        """The error answer, if the script is one."""
        if self.status < 400:
            return None
        return Refusal(self.status, self.reason or REASONS.get(self.status, ""), self.message, self.param)

    def calm(self) -> Script:
        """The same without what goes wrong in it; gates and counters are shared."""
        calm = copy.copy(self)
        calm.status, calm.reason, calm.fault, calm.redirect = 200, "", None, None
        calm.rejects, calm.key, calm.body = (), None, None
        calm._counter = self
        return calm

    def gated(self, index: int) -> bool:
        """Whether the server waits before this delta."""
        return index >= 0 if self.gates == EVERY else index in self.gates

    async def pass_gate(self) -> None:
        """Server side: wait for a `release()`."""
        self._count("waiting", 1)
        try:
            await self._gate.acquire()
        finally:
            self._count("waiting", -1)

    def count_sent(self) -> None:
        """Server side: one more delta was written."""
        self._count("sent", 1)

    def _count(self, name: str, by: int) -> None:
        with self._condition:
            setattr(self._counter, name, getattr(self._counter, name) + by)
            self._condition.notify_all()

    # For tests ----------------------------------------------------------------------------------

    def release(self, gates: int = 1) -> None:
        """Let requests through so many gates, now or when they come to them. From any thread."""
        if self._call is None:
            raise RuntimeError("only a script made by Wire.script() can be released")
        for _ in range(gates):
            self._call(self._gate.release)

    def wait_gate(self, waiting: int = 1, timeout: float = 10) -> None:
        """Wait until so many requests stand at a gate."""
        self._wait(lambda: self.waiting >= waiting, f"{waiting} at a gate of {self.model}", timeout)

    def wait_sent(self, deltas: int, timeout: float = 10) -> None:
        """Wait until so many deltas of this script were written, counted over all its requests."""
        self._wait(lambda: self.sent >= deltas, f"{deltas} deltas of {self.model}", timeout)

    def _wait(self, predicate: Callable[[], bool], what: str, timeout: float) -> None:
        with self._condition:
            if not self._condition.wait_for(predicate, timeout):
                raise TimeoutError(f"no {what} in {timeout} s (hits {self.hits}, sent {self.sent})")


def words(text: str) -> list[str]:
    """Split text into words, each with the white space behind it; joined they give the text again."""
    return re.findall(r"\s*\S+\s?|\s+", text)


MARKDOWN = """# A short tour

Here is **bold**, *italic* and `code`, then a list:

1. first
2. second

```python
def double(x: int) -> int:
    return 2 * x
```

| name | value |
|------|------:|
| a    |     1 |

Naïve café, 日本語, 👩‍🔬 - and the end.
"""

SCENARIOS: dict[str, dict[str, Any]] = {
    "ok": {},
    "echo": {"echo": "messages"},
    "echobody": {"echo": "body"},
    "markdown": {"text": MARKDOWN},
    "slow": {"tokens": 1000, "pace": 0.05},
    "reasoning": {"reasoning": ("Let me ", "think. "), "usage": Usage(reasoning=2)},
    "tools": {
        "text": "",
        "tool_calls": (ToolCall("get_weather", '{"city": "Paris"}'),),
        "finish": "tool_calls",
    },
    "length": {"finish": "length"},
    "nofinish": {"finish": None},
    "nodone": {"terminal": False},
    "nousage": {"usage": None},
    "burst": {"write": "burst"},
    "split": {"text": MARKDOWN, "write": 3},
    "crlf": {"newline": "\r\n", "comments": True},
    "cut": {"fault": "cut"},
    "drop": {"fault": "drop"},
    "reset": {"fault": "reset"},
    "malformed": {"fault": "malformed"},
    "errorevent": {"fault": "error_event"},
    "stall": {"fault": "stall"},
    "notsse": {"fault": "not_sse"},
    "empty": {"fault": "empty"},
    "hang": {"fault": "hang"},
    "close": {"fault": "close"},
    "context": {"reason": "context_length_exceeded"},
    "quota": {"reason": "insufficient_quota"},
    "notemperature": {"rejects": ("temperature",)},
    "nomaxtokens": {"rejects": ("max_tokens",)},
    "e400": {"reason": "invalid_request"},
    "e401": {"status": 401},
    "e403": {"status": 403},
    "e404": {"status": 404},
    "e429": {"status": 429, "retry_after": 1},
    "e500": {"status": 500},
    "e503": {"status": 503},
    "e529": {"status": 529},
    "e503once": {"status": 503, "times": 1},
}
"""Model names that need no registering; `NAME-N` has N tokens, `NAME-N-Pms` a pace: `ok-200-20ms`."""


def scenario(model: str) -> Script | None:
    """The script that a model name stands for, None for a name that means nothing here."""
    match = re.fullmatch(r"([a-z0-9]+)(?:-(\d+))?(?:-(\d+)ms)?", model)
    if match is None or match[1] not in SCENARIOS:
        return None
    settings = dict(SCENARIOS[match[1]])
    if match[2]:
        settings["tokens"] = int(match[2])
    if match[3]:
        settings["pace"] = int(match[3]) / 1000
    return Script(**settings)


def from_json(settings: Mapping[str, Any]) -> Script:
    """A script from what a demo or another process sends: names of `Script`, with plain JSON values."""
    known = {f.name for f in fields(Script) if f.init}
    if unknown := set(settings) - known:
        raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
    values = dict(settings)
    if isinstance(values.get("usage"), dict):
        values["usage"] = Usage(**values["usage"])
    if "tool_calls" in values:
        values["tool_calls"] = tuple(ToolCall(**call) for call in values["tool_calls"])
    if "body" in values:
        values["body"] = str(values["body"]).encode()
    return Script(**values)
