"""One client's connection: HTTP/1.1 over asyncio's streams, with the socket in reach."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.wire.protocol import Event
    from tests.wire.script import Script

_REASONS = {200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


def head(status: int, headers: dict[str, str]) -> bytes:
    """The status line and the headers of an answer."""
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(frozen=True)
class Request:
    """A request as it was read. `headers` has lower-case names; `body` is parsed JSON, None without one."""

    method: str
    target: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes


class Left(Exception):  # noqa: N818 - a turn of events, not an error
    """The client closed the connection."""


class Closed(Exception):  # noqa: N818
    """The script closed the connection."""


@dataclass(eq=False)
class Connection:
    """One client's connection."""

    n: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pushed: bytes = b""
    _watch: asyncio.Task[bytes] | None = field(default=None, init=False)

    async def read_request(self) -> Request | None:
        """The next request, None at the end of the connection."""
        try:
            first, self.pushed = self.pushed or await self.reader.readexactly(1), b""
            if first == b"\x16":  # a TLS client at a plain server: told so in plain words, as real servers do
                self.writer.write(head(400, {"connection": "close", "content-length": "0"}))
                return None
            lines = (first + await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ", 2)
            pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
            headers = {name.strip().lower(): value.strip() for name, value in pairs}
            raw = await self._read_body(headers)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = None
        return Request(method, target, unquote(urlsplit(target).path), headers, body, raw)

    async def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", 0)))
        body = b""
        while size := int((await self.reader.readline()).split(b";")[0], 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return body

    def watch(self) -> None:
        """From now on notice when the client closes the connection."""
        if self._watch is None:
            self._watch = asyncio.ensure_future(self.reader.read(1))

    def _check(self) -> None:
        watch = self._watch
        if watch is not None and watch.done() and (watch.exception() is not None or not watch.result()):
            raise Left

    async def unless_left(self, waits: Coroutine[Any, Any, object] | None = None) -> None:
        """Await something, or for ever; raise `Left` at once when the client closes meanwhile."""
        self.watch()
        assert self._watch is not None
        task = None if waits is None else asyncio.ensure_future(waits)
        try:
            await asyncio.wait([self._watch, *([task] if task else [])], return_when=asyncio.FIRST_COMPLETED)
            self._check()
            if task is not None:
                await task
        finally:
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def write(self, data: bytes) -> None:
        """Write and flush, raising `Left` where the client is gone."""
        # A pass through the loop, so that a close that has arrived is noticed before the next write.
        await asyncio.sleep(0)
        self._check()
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            raise Left from None

    async def settle(self) -> None:
        """Stop watching for a close, keeping a byte of the next request that was read on the way."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                self.pushed = await watch

    def reset(self) -> None:
        """Close with RST: a linger time of 0 makes the kernel throw the connection away."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Body:
    """Writes a streamed body in the script's manner: chunks of an event, of so many bytes, or all at once."""

    def __init__(self, connection: Connection, script: Script, head: bytes) -> None:
        self.connection, self.script = connection, script
        self.buffer = head

    async def event(self, event: Event, last: bool = False) -> None:
        """Add an event."""
        # The last one is written together with the end of the body: an SDK may close the connection as soon
        # as it has read the last event, and that must not look like a client that left early.
        data = event.encode(self.script.newline, self.script.comments)
        if isinstance(self.script.write, int):
            size = self.script.write
            pieces = [data[i : i + size] for i in range(0, len(data), size)]
        else:
            pieces = [data]
        for piece in pieces:
            self.buffer += b"%x\r\n%s\r\n" % (len(piece), piece)
            if self.script.write != "burst" and not (last and piece is pieces[-1]):
                await self.flush()

    async def flush(self) -> None:
        """Write what was gathered."""
        data, self.buffer = self.buffer, b""
        if data:
            await self.connection.write(data)

    async def end(self) -> None:
        """End the body well-formed."""
        self.buffer += b"0\r\n\r\n"
        await self.flush()
