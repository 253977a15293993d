"""The google-legacy provider: google-generativeai, in threads, against a server that speaks its protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.types import Attachment, Finish, Message, ToolCall
from tests.providers.asking import GOOGLE_LEGACY, Fault, faults
from tests.wire import Usage, Wire

KEY = GOOGLE_LEGACY.key
with_manager, ask, ask_whole = GOOGLE_LEGACY.with_manager, GOOGLE_LEGACY.ask, GOOGLE_LEGACY.ask_whole
PARAMETERS = {"type": "object", "properties": {"zone": {"type": ["string", "null"]}}, "required": ["zone"]}
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": PARAMETERS}}


def test_an_answer_streams_piece_by_piece(wire: Wire) -> None:
    """Each delta arrives while the server still holds the next one back, and the loop is free meanwhile."""
    script = wire.script("gated", deltas=["a", "b", "c"], gates="every")

    async def use(manager: ProviderManager) -> list[str]:
        pieces = []
        script.release()
        stream = await manager.generate_response("Hi", "gated")
        async for piece in stream:
            pieces.append(piece)
            assert await (await manager.generate_response("Hi", "ok"))
            script.release()
        assert (stream.state, stream.finish_reason, stream.text) == ("complete", "stop", "abc")
        return pieces

    assert with_manager(wire, use) == ["a", "b", "c"]


@pytest.mark.parametrize("model", ["ok", "models/ok"])
def test_what_is_sent_is_what_was_asked(wire: Wire, model: str) -> None:
    """Messages, files, calls of tools, parameters and options go in Google's form; a seed, which it lacks, does not."""
    png = Attachment("image/png", b"\x89PNG\xff\xfe")
    messages = [
        Message("system", "Be brief."),
        Message("user", "Look", attachments=(png,)),
        Message("assistant", "", tool_calls=(ToolCall("c1", "now", '{"zone": "UTC"}'),)),
        Message("tool", "noon", tool_call_id="c1"),
    ]
    options = {
        "seed": 3,
        "stop": "x",
        "top_p": 0.5,
        "top_k": 5,
        "tools": [TOOL],
        "schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False},
        "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    }
    ask(wire, model, messages, **options)
    ask_whole(wire, model, "Hi", max_tokens=7, temperature=0.5)
    streamed, whole = wire.requests
    assert streamed.protocol == "google-legacy"
    assert (streamed.path, whole.path) == (
        "/google/v1beta/models/ok:streamGenerateContent",
        "/google/v1beta/models/ok:generateContent",
    )
    sent = streamed.body
    assert sent["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    data = base64.b64encode(png.data).decode()
    assert sent["contents"] == [
        {"role": "user", "parts": [{"text": "Look"}, {"inlineData": {"mimeType": "image/png", "data": data}}]},
        {"role": "model", "parts": [{"functionCall": {"id": "c1", "name": "now", "args": {"zone": "UTC"}}}]},
        {"role": "user", "parts": [{"functionResponse": {"id": "c1", "name": "now", "response": {"result": "noon"}}}]},
    ]
    (declared,) = sent["tools"][0]["functionDeclarations"]
    assert (declared["name"], declared["description"]) == ("now", "The time.")
    assert declared["parameters"]["properties"]["zone"]["nullable"] is True
    config = sent["generationConfig"]
    assert (config["maxOutputTokens"], config["temperature"], config["stopSequences"]) == (4000, 0.0, ["x"])
    assert (config["topP"], config["topK"], config["responseMimeType"]) == (0.5, 5, "application/json")
    assert list(config["responseSchema"]["properties"]) == ["x"]
    assert "seed" not in config
    assert whole.body["generationConfig"] == {"maxOutputTokens": 7, "temperature": 0.5}
    assert streamed.headers["x-goog-api-key"] == KEY
    assert KEY not in streamed.target


@pytest.mark.parametrize(
    ("prompt", "model", "options", "words"),
    [
        ([Message("user", "Run", attachments=(Attachment("application/zip", b"PK"),))], "ok", {}, "no application/zip"),
        ("Hi", "ok", {"top_kk": 1}, "Did you mean top_k"),
        ("Hi", "ok", {"top_k": "many"}, "top_?[kK]"),
        ("Hi", "ok", {"schema": {"anyOf": [{"type": "string"}]}}, "anyOf.*use the provider google"),
        ("Hi", "org/model/x", {}, "org/model/x"),
    ],
)
def test_what_it_cannot_say_is_refused_before_anything_is_sent(
    wire: Wire, prompt: Any, model: str, options: dict[str, Any], words: str
) -> None:
    """A kind of file, an option, a schema of today: the error names it."""
    with pytest.raises(errors.InvalidRequestError, match=words):
        ask(wire, model, prompt, **options)
    assert wire.requests == []


def test_both_forms_of_a_call_tell_usage_and_reasons(wire: Wire) -> None:
    """Streamed or whole: usage and reason agree, though reasons come as numbers."""
    wire.script("usage", reasoning=["Hm."], deltas=["Yes"], usage=Usage(9, 5, cached=4, reasoning=2))
    (usage,) = GOOGLE_LEGACY.both_forms(wire, "usage")
    assert isinstance(usage.raw["candidates"][0]["finishReason"], int)
    counts = usage.usage
    assert (counts.input_tokens, counts.output_tokens, counts.cached_tokens, counts.reasoning_tokens) == (9, 5, 4, 2)
    assert GOOGLE_LEGACY.events_of(wire, "length")[0][-1] == Finish("length", "MAX_TOKENS")


FAULTS: list[Fault] = [
    ("key 400", {"status": 400, "reason": "invalid_api_key"}, errors.AuthenticationError, {"status": 401}),
    ("no reason", {"finish": None, "tokens": 5}, errors.IncompleteStreamError, {}),
    ("error element", {"fault": "error_event"}, errors.ServerError, {"status": 500}),
]


@faults(*FAULTS)
def test_what_this_api_alone_does_wrong_is_the_right_error_too(
    wire: Wire, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
) -> None:
    """Beside the faults of every provider (`test_hosted.py`), those that this one words in its own way."""
    GOOGLE_LEGACY.fault(wire, script, kind, fields)
    assert len([request for request in wire.requests if request.model == "m"]) == 1


def test_a_wait_is_read_from_the_body(wire: Wire) -> None:
    """`retryDelay` of the details counts where there is no header, in the list that a stream's errors come in."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}]
    error = {"code": 429, "message": "Slow down", "status": "RESOURCE_EXHAUSTED", "details": details}
    wire.script("m", status=429, body=json.dumps([{"error": error}]).encode())
    for call in (ask, ask_whole):
        with pytest.raises(errors.RateLimitError, match="Slow down") as caught:
            call(wire, "m")
        assert caught.value.retry_after == 7.0


def test_a_blocked_prompt_is_an_error_that_says_why(wire: Wire) -> None:
    """The reason comes as a number, of another enumeration than the reasons to finish."""
    wire.script("m", body=b'[{"promptFeedback": {"blockReason": 4}}]')
    with pytest.raises(errors.ContentFilterError, match="blocked: PROHIBITED_CONTENT"):
        ask(wire, "m")


def test_a_reason_that_the_sdk_does_not_know_is_another(wire: Wire) -> None:
    """A newer model's reason to finish does not make its answer an incomplete one."""
    body = {"candidates": [{"content": {"parts": [{"text": "Well"}]}, "finishReason": 99}]}
    wire.script("m", body=json.dumps([body]).encode())
    answer = ask(wire, "m")
    assert (answer, answer.state, answer.finish_reason) == ("Well", "complete", "other")


@pytest.mark.parametrize("body", [b"<html></html>", b"{}", b"[]", b"5", b""])
def test_an_answer_that_is_none_is_named(wire: Wire, body: bytes) -> None:
    """Another service's answers, to a call that does not stream and to one for the models."""
    wire.script("m", body=body)
    wire.script("/models", body=body)
    with pytest.raises(errors.ResponseFormatError):
        ask_whole(wire, "m")
    with pytest.raises(errors.ResponseFormatError, match="no list of models"):
        with_manager(wire, lambda manager: manager.get_available_models())


def test_a_server_that_speaks_no_tls_is_told(wire: Wire) -> None:
    """An address that begins with `https` where it should not is said."""
    with pytest.raises(errors.ConnectionError, match="beginning of the address") as caught:
        with_manager(
            wire,
            lambda manager: manager.generate_response("Hi", "ok"),
            base_url=wire.url.replace("http:", "https:"),
        )
    assert caught.value.phase == "connect"


def test_models_are_listed_live(wire: Wire) -> None:
    """Every page is followed; names lack `models/`; what only embeds is left out; limits are told."""
    wire.models = [f"m{number}" for number in range(1200)]

    async def use(manager: ProviderManager) -> dict[str, Any]:
        return {model.id: model for model in await manager.models()}

    found = with_manager(wire, use)
    assert list(found) == wire.models
    last = found["m1199"]
    assert (last.provider, last.name) == ("google-legacy", "The model m1199")
    assert (last.context_window, last.max_output_tokens) == (1048576, 65536)


def test_leaving_closes_the_socket_at_once(wire: Wire) -> None:
    """`async with`, `cancel`, a cancelled task, before the answer too: the server sees it within 100 ms."""

    async def use(manager: ProviderManager) -> None:
        for _ in range(5):
            await (await manager.generate_response("Hi", "ok"))
            await manager.generate_response("Hi", "ok", stream=False)
        assert wire.connections == 1

        def closed(count: int, since: float) -> None:
            assert wire.wait_closed(count)[-1].ended - since < 0.1

        async with await manager.generate_response("Hi", "slow") as stream:
            async for _ in stream:
                break
            left = time.monotonic()
        assert stream.state == "interrupted"
        closed(1, left)

        stream = await manager.generate_response("Hi", "slow")
        left = time.monotonic()
        stream.cancel()
        assert [piece async for piece in stream] == []
        closed(2, left)

        for count, (model, streams) in enumerate((("slow", True), ("hang", True), ("hang", False)), 3):
            task = asyncio.create_task(manager.generate_response("Hi", model, stream=streams))
            if model == "slow":
                task = asyncio.create_task((await task).collect())
            await asyncio.to_thread(wire.wait_requests, 10 + count)
            left = time.monotonic()
            task.cancel()
            await asyncio.wait([task])
            closed(count, left)

    with_manager(wire, use)
    assert all(exchange.sent < 1000 for exchange in wire.requests)


def test_a_call_that_hangs_does_not_keep_the_interpreter_from_its_end() -> None:
    """A server that accepts and says nothing: the process ends when its main program does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = (
            "import nbllm, threading, time, asyncio\n"
            "from nbllm import ConfigManager, ProviderManager\n"
            f"settings = {{'base_url': 'http://127.0.0.1:{silent.getsockname()[1]}', 'api_key': 'k'}}\n"
            "runtime = {'provider': 'google-legacy', 'providers': {'google-legacy': settings}}\n"
            "stream = ProviderManager(ConfigManager(runtime=runtime)).start('Hi', 'm')\n"
            "until = time.monotonic() + 20\n"
            "while not [t for t in threading.enumerate() if t.name == 'nbllm-call']:\n"
            "    assert time.monotonic() < until\n"
            "    time.sleep(0.05)\n"
            "print('asked')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "asked"), done.stderr


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "google.generativeai", None)
    settings = {"google-legacy": {"api_key": KEY}}
    config = ConfigManager(runtime={"provider": "google-legacy", "providers": settings})
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'nbllm\[google-legacy\]'"):
        asyncio.run(ProviderManager.create(config))
