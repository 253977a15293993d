"""The one HTTP client under every SDK, and what is seen there of each call.

All SDKs take an `httpx2.AsyncClient` of one's own. One factory for all of them gives one SSL context (making one costs
65 to 130 ms), one place where it is checked that a request, and with it a key, goes only to the origin that was
configured, and one view of every answer: its status, its headers, its body.

That view is an `Exchange`. A response hook fills it in while an SDK's call runs under `exchange()`. Where the call
streams, the hook also diverts the body: the SDK is left with an empty one, and the real one is decoded and closed by
us, which works alike for an SDK that hands out its response and for one that hides it, costs what the wire costs, and
closes within milliseconds where some SDKs wait for garbage collection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

from nbllm.config import origin
from nbllm.errors import ConfigError, PermissionDeniedError

if TYPE_CHECKING:
    import httpx2

__all__ = ["Exchange", "async_client", "drained", "exchange", "surroundings"]


class Exchange:
    """What one call of an SDK sent and got.

    Attributes:
        divert: Whether the body of a successful answer is taken from the SDK.
        sent: Whether a request has left.
        response: The last answer, with the real body; an error's body is read already. Whoever diverts closes it.
    """

    __slots__ = ("divert", "response", "sent")

    def __init__(self, *, divert: bool = False) -> None:
        self.divert = divert
        self.sent = False
        self.response: httpx2.Response | None = None


_exchange: ContextVar[Exchange | None] = ContextVar("nbllm_exchange", default=None)


@contextlib.contextmanager
def exchange(*, divert: bool = False) -> Iterator[Exchange]:
    """Watch what the SDK call within sends and gets."""
    watched = Exchange(divert=divert)
    token = _exchange.set(watched)
    try:
        yield watched
    finally:
        _exchange.reset(token)


def surroundings() -> tuple[str | None, ...]:
    """What the environment says that a client is made from: its proxies and its certificates."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    names = (*proxies, *map(str.lower, proxies), "SSL_CERT_FILE", "SSL_CERT_DIR")
    return tuple(map(os.environ.get, names))


@cache
def _ssl_context(*_certificates: str | None) -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


def async_client(provider: str, base_url: str, timeout: float) -> httpx2.AsyncClient:
    """A client that speaks to the origin of `base_url` and to no other, a redirect included.

    Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY`); certificates are checked against the system's
    store and `SSL_CERT_FILE` or `SSL_CERT_DIR`.

    Args:
        provider: The provider's name, for the error.
        base_url: Where it may send requests.
        timeout: Seconds without a byte after which a request fails.

    Raises:
        ConfigError: where a proxy or certificate variable cannot be used.
    """
    allowed = origin(base_url)

    async def check(request: httpx2.Request) -> None:
        # httpx2 drops `Authorization` when a redirect leaves the origin, but not the other headers that carry keys.
        if origin(str(request.url)) != allowed:
            raise PermissionDeniedError(
                f"{provider} was about to send a request to {origin(str(request.url))}, which is not its base URL.",
                action=f"If that is meant, set the base_url of {provider} to it.",
                provider=provider,
            )
        if (watched := _exchange.get()) is not None:
            watched.sent = True

    failed = ""
    try:
        import httpx2

        return httpx2.AsyncClient(
            # One context while the variables that it is made from stay as they are.
            verify=_ssl_context(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR"))),
            timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
            follow_redirects=True,
            event_hooks={"request": [check], "response": [_watch]},
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )
    except (ValueError, ImportError, OSError) as exc:
        failed = str(exc)
    # Outside the `except`: the library's own frames are no part of it.
    raise ConfigError(
        f"The HTTP client cannot be built: {failed}.", action="Check the proxy and certificate variables."
    )


async def _watch(response: httpx2.Response) -> None:
    watched = _exchange.get()
    if watched is None:
        return
    watched.response = response
    if response.status_code >= 400:
        await response.aread()  # so that it can be quoted, whatever the SDK makes of it
    elif watched.divert and response.is_success:
        import httpx2

        watched.response = httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=response.stream,
            request=response.request,
            extensions=response.extensions,
        )
        response.stream = httpx2.ByteStream(b"")


async def drained(body: AsyncIterator[bytes]) -> None:
    """Read what follows a stream's last event, mostly here already.

    HTTP/1.1 keeps a connection only when its body was read to the end; without this, each request would pay a new TCP
    and TLS handshake. A server that does not end the body soon, or ends it badly, costs the connection, not the answer.
    """
    import httpx2

    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(0.1):
            async for _ in body:
                pass
