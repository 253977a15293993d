"""The server: it reads requests, finds the script, does what goes wrong, and keeps the log.

A protocol (`tests/wire/openai.py`, …) turns a script into events and bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from tests.wire.connection import Body, Closed, Connection, Left, Request
from tests.wire.connection import head as http_head
from tests.wire.log import Exchange, Log
from tests.wire.protocol import Call, Protocol
from tests.wire.script import Refusal, Script, from_json, scenario

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from types import TracebackType

PROTOCOLS = (
    "tests.wire.anthropic:Anthropic",
    "tests.wire.mistral:Mistral",
    "tests.wire.google:GoogleArray",
    "tests.wire.google:Google",
    "tests.wire.huggingface:HuggingFace",
    "tests.wire.openai_responses:OpenAIResponses",
    "tests.wire.openai:OpenAI",
)
"""`module:class` of each protocol, asked in this order whose a request is."""

BASES = {
    "openai": "/v1",
    "anthropic": "/anthropic",
    "mistral": "/mistral",
    "google": "/google",
    "google-legacy": "/google",
    "huggingface-hosted": "/huggingface/v1",
}
"""The path of each provider's base URL here: each protocol claims the requests below its own."""

MODELS = "/models"
"""A script registered under this name answers the requests for the list of models."""


class Wire(Log):
    """The server in a thread of this process; a context manager.

    Attributes:
        url: where it listens, without a path (`http://127.0.0.1:PORT`); OpenAI's clients want `url + "/v1"`.
        models: names for the list of models; those with a script, "ok" and "echo" where it is None.

    Args:
        port: where to listen; 0 takes a free one.
        tls: speak TLS with this context's certificate (`tests/wire/tls.py`).
    """

    def __init__(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.models: list[str] | None = None
        self._port = port
        self._tls = tls
        self._scripts: dict[str, Script] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._protocols: list[Protocol] = []
        for name in PROTOCOLS:
            module, _, cls = name.partition(":")
            if importlib.util.find_spec(module) is None:
                continue
            self._protocols.append(getattr(importlib.import_module(module), cls)())

    # Life ---------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Bind and serve; when this returns, clients can connect."""
        # Bound here, so that the address is known and an address in use raises in the caller's thread.
        # With the protocol named, or asyncio leaves Nagle's algorithm on: 40 ms before an answer's second write.
        sock = socket.socket(proto=socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", self._port))
            sock.listen(256)
        except OSError:
            sock.close()
            raise
        self._port = sock.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(sock, ready),), name="wire", daemon=True)
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("the wire server did not start")
        return self

    def stop(self) -> None:
        """Close every connection and end the thread."""
        if self._thread is None:
            return
        assert self._stop is not None
        self._on_loop(self._stop.set)
        self._thread.join(10)
        if self._thread.is_alive():
            raise RuntimeError("the wire server did not stop")
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_stopped(self) -> None:
        """Serve until another thread stops the server or the process ends."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1)

    # Scripts ------------------------------------------------------------------------------------

    def script(self, model: str, **settings: Any) -> Script:
        """From now on requests for this model name get this behaviour; the settings are those of `Script`."""
        return self._register(model, Script(**settings))

    def _register(self, model: str, script: Script) -> Script:
        script.bind(model, self._condition, self._on_loop)
        with self._condition:
            self._scripts[model] = script
        return script

    @property
    def url(self) -> str:
        """Where the server listens, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def base(self, provider: str) -> str:
        """The base URL that a provider is to be given."""
        return self.url + BASES[provider]

    def clear(self) -> None:
        """Forget the log and the scripts."""
        with self._condition:
            self._exchanges.clear()
            self._scripts.clear()

    # The server's thread ------------------------------------------------------------------------

    def _on_loop(self, call: Callable[[], object]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(call)

    async def _serve(self, sock: socket.socket, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # A client that closes at once sends no TLS goodbye: it is not waited for.
        tls: dict[str, Any] = {"ssl": self._tls, "ssl_shutdown_timeout": 0.5} if self._tls else {}
        server = await asyncio.start_server(self._connect, sock=sock, limit=2**24, **tls)
        ready.set()
        await self._stop.wait()
        server.close()
        await asyncio.sleep(0)  # connections that were accepted a moment ago register themselves
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        with self._changing():
            self._connected += 1
            connection = Connection(self._connected, reader, writer)
            self._connections[connection.n] = task
        try:
            with contextlib.suppress(Left, Closed, ConnectionError, asyncio.CancelledError):
                while (request := await connection.read_request()) is not None:
                    await self._handle(connection, request)
                    await connection.settle()
                    if request.headers.get("connection", "").lower() == "close":
                        break
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await connection.settle()
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            with self._changing():
                del self._connections[connection.n]

    async def _handle(self, connection: Connection, request: Request) -> None:
        if request.path.startswith("/__"):
            await self._send(connection, *self._administer(request))
            return
        for protocol in self._protocols:
            if (call := protocol.route(request)) is not None:
                break
        else:
            protocol, call = self._protocols[0], Call("unknown")
        with self._changing():
            n = len(self._exchanges) + 1
            exchange = Exchange(
                n,
                protocol.name,
                request.method,
                request.path,
                request.target,
                request.headers,
                request.body,
                call.model,
                call.stream,
                connection.n,
                f"req_{n}",
                time.monotonic(),
            )
            self._exchanges.append(exchange)
        outcome = "server_stopped"
        connection.watch()
        try:
            outcome = await self._answer(connection, request, exchange, protocol, call)
        except Left:
            outcome = "client_closed"
            raise
        except Closed as closed:
            outcome = str(closed)
            raise
        finally:
            with self._changing():
                exchange.outcome, exchange.ended = outcome, time.monotonic()

    async def _answer(
        self, connection: Connection, request: Request, exchange: Exchange, protocol: Protocol, call: Call
    ) -> str:
        script = self._find(MODELS if call.kind in ("models", "model") else call.model)
        headers = protocol.headers(exchange.request_id)
        if script is None or call.kind == "unknown":
            refusal: Refusal | None = Refusal(404, "model_not_found" if call.kind == "generate" else "", "")
            script = Script()
        else:
            with self._changing():
                script.hits += 1
            if script.times is not None and script.hits > script.times:
                script = script.calm()
            refusal = self._refuse(script, request, protocol)
            headers |= script.headers
            if script.retry_after is not None and refusal is not None:
                headers["retry-after"] = f"{script.retry_after}"

        if script.gated(-1):
            await connection.unless_left(script.pass_gate())
        if script.fault == "hang":
            await connection.unless_left()
        if script.fault == "close":
            raise Closed("close")
        if script.redirect is not None:
            url = script.redirect + (request.target.lstrip("/") if script.redirect.endswith("/") else "")
            exchange.status = 307
            await self._send(connection, 307, b"", headers | {"location": url})
            return "redirect"
        if refusal is not None:
            exchange.status = refusal.status
            error = protocol.error(refusal, call.model)
            await self._send(connection, refusal.status, error if script.body is None else script.body, headers)
            return "done"
        return await self._succeed(connection, request, exchange, protocol, call, script, headers)

    async def _succeed(
        self,
        connection: Connection,
        request: Request,
        exchange: Exchange,
        protocol: Protocol,
        call: Call,
        script: Script,
        headers: dict[str, str],
    ) -> str:
        exchange.status = script.status
        if script.fault == "not_sse":
            page = b"<!doctype html><title>Sign in</title><p>Please sign in to the network."
            await self._send(connection, 200, page, headers | {"content-type": "text/html"})
            return "not_sse"
        if script.fault == "empty":
            kind = protocol.content_type if call.stream else "application/json"
            await self._send(connection, 200, b"", headers | {"content-type": kind})
            return "empty"
        if script.body is not None:
            await self._send(connection, script.status, script.body, headers)
        elif call.kind == "models":
            names = [n for n in self._scripts if n != MODELS] + ["ok", "echo"]
            await self._send(connection, 200, protocol.page(request, self.models or names), headers)
        elif call.kind == "model":
            await self._send(connection, 200, protocol.model(call.model), headers)
        elif call.stream:
            return await self._stream(connection, request, exchange, protocol, script, headers)
        else:
            return await self._whole(connection, request, exchange, protocol, script, headers)
        return "done"

    async def _whole(
        self,
        connection: Connection,
        request: Request,
        exchange: Exchange,
        protocol: Protocol,
        script: Script,
        headers: dict[str, str],
    ) -> str:
        answer = script.answer(request.body)
        for index in range(len(answer) + 1):
            if script.gated(index):
                await connection.unless_left(script.pass_gate())
            if script.pace and index < len(answer):
                await connection.unless_left(asyncio.sleep(script.pace))
        body = json.dumps(protocol.whole(script, request, answer), ensure_ascii=False).encode()
        if script.fault is None:
            await self._send(connection, 200, body, headers)
            return "done"
        if script.fault == "error_event":
            await self._send(connection, 500, protocol.error(Refusal(500, "server_error"), exchange.model), headers)
            return "done"
        if script.fault in ("cut", "malformed"):  # a body that is well-formed HTTP and broken JSON
            await self._send(connection, 200, body[: len(body) // 2], headers)
            return script.fault
        head = http_head(200, headers | {"content-type": "application/json", "content-length": str(len(body))})
        await connection.write(head + body[: len(body) // 2])
        await self._break(connection, script)
        return script.fault

    async def _stream(
        self,
        connection: Connection,
        request: Request,
        exchange: Exchange,
        protocol: Protocol,
        script: Script,
        headers: dict[str, str],
    ) -> str:
        answer = script.answer(request.body)
        kind = {"content-type": protocol.content_type, "cache-control": "no-cache"}
        head = http_head(200, headers | kind | {"transfer-encoding": "chunked"})
        body = Body(connection, script, head)
        if script.write != "burst":
            await body.flush()
        strike = min(script.at, len(answer)) if script.fault else -1
        outcome, ending = "done", False
        events = list(protocol.events(script, request, answer))
        for event in events:
            # Before each delta, and once before what ends the answer.
            if event.counts or (not ending and exchange.sent == len(answer)):
                ending = exchange.sent == len(answer)
                if script.gated(exchange.sent):
                    await body.flush()
                    await connection.unless_left(script.pass_gate())
                if exchange.sent == strike:
                    strike = -1
                    outcome = str(script.fault)
                    if script.fault == "malformed":
                        await body.event(protocol.malformed())
                    elif script.fault == "error_event":
                        for error in protocol.error_events(script):
                            await body.event(error)
                        break
                    elif script.fault == "cut":
                        break
                    else:
                        await body.flush()
                        await self._break(connection, script)
                if script.pace and event.counts:
                    await connection.unless_left(asyncio.sleep(script.pace))
            await body.event(event, last=event is events[-1])
            if event.counts:
                exchange.sent += 1
                script.count_sent()
        await body.end()
        return outcome

    async def _break(self, connection: Connection, script: Script) -> None:
        """The faults of the socket itself."""
        if script.fault == "stall":
            await connection.unless_left()
        if script.fault == "reset":
            connection.reset()
        raise Closed(script.fault)

    def _find(self, model: str) -> Script | None:
        """The script for a model name; a scenario is registered at its first request, to count its hits."""
        with self._condition:
            if model in self._scripts:
                return self._scripts[model]
        script = Script() if model == MODELS else scenario(model)
        if script is not None:
            script.bind(model, self._condition, self._on_loop)
            if model != MODELS:
                self._register(model, script)
        return script

    @staticmethod
    def _refuse(script: Script, request: Request, protocol: Protocol) -> Refusal | None:
        if script.key is not None and protocol.key(request) != script.key:
            return Refusal(401, "invalid_api_key")
        parameters = protocol.parameters(request) if script.rejects else ()
        for param in script.rejects:
            if param in parameters:
                return Refusal(400, "unsupported_parameter", script.message, param)
        return script.refusal() or protocol.refuse(request)

    def _administer(self, request: Request) -> tuple[int, Any]:
        """The server's own paths, for other processes."""
        body = request.body or {}
        if request.path == "/__log":
            return 200, {
                "requests": [x.to_json() for x in self.requests],
                "open_connections": self.open_connections,
            }
        if request.path == "/__clear":
            self.clear()
            return 200, {}
        if request.path == "/__script":
            try:
                self._register(body["model"], from_json({k: v for k, v in body.items() if k != "model"}))
            except (KeyError, TypeError, ValueError) as error:
                return 400, {"error": repr(error)}
            return 200, {}
        if request.path == "/__release" and (script := self._scripts.get(body.get("model", ""))) is not None:
            script.release(int(body.get("gates", 1)))
            return 200, {}
        return 404, {"error": "there are /__log, /__clear, /__script and /__release"}

    async def _send(
        self, connection: Connection, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        fixed = {"content-type": "application/json"} | (headers or {}) | {"content-length": str(len(data))}
        await connection.write(http_head(status, fixed) + data)
