"""Calls of an SDK that blocks, each in a thread of its own, which whoever waits may leave at any time.

`requests` has no way to end a call from another thread: closing what it reads from does not wake the reader. Shutting
down the socket does, so the connections note it while a call uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbllm.config import origin
from nbllm.errors import PermissionDeniedError, Phase, ProviderError, ResponseFormatError
from nbllm.providers import mapping

if TYPE_CHECKING:
    import requests.adapters

__all__ = ["Job", "Refused", "adapter", "transport_error"]


class Refused(Exception):  # noqa: N818 - it becomes an error of ours
    """An answer with an error's status; its body is read."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(f"status {response.status_code}")
        self.response = response


class Job:
    """One call in a thread; belongs to the event loop that it was made on.

    Args:
        work: The call. It may `say` things while it runs; what it returns is said last.

    Attributes:
        response: The answer to its latest request, None before one has begun.
    """

    def __init__(self, work: Callable[[Job], Any]) -> None:
        self.response: requests.Response | None = None
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._said: asyncio.Queue[Any] = asyncio.Queue()
        self._over = asyncio.Event()
        self._lock = threading.Lock()
        self._socket: Any = None
        self._left = False
        # A daemon: a server that does not answer a connection is not to keep the interpreter from its end.
        threading.Thread(target=self._run, name="nbllm-call", daemon=True).start()

    @property
    def answer(self) -> requests.Response:
        """The answer, once it has begun."""
        if self.response is None:
            raise ResponseFormatError("The SDK sent nothing.", action="Report this to nbllm.")
        return self.response

    async def next(self) -> Any:
        """What is said next; raises what the call raised."""
        found = await self._said.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def leave(self) -> None:
        """End the call, wherever it is: its connection closes at once."""
        with self._lock:
            self._left = True
            if self._socket is not None:
                _shut(self._socket)
        with contextlib.suppress(TimeoutError):  # it may be connecting, which only its own timeout ends
            await asyncio.wait_for(self._over.wait(), 1)

    def say(self, what: Any) -> None:
        """Thread side: hand something over."""
        self._call(self._said.put_nowait, what)

    def uses(self, sock: Any) -> None:
        """Thread side: the call waits for this socket now."""
        with self._lock:
            self._socket = sock
            if self._left:
                _shut(sock)

    def _run(self) -> None:
        _current.job = self
        try:
            result = self._work(self)
        except Exception as exc:  # noqa: BLE001 - it is raised where the call is awaited
            result = exc
        with self._lock:
            self._socket = None  # from here on it may be another call's
        if self.response is not None:
            self.response.close()
        self.say(result)
        self._call(self._over.set)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            self._loop.call_soon_threadsafe(function, *arguments)


_current = threading.local()


def _shut(sock: Any) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def adapter(provider: str, base_url: str, timeout: float) -> requests.adapters.HTTPAdapter:
    """What a session of `requests` is to send by: to one origin alone, noting sockets and answers in the `Job`.

    Args:
        provider: The provider's name, for the error.
        base_url: Where it may send requests.
        timeout: Seconds without a byte after which a request fails.
    """
    import requests.adapters
    import urllib3

    allowed = origin(base_url)
    waits = (min(10.0, timeout), timeout)

    def watching(pool: Any) -> Any:
        class Connection(pool.ConnectionCls):  # type: ignore[misc] # its class is the pool's
            def request(self, *arguments: Any, **options: Any) -> None:
                super().request(*arguments, **options)
                _current.job.uses(self.sock)

        return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

    pools = {"http": watching(urllib3.HTTPConnectionPool), "https": watching(urllib3.HTTPSConnectionPool)}

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **options)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
            manager = super().proxy_manager_for(*arguments, **options)
            manager.pool_classes_by_scheme = pools
            return manager

        def close(self) -> None:
            # urllib3 leaves it to the garbage collector, which the SDK's cycles of references make wait.
            for manager in (self.poolmanager, *self.proxy_manager.values()):
                for key in manager.pools.keys():  # noqa: SIM118 - it refuses to be iterated
                    manager.pools[key].close()
            super().close()

        def send(self, request: Any, *arguments: Any, **options: Any) -> requests.Response:
            # `requests` follows redirects, and of the headers that carry keys it drops one alone.
            if origin(request.url) != allowed:
                raise PermissionDeniedError(
                    f"{provider} was about to send a request to {origin(request.url)}, which is not its base URL.",
                    action=f"If that is meant, set the base_url of {provider} to it.",
                    provider=provider,
                )
            response = super().send(request, *arguments, **{**options, "timeout": waits})
            _current.job.response = response
            if response.status_code >= 400:
                _ = response.content  # here, where it can be read, whatever the SDK makes of it
                raise Refused(response)
            return response

    return Adapter()


def transport_error(exc: Exception, label: str, base_url: str, timeout: float, phase: Phase) -> ProviderError | None:
    """The error that an exception of `requests` or of urllib3 below it means; None where it is none of them.

    Args:
        exc: The exception.
        label: The provider's name to show.
        base_url: Where it was to be reached.
        timeout: Seconds that were waited for each byte.
        phase: What was under way.
    """
    import requests
    import urllib3

    chain: list[BaseException] = [exc]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if isinstance(exc, requests.exceptions.InvalidJSONError):
        return None
    if among(requests.exceptions.ProxyError):
        return mapping.proxy_error(label, str(chain[-1]))
    if among(requests.exceptions.SSLError, requests.ConnectTimeout, urllib3.exceptions.NewConnectionError):
        return mapping.connection_error(label, base_url, exc, "connect")
    if among(requests.exceptions.Timeout, urllib3.exceptions.ReadTimeoutError):
        return mapping.timeout_error(label, timeout, phase)
    if among(requests.exceptions.ConnectionError, urllib3.exceptions.ProtocolError, OSError):
        return mapping.connection_error(label, base_url, exc, phase)
    return None
