"""The one HTTP client under every SDK.

All SDKs take an `httpx2.AsyncClient` of one's own. One factory for all of them gives one SSL context (making one costs
65 to 130 ms), one way to close a stream from outside, and one place where it is checked that a request, and with it a
key, goes only to the origin that was configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING

from nbllm.config import origin
from nbllm.errors import ConfigError, PermissionDeniedError

if TYPE_CHECKING:
    import httpx2

__all__ = ["async_client", "drained"]


@cache
def _ssl_context() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


def async_client(provider: str, base_url: str, timeout: float) -> httpx2.AsyncClient:
    """A client that speaks to the origin of `base_url` and to no other, a redirect included.

    Args:
        provider: The provider's name, for the error.
        base_url: Where it may send requests.
        timeout: Seconds without a byte after which a request fails.
    """
    allowed = origin(base_url)

    async def check(request: httpx2.Request) -> None:
        # httpx2 drops `Authorization` when a redirect leaves the origin, but not the other headers that carry keys.
        if origin(str(request.url)) != allowed:
            raise PermissionDeniedError(
                f"{provider} was about to send a request to {origin(str(request.url))}, which is not its base URL.",
                action=f"If that is meant, set [providers.{provider}] base_url to it.",
                provider=provider,
            )

    failed = ""
    try:
        return _client(check, timeout)
    except (ValueError, ImportError) as exc:
        failed = str(exc)
    # Outside the `except`: the library's own frames are no part of it.
    raise ConfigError(f"The HTTP client cannot be built: {failed}.", action="Check the proxy variables.")


def _client(check: Callable[[httpx2.Request], Awaitable[None]], timeout: float) -> httpx2.AsyncClient:
    import httpx2

    return httpx2.AsyncClient(
        verify=_ssl_context(),
        timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
        follow_redirects=True,
        event_hooks={"request": [check]},
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
    )


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
