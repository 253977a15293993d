"""The server behaves as OpenAI's does, and misbehaves as told: seen by the real SDK and a bare socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import openai
import pytest

from tests.wire import EVERY, MODELS, SCENARIOS, Script, ToolCall, Usage, Wire, scenario

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from openai.types.chat import ChatCompletion, ChatCompletionChunk

MESSAGES: Any = [{"role": "user", "content": "Why is the sky blue?"}]
T = TypeVar("T")
TOKENS = [f"tok{i} " for i in range(10)]


def client(wire: Wire, **settings: Any) -> openai.AsyncOpenAI:
    """The SDK, pointed at the server."""
    return openai.AsyncOpenAI(base_url=wire.url + "/v1", max_retries=0, **{"api_key": "x", **settings})


def run(wire: Wire, use: Callable[[openai.AsyncOpenAI], Awaitable[T]], **settings: Any) -> T:
    """Use a client in an event loop of its own."""

    async def main() -> T:
        async with client(wire, **settings) as sdk:
            return await asyncio.wait_for(use(sdk), 30)

    return asyncio.run(main())


def stream(wire: Wire, model: str, **options: Any) -> list[ChatCompletionChunk]:
    """The chunks of one streamed answer."""

    async def use(sdk: openai.AsyncOpenAI) -> list[ChatCompletionChunk]:
        answer = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True, **options)
        return [chunk async for chunk in answer]

    return run(wire, use)


def ask(wire: Wire, model: str, **options: Any) -> ChatCompletion:
    """One answer that is not streamed."""

    async def use(sdk: openai.AsyncOpenAI) -> ChatCompletion:
        answer: ChatCompletion = await sdk.chat.completions.create(model=model, messages=MESSAGES, **options)
        return answer

    return run(wire, use)


def text(chunks: list[ChatCompletionChunk]) -> str:
    """The text of a stream."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def finish(chunks: list[ChatCompletionChunk]) -> str | None:
    """The finish reason that a stream gave."""
    return next((c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason), None)


def raw(wire: Wire, model: str, stream: bool = True) -> list[bytes]:
    """What a bare socket receives, piece by piece, until the server closes."""
    body = json.dumps({"model": model, "messages": MESSAGES, "stream": stream}).encode()
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "connection: close",
        f"content-length: {len(body)}",
        "",
        "",
    )
    head = "\r\n".join(lines)
    pieces = []
    address = urlsplit(wire.url)
    assert address.port
    with socket.create_connection(("127.0.0.1", address.port), timeout=10) as sock:
        sock.sendall(head.encode() + body)
        while piece := sock.recv(2**20):
            pieces.append(piece)
    return pieces


def test_streams_tokens_finish_reason_and_usage(wire: Wire) -> None:
    """A streamed answer has its tokens, the reason for its end, and usage where the request asked for it."""
    chunks = stream(wire, "ok", stream_options={"include_usage": True})
    assert text(chunks) == "".join(TOKENS)
    assert finish(chunks) == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 10)
    assert all(chunk.usage is None for chunk in stream(wire, "ok"))


def test_answers_without_streaming(wire: Wire) -> None:
    """The non-streaming call gets the same answer in one piece, with a request id."""
    answer = ask(wire, "ok")
    assert answer.choices[0].message.content == "".join(TOKENS)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 15
    assert answer._request_id == "req_1"


def test_lists_models(wire: Wire) -> None:
    """The list of models has the scripted names; a script for MODELS decides over it."""

    async def names(sdk: openai.AsyncOpenAI) -> list[str]:
        return [model.id async for model in sdk.models.list()]

    wire.script("mine")
    assert run(wire, names) == ["mine", "ok", "echo"]
    wire.models = ["gpt-9"]
    assert run(wire, names) == ["gpt-9"]
    wire.script(MODELS, status=401)
    with pytest.raises(openai.AuthenticationError):
        run(wire, names)


def test_echo_shows_what_was_received(wire: Wire) -> None:
    """The model `echo` answers with the messages, `echobody` with the whole request."""
    assert json.loads(text(stream(wire, "echo"))) == MESSAGES
    assert json.loads(text(stream(wire, "echobody", temperature=0.5)))["temperature"] == 0.5


def test_script_says_what_it_is_told(wire: Wire) -> None:
    """A script's text, deltas, reasoning, usage and finish reason arrive as given."""
    wire.script("m1", text="One two  three.\n\nFour", finish="length")
    assert text(chunks := stream(wire, "m1")) == "One two  three.\n\nFour"
    assert finish(chunks) == "length"
    wire.script("m2", deltas=["a", "", "bc"], reasoning=["Hm. "], usage=Usage(7, 8, cached=3, reasoning=2))
    chunks = stream(wire, "m2", stream_options={"include_usage": True})
    assert [c.choices[0].delta.content for c in chunks if c.choices] == [None, "a", "", "bc", None]
    assert chunks[0].choices[0].delta.model_dump()["reasoning_content"] == "Hm. "
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (
        7,
        8,
        3,
    )


def test_tool_calls(wire: Wire) -> None:
    """A tool call arrives in pieces in a stream, and whole without one."""
    arguments = '{"city": "Paris"}'
    wire.script("m1", text="", tool_calls=[ToolCall("weather", arguments, pieces=4)], finish="tool_calls")
    chunks = stream(wire, "m1")
    calls = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices and c.choices[0].delta.tool_calls]
    assert len(calls) == 5
    assert calls[0].function is not None
    assert calls[0].function.name == "weather"
    assert "".join(call.function.arguments or "" for call in calls if call.function) == arguments
    whole = ask(wire, "m1").choices[0].message.tool_calls
    assert whole is not None
    assert whole[0].model_dump()["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("model", "error", "status", "code"),
    [
        ("e401", openai.AuthenticationError, 401, "invalid_api_key"),
        ("e403", openai.PermissionDeniedError, 403, "permission_denied"),
        ("e404", openai.NotFoundError, 404, "model_not_found"),
        ("no-such-model", openai.NotFoundError, 404, "model_not_found"),
        ("e429", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("quota", openai.RateLimitError, 429, "insufficient_quota"),
        ("e400", openai.BadRequestError, 400, None),
        ("context", openai.BadRequestError, 400, "context_length_exceeded"),
        ("e500", openai.InternalServerError, 500, None),
        ("e503", openai.InternalServerError, 503, None),
    ],
)
def test_error_answers(
    wire: Wire, model: str, error: type[openai.APIStatusError], status: int, code: str | None
) -> None:
    """An error answer becomes the SDK's own class, with the status, the code and a request id."""
    for call in (stream, ask):
        with pytest.raises(error) as caught:
            call(wire, model)
        assert (caught.value.status_code, caught.value.code) == (status, code)
        assert caught.value.request_id
        assert caught.value.response.headers.get("retry-after") == ("1" if model == "e429" else None)


def test_refused_parameters(wire: Wire) -> None:
    """A script refuses a parameter only where the request has it, and names the one to use instead."""
    wire.script("m1", rejects=("temperature", "max_tokens"))
    assert text(stream(wire, "m1", max_completion_tokens=9)) == "".join(TOKENS)
    with pytest.raises(openai.BadRequestError) as caught:
        stream(wire, "m1", temperature=0)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "temperature")
    with pytest.raises(openai.BadRequestError, match="Use 'max_completion_tokens' instead"):
        stream(wire, "m1", max_tokens=9)


def test_wrong_key_is_refused(wire: Wire) -> None:
    """A script with a key refuses every other key."""
    wire.script("m1", key="sk-right")
    with pytest.raises(openai.AuthenticationError):
        stream(wire, "m1")
    wire.script("m1", key="x")
    assert finish(stream(wire, "m1")) == "stop"


def test_trouble_that_passes(wire: Wire) -> None:
    """A script with `times` answers rightly afterwards, and goes on counting."""
    script = wire.script("m1", status=503, times=2, retry_after=0.5)
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            stream(wire, "m1")
    assert text(stream(wire, "m1")) == "".join(TOKENS)
    assert (script.hits, script.sent) == (3, 10)
    with pytest.raises(openai.InternalServerError):
        stream(wire, "e503once")
    assert finish(stream(wire, "e503once")) == "stop"


def test_raw_body_and_headers(wire: Wire) -> None:
    """A script can answer with any bytes, any status and headers."""
    wire.script("m1", status=502, body=b"<h1>Bad gateway</h1>", headers={"content-type": "text/html", "x-a": "b"})
    with pytest.raises(openai.InternalServerError) as caught:
        ask(wire, "m1")
    assert caught.value.response.text == "<h1>Bad gateway</h1>"
    assert caught.value.response.headers["x-a"] == "b"


def test_cut_stream_looks_finished_to_the_sdk(wire: Wire) -> None:
    """A body that ends cleanly too early raises nothing in the SDK: nbllm has to notice by itself."""
    chunks = stream(wire, "cut")
    assert text(chunks) == "".join(TOKENS[:5])
    assert finish(chunks) is None
    assert wire.wait_done()[0].outcome == "cut"


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_lost_connection(wire: Wire, fault: str) -> None:
    """A connection closed or reset inside the body is an APIConnectionError, after the tokens so far."""
    wire.script("m1", fault=fault, at=3)
    seen: list[str | None] = []

    async def use(sdk: openai.AsyncOpenAI) -> None:
        answer = await sdk.chat.completions.create(model="m1", messages=MESSAGES, stream=True)
        async for chunk in answer:
            seen.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIConnectionError):
        run(wire, use)
    # A reset also throws away what the client had not read yet.
    assert seen == TOKENS[: len(seen)]
    assert len(seen) == 3 or fault == "reset"
    assert wire.wait_done()[0].outcome == fault
    assert wire.closed == []


def test_connection_closed_before_the_answer(wire: Wire) -> None:
    """A connection that closes before the headers is an APIConnectionError."""
    with pytest.raises(openai.APIConnectionError):
        stream(wire, "close")


def test_malformed_event(wire: Wire) -> None:
    """Broken JSON in an event raises in the SDK."""
    with pytest.raises(json.JSONDecodeError):
        stream(wire, "malformed")


def test_error_inside_a_stream(wire: Wire) -> None:
    """An error event is a bare APIError without a status."""
    with pytest.raises(openai.APIError) as caught:
        stream(wire, "errorevent")
    assert type(caught.value) is openai.APIError
    assert not hasattr(caught.value, "status_code")


@pytest.mark.parametrize("model", ["notsse", "empty"])
def test_a_200_that_is_no_stream_is_silent_in_the_sdk(wire: Wire, model: str) -> None:
    """A web page or nothing in place of a stream gives no chunk and no error in the SDK."""
    assert stream(wire, model) == []


@pytest.mark.parametrize("model", ["hang", "stall"])
def test_silence_times_out(wire: Wire, model: str) -> None:
    """A server that goes silent makes the SDK time out, and the server sees the client leave."""

    async def use(sdk: openai.AsyncOpenAI) -> None:
        answer = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        async for _ in answer:
            pass

    with pytest.raises(openai.APITimeoutError):
        run(wire, use, timeout=0.3)
    (exchange,) = wire.wait_closed()
    assert exchange.sent == (5 if model == "stall" else 0)


def test_ends_without_finish_reason_or_done(wire: Wire) -> None:
    """A stream can lack the finish reason, or the last event."""
    assert finish(stream(wire, "nofinish")) is None
    assert finish(stream(wire, "nodone")) == "stop"
    assert b"[DONE]" in b"".join(raw(wire, "nofinish"))
    assert b"[DONE]" not in b"".join(raw(wire, "nodone"))


def test_bytes_cut_anywhere(wire: Wire) -> None:
    """Chunks that end inside a character, CRLF line ends and comments change nothing in the text."""
    expected = SCENARIOS["split"]["text"]
    assert text(stream(wire, "split")) == expected
    wire.script("m1", text=expected, newline="\r\n", comments=True, write=1)
    assert text(stream(wire, "m1")) == expected
    assert b"\r\n: keep-alive\r\n" in b"".join(raw(wire, "crlf"))


def test_burst_is_one_write(wire: Wire) -> None:
    """A burst arrives at once, headers included; token by token it arrives in pieces."""
    assert len(raw(wire, "burst")) == 1
    assert len(raw(wire, "ok-20-5ms")) >= 15
    assert text(stream(wire, "burst")) == "".join(TOKENS)


def test_pace(wire: Wire) -> None:
    """Tokens come at the pace of the script."""
    start = time.monotonic()
    stream(wire, "ok-10-20ms")
    assert 0.2 <= time.monotonic() - start < 2


@pytest.mark.parametrize("location", ["{url}/v1/chat/completions", "{url}/"])
def test_redirect_to_another_origin(wire: Wire, location: str) -> None:
    """A redirect is followed by the SDK to the other origin, without the key."""
    with Wire() as other:
        wire.script("ok", redirect=location.format(url=other.url))
        assert text(stream(wire, "ok")) == "".join(TOKENS)
        assert wire.requests[0].headers["authorization"] == "Bearer x"
        assert "authorization" not in other.requests[0].headers


def test_gates_let_a_test_drive_the_stream(wire: Wire) -> None:
    """The server waits at a gate until the test lets it go on: no test needs to sleep."""
    script = wire.script("m1", gates=EVERY)

    async def use(sdk: openai.AsyncOpenAI) -> list[str | None]:
        answer = await sdk.chat.completions.create(model="m1", messages=MESSAGES, stream=True)
        seen: list[str | None] = []
        for n in range(3):
            await asyncio.to_thread(script.wait_gate)
            assert wire.requests[0].sent == n
            script.release()
            seen.append((await anext(answer)).choices[0].delta.content)
        script.release(100)
        seen += [chunk.choices[0].delta.content async for chunk in answer if chunk.choices]
        return seen

    assert run(wire, use) == [*TOKENS, None]


@pytest.mark.parametrize(("gate", "stream"), [(-1, True), (-1, False), (10, True), (0, False)])
def test_gates_before_headers_and_before_the_end(wire: Wire, gate: int, stream: bool) -> None:
    """A gate can stand before the headers, and before the events that end the answer."""
    script = wire.script("m1", gates=(gate,))

    async def use(sdk: openai.AsyncOpenAI) -> None:
        async def call() -> None:
            answer = await sdk.chat.completions.create(model="m1", messages=MESSAGES, stream=stream)
            if isinstance(answer, openai.AsyncStream):
                async for _ in answer:
                    pass

        task = asyncio.create_task(call())
        await asyncio.to_thread(script.wait_gate)
        assert not task.done()
        assert (wire.requests[0].status, script.sent) == ((0, 0) if gate == -1 else (200, 10 if stream else 0))
        script.release()
        await task

    run(wire, use)
    assert wire.requests[0].outcome == "done"


def test_sees_the_client_leave(wire: Wire) -> None:
    """The log says that a client left, after how many tokens, and that its connection is closed."""
    script = wire.script("m1", gates=(3,))

    async def use(sdk: openai.AsyncOpenAI) -> None:
        answer = await sdk.chat.completions.create(model="m1", messages=MESSAGES, stream=True)
        await anext(answer)
        await asyncio.to_thread(script.wait_gate)
        assert wire.open_connections == 1
        assert wire.closed == []
        await answer.close()
        (exchange,) = await asyncio.to_thread(wire.wait_closed)
        assert (exchange.model, exchange.sent) == ("m1", 3)
        wire.wait_connections(0)

    run(wire, use)


def test_log_of_requests(wire: Wire) -> None:
    """The log has path, headers, body and connection of every request; connections are reused."""

    async def use(sdk: openai.AsyncOpenAI) -> None:
        for content in ("one", "two"):
            await sdk.chat.completions.create(model="ok", messages=[{"role": "user", "content": content}])

    run(wire, use)
    first, second = wire.wait_requests(2)
    assert (first.method, first.path, first.protocol) == ("POST", "/v1/chat/completions", "openai")
    assert first.headers["authorization"] == "Bearer x"
    assert second.body["messages"] == [{"role": "user", "content": "two"}]
    assert first.connection == second.connection
    assert first.started <= second.started
    assert wire.connections == 1
    wire.wait_connections(0)


def test_waiting_in_vain_says_what_was_seen(wire: Wire) -> None:
    """A wait that times out shows the requests that did come."""
    ask(wire, "ok")
    with pytest.raises(TimeoutError, match=r"2 requests in 0.01 s.*POST /v1/chat/completions ok done"):
        wire.wait_requests(2, timeout=0.01)
    with pytest.raises(TimeoutError, match="at a gate of m1"):
        wire.script("m1").wait_gate(timeout=0.01)


def test_scenarios_by_name() -> None:
    """A model's name can say tokens and pace; a name that means nothing is unknown."""
    script = scenario("ok-200-20ms")
    assert script is not None
    assert (script.tokens, script.pace) == (200, 0.02)
    assert scenario("gpt-5") is None
    assert all(scenario(name) is not None for name in SCENARIOS)


def test_scripts_that_cannot_be_meant_are_refused() -> None:
    """A misspelt fault raises at once."""
    with pytest.raises(ValueError, match="fault must be one of"):
        Script(fault="cutt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not both"):
        Script(text="a", deltas=["a"])


def test_stopping_closes_streams_that_run() -> None:
    """Stopping the server ends the streams that run, and its thread."""
    wire = Wire().start()
    with socket.create_connection(("127.0.0.1", int(wire.url.rpartition(":")[2])), timeout=10) as sock:
        body = b'{"model": "stall", "stream": true}'
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        wire.wait_requests()
        wire.stop()
        while sock.recv(2**20):
            pass
    assert wire.requests[0].outcome == "server_stopped"
    assert wire.open_connections == 0


def test_as_a_process() -> None:
    """`python -m tests.wire` serves other processes, takes scripts over HTTP and shows its log."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.wire"],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()

        def call(path: str, **body: Any) -> Any:
            data = json.dumps(body).encode() if body else None
            with urllib.request.urlopen(url + path, data=data, timeout=10) as answer:
                return json.load(answer)

        call("/__script", model="m1", text="Hello there.", gates=[1])
        call("/__release", model="m1")
        answer = call("/v1/chat/completions", model="m1", messages=MESSAGES)
        assert answer["choices"][0]["message"]["content"] == "Hello there."
        log = call("/__log")
        assert [(r["model"], r["outcome"]) for r in log["requests"]] == [("m1", "done")]
        with pytest.raises(urllib.error.HTTPError) as caught:
            call("/__script", model="m1", txt="?")
        caught.value.close()
        call("/__clear")
        assert call("/__log")["requests"] == []
    finally:
        process.terminate()
        process.communicate(timeout=10)
