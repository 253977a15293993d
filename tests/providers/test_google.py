"""The Google provider: the real SDK against a server that speaks the protocol, and misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable
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
    UsageUpdate,
)
from tests.providers.asking import GOOGLE, SSE, Fault, faults
from tests.wire import Usage, Wire

KEY = GOOGLE.key
with_manager, ask, ask_whole = GOOGLE.with_manager, GOOGLE.ask, GOOGLE.ask_whole
events_of = GOOGLE.events_of
PARAMETERS = {"type": "object", "properties": {"zone": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": PARAMETERS}}


def response(*parts: Any, **fields: Any) -> dict[str, Any]:
    """One response with these parts; fields of the candidate are given by keyword."""
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, **fields}]}


def stream_of(*responses: Any) -> bytes:
    """The body of a stream."""
    return "".join(f"data: {json.dumps(one)}\r\n\r\n" for one in responses).encode()


def camel(value: Any) -> Any:
    """The value with names as the protocol writes them; it takes them with underscores too, and the SDK mixes both."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if isinstance(value, dict):
        return {re.sub("_([a-z])", lambda c: c[1].upper(), name): camel(item) for name, item in value.items()}
    return value


@pytest.mark.parametrize("base", ["/google", "/google/", "/google/v1beta"])
@pytest.mark.parametrize("model", ["ok", "models/ok"])
def test_what_is_sent_is_what_was_asked(wire: Wire, base: str, model: str) -> None:
    """Messages, parameters and options go under Google's names; a model may be named with `models/`."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    options = {
        "seed": 3,
        "stop": "x",
        "top_p": 0.5,
        "top_k": 5,
        "tools": [TOOL, {"google_search": {}}],
        "thinking_config": {"include_thoughts": True},
        "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        "cached_content": "cachedContents/abc",
    }
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response(messages, model, **options))
        await manager.generate_response(messages, model, max_tokens=7, temperature=0.5, stream=False, schema=schema)

    with_manager(wire, use, base_url=wire.url + base)
    streamed, whole = wire.requests
    assert (streamed.target, whole.target) == (
        "/google/v1beta/models/ok:streamGenerateContent?alt=sse",
        "/google/v1beta/models/ok:generateContent",
    )
    asked = [{"role": "user", "parts": [{"text": "Hi"}]}]
    system = {"role": "user", "parts": [{"text": "Be brief."}]}
    declared = {"name": "now", "description": "The time.", "parametersJsonSchema": PARAMETERS}
    sent = camel(streamed.body)
    tools = sent.pop("tools")
    assert {"functionDeclarations": [declared]} in tools
    assert {"googleSearch": {}} in tools
    assert sent == {
        "contents": asked,
        "systemInstruction": system,
        "cachedContent": "cachedContents/abc",
        "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        "generationConfig": {
            "temperature": 0.0, "maxOutputTokens": 4000, "seed": 3, "topP": 0.5, "topK": 5, "stopSequences": ["x"],
            "thinkingConfig": {"includeThoughts": True},
        },
    }  # fmt: skip
    assert camel(whole.body) == {
        "contents": asked,
        "systemInstruction": system,
        "generationConfig": {
            "temperature": 0.5, "maxOutputTokens": 7, "responseMimeType": "application/json",
            "responseJsonSchema": schema,
        },
    }  # fmt: skip
    assert streamed.headers["x-goog-api-key"] == KEY
    assert KEY not in streamed.target
    assert "x-server-timeout" not in streamed.headers


def test_a_conversation_with_files_and_tools_goes_in_googles_form(wire: Wire) -> None:
    """Files are inline data; results of tools bear the names of what was called, and those in a row are one turn."""
    files = [
        Attachment("image/png", b"\x89PNG\xff\xfe"),
        Attachment("application/pdf", b"%PDF", name="a.pdf"),
        Attachment("audio/wav", b"RIFF"),
    ]
    calls = (ToolCall("c1", "now", '{"zone": "UTC"}'), ToolCall("c2", "today", ""))
    ask(
        wire,
        "ok",
        [
            Message("user", "Look"),
            Message("user", "here", attachments=tuple(files)),
            Message("assistant", "Well", tool_calls=calls),
            Message("tool", '{"hour": 12}', tool_call_id="c1"),
            Message("tool", "Monday", tool_call_id="c2"),
            Message("system", "Be brief."),
            Message("user", "So?"),
        ],
    )
    user, model, results = camel(wire.requests[0].body["contents"])
    # The protocol's bytes are base64 in either alphabet.
    data = [base64.urlsafe_b64encode(file.data).decode() for file in files]
    assert user == {
        "role": "user",
        "parts": [
            {"text": "Look"},
            {"text": "here"},
            *(
                {"inlineData": {"mimeType": file.media_type, "data": sent}}
                for file, sent in zip(files, data, strict=True)
            ),
        ],
    }
    signature = base64.urlsafe_b64encode(b"skip_thought_signature_validator").decode()
    assert model == {
        "role": "model",
        "parts": [
            {"text": "Well"},
            {
                "functionCall": {"id": "c1", "name": "now", "args": {"zone": "UTC"}},
                "thoughtSignature": signature,
            },
            {"functionCall": {"id": "c2", "name": "today", "args": {}}},
        ],
    }
    assert results == {
        "role": "user",
        "parts": [
            {"functionResponse": {"id": "c1", "name": "now", "response": {"hour": 12}}},
            {"functionResponse": {"id": "c2", "name": "today", "response": {"result": "Monday"}}},
            {"text": "So?"},
        ],
    }


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([Message("user", "Run", attachments=(Attachment("application/zip", b"PK"),))], {}, "no application/zip"),
        ([Message("user", "Hi"), Message("tool", "x", tool_call_id="c9")], {}, "'c9'"),
        ([Message("user", "Hi"), Message("assistant", "", tool_calls=(ToolCall("a", "f", "{"),))], {}, "of f"),
        ("Hi", {"thinking_confg": {}}, "Did you mean thinking_config"),
        ("Hi", {"stopp": 1}, "Did you mean stop"),
        ("Hi", {"http_options": {"base_url": "http://127.0.0.1:1"}}, "no option 'http_options'"),
        ("Hi", {"max_output_tokens": 1}, "Set max_tokens"),
        ("Hi", {"top_k": "many"}, "top_k"),
        ("Hi", {"labels": {"a": 1}}, "labels"),
    ],
)
@pytest.mark.parametrize("call", [ask, ask_whole])
def test_what_google_does_not_have_is_refused_before_anything_is_sent(
    wire: Wire, prompt: Any, options: dict[str, Any], words: str, call: Callable[..., Any]
) -> None:
    """A kind of file, an option, a result without its call: the error names it, and the closest there is."""
    with pytest.raises(errors.InvalidRequestError, match=words):
        call(wire, "ok", prompt, **options)
    assert wire.requests == []


def test_events_are_typed_and_end_with_the_reason(wire: Wire) -> None:
    """Thoughts and text come apart; the usage counts thoughts as output, and names cached tokens."""
    wire.script("m", reasoning=["Let me ", "think."], deltas=["Yes"], usage=Usage(9, 5, cached=4, reasoning=2))
    events, stream = events_of(wire, "m")
    kinds = [type(event) for event in events if not isinstance(event, UsageUpdate)]
    assert list(dict.fromkeys(kinds)) == [ReasoningDelta, TextDelta, Finish]
    assert events[-1] == Finish("stop", "STOP")
    assert (stream.reasoning, stream.text) == ("Let me think.", "Yes")
    usage = stream.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens) == (9, 5, 4, 2)


def test_calls_of_tools_are_whole_and_signatures_are_kept(wire: Wire) -> None:
    """Each call is one event; a call without an id gets one; the thought's signature goes with it as an event."""
    calls = [
        {"functionCall": {"name": "now", "args": {"zone": "Zürich"}, "id": "x1"}, "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "today"}},
    ]
    wire.script("m", body=stream_of(response(*calls), response(finishReason="STOP")), headers=SSE)
    events, stream = events_of(wire, "m", tools=[TOOL])
    wanted = (ToolCall("x1", "now", '{"zone": "Zürich"}'), ToolCall("call_2", "today", "{}"))
    assert tuple(event for event in events if isinstance(event, ToolCall)) == wanted == stream.tool_calls
    assert ProviderEvent("thought_signature", {"signature": "c2ln", "tool_call_id": "x1"}) in events
    assert stream.finish_reason == "tool_calls"


def test_what_google_alone_has_comes_as_events_of_its_own(wire: Wire) -> None:
    """Code that was run, pictures and where the answer is grounded; a second candidate is not mixed in."""
    body = stream_of(
        response({"text": "It is "}, {"executableCode": {"language": "PYTHON", "code": "6*7"}}),
        response({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "42"}}, {"text": "42"}),
        response({"text": "EINS"}, index=1),
        response({"inlineData": {"mimeType": "image/png", "data": "iVBO"}, "newField": 1}),
        {**response(finishReason="STOP", groundingMetadata={"webSearchQueries": ["6*7"]}), "usageMetadata": {}},
        response(finishReason="STOP"),
    )
    wire.script("m", body=body, headers=SSE)
    events, stream = events_of(wire, "m")
    found = {event.kind: event.data for event in events if isinstance(event, ProviderEvent)}
    assert found == {
        "executable_code": {"language": "PYTHON", "code": "6*7"},
        "code_execution_result": {"outcome": "OUTCOME_OK", "output": "42"},
        "inline_data": {"mimeType": "image/png", "data": "iVBO"},
        "new_field": 1,
        "grounding_metadata": {"webSearchQueries": ["6*7"]},
    }
    assert stream.text == "It is 42"
    assert [event for event in events if isinstance(event, Finish)] == [Finish("stop", "STOP")]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("SAFETY", "content_filter"), ("RECITATION", "content_filter"), ("SPII", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "other"), ("A_NEW_ONE", "other"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_reason_to_finish_is_told_from_the_others(wire: Wire, raw: str, reason: str, call: Any) -> None:
    """What was filtered ends as filtered with the text before it, also where the SDK does not know the word."""
    one = response({"text": "Well"}, finishReason=raw)
    wire.script("m", body=stream_of(one) if call is ask else json.dumps(one).encode(), headers=SSE)
    answer = call(wire, "m")
    assert (answer, answer.finish_reason) == ("Well", reason)


@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_blocked_prompt_is_an_error_that_says_why(wire: Wire, call: Any) -> None:
    """No candidate and no reason to finish come then: it is neither an empty answer nor a cut one."""
    one = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 3}}
    wire.script("m", body=stream_of(one) if call is ask else json.dumps(one).encode(), headers=SSE)
    with pytest.raises(errors.ContentFilterError, match=r"blocked: PROHIBITED_CONTENT.*Reword"):
        call(wire, "m")


FAULTS: list[Fault] = [
    ("key 400", {"status": 400, "reason": "invalid_api_key"}, errors.AuthenticationError, {"status": 401}),
    ("parameter", {"reason": "unsupported_parameter", "param": "n"}, errors.InvalidRequestError, {"param": "n"}),
    ("504", {"status": 504, "reason": "deadline"}, errors.ServerError, {"status": 504, "retryable": True}),
    ("no reason", {"finish": None, "tokens": 5}, errors.IncompleteStreamError, {}),
    ("no end", {"terminal": False, "tokens": 5}, errors.IncompleteStreamError, {}),
    ("error event", {"fault": "error_event"}, errors.ServerError, {"status": 500}),
]


@faults(*FAULTS)
def test_what_this_api_alone_does_wrong_is_the_right_error_too(
    wire: Wire, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
) -> None:
    """Beside the faults of every provider (`test_hosted.py`), those that this one words in its own way."""
    GOOGLE.fault(wire, script, kind, fields)


def test_an_overload_within_a_stream_is_told_from_a_fault_of_the_server(wire: Wire) -> None:
    """The error's own number counts, since the answer had begun with a 200; the text so far is kept."""
    error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    wire.script("m", body=stream_of(response({"text": "Well"}), error), headers=SSE)
    with pytest.raises(errors.OverloadedError, match="overloaded") as caught:
        ask(wire, "m")
    assert caught.value.status == 503


def quota(quota_id: str, value: str = "10", delay: str | None = "7s", said: str = "") -> Any:
    """Google's 429, whose words are the same for a limit of a minute and for an account that has nothing."""
    details: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": quota_id, "quotaValue": value}],
        },
        {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
    ]
    if delay is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    message = f"You exceeded your current quota, please check your plan and billing details. {said}"
    return [{"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}]


@pytest.mark.parametrize(
    ("body", "kind", "waits"),
    [
        (quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier"), errors.RateLimitError, 7.0),
        (quota("GenerateContentInputTokensPerModelPerMinute", delay="0.25s"), errors.RateLimitError, 0.25),
        (quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), errors.QuotaExceededError, None),
        (quota("GenerateRequestsPerMinute", value="0"), errors.QuotaExceededError, None),
        (quota("GenerateRequestsPerMinute", said="limit: 0, model: m"), errors.QuotaExceededError, None),
        (quota("GenerateRequestsPerMinute", delay=None), errors.QuotaExceededError, None),
    ],
)
@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_limit_of_a_minute_is_told_from_an_account_out_of_quota(
    wire: Wire, body: Any, kind: type[errors.ProviderError], waits: float | None, call: Any
) -> None:
    """The wait is the body's `retryDelay`; where no wait of minutes helps, it is not worth another try."""
    wire.script("m", status=429, body=json.dumps(body).encode())
    with pytest.raises(kind, match="your current quota") as caught:
        call(wire, "m")
    assert type(caught.value) is kind
    assert getattr(caught.value, "retry_after", None) == waits


@pytest.mark.parametrize("part", [{"text": 5}, {"text": 5, "thought": True}, {"functionCall": {"args": {}}}, "Hi", 5])
@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_part_of_another_shape_is_an_error_and_never_hangs(wire: Wire, part: Any, call: Any) -> None:
    """Numbers and strings where a part belongs: an error of ours, in both forms."""
    one = response(part, finishReason="STOP")
    wire.script("m", body=stream_of(one) if call is ask else json.dumps(one).encode(), headers=SSE)
    with pytest.raises(errors.ResponseFormatError):
        call(wire, "m")


@pytest.mark.parametrize("body", [b"{}", b'{"object": "chat.completion"}', b"[]", b"5", b"<html></html>", b""])
def test_a_completion_that_is_none_is_named(wire: Wire, body: bytes) -> None:
    """A server that answers with something else than a completion is told from one that answers."""
    wire.script("m", body=body)
    with pytest.raises(errors.ResponseFormatError):
        ask_whole(wire, "m")


def test_the_environment_neither_moves_the_sdk_nor_changes_its_key(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Vertex, other keys and addresses, recorded answers: what the SDK reads there does not count."""
    for name, value in {
        "GOOGLE_API_KEY": "AIza-other",
        "GEMINI_API_KEY": "AIza-another",
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_GENAI_USE_ENTERPRISE": "true",
        "GOOGLE_CLOUD_PROJECT": "mine",
        "GOOGLE_CLOUD_LOCATION": "eu",
        "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9",
        "GOOGLE_VERTEX_BASE_URL": "http://127.0.0.1:9",
        "GOOGLE_GENAI_API_VERSION": "v1alpha",
        "GOOGLE_GENAI_CLIENT_MODE": "replay",
        "GOOGLE_GENAI_REPLAYS_DIRECTORY": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    assert ask(wire, "ok")
    (request,) = wire.requests
    assert request.path.startswith("/google/v1beta/models/ok:")
    assert request.headers["x-goog-api-key"] == KEY
    assert "authorization" not in request.headers
    assert "AIza-other" not in str(request.headers) + request.target
    assert "GOOGLE_API_KEY" not in caplog.text


def test_the_sdks_variable_for_the_address_counts_where_nothing_else_is_set(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`GOOGLE_GEMINI_BASE_URL` and `GOOGLE_API_KEY`, as users of the SDK have them, are enough."""
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", wire.base("google"))
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)

    async def main() -> Any:
        async with await ProviderManager.create(ConfigManager(runtime={"provider": "google"})) as manager:
            return await (await manager.generate_response("Hi", "ok"))

    assert asyncio.run(main()).state == "complete"
    assert wire.requests[0].headers["x-goog-api-key"] == KEY


def test_models_are_listed_live_page_by_page(wire: Wire) -> None:
    """Every page is followed; names lack `models/`; what only embeds is left out; limits are told."""
    wire.models = [f"m{number}" for number in range(1500)]

    async def use(manager: ProviderManager) -> dict[str, Any]:
        return {model.id: model for model in await manager.models()}

    found = with_manager(wire, use)
    assert list(found) == wire.models
    last = found["m1499"]
    assert (last.provider, last.name) == ("google", "The model m1499")
    assert (last.context_window, last.max_output_tokens) == (1048576, 65536)
    assert last.details["version"] == "001"
