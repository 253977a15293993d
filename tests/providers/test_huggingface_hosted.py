"""The HuggingFace hosted provider: the real SDK against a server that speaks the router's and TGI's protocol."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbllm import ProviderManager, errors
from nbllm.types import Attachment, Finish, Message, ReasoningDelta, TextDelta, UsageUpdate
from tests.isolation import child_environment
from tests.providers.asking import HUGGINGFACE, SSE, Fault, faults
from tests.wire import Usage, Wire

NAME = "huggingface-hosted"
KEY = HUGGINGFACE.key
with_manager, ask, ask_whole = HUGGINGFACE.with_manager, HUGGINGFACE.ask, HUGGINGFACE.ask_whole
TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {}}}


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


def test_both_forms_tell_what_the_sdk_does_not_know(wire: Wire) -> None:
    """What the SDK does not know is told in both forms: reasoning, cached tokens, or no usage."""
    wire.script("cached", reasoning=["Hm."], usage=Usage(9, 5, cached=4, reasoning=2))
    cached, silent = HUGGINGFACE.both_forms(wire, "cached", "nousage")
    assert cached.raw["choices"]
    assert silent.raw["choices"]
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


FAULTS: list[Fault] = [
    ("402", {"status": 402, "reason": "insufficient_quota"}, errors.QuotaExceededError, {"status": 402}),
    ("model 400", {"status": 400, "reason": "model_not_found"}, errors.ModelNotFoundError, {"status": 400}),
    ("422 context", {"status": 422, "reason": "context_length_exceeded"}, errors.ContextLengthError, {"status": 422}),
    ("424", {"status": 424, "reason": "server_error"}, errors.ServerError, {"status": 424, "retryable": True}),
    ("overloaded", {"fault": "error_event", "reason": "overloaded", "status": 200}, errors.OverloadedError, {}),
]


@faults(*FAULTS)
def test_what_this_api_alone_does_wrong_is_the_right_error_too(
    wire: Wire, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
) -> None:
    """Beside the faults of every provider (`test_hosted.py`), those that this one words in its own way."""
    error = HUGGINGFACE.fault(wire, script, kind, fields)
    assert error.request_id or not wire.requests[0].status >= 400


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
