"""The Anthropic provider: the real SDK against a server that speaks the Messages API, and misbehaves."""

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.types import (
    Attachment,
    Finish,
    Message,
    ProviderEvent,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    UsageUpdate,
)
from tests.providers.asking import ANTHROPIC, Fault, faults
from tests.wire import ToolCall as Scripted
from tests.wire import Usage, Wire

KEY = ANTHROPIC.key
with_manager, ask = ANTHROPIC.with_manager, ANTHROPIC.ask

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def sent(wire: Wire, messages: Any = "Hi", **options: Any) -> dict[str, Any]:
    """The body of the request that asks this."""
    ask(wire, "ok", messages, **options)
    body: dict[str, Any] = wire.requests[-1].body
    return body


def stream_of(*events: Mapping[str, Any]) -> bytes:
    """A body of these events."""
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def delta(index: int, kind: str, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **content}}


def test_what_is_sent_is_what_was_asked(wire: Wire) -> None:
    """The system prompt has its field, our default temperature and a seed stay here, what the SDK lacks goes along."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Be kind."},
    ]

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response(messages[:2], "ok", seed=3, stop="x", metadata={"user_id": "u"}, new=1))
        await manager.generate_response(messages, "ok", max_tokens=7, stop=["x", "y"], stream=False)

    with_manager(wire, use)
    streamed, whole = (request.body for request in wire.requests)
    assert streamed == {
        "model": "ok", "system": "Be brief.", "messages": messages[1:2], "max_tokens": 4000, "stop_sequences": ["x"],
        "metadata": {"user_id": "u"}, "new": 1, "stream": True,
    }  # fmt: skip
    assert (whole["max_tokens"], whole["stop_sequences"], whole.get("stream", False)) == (7, ["x", "y"], False)
    assert [block["text"] for block in whole["system"]] == ["Be brief.", "Be kind."]
    headers = wire.requests[0].headers
    assert (headers["authorization"], headers["anthropic-version"]) == (f"Bearer {KEY}", "2026-10-21")


def test_turns_of_one_side_become_one_and_tools_answer_in_it(wire: Wire) -> None:
    """Calls and their results take the API's own form; several results, and what the user adds, are one turn."""
    calls = (ToolCall("c1", "weather", '{"city": "Paris"}'), ToolCall("c2", "time", ""))
    body = sent(
        wire,
        [
            Message("user", "One."),
            Message("user", "Two."),
            Message("assistant", "", tool_calls=calls),
            Message("tool", "Rain", tool_call_id="c1"),
            Message("tool", "", tool_call_id="c2"),
            Message("user", "And?"),
        ],
    )
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}},
                {"type": "tool_use", "id": "c2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "Rain"},
                {"type": "tool_result", "tool_use_id": "c2"},
                {"type": "text", "text": "And?"},
            ],
        },
    ]


def test_images_pdfs_and_texts_are_blocks_before_the_text(wire: Wire) -> None:
    """What the API takes arrives byte for byte, in a tool's result too."""
    png, pdf = Attachment("image/png", b"\x89PNG"), Attachment("application/pdf", b"%PDF", "a.pdf")
    csv = Attachment("text/csv; charset=utf-8", "é,1".encode())
    body = sent(
        wire,
        [
            Message("user", "Look", attachments=(png, pdf, csv)),
            Message("assistant", "", tool_calls=(ToolCall("c1", "plot", "{}"),)),
            Message("tool", "", attachments=(Attachment("image/jpg", b"\xff\xd8"),), tool_call_id="c1"),
        ],
    )
    image, document, text, said = body["messages"][0]["content"]
    assert image["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(b"\x89PNG").decode(),
    }
    assert (document["type"], document["title"], document["source"]["media_type"]) == (
        "document",
        "a.pdf",
        "application/pdf",
    )
    assert text["source"] == {"type": "text", "media_type": "text/plain", "data": "é,1"}
    assert said == {"type": "text", "text": "Look"}
    (result,) = body["messages"][2]["content"]
    assert result["content"][0]["source"]["media_type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Message("user", "Look", attachments=(Attachment("image/svg+xml", b"<svg/>"),)), "image/svg"),
        (Message("user", "Look", attachments=(Attachment("text/plain", b"\xe9"),)), "UTF-8"),
        (Message("assistant", "Look", attachments=(Attachment("image/png", b""),)), "assistant"),
        (Message("tool", "x"), "tool_call_id"),
        (Message("assistant", "", tool_calls=(ToolCall("c", "f", "[1"),)), "JSON"),
    ],
)
def test_what_the_api_has_no_place_for_is_refused_before_anything_is_sent(
    wire: Wire, message: Message, says: str
) -> None:
    """Nothing of a message is dropped silently."""
    with pytest.raises(errors.InvalidRequestError, match=says) as caught:
        ask(wire, "ok", [Message("user", "Hi"), message])
    assert (caught.value.provider, caught.value.model) == ("anthropic", "ok")
    assert wire.requests == []


def test_tools_and_schemas_take_the_apis_form(wire: Wire) -> None:
    """Tools in OpenAI's shape are made over, the API's own pass; a schema becomes the format of the output."""
    function = {"name": "weather", "description": "Looks out.", "parameters": SCHEMA, "strict": True}
    search = {"type": "web_search_20250305", "name": "web_search"}
    body = sent(
        wire,
        tools=[{"type": "function", "function": function}, search],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        schema=SCHEMA,
        output_config={"effort": "low"},
        thinking={"type": "adaptive"},
    )
    assert body["tools"] == [
        {"name": "weather", "description": "Looks out.", "input_schema": SCHEMA, "strict": True},
        search,
    ]
    assert body["tool_choice"] == {"type": "tool", "name": "weather"}
    assert body["output_config"] == {
        "effort": "low",
        "format": {"type": "json_schema", "schema": SCHEMA | {"additionalProperties": False}},
    }
    assert body["thinking"] == {"type": "adaptive"}
    assert sent(wire, tool_choice="required")["tool_choice"] == {"type": "any"}
    with pytest.raises(errors.InvalidRequestError, match="schema"):
        ask(wire, "ok", schema={"type": ["string", "null"]})


def test_prompt_caching_marks_the_system_prompt_and_the_end(wire: Wire) -> None:
    """`prompt_cache` is one word; marks of the caller's own pass, and stay what they are."""
    messages = [{"role": "system", "content": "Long."}, {"role": "user", "content": "Hi"}]
    body = sent(wire, messages, prompt_cache=True)
    assert body["cache_control"] == {"type": "ephemeral"}
    assert body["system"] == [{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}]
    assert sent(wire, prompt_cache="1h")["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    own = [{"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    assert sent(wire, system=own)["system"] == own
    assert "cache_control" not in sent(wire, messages, prompt_cache=False)
    with pytest.raises(errors.InvalidRequestError, match="prompt_cache"):
        ask(wire, "ok", prompt_cache="2h")


def test_both_forms_of_a_call_tell_several_tools_and_a_pause(wire: Wire) -> None:
    """Streamed or whole: calls of several tools, a turn that pauses, and usage that is not told agree."""
    calls = [Scripted("get_weather", '{"city": "Paris"}', "c1", pieces=5), Scripted("now", "{}", "c2")]
    wire.script("calls", tokens=2, tool_calls=calls, finish="tool_calls")
    wire.script("paused", finish="pause_turn")
    answers = ANTHROPIC.both_forms(wire, "calls", "paused", "nousage")
    assert all(answer.raw["type"] == "message" for answer in answers)
    tools, paused, silent = answers
    assert tools.tool_calls == (ToolCall("c1", "get_weather", '{"city": "Paris"}'), ToolCall("c2", "now", "{}"))
    assert (tools.finish_reason, paused.finish_reason) == ("tool_calls", "other")
    assert silent.usage.output_tokens is None


def test_events_are_typed_and_end_with_the_reason(wire: Wire) -> None:
    """Reasoning, its signature, text and the pieces of a call come apart; the end comes last."""
    call = Scripted("f", '{"a": 1, "b": 2}', pieces=3)
    wire.script("m", reasoning=["Let me ", "think."], deltas=["Yes"], tool_calls=[call], finish="tool_calls")

    async def use(manager: ProviderManager) -> list[Any]:
        return [event async for event in (await manager.generate_response("Hi", "m")).events()]

    events = with_manager(wire, use)
    kinds = [type(event) for event in events if not isinstance(event, UsageUpdate)]
    assert list(dict.fromkeys(kinds)) == [ReasoningDelta, ProviderEvent, TextDelta, ToolCallDelta, Finish]
    (signature,) = (event for event in events if isinstance(event, ProviderEvent))
    assert (signature.kind, signature.data["delta"]["signature"]) == ("signature_delta", "c2lnbmVk")
    first, *pieces = (event for event in events if isinstance(event, ToolCallDelta))
    assert first == ToolCallDelta(0, "call_1", "f")
    assert len(pieces) == 3
    assert events[-1] == Finish("tool_calls", "tool_use")


def test_usage_counts_what_the_cache_had_to_do_with(wire: Wire) -> None:
    """Anthropic's input leaves out cached tokens and those written to the cache, ours does not; later counts win."""
    begun = {"input_tokens": 3, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 10, "output_tokens": 1}
    ends = {"output_tokens": 5, "input_tokens": 4, "cache_read_input_tokens": None}
    body = stream_of(
        {"type": "message_start", "message": {"usage": begun}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": ends},
        {"type": "message_stop"},
    )
    wire.script("m", body=body)
    usage = ask(wire, "m").usage
    assert (usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens) == (34, 20, 10)
    assert usage.output_tokens == 5
    wire.script("m", usage=Usage(9, 5, cached=4, reasoning=2))
    usage = ask(wire, "m").usage
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens) == (9, 4, 5, 2)


def test_what_the_providers_own_tools_do_and_a_refusals_reasons_are_events(wire: Wire) -> None:
    """A search's input is no call of the caller's; citations, refusals and unknown events neither hurt nor get lost."""
    wire.script(
        "m",
        body=stream_of(
            {"type": "content_block_start", "index": 0, "content_block": {"type": "server_tool_use", "name": "search"}},
            delta(0, "input_json_delta", partial_json='{"query": 1}'),
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "It "}},
            delta(1, "citations_delta", citation={"cited_text": "rains"}),
            delta(1, "text_delta", text="rains."),
            {"type": "content_block_stop", "index": 1},
            {"type": "brand_new_event"},
            {"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": {"category": "bio"}}},
            {"type": "message_stop"},
        ),
    )

    async def use(manager: ProviderManager) -> tuple[list[str], Any]:
        stream = await manager.generate_response("Hi", "m")
        return [event.kind async for event in stream.events() if isinstance(event, ProviderEvent)], stream

    kinds, stream = with_manager(wire, use)
    assert kinds == ["server_tool_use", "input_json_delta", "citations_delta", "stop_details"]
    assert (stream.text, stream.tool_calls, stream.finish_reason) == ("It rains.", (), "content_filter")


FAULTS: list[Fault] = [
    ("413", {"status": 413}, errors.InvalidRequestError, {"status": 413}),
    ("credit", {"reason": "insufficient_quota", "status": 400}, errors.QuotaExceededError, {"status": 400}),
    ("billing", {"status": 402}, errors.QuotaExceededError, {"status": 402}),
    ("400", {"reason": "invalid_request"}, errors.InvalidRequestError, {"status": 400, "param": "messages"}),
    ("filter", {"reason": "content_policy"}, errors.ContentFilterError, {"status": 400}),
    ("529", {"status": 529}, errors.OverloadedError, {"status": 529, "retryable": True}),
    ("error event", {"fault": "error_event"}, errors.ServerError, {"status": 500, "retryable": True}),
]


@faults(*FAULTS)
def test_what_this_api_alone_does_wrong_is_the_right_error_too(
    wire: Wire, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
) -> None:
    """Beside the faults of every provider (`test_hosted.py`), those that this one words in its own way."""
    error = ANTHROPIC.fault(wire, script, kind, fields)
    if error.status:
        assert error.request_id == "req_1"


def test_a_stop_reason_without_the_last_event_is_no_end(wire: Wire) -> None:
    """`message_stop` alone ends an answer: a stream that lacks it may lack more."""
    with pytest.raises(errors.IncompleteStreamError) as caught:
        ask(wire, "nodone")
    assert caught.value.text.startswith("tok0")


@pytest.mark.parametrize(
    ("kind", "error", "status"),
    [
        ("overloaded_error", errors.OverloadedError, 529),
        ("rate_limit_error", errors.RateLimitError, 429),
        ("authentication_error", errors.AuthenticationError, 401),
    ],
)
def test_an_error_within_the_stream_is_what_its_type_says(
    wire: Wire, kind: str, error: type[errors.ProviderError], status: int
) -> None:
    """The answer began with 200; the error is the one that the type stands for, with the id that the event names."""
    refused = {"type": "error", "error": {"type": kind, "message": "No"}, "request_id": "req_in_body"}
    head = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    wire.script("m", body=stream_of(head, delta(0, "text_delta", text="so far"), refused))

    async def use(manager: ProviderManager) -> None:
        stream = manager.start("Hi", "m")
        with pytest.raises(error) as caught:
            await stream
        assert (caught.value.status, caught.value.request_id) == (status, "req_in_body")
        assert stream.text == "so far"

    with_manager(wire, use)


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"index": 0, "delta": {"content": "a"}}]},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 5}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}},
        {"type": "message_start"},
        [1],
    ],
)
def test_an_event_of_another_shape_is_an_error_and_never_hangs(wire: Wire, event: Any) -> None:
    """Another protocol's events, numbers where text belongs: the stream ends with an error."""
    wire.script("m", body=f"data: {json.dumps(event)}\n\n".encode() + stream_of({"type": "message_stop"}))
    with pytest.raises(errors.ResponseFormatError):
        ask(wire, "m")


@pytest.mark.parametrize("body", [b'{"type": "message"}', b"<html></html>", b"[]"])
def test_a_whole_answer_that_is_no_message_is_named(wire: Wire, body: bytes) -> None:
    """A server that answers with something else than a message is told from one that answers."""
    wire.script("m", body=body)

    async def use(manager: ProviderManager) -> None:
        await manager.generate_response("Hi", "m", stream=False)

    with pytest.raises(errors.ResponseFormatError, match=r"no message|not of its protocol"):
        with_manager(wire, use)


@pytest.mark.parametrize("timeout", [5.0, 600.0])
def test_a_long_answer_that_does_not_stream_is_asked_for(wire: Wire, timeout: float) -> None:
    """The SDK's own bounds on what may come without streaming give way to the setting, whatever its value."""

    async def use(manager: ProviderManager) -> None:
        assert await manager.generate_response("Hi", "ok", max_tokens=64_000, stream=False)

    with_manager(wire, use, timeout=timeout)
    assert wire.requests[0].body["max_tokens"] == 64_000
    assert float(wire.requests[0].headers["x-stainless-read-timeout"]) == timeout


def test_sampling_that_was_asked_for_goes_by_the_version_that_takes_it(wire: Wire) -> None:
    """A temperature, top_p or top_k of the caller's reaches the model; headers of the caller's stay."""
    body = sent(wire, temperature=0.5, top_k=3, extra_headers={"anthropic-beta": "b"}, extra_body={"top_p": 0.9})
    assert (body["temperature"], body["top_k"], body["top_p"]) == (0.5, 3, 0.9)
    headers = wire.requests[-1].headers
    assert (headers["anthropic-version"], headers["anthropic-beta"]) == ("2023-06-01", "b")
    assert sent(wire, temperature=0.0)["temperature"] == 0.0
    with pytest.raises(errors.InvalidRequestError, match="top_p: Extra inputs") as caught:
        ask(wire, "ok", top_p=0.9, extra_headers={"Anthropic-Version": "2026-10-21"})
    assert caught.value.param == "top_p"


def test_a_temperature_that_a_model_refuses(wire: Wire) -> None:
    """The caller's is never dropped, one of the configuration is, and is not sent to that model again."""
    wire.script("m", rejects=["temperature"])
    with pytest.raises(errors.InvalidRequestError, match="deprecated for this model") as caught:
        ask(wire, "m", temperature=0.7)
    assert (caught.value.param, len(wire.requests)) == ("temperature", 1)

    async def use(manager: ProviderManager) -> None:
        assert await (await manager.generate_response("Hi", "m"))
        assert await manager.generate_response("Hi", "m", stream=False)

    with_manager(wire, use, temperature=0.7)
    assert [request.status for request in wire.requests[1:]] == [400, 200, 200]
    assert wire.requests[1].body["temperature"] == 0.7
    assert wire.requests[-1].headers["anthropic-version"] == "2026-10-21"


def test_what_the_environment_holds_for_the_sdk_stays_at_its_own_address(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers, tokens and addresses of the environment do not go to an address that comes from elsewhere."""
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gateway: secret\nX-Api-Key: other\nAuthorization: Bearer other")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-other")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    assert ask(wire, "ok")
    headers = wire.requests[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert not {"x-gateway", "x-api-key"} & set(headers)


def test_at_the_environments_address_its_headers_go_along_but_no_second_credential(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway gets what it wants; the key that was configured is the one that counts there."""
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gateway: yes\nX-Api-Key: other\nAuthorization: Bearer other")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "token-other")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", wire.base("anthropic"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)

    async def main() -> None:
        async with await ProviderManager.create(ConfigManager(runtime={"provider": "anthropic"})) as manager:
            assert await (await manager.generate_response("Hi", "ok"))

    asyncio.run(main())
    headers = wire.requests[0].headers
    assert (headers["authorization"], headers["x-gateway"]) == (f"Bearer {KEY}", "yes")
    assert "x-api-key" not in headers
    assert "token-other" not in str(headers)


def test_models_are_listed_live_page_by_page(wire: Wire) -> None:
    """Every page is fetched; the API's own word on windows and modalities is kept."""
    wire.script("one")
    page = {"data": [{"type": "model", "id": "zero"}], "has_more": True, "first_id": "zero", "last_id": "zero"}
    wire.script("/models", body=json.dumps(page).encode(), times=1)

    async def use(manager: ProviderManager) -> dict[str, Any]:
        return {model.id: model for model in await manager.models()}

    models = with_manager(wire, use)
    assert list(models)[:2] == ["zero", "one"]
    one = models["one"]
    assert (one.provider, one.name, one.context_window, one.max_output_tokens) == ("anthropic", "One", 200_000, 64_000)
    assert (one.input_modalities, models["zero"].input_modalities) == (("text", "image"), None)
    assert [request.target.partition("?")[2] for request in wire.requests] == ["limit=1000", "limit=1000&after_id=zero"]


def test_pages_of_models_that_go_round_in_a_circle_end(wire: Wire) -> None:
    """A server that names the same page for ever is not asked for ever."""
    page = {"data": [{"type": "model", "id": "zero"}], "has_more": True, "last_id": "zero"}
    wire.script("/models", body=json.dumps(page).encode())

    async def use(manager: ProviderManager) -> list[str]:
        return await manager.get_available_models()

    assert with_manager(wire, use) == ["zero"]
    assert len(wire.requests) == 2
