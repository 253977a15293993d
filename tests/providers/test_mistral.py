"""The Mistral provider: the real SDK against a server that speaks the protocol, and misbehaves."""

from __future__ import annotations

import base64
import json
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from nbllm import ProviderManager, errors
from nbllm.types import Attachment, Finish, Message, ReasoningDelta, TextDelta, ToolCall, UsageUpdate
from tests.providers.asking import MISTRAL, SSE, Fault, faults
from tests.wire import Usage, Wire

KEY = MISTRAL.key
with_manager, ask, ask_whole = MISTRAL.with_manager, MISTRAL.ask, MISTRAL.ask_whole
TOOL = {"type": "function", "function": {"name": "now", "description": "The time."}}


def chunk(delta: Any, **choice: Any) -> bytes:
    """A chunk of a raw body."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, **choice}]})}\n\n".encode()


@pytest.mark.parametrize("base", ["/mistral", "/mistral/", "/mistral/v1"])
def test_what_is_sent_is_what_was_asked(wire: Wire, base: str) -> None:
    """Messages, parameters and options go under Mistral's names; a base URL may end with `/v1`, as others' does."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    options = {"seed": 3, "stop": ["x"], "top_p": 0.9, "tools": [TOOL], "prompt_cache_key": "k", "safe_prompt": True}
    schema = {"title": "A b", "type": "object", "properties": {"x": {"type": "integer"}}}

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response(messages, "ok", **options))
        await manager.generate_response(messages, "ok", max_tokens=7, temperature=0.5, stream=False, schema=schema)

    with_manager(wire, use, base_url=wire.url + base)
    streamed, whole = (request.body for request in wire.requests)
    function = {**TOOL["function"], "parameters": {"type": "object", "properties": {}}}
    assert streamed == {
        "model": "ok", "messages": messages, "max_tokens": 4000, "temperature": 0.0, "random_seed": 3, "stop": ["x"],
        "top_p": 0.9, "tools": [{"type": "function", "function": function}], "prompt_cache_key": "k",
        "safe_prompt": True, "stream": True,
    }  # fmt: skip
    assert (whole["max_tokens"], whole["temperature"], whole["stream"]) == (7, 0.5, False)
    assert whole["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "A_b", "schema": schema, "strict": True},
    }
    assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_conversation_with_files_and_tools_goes_in_mistrals_form(wire: Wire) -> None:
    """Images are `image_url` parts, PDFs `document_url` parts; calls of tools and what they gave keep their ids."""
    files = (Attachment("image/png", b"\x89PNG"), Attachment("application/pdf", b"%PDF", name="a.pdf"))
    call = ToolCall("abcdefghi", "now", "{}")
    ask(
        wire,
        "ok",
        [
            Message("user", "Look", attachments=files),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "noon", tool_call_id="abcdefghi"),
        ],
    )
    user, assistant, tool = wire.requests[0].body["messages"]
    png, pdf = (base64.b64encode(file.data).decode() for file in files)
    assert user["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
        {"type": "document_url", "document_url": f"data:application/pdf;base64,{pdf}", "document_name": "a.pdf"},
    ]
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == "abcdefghi"
    assert assistant["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert tool["content"] == "noon"


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([Message("user", "Hear", attachments=(Attachment("audio/wav", b"RIFF"),))], {}, "no audio/wav"),
        ("Hi", {"randomseed": 1}, "Did you mean random_seed"),
        ("Hi", {"temprature_mode": 1, "max_tokens": 5}, "temprature_mode"),
        ("Hi", {"server_url": "http://127.0.0.1:1"}, "no option 'server_url'"),
        ("Hi", {"tools": [{"type": "function"}]}, "Tool.function Field required"),
    ],
)
def test_what_mistral_does_not_have_is_refused_before_anything_is_sent(
    wire: Wire, prompt: Any, options: dict[str, Any], words: str
) -> None:
    """A kind of file, or an option that the SDK would drop: the error names it, and the closest there is."""
    with pytest.raises(errors.InvalidRequestError, match=words):
        ask(wire, "ok", prompt, **options)
    assert wire.requests == []


def test_events_are_typed_and_end_with_the_reason(wire: Wire) -> None:
    """What a Magistral model thinks and what it says come apart; the usage names cached tokens."""
    wire.script("m", reasoning=["Let me ", "think."], deltas=["Yes"], usage=Usage(9, 5, cached=4))

    async def use(manager: ProviderManager) -> tuple[list[Any], Any]:
        stream = await manager.generate_response("Hi", "m", prompt_mode="reasoning", reasoning_effort="high")
        return [event async for event in stream.events()], stream

    events, stream = with_manager(wire, use)
    kinds = [type(event) for event in events if not isinstance(event, UsageUpdate)]
    assert list(dict.fromkeys(kinds)) == [ReasoningDelta, TextDelta, Finish]
    assert (stream.reasoning, stream.text) == ("Let me think.", "Yes")
    usage = stream.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (9, 5, 4)
    sent = wire.requests[0].body
    assert (sent["prompt_mode"], sent["reasoning_effort"]) == ("reasoning", "high")


FAULTS: list[Fault] = [
    ("402", {"status": 402, "reason": "insufficient_quota"}, errors.QuotaExceededError, {"status": 402}),
    ("model 400", {"status": 400, "reason": "model_not_found"}, errors.ModelNotFoundError, {"status": 400}),
    (
        "422",
        {"status": 422, "reason": "unsupported_parameter", "param": "n"},
        errors.InvalidRequestError,
        {"param": "n"},
    ),
    ("capacity", {"status": 429, "reason": "overloaded"}, errors.RateLimitError, {"retryable": True}),
    ("content", {"status": 403, "reason": "content_policy"}, errors.ContentFilterError, {"status": 403}),
    ("error event", {"fault": "error_event"}, errors.ServerError, {"status": 500}),
]


@faults(*FAULTS)
def test_what_this_api_alone_does_wrong_is_the_right_error_too(
    wire: Wire, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
) -> None:
    """Beside the faults of every provider (`test_hosted.py`), those that this one words in its own way."""
    error = MISTRAL.fault(wire, script, kind, fields)
    assert error.request_id or not wire.requests[0].status >= 400


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, {"message": "Unauthorized", "request_id": "1"}, errors.AuthenticationError, r"\(401\): Unauthorized"),
        (
            422,
            {"detail": [{"loc": ["body", "temperature"], "msg": "Too big", "type": "less_than", "input": KEY}]},
            errors.InvalidRequestError,
            r"\(422\): temperature: Too big.*temperature",
        ),
        (502, b"<html>Bad gateway</html>", errors.ServerError, "Bad gateway"),
        (400, {"object": "error", "message": "Odd", "code": "3999"}, errors.InvalidRequestError, r"\(400\): Odd"),
    ],
)
@pytest.mark.parametrize("call", [ask, ask_whole])
def test_each_form_of_an_errors_body_is_worded_by_mistral(
    wire: Wire, status: int, body: Any, kind: type[errors.ProviderError], words: str, call: Callable[..., Any]
) -> None:
    """The gateway's, FastAPI's and the API's own bodies: its words are in the message, what was sent is not."""
    wire.script("m", status=status, body=body if isinstance(body, bytes) else json.dumps(body).encode())
    with pytest.raises(kind, match=words) as caught:
        call(wire, "m")
    assert caught.value.status == status
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_an_error_within_a_stream_is_told_by_its_code(wire: Wire) -> None:
    """Capacity that runs out in the middle of an answer is told from a fault of the server."""
    body = {
        "object": "error",
        "message": "Capacity exceeded.",
        "type": "service_tier_capacity_exceeded",
        "code": "3505",
    }
    wire.script("m", body=chunk({"content": "a"}) + f"data: {json.dumps(body)}\n\n".encode(), headers=SSE)
    with pytest.raises(errors.OverloadedError, match="Capacity exceeded") as caught:
        ask(wire, "m")
    assert caught.value.status is None


@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_model_that_breaks_off_is_an_error(wire: Wire, call: Callable[..., Any]) -> None:
    """`error` for a reason to finish is no answer that is complete."""
    wire.script("m", finish="error")
    with pytest.raises(errors.ServerError, match="broke off"):
        call(wire, "m")


def test_arguments_of_a_tool_may_be_an_object(wire: Wire) -> None:
    """The protocol allows it in place of JSON text, whole: it arrives as JSON text."""
    call = {"id": "abcdefghi", "function": {"name": "now", "arguments": {"zone": "UTC"}}, "index": 0}
    body = chunk({"content": "", "tool_calls": [call]}, finish_reason="tool_calls")
    wire.script("m", body=body + b"data: [DONE]\n\n", headers=SSE)
    assert ask(wire, "m").tool_calls == (ToolCall("abcdefghi", "now", '{"zone": "UTC"}'),)


def test_content_may_be_a_list_of_parts(wire: Wire) -> None:
    """Text parts are text, thinking parts reasoning; references are neither."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": True},
        {"type": "text", "text": "Yes"},
        {"type": "reference", "reference_ids": [1]},
        {"type": "text", "text": "."},
    ]
    wire.script("m", body=chunk({"content": parts}) + b"data: [DONE]\n\n", headers=SSE)
    answer = ask(wire, "m")
    assert (answer, answer.reasoning) == ("Yes.", "Hm.")


@pytest.mark.parametrize("delta", [{"content": 5}, {"content": ["a"]}, {"content": [{"type": "text", "text": 5}]}, 5])
def test_a_delta_of_another_shape_is_an_error_and_never_hangs(wire: Wire, delta: Any) -> None:
    """Numbers and objects where text belongs: the stream ends with an error."""
    wire.script("m", body=chunk(delta) + b"data: [DONE]\n\n", headers=SSE)
    with pytest.raises(errors.ResponseFormatError):
        ask(wire, "m")


def test_a_deprecated_model_streams_and_is_warned_of(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """The SDK's own warning reads the body of a stream, which fails: ours does not."""
    wire.script("m", headers={"x-model-deprecation-timestamp": "2026-12-01T00:00:00Z"})
    with caplog.at_level(logging.WARNING, "nbllm"):
        assert ask(wire, "m").state == "complete"
    assert "2026-12-01" in caplog.text


def test_models_are_listed_live_with_what_is_known_of_them(wire: Wire) -> None:
    """The list is the server's own: window and modalities where it says them, nothing where it does not."""
    wire.script("one")

    async def use(manager: ProviderManager) -> dict[str, Any]:
        return {model.id: model for model in await manager.models()}

    one = with_manager(wire, use)["one"]
    assert (one.provider, one.name, one.context_window) == ("mistral", "one", 131072)
    assert one.input_modalities == ("text", "image")
    assert one.details["capabilities"]["function_calling"] is True

    bare = {"id": "bare", "type": "base", "capabilities": {}}
    odd = {"id": "odd", "type": "of another kind", "max_context_length": 5}
    wire.script("/models", body=json.dumps({"object": "list", "data": [bare, odd]}).encode())
    found = with_manager(wire, use)
    assert (found["bare"].context_window, found["bare"].input_modalities) == (None, None)
    assert found["odd"].context_window == 5


def test_a_completion_that_is_none_is_named(wire: Wire) -> None:
    """A server that answers with something else than a completion is told from one that answers."""
    wire.script("m", body=b'{"choices": [{"index": 0}]}')
    with pytest.raises(errors.ResponseFormatError):
        ask_whole(wire, "m")


def test_nothing_of_the_sdk_goes_on_beside_the_call(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client for synchronous calls is made, no hook runs in a thread, no trace is sent anywhere."""
    import httpx2

    made = []
    create = httpx2.Client.__init__
    monkeypatch.setattr(httpx2.Client, "__init__", lambda *args, **more: made.append(1) or create(*args, **more))
    monkeypatch.setenv("MISTRAL_SDK_TELEMETRY", "dedicated")
    assert ask(wire, "ok")
    assert made == []
    assert "traceparent" not in wire.requests[-1].headers
    assert not [thread for thread in threading.enumerate() if "BatchSpanProcessor" in thread.name]
