"""What the server has seen, for a test to look at and to wait for."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator


@dataclass(eq=False)
class Exchange:
    """The log's entry for one request.

    `outcome` is "open" while it is answered, "done", "client_closed" (the client left first), the name of the
    fault, or "server_stopped". `sent` counts the deltas written until then. Times are seconds on
    `time.monotonic()`.
    """

    n: int
    protocol: str
    method: str
    path: str
    target: str
    headers: dict[str, str]
    body: Any
    model: str
    stream: bool
    connection: int
    request_id: str
    started: float
    status: int = 0
    sent: int = 0
    outcome: str = "open"
    ended: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry as `GET /__log` shows it."""
        return dict(vars(self))


class Log:
    """Every request, and how it ended; written by the server's thread, read by any."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._exchanges: list[Exchange] = []
        self._connections: dict[int, asyncio.Task[None]] = {}
        self._connected = 0

    @property
    def requests(self) -> list[Exchange]:
        """Every request so far, in the order of arrival."""
        with self._condition:
            return list(self._exchanges)

    @property
    def closed(self) -> list[Exchange]:
        """The requests whose client closed the connection before the answer was complete."""
        return [exchange for exchange in self.requests if exchange.outcome == "client_closed"]

    @property
    def open_connections(self) -> int:
        """How many connections are open, idle ones included."""
        with self._condition:
            return len(self._connections)

    @property
    def connections(self) -> int:
        """How many connections were ever opened."""
        with self._condition:
            return self._connected

    def wait_requests(self, n: int = 1, timeout: float = 10) -> list[Exchange]:
        """Wait until n requests have arrived; returns all."""
        self._wait(lambda: len(self._exchanges) >= n, f"{n} requests", timeout)
        return self.requests

    def wait_done(self, n: int = 1, timeout: float = 10) -> list[Exchange]:
        """Wait until n requests have come to their end, in whatever way; returns those."""
        self._wait(
            lambda: sum(x.ended is not None for x in self._exchanges) >= n,
            f"{n} requests at their end",
            timeout,
        )
        return [exchange for exchange in self.requests if exchange.ended is not None]

    def wait_closed(self, n: int = 1, timeout: float = 5) -> list[Exchange]:
        """Wait until n clients have left before their answer was complete; returns those requests."""
        self._wait(
            lambda: sum(x.outcome == "client_closed" for x in self._exchanges) >= n,
            f"{n} requests left by their client",
            timeout,
        )
        return self.closed

    def wait_idle(self, timeout: float = 5) -> None:
        """Wait until no request is being answered."""
        self._wait(lambda: all(x.ended is not None for x in self._exchanges), "end of every request", timeout)

    def wait_connections(self, n: int = 0, timeout: float = 5) -> None:
        """Wait until at most n connections are open."""
        self._wait(lambda: len(self._connections) <= n, f"closing down to {n} connections", timeout)

    def _wait(self, predicate: Callable[[], bool], what: str, timeout: float) -> None:
        with self._condition:
            if not self._condition.wait_for(predicate, timeout):
                seen = [f"{x.method} {x.path} {x.model} {x.outcome} sent={x.sent}" for x in self._exchanges]
                raise TimeoutError(f"no {what} in {timeout} s; {len(self._connections)} open; seen: {seen}")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._condition:
            yield
            self._condition.notify_all()
