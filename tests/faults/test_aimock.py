"""The providers against aimock, a mock of all their APIs that nobody here wrote (npm `@copilotkit/aimock`, MIT).

What this repository's own server and decoders could have misunderstood alike would show here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbllm import ConfigManager, ProviderManager, ResponseStream, errors
from tests.conftest import SESSION
from tests.faults.matrix import KEY

PACKAGE, VERSION = "@copilotkit/aimock", "1.43.0"

BASES = {
    "openai": "/v1",
    "openai-responses": "/v1",
    "anthropic": "",
    "mistral": "",
    "google": "",
    "huggingface-hosted": "/v1",
}

ANSWER = "Naïve café, 日本語, and nobody here wrote the server."
LONG = "0123456789" * 20

CALL = {"toolCalls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]}

FIXTURES = [
    {"match": {"userMessage": "answer"}, "response": {"content": ANSWER}, "chunkSize": 5},
    # By itself aimock ends Gemini's calls of tools with FUNCTION_CALL, a reason that Gemini has not.
    {"match": {"userMessage": "weather, Gemini"}, "response": {**CALL, "finishReason": "stop"}},
    {"match": {"userMessage": "weather"}, "response": CALL},
    {
        "match": {"userMessage": "limited"},
        "response": {"error": {"message": "Slow down.", "type": "rate_limit_error"}, "status": 429, "retryAfter": 7},
    },
    {
        "match": {"userMessage": "failing"},
        "response": {"error": {"message": "Out of order.", "type": "server_error"}, "status": 500},
    },
    {
        "match": {"userMessage": "busy"},
        "response": {"error": {"message": "Come back later.", "type": "overloaded_error"}, "status": 503},
    },
    {
        "match": {"userMessage": "breaking"},
        "response": {"content": LONG},
        "chunkSize": 10,
        "latency": 20,
        "truncateAfterChunks": 12,
    },
]
"""What aimock answers, by what it is asked."""

WORDS = {"limited": "Slow down.", "failing": "Out of order.", "busy": "Come back later."}


def installed() -> Path:
    """The folder of the package, kept in the user's cache so that it is fetched once."""
    outside = SESSION.before
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("aimock needs node and npm")
    cache = Path(outside.get("XDG_CACHE_HOME") or Path(outside.get("HOME", "~")).expanduser() / ".cache")
    folder = cache / "nbllm-tests" / f"aimock-{VERSION}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="aimock-", dir=folder.parent))
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=20000"]
        # With the environment outside the tests' isolation: the registry and the proxy are configured there.
        command = ["npm", "install", "--prefix", str(fresh), *options, f"{PACKAGE}@{VERSION}"]
        try:
            done = subprocess.run(command, env=outside, capture_output=True, text=True, timeout=120, check=False)
            said = done.stderr.strip()[-300:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            said = "npm took too long"
        if said:
            shutil.rmtree(fresh)
            pytest.skip(f"aimock could not be installed: {said}")
        try:
            fresh.rename(folder)
        except OSError:  # another run of the tests was faster
            shutil.rmtree(fresh)
    return folder


@pytest.fixture(scope="module")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's URL, without a path."""
    program = installed() / "node_modules" / ".bin" / "llmock"
    fixtures = tmp_path_factory.mktemp("aimock")
    (fixtures / "fixtures.json").write_text(json.dumps({"fixtures": FIXTURES}))
    command = ["node", str(program), "-p", "0", "-h", "127.0.0.1", "-f", str(fixtures)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ) as node:
        try:
            assert node.stdout is not None
            said = ""
            while not (found := re.search(r"listening on (http://127\.0\.0\.1:\d+)", said)):
                line = node.stdout.readline()
                assert line, f"aimock did not start: {said}"
                said += line
            yield found[1]
        finally:
            node.terminate()


def start(aimock: str, provider: str, prompt: str, **options: Any) -> tuple[ProviderManager, ResponseStream]:
    name = "openai" if provider == "openai-responses" else provider
    own = {"base_url": aimock + BASES[provider], "api_key": KEY, "timeout": 20.0}
    manager = ProviderManager(ConfigManager(runtime={"provider": name, "providers": {name: own}}))
    api = {"api": "responses"} if provider == "openai-responses" else {}
    return manager, manager.start(prompt, "some-model", **api, **options)


def read(aimock: str, provider: str, prompt: str, **options: Any) -> ResponseStream:
    """The stream, read to its end; raises what went wrong."""

    async def main() -> ResponseStream:
        manager, stream = start(aimock, provider, prompt, **options)
        async with manager:
            await stream
        return stream

    return asyncio.run(main())


@pytest.mark.parametrize("provider", BASES)
def test_an_answer_streams_to_its_end(aimock: str, provider: str) -> None:
    """The text is whole, and the provider's terminal event was understood."""
    stream = read(aimock, provider, "answer")
    assert (stream.text, stream.state, stream.finish_reason) == (ANSWER, "complete", "stop")


@pytest.mark.parametrize("provider", BASES)
def test_an_answer_without_streaming(aimock: str, provider: str) -> None:
    """The provider's own call without streaming gives the same text."""

    async def main() -> str:
        manager, stream = start(aimock, provider, "answer")
        stream.cancel()
        api = {"api": "responses"} if provider == "openai-responses" else {}
        async with manager:
            return str(await manager.generate_response("answer", "some-model", stream=False, **api))

    assert asyncio.run(main()) == ANSWER


@pytest.mark.parametrize("provider", BASES)
def test_a_tool_call_is_understood(aimock: str, provider: str) -> None:
    """Its name and its arguments are put together from the pieces."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
    stream = read(aimock, provider, "weather, Gemini" if provider == "google" else "weather", tools=[tool])
    (call,) = stream.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert stream.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("prompt", "kind", "status", "retry_after"),
    [
        ("limited", errors.RateLimitError, 429, 7.0),
        ("failing", errors.ServerError, 500, None),
        ("busy", errors.OverloadedError, 503, None),
    ],
)
@pytest.mark.parametrize("provider", BASES)
def test_a_refusal_is_the_right_error(
    aimock: str, provider: str, prompt: str, kind: type[errors.ProviderError], status: int, retry_after: float | None
) -> None:
    """Its status, its words and the time to wait are read off somebody else's answer as well."""
    with pytest.raises(kind) as caught:
        read(aimock, provider, prompt)
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.retry_after) == (status, retry_after)  # type: ignore[attr-defined]
    assert WORDS[prompt] in error.message
    assert KEY not in str(error) + repr(vars(error))


@pytest.mark.parametrize("provider", BASES)
def test_a_connection_that_breaks_in_mid_stream_keeps_the_text(aimock: str, provider: str) -> None:
    """Cut after some chunks, the answer is an error with what had arrived."""

    async def main() -> tuple[ResponseStream, errors.ConnectionError]:
        manager, stream = start(aimock, provider, "breaking")
        async with manager:
            with pytest.raises(errors.ConnectionError) as caught:
                await stream
        return stream, caught.value

    stream, error = asyncio.run(main())
    assert error.phase == "stream"
    assert stream.text
    assert LONG.startswith(stream.text)
    assert len(stream.text) < len(LONG)
