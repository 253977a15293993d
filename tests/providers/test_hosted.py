"""What every hosted provider does alike: each real SDK against a server that speaks its protocol, and misbehaves."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.types import ToolCall
from tests.providers.asking import GOOGLE, GOOGLE_LEGACY, HOSTED, HUGGINGFACE, SO_FAR, Asking, Fault, faults
from tests.wire import Wire, scenario

if TYPE_CHECKING:
    from collections.abc import Callable

every_provider = pytest.mark.parametrize("asking", HOSTED.values(), ids=HOSTED)


def of(**values: Any) -> list[Any]:
    """The providers with a value each, or with each of several in a list."""
    return [
        pytest.param(HOSTED[name.replace("_", "-")], value, id=f"{name}-{value}")
        for name, given in values.items()
        for value in (given if isinstance(given, list) else [given])
    ]


@every_provider
def test_an_answer_streams_piece_by_piece(wire: Wire, asking: Asking) -> None:
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

    assert asking.with_manager(wire, use) == ["a", "b", "c"]


RAW: dict[str, Callable[[Any], Any]] = {
    "openai": lambda raw: raw["choices"],
    "responses": lambda raw: raw["id"] == "resp_1",
    "anthropic": lambda raw: raw["type"] == "message",
    "mistral": lambda raw: raw["choices"],
    "google": lambda raw: raw["responseId"],  # which the SDK's own model of it would keep, and much else not
    "google-legacy": lambda raw: isinstance(raw["candidates"][0]["finishReason"], int),
    "huggingface": lambda raw: raw["choices"],
}


@pytest.mark.parametrize("name", HOSTED)
def test_both_forms_of_a_call_give_the_same_answer(wire: Wire, name: str) -> None:
    """Streamed or whole: text, usage, reason, reasoning and tool calls agree."""
    answers = HOSTED[name].both_forms(wire, "ok", "tools", "length")
    ok, tools, length = answers
    assert (ok, ok.finish_reason) == ("".join(f"tok{i} " for i in range(10)), "stop")
    assert (ok.usage.input_tokens, ok.usage.output_tokens, ok.cost) == (1, 10, None)
    assert tools.tool_calls == (ToolCall("call_1", "get_weather", '{"city": "Paris"}'),)
    assert (tools.finish_reason, length.finish_reason) == ("tool_calls", "length")
    assert all(RAW[name](answer.raw) for answer in answers)


@pytest.mark.parametrize("name", [name for name in HOSTED if name != "google-legacy"])  # which tells no thoughts
def test_both_forms_of_a_call_give_the_same_reasoning(wire: Wire, name: str) -> None:
    """What the model thinks comes apart from what it says, in either form."""
    (answer,) = HOSTED[name].both_forms(wire, "reasoning")
    assert answer.reasoning == "Let me think. "
    assert answer.startswith("tok0 ")
    assert RAW[name](answer.raw)


WAYS = ["markdown", "split", "crlf", "burst-300", "nousage"]


@pytest.mark.parametrize(
    ("asking", "model"),
    of(
        openai=[*WAYS, "nofinish", "nodone"],
        responses=WAYS,
        anthropic=[*WAYS, "nofinish"],
        mistral=[*WAYS, "nofinish", "nodone"],
        google=WAYS,
        google_legacy=[way for way in WAYS if way != "crlf"],  # an array has no lines
        huggingface=[*WAYS, "nofinish", "nodone"],
    ),
)
def test_every_way_of_writing_a_stream_gives_the_same_text(wire: Wire, asking: Asking, model: str) -> None:
    """Cut within characters, CRLF and comments, one single write, no reason or no `[DONE]`: the answer is whole."""
    script = scenario(model)
    assert script is not None
    answer = asking.ask(wire, model)
    assert answer == "".join(script.answer({}))
    assert answer.state == "complete"


FAULTS: list[Fault] = [
    ("401", {"status": 401}, errors.AuthenticationError, {"status": 401, "retryable": False}),
    ("403", {"status": 403}, errors.PermissionDeniedError, {"status": 403}),
    ("404", {"status": 404}, errors.ModelNotFoundError, {"status": 404}),
    ("429", {"status": 429, "retry_after": 7}, errors.RateLimitError, {"retry_after": 7.0, "retryable": True}),
    ("429 bare", {"status": 429}, errors.RateLimitError, {"retry_after": None}),
    ("quota", {"reason": "insufficient_quota"}, errors.QuotaExceededError, {"status": 429, "retryable": False}),
    ("400", {"reason": "invalid_request"}, errors.InvalidRequestError, {"status": 400}),
    ("context", {"reason": "context_length_exceeded"}, errors.ContextLengthError, {"status": 400}),
    ("500", {"status": 500}, errors.ServerError, {"status": 500, "retryable": True}),
    ("503", {"status": 503}, errors.OverloadedError, {"status": 503, "retryable": True}),
    ("529", {"status": 529}, errors.OverloadedError, {"status": 529}),
    ("cut", {"fault": "cut"}, errors.IncompleteStreamError, {"text": SO_FAR}),
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


@every_provider
@faults(*FAULTS)
def test_every_fault_is_the_right_error_and_keeps_the_text(
    wire: Wire, asking: Asking, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
) -> None:
    """Refusals, broken streams, silence: an error of its own type, with a next action; the text so far is kept."""
    error = asking.fault(wire, script, kind, fields)
    asked = [request for request in wire.requests if request.model == "m"]
    if asked[-1].status >= 400 and asking not in (GOOGLE, GOOGLE_LEGACY):  # whose answers bear no id
        assert error.request_id == asked[-1].request_id
    if asking is not HUGGINGFACE or kind is not errors.ContextLengthError:  # which is asked again without our default
        assert len(asked) == 1


@every_provider
@pytest.mark.parametrize("model", ["said", "quoted"])
@pytest.mark.parametrize("form", ["ask", "ask_whole"])
def test_a_server_that_quotes_the_key_does_not_get_it_shown(wire: Wire, asking: Asking, model: str, form: str) -> None:
    """Neither the message nor the chain of causes repeats the key."""
    wire.script("said", status=401, message=f"Bad key {asking.key}")
    wire.script("quoted", body=f"<html>{asking.key}</html>".encode())
    with pytest.raises(errors.ProviderError) as caught:
        getattr(asking, form)(wire, model)
    assert asking.key not in "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))


@every_provider
def test_models_are_listed_live(wire: Wire, asking: Asking) -> None:
    """The list is the server's own."""
    wire.script("one")
    wire.script("two")

    async def use(manager: ProviderManager) -> list[str]:
        assert [model.provider for model in await manager.models()][:1] == [asking.provider]
        return await manager.get_available_models()

    assert {"one", "two"} <= set(asking.with_manager(wire, use))


@pytest.mark.parametrize(
    ("asking", "body"),
    of(
        openai=[b"<html></html>", b'{"object": "list"}', b"5"],
        anthropic=[b"<html></html>", b'{"object": "list"}', b"5", b'{"data": [{}]}'],
        mistral=[b"<html></html>", b'{"object": "list"}', b"5"],
        google=[b"<html></html>", b'{"object": "list", "data": []}', b"5", b"[]"],
        huggingface=[b"<html></html>", b'{"object": "list"}', b"5", b'{"data": [5]}'],
    ),
)
def test_a_list_of_models_that_is_none_is_named(wire: Wire, asking: Asking, body: bytes) -> None:
    """A base URL that leads to something else is said, and does not hide the error of a call."""
    wire.script("/models", body=body)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.ModelNotFoundError):
            await manager.generate_response("Hi", "nowhere")
        await manager.get_available_models()

    with pytest.raises(errors.ResponseFormatError, match="no list of models"):
        asking.with_manager(wire, use)


@pytest.mark.parametrize(
    ("asking", "family"),
    of(
        openai="gpt-",
        responses="gpt-",
        anthropic="claude-",
        mistral="mistral-",
        google="gemini-",
        google_legacy="gemini-",
        huggingface="org/",
    ),
)
def test_an_unknown_model_is_answered_with_the_closest(wire: Wire, asking: Asking, family: str) -> None:
    """A mistyped model name gets the names that are nearly it."""
    wire.script(f"{family}large")
    with pytest.raises(errors.ModelNotFoundError, match=f"Did you mean {family}large") as caught:
        asking.ask(wire, f"{family}lrge")
    assert caught.value.action is not None
    assert f"{family}large" in caught.value.action


@pytest.mark.parametrize(
    ("asking", "limit"), of(mistral="max_tokens", google="maxOutputTokens", huggingface="max_tokens")
)
@pytest.mark.parametrize("refused", ["temperature", "max_tokens"])
def test_a_default_that_a_model_refuses_is_dropped_and_what_the_caller_set_is_not(
    wire: Wire, asking: Asking, limit: str, refused: str
) -> None:
    """The second try goes without our default; a value of the caller's own is an error that names it."""
    wire.script("m", rejects=[refused])
    assert asking.ask(wire, "m")
    assert [request.status for request in wire.requests] == [400, 200]
    sent = wire.requests[-1].body
    left = set(sent.get("generationConfig", sent)) - {"model", "messages", "stream", "stream_options"}
    assert left == {"temperature", limit} - {limit if refused == "max_tokens" else refused}
    with pytest.raises(errors.InvalidRequestError, match=refused) as caught:
        asking.ask(wire, "m", **{refused: 1})
    assert caught.value.param == refused


@pytest.mark.parametrize(
    ("asking", "within"), of(openai=1.0, responses=1.0, anthropic=1.0, mistral=1.0, google=0.1, huggingface=1.0)
)
def test_connections_are_kept_and_leaving_the_stream_closes_the_socket(
    wire: Wire, asking: Asking, within: float
) -> None:
    """Ten answers share a connection; `async with`, `cancel`, the last reference and a cancelled task close theirs."""
    threads = set(threading.enumerate())

    async def use(manager: ProviderManager) -> None:
        for _ in range(5):
            await (await manager.generate_response("Hi", "ok"))
            await manager.generate_response("Hi", "ok", stream=False)
        assert wire.connections == 1

        def closed(count: int, since: float) -> None:
            ended = wire.wait_closed(count)[-1].ended
            assert ended is not None
            assert ended - since < within

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

        stream = await manager.generate_response("Hi", "slow")
        assert await anext(aiter(stream))
        left = time.monotonic()
        del stream
        closed(3, left)

        for model, count in (("slow", 4), ("hang", 5)):
            task = asyncio.create_task(manager.start("Hi", model).collect())
            await asyncio.to_thread(wire.wait_requests, 10 + count)
            left = time.monotonic()
            task.cancel()
            await asyncio.wait([task])
            closed(count, left)

    asking.with_manager(wire, use)
    assert all(exchange.sent < 1000 for exchange in wire.requests)
    started = [thread for thread in set(threading.enumerate()) - threads if "nbllm" not in thread.name]
    assert not [thread for thread in started if "asyncio" not in thread.name]


@every_provider
def test_nothing_listening_is_said_with_the_address(wire: Wire, asking: Asking) -> None:
    """A server that is not running is the most common fault of all: the error names the address."""
    wire.stop()
    with pytest.raises(errors.ConnectionError, match="cannot be reached at http://127") as caught:
        asking.ask(wire, "ok")
    assert (caught.value.phase, caught.value.retryable) == ("connect", True)


@every_provider
def test_a_redirect_does_not_carry_the_key_away(wire: Wire, asking: Asking) -> None:
    """A server that redirects to another origin gets an error; the other origin hears nothing at all."""
    with Wire() as other:
        wire.script("m", redirect=f"{other.url}/")
        with pytest.raises(errors.PermissionDeniedError, match="not its base URL"):
            asking.ask(wire, "m")
        assert other.requests == []


@pytest.mark.parametrize(
    ("asking", "variable"),
    of(
        openai="OPENAI_API_KEY",
        anthropic="ANTHROPIC_API_KEY",
        mistral="MISTRAL_API_KEY",
        google="GEMINI_API_KEY",
        google_legacy="GEMINI_API_KEY",
    ),
)
def test_a_missing_key_says_what_to_set(asking: Asking, variable: str) -> None:
    """The service itself needs a key; a server of one's own does not."""
    config = ConfigManager(runtime={"provider": asking.provider})
    with pytest.raises(errors.MissingKeyError, match=variable):
        asyncio.run(ProviderManager.create(config))
