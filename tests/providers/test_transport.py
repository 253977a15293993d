"""The one transport under every SDK: certificates, proxies, and where a key may go."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.providers import mapping
from tests.faults.matrix import KEY, PROVIDERS
from tests.wire import Wire
from tests.wire.proxy import Proxy
from tests.wire.server import BASES
from tests.wire.tls import Authority, authority

TEXT = "tok0 tok1 "


def manager(provider: str, origin: str, **settings: Any) -> ProviderManager:
    own = {"base_url": origin + BASES[provider], "api_key": KEY, **settings}
    return ProviderManager(ConfigManager(runtime={"provider": provider, "providers": {provider: own}}))


def ask(provider: str, origin: str, model: str = "ok-2", **settings: Any) -> str:
    """The same answer, in both forms of the call."""

    async def main() -> str:
        async with manager(provider, origin, **settings) as own:
            streamed = str(await (await own.generate_response("Hi", model)))
            assert str(await own.generate_response("Hi", model, stream=False)) == streamed
            return streamed

    return asyncio.run(main())


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    """The file of the tests' own certificate authority."""
    file = tmp_path / "ca.pem"
    file.write_bytes(authority().pem)
    return file


@pytest.fixture
def secure() -> Any:
    """The wire server with a certificate of that authority."""
    with Wire(tls=authority().server()) as wire:
        yield wire


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_authority_of_ones_own_is_trusted_by_ssl_cert_file(
    provider: str, secure: Wire, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's certificate authority is named in the environment, and every SDK then speaks TLS by it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    assert ask(provider, secure.url) == TEXT
    secure.wait_connections(0)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (lambda: authority().server(days=-1), "certificate has expired"),
        (lambda: authority().server("elsewhere.example"), "IP address mismatch"),
        (lambda: Authority.new().server(), "unable to get local issuer certificate|self-signed"),
    ],
    ids=["expired", "another name", "another authority"],
)
def test_a_certificate_that_is_wrong_is_said(
    server: Any, words: str, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expired, for another name, signed by somebody else: nothing is sent, and the reason is in the message."""
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with Wire(tls=server()) as wire:
        with pytest.raises(errors.ConnectionError, match=words) as caught:
            ask("openai", wire.url)
        assert wire.requests == []
    assert (caught.value.phase, caught.value.retryable) == ("connect", False)
    assert "SSL_CERT_FILE" in str(caught.value.action)


def test_an_authority_named_later_is_used_from_the_next_call_on(
    secure: Wire, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to set; it is set in the same kernel, and the cell is run again."""

    async def main() -> None:
        async with manager("openai", secure.url) as own:
            with pytest.raises(errors.ConnectionError, match="SSL_CERT_FILE"):
                await own.generate_response("Hi", "ok-2")
            monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
            assert await (await own.generate_response("Hi", "ok-2")) == TEXT

    asyncio.run(main())


def test_a_certificate_file_that_is_none_is_said(secure: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped `SSL_CERT_FILE` is an error of ours that names the variables."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    with pytest.raises(errors.ConfigError, match="certificate variables"):
        ask("openai", secure.url)


def test_tls_spoken_to_a_server_that_speaks_none_is_said(wire: Wire) -> None:
    """`https://` in front of a local server's address is an error that says where to look."""
    with pytest.raises(errors.ConnectionError, match="http:// or https://") as caught:
        ask("openai", wire.url.replace("http:", "https:"))
    assert (caught.value.phase, caught.value.retryable) == ("connect", False)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tunnel"])
def test_the_proxies_of_the_environment_are_used(
    provider: str, tls: bool, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HTTP_PROXY` forwards, `HTTPS_PROXY` tunnels; through a tunnel the proxy sees neither the key nor the path."""
    with Wire(tls=authority().server() if tls else None) as wire, Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY" if tls else "HTTP_PROXY", proxy.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert ask(provider, wire.url) == TEXT
        wire.wait_connections(0)
        assert proxy.asked
        seen = json.dumps([[asked.method, asked.target, asked.headers] for asked in proxy.asked])
        assert {asked.method for asked in proxy.asked} == {"CONNECT" if tls else "POST"}
        assert (KEY in seen) is not tls
        assert all(wire.url.partition("//")[2] in asked.target for asked in proxy.asked)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_proxy_is_respected(provider: str, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that `NO_PROXY` names is spoken to directly, whatever the proxy."""
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "example.org,127.0.0.1")
        assert ask(provider, wire.url) == TEXT
        assert proxy.asked == []


def test_a_proxy_may_want_a_login(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name and the password in the proxy's URL are told to the proxy, and to nobody else."""
    with Proxy("me:hush-hush") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert ask("openai", wire.url) == TEXT
    assert all("proxy-authorization" not in request.headers for request in wire.requests)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tunnel"])
def test_a_proxy_that_refuses_is_told_from_a_provider_that_does(
    tls: bool, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 407 is the proxy's: the error names its variable, and neither the password nor the key."""
    with Wire(tls=authority().server() if tls else None) as wire, Proxy("me:right") as proxy:
        monkeypatch.setenv("HTTPS_PROXY" if tls else "HTTP_PROXY", proxy.url.replace("right", "wrong-word"))
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        with pytest.raises(errors.ConnectionError, match="407") as caught:
            ask("openai", wire.url)
        assert wire.requests == []
    assert (caught.value.phase, caught.value.retryable) == ("connect", False)
    assert "HTTPS_PROXY" in str(caught.value.action)
    told = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
    assert "wrong-word" not in told
    assert KEY not in told


def test_a_proxy_that_is_not_there_is_said(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not run is a connection that cannot be made, and the error points at the proxy."""
    with Proxy() as proxy:
        url = proxy.url
    monkeypatch.setenv("HTTP_PROXY", url)
    with pytest.raises(errors.ConnectionError, match="proxy") as caught:
        ask("openai", wire.url)
    assert caught.value.phase == "connect"
    assert wire.requests == []


def test_a_proxy_set_later_is_used_from_the_next_call_on(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """`%env HTTPS_PROXY=…` in a running kernel needs no restart."""

    async def main() -> None:
        async with manager("openai", wire.url) as own:
            assert await (await own.generate_response("Hi", "ok-2")) == TEXT
            with Proxy() as proxy:
                monkeypatch.setenv("HTTP_PROXY", proxy.url)
                assert await (await own.generate_response("Hi", "ok-2")) == TEXT
                assert len(proxy.asked) == 1

    asyncio.run(main())


def test_openai_does_not_meet_a_library_that_is_half_imported() -> None:
    """OpenAI's SDK uses httpx where it finds it loaded: it is whole by then, whatever other threads import."""
    program = (
        "import asyncio, sys; from nbllm import ConfigManager, ProviderManager\n"
        "own = {'openai': {'base_url': 'http://127.0.0.1:9/v1'}}\n"
        "asyncio.run(ProviderManager.create(ConfigManager(runtime={'provider': 'openai', 'providers': own})))\n"
        "print(hasattr(sys.modules.get('httpx'), 'Timeout'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("url", "environ", "said"),
    [
        ("http://localhost:9/v1", {}, "Start the server"),
        (
            "http://127.0.0.1:9/v1",
            {"HTTP_PROXY": "http://proxy.invalid:1", "NO_PROXY": "127.0.0.1"},
            "Start the server",
        ),
        ("http://far.invalid/v1", {}, "Check the network"),
        ("http://far.invalid/v1", {"HTTP_PROXY": "http://127.0.0.1:9"}, "the proxy in HTTP_PROXY"),
    ],
)
def test_an_address_that_cannot_be_reached_is_said_with_what_may_be_the_matter(
    monkeypatch: pytest.MonkeyPatch, url: str, environ: dict[str, str], said: str
) -> None:
    """A server of one's own is to be started, a far one is behind the network or the proxy that is set."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    error = mapping.connection_error("Ollama", url, OSError("[Errno 111] Connect call failed"), "connect")
    assert error.action is not None
    assert said in error.action


def test_a_connection_that_was_closed_before_the_answer_is_not_said_to_be_missing() -> None:
    """The server was reached; it went away before it answered."""
    error = mapping.connection_error("Ollama", "http://localhost:9/v1", OSError("Server disconnected"), "open")
    assert "before it answered" in error.message
    assert error.phase == "open"
