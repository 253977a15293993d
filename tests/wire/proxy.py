"""An HTTP proxy on this machine: it forwards plain requests, tunnels `CONNECT`, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from tests.wire.connection import Connection, Request, head

if TYPE_CHECKING:
    from types import TracebackType


@dataclass(frozen=True)
class Asked:
    """A request as the proxy saw it: of a tunnelled one only the `CONNECT`."""

    method: str
    target: str
    headers: dict[str, str]


class Proxy:
    """The proxy in a thread of this process; a context manager.

    Args:
        login: `name:password` that it wants to hear; without, anyone may use it.

    Attributes:
        asked: what it was asked, in order.
    """

    def __init__(self, login: str = "") -> None:
        self.asked: list[Asked] = []
        self._login = login
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Its URL, with the login."""
        return f"http://{self._login}@127.0.0.1:{self._port}" if self._login else f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=2**24)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await self._requests(Connection(0, reader, writer))
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _requests(self, client: Connection) -> None:
        upstream: asyncio.StreamWriter | None = None
        back: asyncio.Task[None] | None = None
        try:
            while (request := await client.read_request()) is not None:
                self.asked.append(Asked(request.method, request.target, request.headers))
                if self._login and request.headers.get("proxy-authorization") != _basic(self._login):
                    client.writer.write(head(407, {"proxy-authenticate": "Basic", "content-length": "0"}))
                    await client.writer.drain()
                    continue
                tunnel = request.method == "CONNECT"
                target = urlsplit(f"//{request.target}" if tunnel else request.target)
                if upstream is None:
                    reader, upstream = await asyncio.open_connection(target.hostname, target.port)
                    if tunnel:
                        client.writer.write(head(200, {}))
                    back = asyncio.create_task(_pipe(reader, client.writer))
                if tunnel:
                    await _pipe(client.reader, upstream)
                    return
                upstream.write(_forwarded(request, target.path + (f"?{target.query}" if target.query else "")))
                await upstream.drain()
        finally:
            if back is not None:
                back.cancel()
                await asyncio.wait([back])
            if upstream is not None:
                upstream.close()


def _basic(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def _forwarded(request: Request, target: str) -> bytes:
    """The request in the form that its origin wants (RFC 9112, section 3.2.1), its body of known length."""
    dropped = {"proxy-authorization", "proxy-connection", "transfer-encoding", "content-length"}
    headers = {name: value for name, value in request.headers.items() if name not in dropped}
    headers["content-length"] = str(len(request.raw))
    lines = [f"{request.method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + request.raw


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the reader's end, and pass that end on."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()
