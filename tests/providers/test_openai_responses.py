"""OpenAI's Responses API, by option: the real SDK against a server that speaks the protocol, and misbehaves."""

import json
from typing import Any

import pytest

from nbllm import ProviderManager, errors
from nbllm.providers import openai_responses
from nbllm.types import (
    Attachment,
    Finish,
    Message,
    ProviderEvent,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    UsageUpdate,
)
from nbllm.types import Usage as Tokens
from tests.providers.asking import RESPONSES, Fault, faults
from tests.wire import ToolCall as Called
from tests.wire import Usage, Wire

with_manager, ask = RESPONSES.with_manager, RESPONSES.ask
WEATHER = {"name": "get_weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}


def events_of(wire: Wire, model: str) -> list[Any]:
    """The events of a streamed answer."""
    return RESPONSES.events_of(wire, model)[0]


def sse(*events: dict[str, Any]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def completed(**fields: Any) -> dict[str, Any]:
    response = {"id": "resp_9", "status": "completed", "output": [], **fields}
    return {"type": "response.completed", "response": response}


def test_the_option_picks_the_api_and_the_configuration_its_default(wire: Wire) -> None:
    """A call may ask either API; without a word the configured one is asked, and Chat Completions where none is."""

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response("Hi", "ok"))
        await (await manager.generate_response("Hi", "ok", api="chat"))
        await manager.generate_response("Hi", "ok", api="responses", stream=False)

    with_manager(wire, use)
    with_manager(wire, use, api="chat")
    paths = ["/v1/responses", "/v1/chat/completions", "/v1/responses"]
    assert [exchange.path for exchange in wire.requests] == [*paths, "/v1/chat/completions", *paths[1:]]
    assert all("api" not in exchange.body for exchange in wire.requests)


@pytest.mark.parametrize("option", ["assistants", None, 5])
def test_another_api_is_refused_before_anything_is_sent(wire: Wire, option: Any) -> None:
    """A name that is no API ends in an error that names the two there are."""
    with pytest.raises(errors.InvalidRequestError, match="has no API") as caught:
        ask(wire, "ok", api=option)
    assert "responses" in str(caught.value.action)
    assert wire.requests == []


def test_what_is_sent_is_what_was_asked(wire: Wire) -> None:
    """Messages become items, `max_tokens` gets its name here, nothing is stored, what is unknown is passed on."""
    call = ToolCall("call_1", "get_weather", '{"city": "Paris"}')
    messages = [
        Message("system", "Be brief."),
        Message("user", "The weather?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "Rain", tool_call_id="call_1"),
        Message("assistant", "It rains."),
        Message("user", "And now?"),
    ]
    ask(wire, "ok", messages, seed=3, top_p=0.5, reasoning_effort="low", stop=["x"], top_k=5, max_tokens=7)
    assert wire.requests[0].body == {
        "model": "ok",
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "The weather?"},
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "get_weather",
                "arguments": '{"city": "Paris"}',
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "Rain"},
            {"role": "assistant", "content": "It rains."},
            {"role": "user", "content": "And now?"},
        ],
        "max_output_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "reasoning": {"effort": "low"},
        "store": False,
        "stream": True,
        # A compatible server may have these; OpenAI itself has not (see below).
        "seed": 3,
        "stop": ["x"],
        "top_k": 5,
    }


def test_tools_and_schemas_take_this_apis_form(wire: Wire) -> None:
    """Tools in Chat Completions' form become flat ones, others go as they are; a schema goes under `text`."""
    schema = {"title": "City", "type": "object", "properties": {"name": {"type": "string"}}}
    tools = [{"type": "function", "function": WEATHER}, {"type": "web_search"}, {"type": "function", "name": "bare"}]
    choice = {"type": "function", "function": {"name": "get_weather"}}
    ask(wire, "ok", tools=tools, tool_choice=choice, schema=schema, text={"verbosity": "low"}, store=True)
    body = wire.requests[0].body
    assert body["tools"] == [{"type": "function", "strict": False, **WEATHER}, *tools[1:]]
    assert body["tool_choice"] == {"type": "function", "name": "get_weather"}
    assert body["text"] == {
        "verbosity": "low",
        "format": {"type": "json_schema", "name": "City", "schema": schema, "strict": True},
    }
    assert body["store"] is True


def test_images_and_files_go_as_input_parts(wire: Wire) -> None:
    """An image is an `input_image`, a PDF an `input_file`, the text beside them an `input_text`."""
    files = (Attachment("image/png", b"PNG"), Attachment("application/pdf", b"PDF", name="a.pdf"))
    ask(wire, "ok", [Message("user", "What is this?", attachments=files)])
    assert wire.requests[0].body["input"][0]["content"] == [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,UE5H"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,UERG"},
    ]


@pytest.mark.parametrize(
    "message",
    [
        Message("user", "Listen", attachments=(Attachment("audio/wav", b"RIFF"),)),
        Message("assistant", "Here", attachments=(Attachment("image/png", b"PNG"),)),
    ],
    ids=["audio", "of the assistant"],
)
def test_a_file_that_the_api_cannot_take_is_refused_before_anything_is_sent(wire: Wire, message: Message) -> None:
    """Sound, and files in an assistant's turn: an error, not a message without them."""
    with pytest.raises(errors.InvalidRequestError, match="takes no"):
        ask(wire, "ok", [message, Message("user", "Well?")])
    assert wire.requests == []


def test_openai_itself_gets_no_seed_and_refuses_stop() -> None:
    """The hint is left out where it would be an error; the demand is refused."""
    request = Request("openai", "gpt", (Message("user", "Hi"),), options={"seed": 3})
    assert not {"seed", "extra_body"} & set(openai_responses.arguments(request, frozenset(), official=True))
    request = Request("openai", "gpt", (Message("user", "Hi"),), options={"stop": ["x"]})
    with pytest.raises(errors.InvalidRequestError, match="no stop sequences"):
        openai_responses.arguments(request, frozenset(), official=True)


def test_both_forms_of_a_call_tell_several_tools(wire: Wire) -> None:
    """Streamed or whole: text and calls of several tools agree."""
    calls = [Called("one", '{"a": 1}'), Called("two", '{"b": "ü"}', id="call_2", pieces=4)]
    wire.script("calls", deltas=["Wait. "], tool_calls=calls, finish="tool_calls")
    (tools,) = RESPONSES.both_forms(wire, "calls")
    assert tools.raw["id"] == "resp_1"
    assert tools.tool_calls == (ToolCall("call_1", "one", '{"a": 1}'), ToolCall("call_2", "two", '{"b": "ü"}'))
    assert (tools, tools.finish_reason) == ("Wait. ", "tool_calls")


def test_events_are_typed_and_end_with_the_reason(wire: Wire) -> None:
    """Reasoning, text, the response's id, the usage with reasoning and cached tokens, and at last the reason."""
    wire.script("m", reasoning=["Let me ", "think."], deltas=["Yes"], usage=Usage(9, 5, cached=4, reasoning=2))
    assert [event for event in events_of(wire, "m") if not _is_item(event)] == [
        ReasoningDelta("Let me "),
        ReasoningDelta("think."),
        TextDelta("Yes"),
        ProviderEvent("response", {"id": "resp_1"}),
        UsageUpdate(Tokens(9, 5, cached_tokens=4, reasoning_tokens=2, cache_write_tokens=0)),
        Finish("stop", "completed"),
    ]


def _is_item(event: Any) -> bool:
    return isinstance(event, ProviderEvent) and event.kind == "response.output_item.done"


def test_hosted_tools_and_annotations_are_events_of_the_provider(wire: Wire) -> None:
    """A web search, its result and the citation in the text come through as they are; refusals are text."""
    searching = {"type": "response.web_search_call.searching", "item_id": "ws_1", "output_index": 0}
    found = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "rain"}}
    finished = {"type": "response.output_item.done", "output_index": 0, "item": found}
    cited = {"type": "response.output_text.annotation.added", "annotation": {"url": "https://a"}}
    refused = {"type": "response.refusal.delta", "output_index": 1, "content_index": 0, "delta": "No."}
    wire.script("m", body=sse(searching, finished, refused, cited, completed()))
    events = events_of(wire, "m")
    assert [event.data for event in events if isinstance(event, ProviderEvent)][:3] == [searching, finished, cited]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["No."]


def test_the_parts_of_a_reasoning_summary_are_paragraphs(wire: Wire) -> None:
    """Each part of a summary begins a paragraph; raw reasoning is reasoning, too."""
    part, delta = "response.reasoning_summary_part.added", "response.reasoning_summary_text.delta"
    events = [
        {"type": part, "summary_index": 0},
        {"type": delta, "summary_index": 0, "delta": "One"},
        {"type": part, "summary_index": 1},
        {"type": delta, "summary_index": 1, "delta": "Two"},
        {"type": "response.reasoning_text.delta", "content_index": 0, "delta": " and raw"},
    ]
    wire.script("m", body=sse(*events, completed()))
    found = [event.text for event in events_of(wire, "m") if isinstance(event, ReasoningDelta)]
    assert "".join(found) == "One\n\nTwo and raw"


def test_arguments_that_come_whole_are_not_lost_nor_doubled(wire: Wire) -> None:
    """Servers that send a call's arguments without deltas, or only with the finished item, give the same call."""
    item = {"type": "function_call", "id": "f", "call_id": "c", "name": "n", "arguments": '{"a": 1}'}
    added = {"type": "response.output_item.added", "output_index": 3, "item": item}
    done = {"type": "response.function_call_arguments.done", "output_index": 3, "arguments": '{"a": 1}'}
    finished = {"type": "response.output_item.done", "output_index": 3, "item": item}
    wire.script("m", body=sse(added, done, finished, completed()))
    wire.script("late", body=sse(finished, completed()))
    for model in ("m", "late"):
        calls = [event for event in events_of(wire, model) if isinstance(event, ToolCallDelta)]
        assert calls == [ToolCallDelta(0, "c", "n"), ToolCallDelta(0, arguments='{"a": 1}')]


def test_the_end_of_the_body_is_not_the_end_of_the_answer(wire: Wire) -> None:
    """Without `response.completed` the answer is incomplete, even after its last item is done."""
    wire.script("m", terminal=False)
    with pytest.raises(errors.IncompleteStreamError) as caught:
        ask(wire, "m")
    assert caught.value.text == "".join(f"tok{i} " for i in range(10))


@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter"), ("steered", "other")]
)
def test_an_incomplete_response_says_why(wire: Wire, reason: str, finish: str) -> None:
    """Out of tokens, filtered or another reason: an end of the provider's own, not a fault."""
    response = {"id": "r", "status": "incomplete", "incomplete_details": {"reason": reason}}
    wire.script("m", body=sse({"type": "response.incomplete", "response": response}))
    assert events_of(wire, "m")[-1] == Finish(finish, reason)  # type: ignore[arg-type]


FAILURES = [
    ("server_error", errors.ServerError),
    ("rate_limit_exceeded", errors.RateLimitError),
    ("vector_store_timeout", errors.ServerError),
    ("invalid_prompt", errors.InvalidRequestError),
    ("image_too_large", errors.InvalidRequestError),
    ("image_content_policy_violation", errors.ContentFilterError),
    ("bio_policy", errors.ContentFilterError),
    (None, errors.ServerError),
]


@pytest.mark.parametrize(("code", "kind"), FAILURES, ids=[str(code) for code, _ in FAILURES])
def test_a_failed_response_is_the_right_error(wire: Wire, code: str | None, kind: type[errors.NbllmError]) -> None:
    """A response that fails says so within a stream or as a whole; either way the error is of its own type."""
    error = {"code": code, "message": "The flux is not capacitated"}
    response = {"id": "r", "status": "failed", "error": error, "output": []}
    wire.script("m", body=sse({"type": "response.failed", "response": response}))
    wire.script("whole", body=json.dumps(response).encode(), headers={"content-type": "application/json"})

    async def whole(manager: ProviderManager) -> None:
        await manager.generate_response("Hi", "whole", stream=False)

    for call in (lambda: ask(wire, "m"), lambda: with_manager(wire, whole)):
        with pytest.raises(kind, match="flux is not capacitated") as caught:
            call()
        assert type(caught.value) is kind


FAULTS: list[Fault] = [
    ("context", {"reason": "context_length_exceeded"}, errors.ContextLengthError, {"param": "input"}),
    ("busy", {"fault": "error_event", "reason": "rate_limit", "status": 200}, errors.RateLimitError, {}),
]


@faults(*FAULTS)
def test_what_this_api_alone_does_wrong_is_the_right_error_too(
    wire: Wire, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
) -> None:
    """Beside the faults of every provider (`test_hosted.py`), those that this one words in its own way."""
    RESPONSES.fault(wire, script, kind, fields)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_text.delta", "delta": 5},
        {"type": "response.output_text.delta"},
        {"type": "response.output_item.added", "item": "x", "output_index": 0},
        {"type": "response.function_call_arguments.delta", "output_index": 7, "delta": "{"},
        {"type": "response.completed"},
        {"type": 5},
        {"choices": []},
        [],
    ],
)
def test_an_event_of_another_shape_is_an_error_and_never_hangs(wire: Wire, event: Any) -> None:
    """Numbers where text belongs, calls that never began, another protocol's chunks: the stream ends with an error."""
    wire.script("m", body=b"data: " + json.dumps(event).encode() + b"\n\n" + sse(completed()))
    with pytest.raises(errors.ResponseFormatError):
        ask(wire, "m")


@pytest.mark.parametrize("body", [b"{}", b'{"status": "queued", "output": []}', b'{"status": "completed"}', b"[]"])
def test_a_response_that_is_not_whole_is_no_answer(wire: Wire, body: bytes) -> None:
    """A response that still waits, or something else altogether, is not taken for an empty answer."""
    wire.script("m", body=body, headers={"content-type": "application/json"})

    async def use(manager: ProviderManager) -> None:
        await manager.generate_response("Hi", "m", stream=False)

    with pytest.raises(errors.ResponseFormatError):
        with_manager(wire, use)


@pytest.mark.parametrize("refused", ["temperature", "max_output_tokens"])
def test_a_default_that_a_model_refuses_is_dropped_and_remembered(wire: Wire, refused: str) -> None:
    """Reasoning models refuse temperature: a second try goes without, the next call at once."""
    wire.script("m", rejects=[refused])

    async def use(manager: ProviderManager) -> None:
        assert await (await manager.generate_response("Hi", "m"))
        assert await manager.generate_response("Hi", "m", stream=False)

    with_manager(wire, use)
    assert [request.status for request in wire.requests] == [400, 200, 200]
    assert refused not in wire.requests[-1].body


@pytest.mark.parametrize(
    ("refused", "given"), [("temperature", {"temperature": 0.7}), ("max_output_tokens", {"max_tokens": 5})]
)
def test_what_the_caller_set_is_never_dropped(wire: Wire, refused: str, given: dict[str, Any]) -> None:
    """A value of the caller's own that the model refuses is an error that names it."""
    wire.script("m", rejects=[refused])
    with pytest.raises(errors.InvalidRequestError, match=refused):
        ask(wire, "m", **given)
    assert len(wire.requests) == 1


def test_cancelling_closes_the_socket(wire: Wire) -> None:
    """`cancel` in mid-stream closes the connection at once."""

    async def use(manager: ProviderManager) -> None:
        stream = await manager.generate_response("Hi", "slow")
        assert await anext(aiter(stream))
        stream.cancel()
        wire.wait_closed(1)
        assert stream.text

    with_manager(wire, use)
    assert wire.requests[0].sent < 1000
