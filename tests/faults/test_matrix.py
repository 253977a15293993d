"""Every fault of `matrix.py`, with each hosted provider's SDK, over a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from nbllm import ConfigManager, ProviderManager, ResponseStream
from nbllm._loop import background_loop
from nbllm.errors import IncompleteStreamError, ProviderError
from tests.faults.matrix import ACCENTS, CELLS, HUGE, KEY, MODEL, PROVIDERS, SO_FAR, Cell, Place
from tests.wire import Wire
from tests.wire.server import BASES
from tests.wire.tls import authority

if TYPE_CHECKING:
    from tests.conftest import Refusals
    from tests.wire import Script

WHOLE = {"utf-8": ACCENTS, "huge": HUGE}
"""The whole answers that are not the server's usual one."""


@contextlib.contextmanager
def place(where: Place) -> Iterator[tuple[Wire, str]]:
    """The server, and the origin that the provider is given."""
    with Wire(tls=authority().server() if where == "tls" else None) as wire:
        if where == "refused":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                yield wire, f"http://127.0.0.1:{free.getsockname()[1]}"
        else:
            yield wire, "http://nowhere.invalid" if where == "dns" else wire.url


class Case:
    """One cell with one provider: the server that misbehaves, and a manager that speaks to it."""

    def __init__(self, provider: str, cell: Cell, wire: Wire, origin: str) -> None:
        self.provider, self.cell, self.wire = provider, cell, wire
        settings = {"base_url": origin + BASES[provider], "api_key": KEY, "timeout": cell.timeout}
        self.manager = ProviderManager(ConfigManager(runtime={"provider": provider, "providers": {provider: settings}}))
        script = {name: value() if callable(value) else value for name, value in cell.script.items()}
        gates = () if cell.gate is None else (cell.gate,)
        self.script: Script = wire.script(MODEL, gates=gates, **script)
        self.whole = WHOLE.get(cell.name, "".join(self.script.answer({})))
        self.kept = {"nothing": "", "so far": SO_FAR, "whole": self.whole}[cell.kept]

    async def ask(self) -> str:
        """The whole answer."""
        return str(await (await self.manager.generate_response("Hi", MODEL)))

    async def read_so_far(self, stream: ResponseStream) -> None:
        """Read what the server sends before it stands still."""
        text = ""
        while text != SO_FAR:
            text += await anext(stream)
        await asyncio.to_thread(self.script.wait_gate)


async def read(case: Case) -> None:
    """Ask and read to the end, whatever it is; where an error is due, it is raised and is the right one."""
    stream = case.manager.start("Hi", MODEL)
    if case.cell.gate is not None:
        await case.read_so_far(stream)
        case.script.release()
    if case.cell.error is None:
        assert await stream == case.whole
        assert stream.state == "complete"
        return
    with pytest.raises(case.cell.error) as caught:
        await stream
    assert stream.text == case.kept
    assert stream.state == ("incomplete" if case.cell.error is IncompleteStreamError else "failed")
    check(caught.value, case)
    if case.cell.kept == "nothing":
        # The same from the form that returns once the answer has begun, and from the call without streaming.
        for whole in (case.ask(), case.manager.generate_response("Hi", MODEL, stream=False)):
            with pytest.raises(case.cell.error) as caught:
                await whole
            check(caught.value, case)


def check(error: ProviderError, case: Case) -> None:
    """The error's exact type, all its fields, and the key nowhere in it."""
    cell = case.cell
    assert type(error) is cell.error
    assert (error.provider, error.model) == (case.provider, MODEL)
    for name, expected in cell.fields.items():
        value = getattr(error, name)
        if isinstance(expected, tuple):
            assert expected[0] <= value <= expected[1], name
        else:
            assert value == expected, name
    assert error.message
    assert error.action
    assert cell.words in str(error)
    asked = [request for request in case.wire.requests if request.model == MODEL]
    if cell.place == "wire":
        assert KEY in json.dumps([asked[-1].headers, asked[-1].target])  # it was there to be told
    answered = bool(asked) and asked[-1].status
    assert error.request_id == (given_id(case.wire, asked[-1].protocol, asked[-1].request_id) if answered else None)
    told = [str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))]
    assert not [text for text in told if KEY in text]


def given_id(wire: Wire, protocol: str, request_id: str) -> str | None:
    """The id of a request that the protocol's headers tell, if any."""
    (spoken,) = (known for known in wire._protocols if known.name == protocol)
    return request_id if request_id in spoken.headers(request_id).values() else None


async def cancel_before_headers(case: Case) -> None:
    """Cancelling whoever waits for the answer to begin ends the request, in both forms of the call."""
    for turn, streamed in enumerate((True, False), 1):
        task = asyncio.create_task(case.manager.generate_response("Hi", MODEL, stream=streamed))
        await asyncio.to_thread(case.script.wait_gate)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.to_thread(case.wire.wait_closed, turn)
    assert case.script.sent == 0


async def cancel(case: Case) -> None:
    """`cancel()` keeps the text, closes the socket, and is no error."""
    stream = await case.manager.generate_response("Hi", MODEL)
    await case.read_so_far(stream)
    stream.cancel()
    assert [piece async for piece in stream] == []
    assert (stream.text, stream.state) == (case.kept, "interrupted")
    await asyncio.to_thread(case.wire.wait_closed)

    task = asyncio.create_task((await case.manager.generate_response("Hi", MODEL)).collect())
    await asyncio.to_thread(case.script.wait_gate)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await asyncio.to_thread(case.wire.wait_closed, 2)


async def leave(case: Case) -> None:
    """`break` closes the socket at the end of `async with`, or with the last reference."""
    async with await case.manager.generate_response("Hi", MODEL) as stream:
        async for _ in stream:
            if stream.text == SO_FAR:
                break
    assert (stream.text, stream.state) == (case.kept, "interrupted")
    await asyncio.to_thread(case.wire.wait_closed)

    stream = await case.manager.generate_response("Hi", MODEL)
    async for _ in stream:
        break
    del stream
    await asyncio.to_thread(case.wire.wait_closed, 2)


def two_loops(case: Case) -> None:
    """One manager serves two loops at once, and a third when they are gone."""
    answers: list[str] = []

    async def one() -> None:
        answers.append(str(await case.manager.start("Hi", MODEL)))

    threads = [threading.Thread(target=asyncio.run, args=(one(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    case.script.wait_gate(2)  # both are in the middle of their answers
    case.script.release(3)
    for thread in threads:
        thread.join(20)
    assert answers == [case.whole, case.whole]
    assert asyncio.run(case.ask()) == case.whole


def fork(case: Case) -> None:
    """A forked child asks by clients of its own; its parent goes on with the old connection."""
    assert asyncio.run(case.ask()) == case.whole
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: there are threads, and that is it
        pid = os.fork()
    if pid == 0:  # pragma: no cover - the child's lines are not measured
        try:
            os.write(writing, asyncio.run(case.ask()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as child:
        assert child.read() == case.whole
    os.waitpid(pid, 0)
    assert asyncio.run(case.ask()) == case.whole
    parents = {request.connection for request in (case.wire.requests[0], case.wire.requests[-1])}
    assert case.wire.requests[1].connection not in parents


READERS: dict[str, Callable[[Case], Awaitable[None] | None]] = {
    "reads": read,
    "cancels before headers": cancel_before_headers,
    "cancels": cancel,
    "breaks": leave,
    "two loops": two_loops,
    "forks": fork,
}


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_fault_ends_as_the_table_says_and_leaves_nothing_behind(
    provider: str, cell: Cell, network_refusals: Refusals
) -> None:
    """The error's type and fields, the text that is kept; then no socket, no task and no thread is left."""
    threads = set(threading.enumerate())
    with place(cell.place) as (wire, origin):
        case = Case(provider, cell, wire, origin)
        serving = set(threading.enumerate()) - threads
        done = READERS[cell.reader](case)
        asyncio.run(_finish(done, case.manager) if done is not None else case.manager.close())
        wire.wait_connections(0)
        assert_nothing_left(wire, threads | serving)
    if cell.place == "dns":
        assert network_refusals.take()


async def _finish(done: Awaitable[None], manager: ProviderManager) -> None:
    try:
        await asyncio.wait_for(done, 60)
    finally:
        await manager.close()


def assert_nothing_left(wire: Wire, threads: set[threading.Thread]) -> None:
    """What a call started has ended: its sockets, its tasks on the background loop, its threads."""
    loop = background_loop()
    end = time.monotonic() + 2
    while (left := _left(wire, loop.loop, threads)) and time.monotonic() < end:
        time.sleep(0.01)
    assert left == []


def _left(wire: Wire, loop: Any, threads: set[threading.Thread]) -> list[Any]:
    port = int(wire.url.rpartition(":")[2])
    # Ours are those that lead to the server; one that the server closed and we did not is among them.
    left: list[Any] = [
        connection
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr.port == port and connection.status != "TIME_WAIT"
    ]
    left += [task for task in asyncio.all_tasks(loop) if not task.done()]
    # The loop itself and its pool, in which SDKs are imported and names looked up, stay for the next call.
    stay = threads | set(getattr(loop._default_executor, "_threads", ())) | {background_loop()._thread}
    return left + [thread for thread in threading.enumerate() if thread not in stay]
