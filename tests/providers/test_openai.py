"""The OpenAI provider: the real SDK against a server that speaks the protocol, and misbehaves."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.types import Finish, ReasoningDelta, TextDelta, ToolCall, UsageUpdate
from tests.wire import Refusal, Script, Usage, Wire, scenario

T = TypeVar("T")

KEY = "sk-test-0123456789"


def with_manager(wire: Wire, use: Callable[[ProviderManager], Awaitable[T]], **openai: Any) -> T:
    """Run `use` with a manager whose OpenAI is the wire server; afterwards it holds no connection any more."""
    settings = {"base_url": f"{wire.url}/v1", "api_key": KEY, **openai}
    config = ConfigManager(runtime={"provider": "openai", "providers": {"openai": settings}})

    async def main() -> T:
        async with await ProviderManager.create(config) as manager:
            return await use(manager)

    result = asyncio.run(main())
    wire.wait_connections(0)
    return result


def ask(wire: Wire, model: str, **options: Any) -> Any:
    """The whole answer, streamed."""

    async def use(manager: ProviderManager) -> Any:
        return await (await manager.generate_response("Hello there", model, **options))

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

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response(messages, "ok", seed=3, stop=["x"], top_k=5))
        await manager.generate_response(messages, "ok", max_tokens=7, temperature=0.5, stream=False)

    with_manager(wire, use)
    streamed, whole = (request.body for request in wire.requests)
    assert streamed == {
        "model": "ok", "messages": messages, "max_tokens": 4000, "temperature": 0.0, "seed": 3, "stop": ["x"],
        "top_k": 5, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert (whole["max_tokens"], whole["temperature"], whole.get("stream", False)) == (7, 0.5, False)
    assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_both_forms_of_a_call_give_the_same_answer(wire: Wire) -> None:
    """Streamed or whole: text, usage, reason and tool calls agree."""

    async def use(manager: ProviderManager) -> list[Any]:
        answers = []
        for model in ("ok", "tools", "length"):
            streamed = await (await manager.generate_response("Hi", model))
            whole = await manager.generate_response("Hi", model, stream=False)
            assert (streamed, streamed.usage, streamed.finish_reason) == (
                whole,
                whole.usage,
                whole.finish_reason,
            )
            assert streamed.tool_calls == whole.tool_calls
            assert streamed.reasoning == whole.reasoning
            assert whole.raw["choices"]
            answers.append(whole)
        return answers

    ok, tools, length = with_manager(wire, use)
    assert (ok.usage.input_tokens, ok.usage.output_tokens, ok.cost) == (1, 10, None)
    assert tools.tool_calls == (ToolCall("call_1", "get_weather", '{"city": "Paris"}'),)
    assert tools.finish_reason == "tool_calls"
    assert length.finish_reason == "length"


def test_events_are_typed_and_end_with_the_reason(wire: Wire) -> None:
    """Reasoning and text come apart; the usage names reasoning and cached tokens."""
    wire.script("m", reasoning=["Let me ", "think."], deltas=["Yes"], usage=Usage(9, 5, cached=4, reasoning=2))

    async def use(manager: ProviderManager) -> tuple[list[Any], Any]:
        stream = await manager.generate_response("Hi", "m")
        return [event async for event in stream.events()], stream

    events, stream = with_manager(wire, use)
    kinds = [type(event) for event in events if not isinstance(event, UsageUpdate)]
    assert list(dict.fromkeys(kinds)) == [ReasoningDelta, TextDelta, Finish]
    assert (stream.reasoning, stream.text) == ("Let me think.", "Yes")
    usage = stream.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens) == (
        9,
        5,
        4,
        2,
    )


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
    ("403", {"status": 403}, errors.PermissionDeniedError, {"status": 403}),
    ("404", {"status": 404}, errors.ModelNotFoundError, {"status": 404}),
    (
        "429",
        {"status": 429, "retry_after": 7},
        errors.RateLimitError,
        {"retry_after": 7.0, "retryable": True},
    ),
    ("429 bare", {"status": 429}, errors.RateLimitError, {"retry_after": None}),
    (
        "quota",
        {"reason": "insufficient_quota"},
        errors.QuotaExceededError,
        {"status": 429, "retryable": False},
    ),
    ("400", {"reason": "invalid_request"}, errors.InvalidRequestError, {"status": 400}),
    ("context", {"reason": "context_length_exceeded"}, errors.ContextLengthError, {"status": 400}),
    ("500", {"status": 500}, errors.ServerError, {"status": 500, "retryable": True}),
    ("503", {"status": 503}, errors.OverloadedError, {"status": 503, "retryable": True}),
    ("529", {"status": 529}, errors.OverloadedError, {"status": 529}),
    ("cut", {"fault": "cut"}, errors.IncompleteStreamError, {"text": "tok0 tok1 tok2 tok3 tok4 "}),
    ("drop", {"fault": "drop"}, errors.ConnectionError, {"phase": "stream"}),
    ("reset", {"fault": "reset"}, errors.ConnectionError, {"phase": "stream"}),
    ("malformed", {"fault": "malformed"}, errors.ResponseFormatError, {}),
    ("error event", {"fault": "error_event"}, errors.ServerError, {}),
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
    wire.script("m", **script)
    streams = []

    async def use(manager: ProviderManager) -> None:
        stream = manager.start("Hi", "m")
        streams.append(stream)
        await stream

    with pytest.raises(kind) as caught:
        with_manager(wire, use, timeout=0.5)
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, errors.ProviderError)
    assert (error.provider, error.model) == ("openai", "m")
    assert error.action
    assert {name: getattr(error, name) for name in fields} == fields
    if error.status:
        assert error.request_id
    in_stream = {"cut", "drop", "reset", "malformed", "error_event", "stall"}
    assert streams[0].text == ("tok0 tok1 tok2 tok3 tok4 " if script.get("fault") in in_stream else "")
    assert streams[0].state == ("incomplete" if kind is errors.IncompleteStreamError else "failed")
    assert KEY not in repr(error) + str(error)


def test_the_last_event_may_lack_its_blank_line(wire: Wire) -> None:
    """A server that closes right after `data: [DONE]` has said that it is done."""
    wire.script("m", body=b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\ndata: [DONE]')
    assert ask(wire, "m") == "a"


def test_of_several_choices_the_first_is_the_answer(wire: Wire) -> None:
    """Two answers asked for at once are not mixed into one."""
    chunks = [(0, "one "), (1, "EINS "), (0, "two"), (1, "ZWEI")]
    events = [f'data: {{"choices": [{{"index": {i}, "delta": {{"content": "{text}"}}}}]}}\n\n' for i, text in chunks]
    wire.script("m", body="".join([*events, "data: [DONE]\n\n"]).encode())
    assert ask(wire, "m", n=2) == "one two"


def test_a_completion_without_a_message_is_no_completion(wire: Wire) -> None:
    """A server that answers with something else than a completion is told from one that answers."""
    wire.script("m", body=b'{"choices": [{"index": 0}]}')

    async def use(manager: ProviderManager) -> None:
        await manager.generate_response("Hi", "m", stream=False)

    with pytest.raises(errors.ResponseFormatError, match="no completion"):
        with_manager(wire, use)


@pytest.mark.parametrize("model", ["said", "quoted"])
def test_a_server_that_quotes_the_key_does_not_get_it_shown(wire: Wire, model: str) -> None:
    """Neither the message nor the chain of causes repeats the key."""
    wire.script("said", status=401, message=f"Bad token {KEY}")
    wire.script("quoted", body=f"<html>{KEY}</html>".encode())
    with pytest.raises(errors.ProviderError) as caught:
        ask(wire, model)
    assert KEY not in "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))


def test_what_the_environment_holds_for_the_sdk_stays_at_its_own_address(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers, organization and project of the environment do not go to an address that comes from elsewhere."""
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: secret\nAuthorization: Bearer other")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    assert ask(wire, "ok")
    headers = wire.requests[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert not {"x-gateway", "openai-organization", "openai-project"} & set(headers)


def test_a_proxy_that_cannot_be_is_named(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy variable that httpx cannot use ends in an error of ours."""
    monkeypatch.setenv("HTTP_PROXY", "foo://nowhere")
    with pytest.raises(errors.ConfigError, match="proxy"):
        ask(wire, "ok")


def chunk(delta: str) -> bytes:
    return f'data: {{"choices": [{{"index": 0, "delta": {delta}}}]}}\n\n'.encode()


@pytest.mark.parametrize(
    "delta",
    ['{"content": 5}', '{"reasoning": {"a": 1}}', '{"tool_calls": [{"index": 0, "function": {"arguments": {}}}]}', "5"],
)
def test_a_delta_of_another_shape_is_an_error_and_never_hangs(wire: Wire, delta: str) -> None:
    """Numbers and objects where text belongs: the stream ends with an error."""
    wire.script("m", body=chunk(delta) + b"data: [DONE]\n\n")
    with pytest.raises(errors.ResponseFormatError):
        ask(wire, "m")


def test_text_may_come_as_a_list_of_parts(wire: Wire) -> None:
    """Some servers send content as parts."""
    wire.script("m", body=chunk('{"content": [{"type": "text", "text": "a"}]}') + b"data: [DONE]\n\n")
    assert ask(wire, "m") == "a"


def test_halves_of_a_character_are_put_together(wire: Wire) -> None:
    """An emoji that JSON splits over two deltas arrives whole, and a lone half does not break anything."""
    body = chunk('{"content": "a\\ud83d"}') + chunk('{"content": "\\ude00b\\ud83d"}') + b"data: [DONE]\n\n"
    wire.script("m", body=body)
    assert ask(wire, "m") == "a😀b�"
    assert ask(wire, "ok", seed=1)


@pytest.mark.parametrize("body", [b"<html></html>", b'{"object": "list"}', b"5"])
def test_a_list_of_models_that_is_none_is_named(wire: Wire, body: bytes) -> None:
    """A base URL that leads to something else is said, and does not hide the error of a call."""
    wire.script("/models", body=body)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.ModelNotFoundError):
            await manager.generate_response("Hi", "nowhere")
        await manager.get_available_models()

    with pytest.raises(errors.ResponseFormatError, match="no list of models"):
        with_manager(wire, use)


def test_nothing_listening_is_said_with_the_address(wire: Wire) -> None:
    """A local server that is not running is the most common fault of all: the error names the address."""
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


def test_a_missing_key_says_what_to_set() -> None:
    """OpenAI itself needs a key; a server of one's own does not."""
    config = ConfigManager(runtime={"provider": "openai"})
    with pytest.raises(errors.MissingKeyError, match="OPENAI_API_KEY"):
        asyncio.run(ProviderManager.create(config))


@pytest.mark.parametrize(("refused", "left"), [("temperature", {"max_tokens"}), ("max_tokens", {"temperature"})])
def test_a_default_that_a_model_refuses_is_dropped_or_renamed_and_remembered(
    wire: Wire, refused: str, left: set[str]
) -> None:
    """Reasoning models refuse temperature and max_tokens: a second try goes without, the next call at once."""
    wire.script("m", rejects=[refused])

    async def use(manager: ProviderManager) -> None:
        assert await (await manager.generate_response("Hi", "m"))
        assert await manager.generate_response("Hi", "m", stream=False)

    with_manager(wire, use)
    assert [request.status for request in wire.requests] == [400, 200, 200]
    assert refused not in wire.requests[-1].body
    assert left <= set(wire.requests[-1].body)
    if refused == "max_tokens":
        assert wire.requests[-1].body["max_completion_tokens"] == 4000


def test_what_the_caller_set_is_never_dropped(wire: Wire) -> None:
    """A temperature of the caller's own that the model refuses is an error that names it."""
    wire.script("m", rejects=["temperature"])
    with pytest.raises(errors.InvalidRequestError, match="temperature") as caught:
        ask(wire, "m", temperature=0.7)
    assert caught.value.param == "temperature"
    assert len(wire.requests) == 1


def test_an_unknown_model_is_answered_with_the_closest(wire: Wire) -> None:
    """A mistyped model name gets the names that are nearly it."""
    wire.script("gpt-large")
    with pytest.raises(errors.ModelNotFoundError) as caught:
        ask(wire, "gpt-lrge")
    assert caught.value.action is not None
    assert "gpt-large" in caught.value.action


def test_leaving_the_stream_closes_the_socket(wire: Wire) -> None:
    """`async with` closes at its end, `cancel` at once, and dropping the last reference does it too."""

    async def use(manager: ProviderManager) -> None:
        async with await manager.generate_response("Hi", "slow") as stream:
            async for _ in stream:
                break
        assert stream.state == "interrupted"
        wire.wait_closed(1)

        stream = await manager.generate_response("Hi", "slow")
        stream.cancel()
        assert [piece async for piece in stream] == []
        wire.wait_closed(2)

        stream = await manager.generate_response("Hi", "slow")
        assert await anext(aiter(stream))
        del stream
        wire.wait_closed(3)

        task = asyncio.create_task(manager.start("Hi", "hang").collect())
        await asyncio.to_thread(wire.wait_requests, 4)
        task.cancel()
        await asyncio.wait([task])
        wire.wait_closed(4)

    with_manager(wire, use)
    assert all(exchange.sent < 1000 for exchange in wire.requests)


def test_models_are_listed_live(wire: Wire) -> None:
    """The list is the server's own."""
    wire.script("one")
    wire.script("two")

    async def use(manager: ProviderManager) -> list[str]:
        assert [model.provider for model in await manager.models()][:1] == ["openai"]
        return await manager.get_available_models()

    assert {"one", "two"} <= set(with_manager(wire, use))


def test_a_key_that_changes_is_used_from_the_next_call_on(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a refused key the user sets another one and runs the cell again: no restart is needed."""
    wire.script("m", key="sk-right")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{wire.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")

    async def main() -> None:
        async with await ProviderManager.create() as manager:
            with pytest.raises(errors.AuthenticationError, match="OPENAI_API_KEY"):
                await manager.generate_response("Hi", "m")
            monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
            assert await (await manager.generate_response("Hi", "m"))

    asyncio.run(main())


def test_refusals_are_worded_by_the_server(wire: Wire) -> None:
    """The server's own words are in the message, so that nothing it says is lost."""
    wire.script("m", status=400, message="The flux is not capacitated", param="flux")
    with pytest.raises(errors.InvalidRequestError, match="flux is not capacitated") as caught:
        ask(wire, "m")
    assert caught.value.param == "flux"
    assert isinstance(Refusal(400), Refusal)
    assert isinstance(scenario("ok"), Script)


TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 4200 tokens ({})."


@pytest.mark.parametrize(("explicit", "asked"), [({}, 2), ({"max_tokens": 4000}, 1)])
def test_our_length_gives_way_to_a_small_context_window(wire: Wire, explicit: dict[str, int], asked: int) -> None:
    """A model whose window has no room for our default is asked without it, this once; the caller's own stays."""
    said = TOO_LONG.format("200 in the messages, 4000 in the completion")
    wire.script("m", reason="context_length_exceeded", message=said, times=1)

    async def use(manager: ProviderManager) -> None:
        await (await manager.generate_response("Hi", "m", **explicit))
        await (await manager.generate_response("Hi", "m"))

    if explicit:
        with pytest.raises(errors.ContextLengthError):
            with_manager(wire, use)
    else:
        with_manager(wire, use)
        assert not {"max_tokens", "max_completion_tokens"} & set(wire.requests[1].body)
        assert wire.requests[2].body["max_tokens"] == 4000
    assert len(wire.requests) == asked + (not explicit)


def test_a_prompt_that_is_too_long_is_not_sent_again(wire: Wire) -> None:
    """Where it is the prompt that exceeds the window, no other way to send it helps."""
    wire.script("m", reason="context_length_exceeded", message=TOO_LONG.format("max_tokens aside"))
    with pytest.raises(errors.ContextLengthError):
        ask(wire, "m", max_tokens=9)
    assert len(wire.requests) == 1
