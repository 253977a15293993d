"""The OpenAI provider: the real SDK against a server that speaks the protocol, and misbehaves."""

import asyncio
from typing import Any

import pytest

from nbllm import ProviderManager, errors
from nbllm.types import Finish, ReasoningDelta, TextDelta, UsageUpdate
from tests.providers.asking import OPENAI
from tests.wire import Refusal, Script, Usage, Wire, scenario

KEY = OPENAI.key
with_manager, ask = OPENAI.with_manager, OPENAI.ask


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
