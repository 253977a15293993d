"""The manager: names, switching, requests."""

import asyncio
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbllm import ConfigManager, ProviderManager, errors, keys
from nbllm.manager import Change
from nbllm.providers.mistral import MistralProvider
from nbllm.types import Message
from tests.wire import Wire


def config(wire: Wire | None = None, **settings: Any) -> ConfigManager:
    openai: Mapping[str, Any] = {"base_url": f"{wire.url}/v1", "api_key": "k"} if wire else {"api_key": "k"}
    return ConfigManager(runtime={"providers": {"openai": openai}, **settings})


def test_the_default_is_the_bundled_model_where_no_provider_has_a_key() -> None:
    """Without a key nbllm works all the same; with one, that provider is the default; what is configured wins."""
    bare = ProviderManager(ConfigManager())
    assert (bare.get_current_provider(), bare.get_current_model()) == ("huggingface", "bundled")
    assert ProviderManager(ConfigManager(environ={"OPENAI_API_KEY": "k"})).get_current_provider() == "openai"
    chosen = ProviderManager(config(model="huggingface:some/model"))
    assert (chosen.get_current_provider(), chosen.get_current_model()) == ("huggingface", "some/model")
    assert ProviderManager(config(provider="HuggingFace")).get_current_provider() == "huggingface"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai:gpt-5", ("openai", "gpt-5")),
        ("OpenAI:gpt-5", ("openai", "gpt-5")),
        ("huggingface:org/m:tag", ("huggingface", "org/m:tag")),
        ("llama3:8b", ("openai", "llama3:8b")),
        ("google/gemma-3-1b-it", ("openai", "google/gemma-3-1b-it")),
        ("openai/gpt-oss-20b", ("openai", "openai/gpt-oss-20b")),
        ("HuggingFace", ("huggingface", "bundled")),
        ("fast", ("openai", "gpt-5-nano")),
        ("work:gpt-5", ("openai", "gpt-5")),
        ("loop", ("openai", "loop")),
        ("huggingface:bundled", ("huggingface", "bundled")),
        ("", ("openai", "gpt-5.4-mini")),
    ],
)
def test_a_model_is_named_by_provider_and_colon(name: str, meant: tuple[str, str]) -> None:
    """Split at the first colon where the left side is a provider or an alias; a slash never names a provider."""
    aliases = {
        "fast": "openai:gpt-5-nano",
        "work": "openai",
        "loop": "loop",
        "openai": "huggingface:evil",
        "huggingface:bundled": "openai:gpt",
    }
    assert ProviderManager(config(provider="openai", aliases=aliases)).resolve(name) == meant


def test_switching_is_all_or_nothing(wire: Wire) -> None:
    """A switch that fails leaves the old provider current and usable, and says what to do."""

    async def main() -> None:
        async with await ProviderManager.create(
            ConfigManager(environ={"NBLLM_OPENAI_BASE_URL": f"{wire.url}/v1"})
        ) as own:
            await own.set_model("openai:ok")
            with pytest.raises(errors.ConfigError, match="There is no provider 'opnai'") as caught:
                await own.switch_llm_provider("opnai")
            assert "Did you mean openai?" in str(caught.value)
            own.config.set("providers", {"openai": {"base_url": "https://api.openai.com/v1"}})
            with pytest.raises(errors.MissingKeyError):
                await own.set_model("openai:gpt-5")
            own.config.set("providers", None)
            assert (own.get_current_provider(), own.get_current_model()) == ("openai", "ok")
            assert await (await own.generate_response("Hi"))

    asyncio.run(main())


def test_a_default_that_cannot_be_used_does_not_keep_from_switching(wire: Wire) -> None:
    """What the environment names wrongly is left behind by switching to what is there."""
    own = ProviderManager(config(wire, provider="opnai"))

    async def main() -> None:
        with pytest.raises(errors.ConfigError, match="opnai"):
            await own.generate_response("Hi")
        await own.switch_llm_provider("openai:ok")
        assert (own.get_current_provider(), own.get_current_model()) == ("openai", "ok")
        assert await (await own.generate_response("Hi"))
        await own.close()

    asyncio.run(main())


def test_a_configured_model_outlives_a_switch_before_the_first_call(wire: Wire) -> None:
    """The model that the configuration names is its provider's from the beginning."""
    own = ProviderManager(config(wire, model="openai:mine"))

    async def main() -> None:
        await own.switch_llm_provider("openai")
        assert own.get_current_model() == "mine"
        await own.close()

    asyncio.run(main())


def test_a_provider_under_construction_is_in_nobody_elses_way(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a library takes seconds; calls to a provider that is built go on meanwhile."""
    monkeypatch.setenv("MISTRAL_API_KEY", "key-0123456789")
    own, building, go_on = ProviderManager(config(wire)), threading.Event(), threading.Event()
    build = MistralProvider.build

    def slowly(self: MistralProvider) -> None:
        building.set()
        go_on.wait(10)
        build(self)

    monkeypatch.setattr(MistralProvider, "build", slowly)

    async def main() -> None:
        await (await own.generate_response("Hi", "openai:ok"))
        switching = asyncio.create_task(own.switch_llm_provider("mistral"))
        await asyncio.to_thread(building.wait, 10)
        async with asyncio.timeout(5):
            assert await (await own.generate_response("Hi", "openai:ok"))
        assert not switching.done()
        go_on.set()
        await switching
        await own.close()

    asyncio.run(main())


def test_the_keyring_is_not_asked_on_the_loop(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may ask the user to unlock it, for minutes: other answers stream meanwhile."""
    asked_on: list[str] = []

    def get_password(service: str, name: str) -> None:
        asked_on.append(threading.current_thread().name)

    monkeypatch.setattr("keyring.get_password", get_password)
    keys.forget_lookups()
    own = ProviderManager(config(wire, provider="openai", cache="auto", budget=1.0))

    async def main() -> None:
        for use in (own.generate_response("Hi", "mistral:m"), own.models("google"), own.set_provider("anthropic")):
            with pytest.raises(errors.NbllmError):
                await use
        await own.close()

    asyncio.run(main())
    assert len(asked_on) >= 3
    assert "nbllm" not in asked_on


def test_closing_closes_the_cache(wire: Wire, tmp_path: Path) -> None:
    """What the manager opened it closes: no descriptor of the cache is left."""
    place = tmp_path / "cache.sqlite"
    own = ProviderManager(config(wire, provider="openai", cache="auto", cache_place=str(place)))

    async def main() -> None:
        await (await own.generate_response("Hi", "ok"))
        await own.close()

    asyncio.run(main())
    assert place.exists()
    assert str(place) not in {file.path for file in psutil.Process().open_files()}


def test_the_old_provider_drains_before_it_closes(wire: Wire) -> None:
    """A stream that runs while the provider is switched away from goes on to its end."""
    script = wire.script("m", deltas=["a", "b"], gates=[1])

    async def main() -> str:
        async with await ProviderManager.create(config(wire, provider="openai")) as own:
            stream = await own.generate_response("Hi", "m")
            await own.switch_llm_provider("HUGGINGFACE")
            assert own.get_current_provider() == "huggingface"
            script.release()
            text = await stream
            wire.wait_connections(0)  # and its client is closed then, though the manager is not
            return text

    assert asyncio.run(main()) == "ab"


def test_first_calls_at_once_share_one_client(wire: Wire) -> None:
    """Eight calls before anything is built: one provider, and after closing no connection."""

    async def main() -> None:
        async with ProviderManager(config(wire, provider="openai")) as own:
            await asyncio.gather(*(own.generate_response("Hi", "ok", stream=False) for _ in range(8)))
            assert len(own._pool) == 1
        await asyncio.to_thread(wire.wait_connections, 0)

    asyncio.run(main())


def test_a_connection_is_kept_for_the_next_call(wire: Wire) -> None:
    """Calls one after the other do not pay for a new connection each."""

    async def main() -> None:
        async with ProviderManager(config(wire, provider="openai")) as own:
            for _ in range(5):
                await (await own.generate_response("Hi", "ok"))

    asyncio.run(main())
    assert len({request.connection for request in wire.requests}) == 1


def test_closing_stops_what_still_streams(wire: Wire) -> None:
    """Leaving `async with` leaves nothing behind: a stream that still runs is stopped and its socket closed."""

    async def main() -> str:
        async with ProviderManager(config(wire, provider="openai")) as own:
            stream = await own.generate_response("Hi", "slow")
            assert await anext(stream)
        assert stream.ended.done()
        return stream.state

    assert asyncio.run(main()) == "interrupted"
    wire.wait_closed(1)
    wire.wait_connections(0)


def test_an_alias_of_a_model_can_be_switched_to(wire: Wire) -> None:
    """`switch_llm_provider` takes what `set_model` takes: an alias of a model, and of a provider."""

    async def main() -> None:
        async with ProviderManager(config(wire, aliases={"fast": "openai:ok", "work": "openai"})) as own:
            await own.switch_llm_provider("fast")
            assert (own.get_current_provider(), own.get_current_model()) == ("openai", "ok")
            await own.switch_llm_provider("work:slow")
            assert own.get_current_model() == "slow"

    asyncio.run(main())


def test_a_provider_that_does_not_close_keeps_no_other_open(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Closing goes on after a failure, which is logged."""

    async def main() -> None:
        own = ProviderManager(config(wire, provider="openai"))
        await (await own.generate_response("Hi", "ok"))
        await own.get_available_models("huggingface")
        own._pool._slots["huggingface"].provider.aclose = lambda: asyncio.sleep("no")  # type: ignore[method-assign, arg-type]
        await own.close()

    asyncio.run(main())
    wire.wait_connections(0)
    assert "did not close" in caplog.text


def test_an_alias_cannot_stand_in_a_providers_way() -> None:
    """A cloned project's alias that bears a provider's name does not send a local prompt to a hosted model."""
    aliases = {"huggingface": "openai", "huggingface:bundled": "openai:gpt"}

    async def main() -> None:
        async with await ProviderManager.create(config(provider="huggingface", aliases=aliases)) as own:
            await own.switch_llm_provider("huggingface:bundled")
            await own.set_model("huggingface:bundled")
            assert (own.get_current_provider(), own.get_current_model()) == ("huggingface", "bundled")
            with pytest.raises(errors.ConfigError, match="names no model"):
                await own.set_model("openai:")

    asyncio.run(main())


def test_each_provider_remembers_its_model(wire: Wire) -> None:
    """Switching away and back finds the model that was set."""

    async def main() -> None:
        async with ProviderManager(config(wire)) as own:
            await own.set_model("openai:one")
            await own.set_provider("huggingface")
            assert own.get_current_model() == "bundled"
            await own.set_provider("openai")
            assert own.get_current_model() == "one"
            await own.switch_llm_provider("openai:two")
            assert own.get_current_model() == "two"

    asyncio.run(main())


def test_observers_hear_of_every_change(wire: Wire) -> None:
    """Provider, model and parameters; an observer that fails undoes nothing; an ended one hears no more."""
    heard: list[Change] = []

    def broken(change: Change) -> None:
        raise ValueError("mine")

    async def main() -> None:
        async with ProviderManager(config(wire, provider="openai")) as own:
            own.observe(broken)
            end = own.observe(heard.append)
            await own.set_model("one")
            own.set_parameters(temperature=0.5, max_tokens=9)
            end()
            await own.set_model("two")

    asyncio.run(main())
    assert [(change.model, change.temperature, change.max_tokens) for change in heard] == [
        ("one", 0.0, 4000), ("one", 0.5, 9),
    ]  # fmt: skip


def test_parameters_default_to_the_provider_then_the_configuration(wire: Wire, tmp_path: Path) -> None:
    """A call's own value wins over [providers.NAME], and that over the general one."""
    own = ProviderManager(config(wire, provider="openai", max_tokens=100))
    own.config.set("providers", {"openai": {"base_url": f"{wire.url}/v1", "max_tokens": 50}})

    async def main() -> None:
        await (await own.generate_response("Hi", "ok"))
        await (await own.generate_response("Hi", "ok", max_tokens=20))
        await own.close()

    asyncio.run(main())
    assert [request.body["max_tokens"] for request in wire.requests] == [50, 20]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"messages": ""}, "prompt is empty"),
        ({"messages": []}, "prompt is empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, "prompt is empty"),
        ({"messages": {"role": "user"}}, "messages is a dict"),
        ({"messages": 5}, "messages is a int"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\] is no message"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "its content is list"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]}, "'name', which would be lost"),
        ({"messages": "x", "max_tokens": 0}, "max_tokens is 0"),
        ({"messages": "x", "max_tokens": True}, "max_tokens is True"),
        ({"messages": "x", "temperature": 3}, "temperature is 3"),
        ({"messages": "x", "temperature": "hot"}, "temperature is 'hot'"),
    ],
)
def test_arguments_that_make_no_request_are_refused_before_anything_is_sent(
    wire: Wire, arguments: dict[str, Any], said: str
) -> None:
    """Each mistake is named, with what to do."""
    own = ProviderManager(config(wire, provider="openai"))
    with pytest.raises(errors.UsageError, match=said) as caught:
        own.start(**arguments)
    assert caught.value.action
    assert wire.requests == []


def test_a_conversation_may_be_messages_of_ours(wire: Wire) -> None:
    """`Message` objects and dicts are as good as each other."""
    own = ProviderManager(config(wire, provider="openai"))

    async def main() -> None:
        await (await own.generate_response([Message("user", "a"), {"role": "assistant", "content": "b"}], "ok"))
        await own.close()

    asyncio.run(main())
    assert [message["content"] for message in wire.requests[0].body["messages"]] == ["a", "b"]


@pytest.mark.parametrize(
    "form", [str, lambda text: [Message("user", text)], lambda text: [{"role": "user", "content": text}]]
)
def test_half_a_character_in_a_prompt_is_no_crash(wire: Wire, form: Any) -> None:
    """A lone surrogate, as a cut emoji leaves it, is replaced in whatever form the prompt is given."""
    own = ProviderManager(config(wire, provider="openai"))

    async def main() -> None:
        await (await own.generate_response(form("a\ud83d"), "ok"))
        await own.close()

    asyncio.run(main())
    assert wire.requests[0].body["messages"][0]["content"] == "a\ufffd"


def test_it_works_from_two_loops_and_many_threads(wire: Wire) -> None:
    """One manager serves any number of event loops: each `asyncio.run` has one of its own."""
    own = ProviderManager(config(wire, provider="openai"))
    found: list[str] = []

    async def ask() -> None:
        found.append(await (await own.generate_response("Hi", "ok")))

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(ask())
    assert len(set(found)) == 1
    assert len(found) == 9
    asyncio.run(own.close())
    wire.wait_connections(0)


def test_a_forked_child_makes_clients_of_its_own(wire: Wire) -> None:
    """A worker process made by fork can go on asking, and the parent's connections stay whole."""
    own = ProviderManager(config(wire, provider="openai"))
    assert asyncio.run(_text(own)) == "tok0 tok1 "
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child's lines are not measured
        try:
            os.write(writing, asyncio.run(_text(own)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 100) == b"tok0 tok1 "
    os.close(reading)
    os.waitpid(pid, 0)
    assert asyncio.run(_text(own)) == "tok0 tok1 "
    asyncio.run(own.close())


async def _text(own: ProviderManager) -> str:
    return await (await own.generate_response("Hi", "ok-2"))


def test_closing_twice_and_using_it_again_is_fine(wire: Wire) -> None:
    """A closed manager makes new clients when it is used again."""
    own = ProviderManager(config(wire, provider="openai"))
    for _ in range(2):
        assert asyncio.run(_text(own))
        asyncio.run(own.close())
        asyncio.run(own.close())
    wire.wait_connections(0)


def test_cancelling_before_the_answer_begins_closes_the_request(wire: Wire) -> None:
    """A `generate_response` that is cancelled while the server is silent leaves no request behind."""

    async def main() -> None:
        async with ProviderManager(config(wire, provider="openai")) as own:
            for stream in (True, False):
                task = asyncio.create_task(own.generate_response("Hi", "hang", stream=stream))
                await asyncio.to_thread(wire.wait_requests, 1 + (not stream))
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                await asyncio.to_thread(wire.wait_closed, 1 + (not stream))

    asyncio.run(main())
