"""The HuggingFace hosted provider: the real SDK against a server that speaks the router's and TGI's protocol."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.types import Attachment, Finish, Message, ReasoningDelta, TextDelta, ToolCall, UsageUpdate
from tests.isolation import child_environment
from tests.wire import Usage, Wire, scenario

T = TypeVar("T")

NAME = "huggingface-hosted"
KEY = "hf_test0123456789"
SSE = {"content-type": "text/event-stream"}
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}


def with_manager(wire: Wire, use: Callable[[ProviderManager], Awaitable[T]], **hosted: Any) -> T:
    """Run `use` with a manager whose HuggingFace is the wire server; afterwards it holds no connection any more."""
    settings = {"base_url": wire.base(NAME), "api_key": KEY, **hosted}
    config = ConfigManager(runtime={"provider": NAME, "providers": {NAME: settings}})

    async def main() -> T:
        async with await ProviderManager.create(config) as manager:
            return await use(manager)

    result = asyncio.run(main())
    wire.wait_connections(0)
    return result


def ask(wire: Wire, model: str, prompt: Any = "Hello there", **options: Any) -> Any:
    """The whole answer, streamed."""

    async def use(manager: ProviderManager) -> Any:
        return await (await manager.generate_response(prompt, model, **options))

    return with_manager(wire, use)


def ask_whole(wire: Wire, model: str, prompt: Any = "Hello there", **options: Any) -> Any:
    """The answer by the call that does not stream."""

    async def use(manager: ProviderManager) -> Any:
        return await manager.generate_response(prompt, model, stream=False, **options)

    return with_manager(wire, use)


def test_an_answer_streams_piece_by_piece(wire: Wire) -> None:
    """Each delta arrives while the server still holds the next one back."""
    script = wire.script("gated", deltas=["a", "b", "c"], gates="every")

    async def use(manager: ProviderManager) -> list[str]:
        pieces = []
        script.release()
        stream = await manager.generate_response("Hi", "gated")
        async for piece in stream:
            pieces.append(piece)
            script.release()
        assert (stream.state, stream.finish_reason, stream.text) == ("complete", "stop", "abc")
        return pieces

    assert with_manager(wire, use) == ["a", "b", "c"]


def test_what_is_sent_is_what_was_asked(wire: Wire) -> None:
    """Messages, parameters and options reach the server; what the SDK does not know goes into the body."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    options = {"seed": 3, "stop": "x", "top_p": 0.9, "tools": [TOOL], "top_k": 5, "extra_body": {"min_p": 0.1}}

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response(messages, "ok", **options))
        await manager.generate_response(messages, "ok", max_tokens=7, temperature=0.5, stream=False)

    with_manager(wire, use)
    streamed, whole = (request.body for request in wire.requests)
    assert streamed == {
        "model": "ok", "messages": messages, "max_tokens": 4000, "temperature": 0.0, "seed": 3, "stop": ["x"],
        "top_p": 0.9, "tools": [TOOL], "top_k": 5, "min_p": 0.1, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert (whole["max_tokens"], whole["temperature"], whole["stream"]) == (7, 0.5, False)
    assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_schema_is_sent_in_the_form_that_the_router_takes(wire: Wire, call: Callable[..., Any]) -> None:
    """The SDK would rewrite it into TGI's own form for every base URL, where nobody else reads it."""
    schema = {"title": "A b", "type": "object", "properties": {"x": {"type": ["integer", "null"], "default": None}}}
    call(wire, "ok", schema=schema)
    assert wire.requests[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "A_b", "schema": schema, "strict": True},
    }


def test_who_serves_and_who_pays_can_be_said(wire: Wire) -> None:
    """By option or by setting; a model that names who serves it already keeps that."""
    ask(wire, "ok", provider="together", bill_to="us")

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response("Hi", "ok"))
        await (await manager.generate_response("Hi", "ok:groq"))

    with_manager(wire, use, provider="fastest", bill_to="them")
    assert [request.body["model"] for request in wire.requests] == ["ok:together", "ok:fastest", "ok:groq"]
    assert [request.headers["x-hf-bill-to"] for request in wire.requests] == ["us", "them", "them"]


def test_images_go_as_parts_and_other_files_are_refused(wire: Wire) -> None:
    """An image is a `data:` URL; a PDF raises before anything is sent."""
    ask(wire, "ok", [Message("user", "Look", attachments=(Attachment("image/png", b"\x89PNG"),))])
    assert wire.requests[0].body["messages"][0]["content"] == [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
    ]
    with pytest.raises(errors.InvalidRequestError, match="takes no application/pdf"):
        ask(wire, "ok", [Message("user", "Look", attachments=(Attachment("application/pdf", b"%PDF"),))])
    assert len(wire.requests) == 1


def test_both_forms_of_a_call_give_the_same_answer(wire: Wire) -> None:
    """Streamed or whole: text, reasoning, usage, reason and tool calls agree, what the SDK does not know included."""
    wire.script("cached", reasoning=["Hm."], usage=Usage(9, 5, cached=4, reasoning=2))

    async def use(manager: ProviderManager) -> list[Any]:
        answers = []
        for model in ("ok", "tools", "length", "cached", "nousage"):
            streamed = await (await manager.generate_response("Hi", model))
            whole = await manager.generate_response("Hi", model, stream=False)
            for name in ("usage", "finish_reason", "tool_calls", "reasoning"):
                assert getattr(streamed, name) == getattr(whole, name)
            assert str(streamed) == str(whole)
            assert whole.raw["choices"]
            answers.append(whole)
        return answers

    ok, tools, length, cached, _ = with_manager(wire, use)
    assert (ok.usage.input_tokens, ok.usage.output_tokens) == (1, 10)
    assert tools.tool_calls == (ToolCall("call_1", "get_weather", '{"city": "Paris"}'),)
    assert tools.finish_reason == "tool_calls"
    assert length.finish_reason == "length"
    assert (cached.reasoning, cached.usage.cached_tokens, cached.usage.reasoning_tokens) == ("Hm.", 4, 2)


def test_events_are_typed_and_end_with_the_reason(wire: Wire) -> None:
    """Reasoning and text come apart; TGI's own words for a reason are understood."""
    wire.script("m", reasoning=["Let me ", "think."], deltas=["Yes"], finish="eos_token")

    async def use(manager: ProviderManager) -> tuple[list[Any], Any]:
        stream = await manager.generate_response("Hi", "m")
        return [event async for event in stream.events()], stream

    events, stream = with_manager(wire, use)
    kinds = [type(event) for event in events if not isinstance(event, UsageUpdate)]
    assert list(dict.fromkeys(kinds)) == [ReasoningDelta, TextDelta, Finish]
    assert (stream.reasoning, stream.text, stream.finish_reason) == ("Let me think.", "Yes", "stop")


@pytest.mark.parametrize("model", ["markdown", "split", "crlf", "burst-300", "nofinish", "nodone", "nousage"])
def test_every_way_of_writing_a_stream_gives_the_same_text(wire: Wire, model: str) -> None:
    """Cut within characters, CRLF and comments, one single write, no reason or no `[DONE]`: the answer is whole."""
    script = scenario(model)
    assert script is not None
    answer = ask(wire, model)
    assert answer == "".join(script.answer({}))
    assert answer.state == "complete"


FAULTS: list[tuple[str, dict[str, Any], type[errors.NbllmError], dict[str, Any]]] = [
    ("401", {"status": 401}, errors.AuthenticationError, {"status": 401, "retryable": False}),
    ("402", {"status": 402, "reason": "insufficient_quota"}, errors.QuotaExceededError, {"status": 402}),
    ("403", {"status": 403}, errors.PermissionDeniedError, {"status": 403}),
    ("404", {"status": 404}, errors.ModelNotFoundError, {"status": 404}),
    ("model 400", {"status": 400, "reason": "model_not_found"}, errors.ModelNotFoundError, {"status": 400}),
    ("429", {"status": 429, "retry_after": 7}, errors.RateLimitError, {"retry_after": 7.0, "retryable": True}),
    ("429 bare", {"status": 429}, errors.RateLimitError, {"retry_after": None}),
    ("quota", {"reason": "insufficient_quota"}, errors.QuotaExceededError, {"status": 429, "retryable": False}),
    ("400", {"reason": "invalid_request"}, errors.InvalidRequestError, {"status": 400}),
    ("422 context", {"status": 422, "reason": "context_length_exceeded"}, errors.ContextLengthError, {"status": 422}),
    ("424", {"status": 424, "reason": "server_error"}, errors.ServerError, {"status": 424, "retryable": True}),
    ("500", {"status": 500}, errors.ServerError, {"status": 500, "retryable": True}),
    ("503", {"status": 503}, errors.OverloadedError, {"status": 503, "retryable": True}),
    ("529", {"status": 529}, errors.OverloadedError, {"status": 529}),
    ("cut", {"fault": "cut"}, errors.IncompleteStreamError, {"text": "tok0 tok1 tok2 tok3 tok4 "}),
    ("drop", {"fault": "drop"}, errors.ConnectionError, {"phase": "stream"}),
    ("reset", {"fault": "reset"}, errors.ConnectionError, {"phase": "stream"}),
    ("malformed", {"fault": "malformed"}, errors.ResponseFormatError, {}),
    ("error event", {"fault": "error_event"}, errors.ServerError, {}),
    ("overloaded", {"fault": "error_event", "reason": "overloaded", "status": 200}, errors.OverloadedError, {}),
    ("not SSE", {"fault": "not_sse"}, errors.ResponseFormatError, {}),
    ("empty", {"fault": "empty"}, errors.ResponseFormatError, {}),
    ("closed", {"fault": "close"}, errors.ConnectionError, {"phase": "open"}),
    ("stall", {"fault": "stall"}, errors.TimeoutError, {"phase": "stream"}),
    ("hang", {"fault": "hang"}, errors.TimeoutError, {"phase": "open"}),
]


@pytest.mark.parametrize(("script", "kind", "fields"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS])
def test_every_fault_is_the_right_error_and_keeps_the_text(
    wire: Wire, script: dict[str, Any], kind: type[errors.NbllmError], fields: dict[str, Any]
) -> None:
    """Refusals, broken streams, silence: an error of its own type, with a next action; the text so far is kept."""
    # A reset throws away what was not read yet: the server waits for the reader.
    gated = script.get("fault") == "reset"
    wired = wire.script("m", **script, gates=(5,) if gated else ())
    if script.get("status") == 200:  # the reason is the error event's
        wired.status = 200
    streams = []

    async def use(manager: ProviderManager) -> None:
        stream = manager.start("Hi", "m")
        streams.append(stream)
        async for _ in stream:
            if gated and stream.text.endswith("tok4 "):
                wired.release()

    with pytest.raises(kind) as caught:
        with_manager(wire, use, timeout=0.5)
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, errors.ProviderError)
    assert (error.provider, error.model) == (NAME, "m")
    assert error.action
    assert {name: getattr(error, name) for name in fields} == fields
    assert error.request_id or not wire.requests[0].status >= 400
    in_stream = {"cut", "drop", "reset", "malformed", "error_event", "stall"}
    assert streams[0].text == ("tok0 tok1 tok2 tok3 tok4 " if script.get("fault") in in_stream else "")
    assert streams[0].state == ("incomplete" if kind is errors.IncompleteStreamError else "failed")
    assert KEY not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (503, {"error": "Model m is currently loading", "estimated_time": 20.5}, errors.OverloadedError, "loading"),
        (422, {"error": "Template error: x", "error_type": "template_error"}, errors.InvalidRequestError, "Template"),
        (400, {"error": ["Error in `stop`", "too long"]}, errors.InvalidRequestError, "Error in `stop` too long"),
        (413, {"detail": "Body too big"}, errors.InvalidRequestError, "Body too big"),
        (502, b"<html>Bad gateway</html>", errors.ServerError, "Bad gateway"),
    ],
)
@pytest.mark.parametrize("call", [ask, ask_whole])
def test_each_form_of_an_errors_body_is_worded_by_the_server(
    wire: Wire, status: int, body: Any, kind: type[errors.ProviderError], words: str, call: Callable[..., Any]
) -> None:
    """The router passes on what inference providers, TGI and the older API say; a model that loads says how long."""
    wire.script("m", status=status, body=body if isinstance(body, bytes) else json.dumps(body).encode())
    with pytest.raises(kind, match=words) as caught:
        call(wire, "m")
    assert caught.value.status == status
    if isinstance(caught.value, errors.OverloadedError):
        assert caught.value.retry_after == 20.5


@pytest.mark.parametrize(
    ("event", "kind", "status"),
    [
        ({"error": "Input validation error: x", "error_type": "validation"}, errors.InvalidRequestError, None),
        ({"error": {"message": "Out", "http_status_code": 422}}, errors.InvalidRequestError, 422),
        ({"error": {"message": "Slow down", "code": 429}}, errors.RateLimitError, 429),
    ],
)
def test_an_error_within_a_stream_is_told_by_what_it_says(
    wire: Wire, event: Any, kind: type[errors.ProviderError], status: int | None
) -> None:
    """TGI's types and the status that an error names stand for the status that a stream no longer has."""
    wire.script("m", body=f"data: {json.dumps(event)}\n\n".encode(), headers=SSE)
    with pytest.raises(kind) as caught:
        ask(wire, "m")
    assert caught.value.status == status


@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_model_that_breaks_off_is_an_error(wire: Wire, call: Callable[..., Any]) -> None:
    """`error` for a reason to finish is no answer that is complete."""
    wire.script("m", finish="error")
    with pytest.raises(errors.ServerError, match="broke off"):
        call(wire, "m")


@pytest.mark.parametrize("body", [b"5", b"<html></html>", b'{"choices": [{"index": 0}]}', b'{"choices": 5}'])
def test_a_completion_that_is_none_is_named(wire: Wire, body: bytes) -> None:
    """A server that answers with something else than a completion is told from one that answers."""
    wire.script("m", body=body)
    with pytest.raises(errors.ResponseFormatError):
        ask_whole(wire, "m")


@pytest.mark.parametrize("call", [ask, ask_whole])
def test_a_silent_server_is_given_up_in_either_form(wire: Wire, call: Callable[..., Any]) -> None:
    """The SDK wraps a timeout in an error of its own; the setting `timeout` is ours."""

    async def use(manager: ProviderManager) -> None:
        await manager.generate_response("Hi", "hang", stream=call is ask)

    with pytest.raises(errors.TimeoutError, match=r"0\.3 s"):
        with_manager(wire, use, timeout=0.3)


def test_models_are_listed_live_with_what_is_known_of_them(wire: Wire) -> None:
    """Of those who serve a model now, the smallest window and the highest price; of a bare list, the names."""
    wire.script("org/one")

    async def use(manager: ProviderManager) -> dict[str, Any]:
        return {model.id: model for model in await manager.models()}

    one = with_manager(wire, use)["org/one"]
    assert (one.provider, one.context_window, one.input_price, one.output_price) == (NAME, 32768, 0.2, 0.5)
    assert one.input_modalities == ("text", "image")
    assert one.details["providers"][0]["supports_tools"] is True
    assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"

    wire.script("/models", body=b'{"object": "list", "data": [{"id": "tgi", "object": "model"}]}')
    tgi = with_manager(wire, use, base_url=wire.url + "/huggingface")["tgi"]
    assert (tgi.context_window, tgi.input_price, tgi.input_modalities) == (None, None, None)


@pytest.mark.parametrize("body", [b"<html></html>", b'{"object": "list"}', b"5", b'{"data": [5]}'])
def test_a_list_of_models_that_is_none_is_named(wire: Wire, body: bytes) -> None:
    """A base URL that leads to something else is said."""
    wire.script("/models", body=body)

    async def use(manager: ProviderManager) -> None:
        await manager.get_available_models()

    with pytest.raises(errors.ResponseFormatError, match="no list of models"):
        with_manager(wire, use)


@pytest.mark.parametrize("refused", ["temperature", "max_tokens"])
def test_a_default_that_a_model_refuses_is_dropped_and_what_the_caller_set_is_not(wire: Wire, refused: str) -> None:
    """The second try goes without our default; a value of the caller's own is an error that names it."""
    wire.script("m", rejects=[refused])
    assert ask(wire, "m")
    assert [request.status for request in wire.requests] == [400, 200]
    assert refused not in wire.requests[-1].body
    with pytest.raises(errors.InvalidRequestError, match=refused) as caught:
        ask(wire, "m", **{refused: 1})
    assert caught.value.param == refused


def test_connections_are_kept_and_leaving_the_stream_closes_the_socket(wire: Wire) -> None:
    """Ten answers come over one connection; `async with`, `cancel` and a cancelled task each close theirs."""

    async def use(manager: ProviderManager) -> None:
        for _ in range(5):
            await (await manager.generate_response("Hi", "ok"))
            await manager.generate_response("Hi", "ok", stream=False)
        assert wire.connections == 1

        async with await manager.generate_response("Hi", "slow") as stream:
            async for _ in stream:
                break
        assert stream.state == "interrupted"
        wire.wait_closed(1)

        stream = await manager.generate_response("Hi", "slow")
        stream.cancel()
        assert [piece async for piece in stream] == []
        wire.wait_closed(2)

        task = asyncio.create_task(manager.start("Hi", "hang").collect())
        await asyncio.to_thread(wire.wait_requests, 13)
        task.cancel()
        await asyncio.wait([task])
        wire.wait_closed(3)

    with_manager(wire, use)


def test_the_users_own_calls_of_huggingface_hub_are_left_alone(wire: Wire) -> None:
    """While an answer streams and afterwards, the process's client factory is the user's; so is offline mode for it."""
    import httpx2
    from huggingface_hub import AsyncInferenceClient, get_async_session, set_async_client_factory
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils._http import default_async_client_factory

    made = []

    def factory() -> httpx2.AsyncClient:
        made.append(default_async_client_factory())
        return made[-1]

    script = wire.script("gated", gates=(0,))

    async def use(manager: ProviderManager) -> None:
        stream = await manager.generate_response("Hi", "gated")
        await asyncio.to_thread(script.wait_gate)
        assert made == []  # nothing of ours went through it
        async with get_async_session():
            assert len(made) == 1
        async with AsyncInferenceClient(base_url=wire.base(NAME), api_key="x") as client:
            with pytest.raises(OfflineModeIsEnabled):
                await client.chat_completion([{"role": "user", "content": "Hi"}], model="ok")
        script.release()
        assert await stream
        async with get_async_session():
            assert len(made) == 3

    set_async_client_factory(factory)
    try:
        with_manager(wire, use)
    finally:
        set_async_client_factory(default_async_client_factory)
    assert len(wire.requests) == 1


ROUTER = """
import asyncio, sys
from nbllm import ConfigManager, ProviderManager, errors
from nbllm.providers.huggingface_hosted import HuggingFaceHostedProvider

config = ConfigManager(runtime={"provider": "huggingface-hosted"})
async def main():
    async with await ProviderManager.create(config) as manager:
        async with manager._pool.lease(manager._spec("huggingface-hosted")) as provider:
            print(provider.base_url, provider.key, repr(provider.settings))
try:
    asyncio.run(main())
except errors.NbllmError as error:
    print(type(error).__name__, error, getattr(error, "retryable", None))
"""


def at_the_router(**environment: str) -> str:
    """What comes of switching to HuggingFace's own router in a process of its own; nothing is sent."""
    env = child_environment(**environment)
    done = subprocess.run([sys.executable, "-c", ROUTER], capture_output=True, text=True, env=env, check=True)
    return done.stdout


def test_offline_mode_and_the_stored_login_hold_at_the_router(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE refuses the router before a key is looked for; else the login is the key, and is shown nowhere."""
    (tmp_path / "token").write_text("hf_stored_login\n")
    stored = {"HF_TOKEN_PATH": str(tmp_path / "token")}
    for key in ({"HF_TOKEN": "hf_x"}, stored, {}):
        said = at_the_router(HF_HUB_OFFLINE="1", **key)
        assert said.startswith("ConnectionError HuggingFace is not asked: HF_HUB_OFFLINE is set. Unset")
        assert said.endswith("False\n")
    said = at_the_router(HF_HUB_OFFLINE="0", **stored)
    assert said.startswith("https://router.huggingface.co/v1 hf_stored_login ")
    assert said.count("hf_stored_login") == 1
    assert at_the_router(HF_HUB_OFFLINE="0", HF_TOKEN="hf_mine", **stored).split()[1] == "hf_mine"
    assert at_the_router(HF_HUB_OFFLINE="0").startswith("MissingKeyError There is no key for HuggingFace. Set HF_TOKEN")


def test_the_stored_login_does_not_go_to_a_base_url_of_ones_own(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key for it, such a server gets none."""
    (tmp_path / "token").write_text("hf_stored_login")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response("Hi", "ok"))
        await manager.generate_response("Hi", "ok", stream=False)
        await manager.models()

    with_manager(wire, use, api_key="")
    assert len(wire.requests) == 3
    assert not [request for request in wire.requests if "hf_stored_login" in str(request.headers)]


def test_nothing_listening_is_said_with_the_address(wire: Wire) -> None:
    """A server that is not running: the error names the address."""
    wire.stop()
    with pytest.raises(errors.ConnectionError, match="cannot be reached at http://127") as caught:
        ask(wire, "ok")
    assert caught.value.phase == "connect"


def test_a_redirect_does_not_carry_the_key_away(wire: Wire) -> None:
    """A server that redirects to another origin gets an error; the other origin hears nothing at all."""
    with Wire() as other:
        wire.script("m", redirect=f"{other.url}/")
        with pytest.raises(errors.PermissionDeniedError, match="not its base URL"):
            ask(wire, "m")
        assert other.requests == []


def test_an_unknown_model_is_answered_with_the_closest(wire: Wire) -> None:
    """A mistyped model name gets the names that are nearly it."""
    wire.script("org/large")
    with pytest.raises(errors.ModelNotFoundError) as caught:
        ask(wire, "org/lrge")
    assert caught.value.action is not None
    assert "org/large" in caught.value.action
