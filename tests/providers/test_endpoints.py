"""Named endpoints: OpenAI-compatible servers of the user's own, from the configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from nbllm import ConfigManager, ProviderManager, errors, session
from nbllm.magics.commands import run_command
from nbllm.providers.endpoints import PRESETS, settings_of, specs_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from tests.wire import Wire

T = TypeVar("T")


def configured(
    endpoints: Mapping[str, Any], environ: Mapping[str, str] | None = None, **settings: Any
) -> ConfigManager:
    """A configuration with these endpoints, and nothing of the machine's."""
    runtime = {"cache": "off", "max_retries": 0, **settings, "endpoints": endpoints}
    return ConfigManager(environ=environ or {}, runtime=runtime)


def run(config: ConfigManager, use: Callable[[ProviderManager], Awaitable[T]]) -> T:
    async def main() -> T:
        async with ProviderManager(config) as manager:
            return await use(manager)

    return asyncio.run(main())


def ask(config: ConfigManager, model: str, **options: Any) -> Any:
    """The whole answer, streamed."""

    async def use(manager: ProviderManager) -> Any:
        return await (await manager.generate_response("Hi", model, **options))

    return run(config, use)


KINDS = {
    "ollama": "http://localhost:11434/v1",
    "vllm": "http://localhost:8000/v1",
    "llama.cpp": "http://localhost:8080/v1",
    "tgi": "http://localhost:8080/v1",
    "lmstudio": "http://localhost:1234/v1",
    "transformers": "http://localhost:8000/v1",
    "openrouter": "https://openrouter.ai/api/v1",
}


@pytest.mark.parametrize("kind", PRESETS)
def test_a_known_kind_needs_nothing_more(kind: str) -> None:
    """`[endpoints.ollama]` alone is where Ollama listens; under another name `kind` says the same."""
    config = configured({kind: {}, "other": {"kind": kind}})
    specs = specs_of(config)
    for name in (kind, "other"):
        settings = settings_of(config, specs[name])
        assert (settings.base_url, settings.api_key) == (KINDS[kind], None)
    assert (specs[kind].label, specs["other"].label) == (PRESETS[kind].label, "other")


def test_an_endpoint_is_used_as_a_provider_is(wire: Wire) -> None:
    """It is listed, switched to, named before the first colon, asked for its models; its settings are used."""
    wire.script("llama3:8b")
    own = {"base_url": f"{wire.url}/v1", "model": "ok", "max_tokens": 7, "temperature": 0.5}

    async def use(manager: ProviderManager) -> None:
        assert manager.get_available_providers()[-1] == "my-vllm"
        assert manager.get_current_provider() == "huggingface"
        assert manager.has_key("my-vllm")
        await manager.switch_llm_provider("My-vLLM")
        assert (manager.get_current_provider(), manager.get_current_model()) == ("my-vllm", "ok")
        answer = await (await manager.generate_response("Hi"))
        assert (answer.provider, answer.model) == ("my-vllm", "ok")
        await manager.set_model("my-vllm:llama3:8b")
        answer = await manager.generate_response("Hi", stream=False)
        assert (answer.provider, answer.model) == ("my-vllm", "llama3:8b")
        assert "llama3:8b" in await manager.get_available_models()

    run(configured({"my-vllm": own}, provider="huggingface"), use)
    first, second = wire.requests[:2]
    assert (first.body["max_tokens"], first.body["temperature"]) == (7, 0.5)
    assert second.body["model"] == "llama3:8b"


def test_without_a_key_anywhere_an_endpoint_with_a_model_answers(wire: Wire) -> None:
    """Whoever names a server and its model means to use it; a provider with a key goes before it."""
    own = {"base_url": f"{wire.url}/v1", "model": "ok"}
    endpoints = {"ollama": {}, "own": own}
    assert ProviderManager(configured(endpoints)).resolve() == ("own", "ok")
    assert ProviderManager(configured({"ollama": {}})).resolve()[0] == "huggingface"
    assert ProviderManager(configured(endpoints, {"OPENAI_API_KEY": "sk-1"})).resolve()[0] == "openai"


def test_an_endpoint_without_a_model_says_so_and_changes_nothing() -> None:
    """Ollama has many models: it is used with one of them named."""

    async def use(manager: ProviderManager) -> None:
        for call in (manager.switch_llm_provider, manager.set_model):
            with pytest.raises(errors.ConfigError, match="No model is set") as caught:
                await call("ollama")
            assert "ollama:MODEL" in str(caught.value.action)
        assert manager.get_current_provider() == "huggingface"
        assert manager.resolve("ollama:llama3:8b") == ("ollama", "llama3:8b")

    run(configured({"ollama": {}}, provider="huggingface"), use)


def test_the_environment_moves_an_endpoint(wire: Wire) -> None:
    """`NBLLM_<NAME>_BASE_URL` does for an endpoint what it does for a provider."""
    config = configured({"my.own-one": {}}, {"NBLLM_MY_OWN_ONE_BASE_URL": f"{wire.url}/v1"})
    assert ask(config, "my.own-one:ok")


def test_openais_key_and_headers_do_not_go_to_an_endpoint(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment holds for OpenAI's SDK stays with OpenAI, even where the environment names the address."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "sk-of-openai")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: sk-of-openai")
    monkeypatch.setenv("NBLLM_OWN_BASE_URL", f"{wire.url}/v1")
    assert ask(ConfigManager(runtime={"cache": "off", "endpoints": {"own": {}}}), "own:ok")
    assert "sk-of-openai" not in str(wire.requests[0].headers)


@pytest.mark.parametrize("given", [{"api_key": "sk-own-0123"}, {"api_key_env": "OWN_KEY"}])
def test_an_endpoints_own_key_is_sent_and_never_shown(wire: Wire, given: dict[str, str]) -> None:
    """By itself or by the variable that holds it; it is in no repr, and taken out of what is about to be sent."""
    wire.script("m", key="sk-own-0123")
    config = configured({"own": {"base_url": f"{wire.url}/v1", **given}}, {"OWN_KEY": "sk-own-0123"})
    assert ask(config, "own:m")
    settings = settings_of(config, specs_of(config)["own"])
    assert "sk-own" not in repr(settings) + repr(config.provider("own"))
    assert "sk-own" not in config.redact("my key is sk-own-0123")


def test_a_refused_key_names_the_endpoints_setting(wire: Wire) -> None:
    """The next action is about this endpoint, not about OpenAI."""
    wire.script("m", status=401)
    with pytest.raises(errors.AuthenticationError, match="Lab") as caught:
        ask(configured({"own": {"base_url": f"{wire.url}/v1", "label": "Lab"}}), "own:m")
    assert "[endpoints.own] api_key" in str(caught.value.action)
    assert caught.value.provider == "own"


def test_openrouter_needs_its_key_and_it_goes_nowhere_else(wire: Wire) -> None:
    """Without the key the error names its variable; with it, a server at another address does not get it."""
    with pytest.raises(errors.MissingKeyError, match="OPENROUTER_API_KEY"):
        ask(configured({"openrouter": {}}), "openrouter:m")
    config = configured({"openrouter": {}}, {"OPENROUTER_API_KEY": "sk-router"})
    key = settings_of(config, specs_of(config)["openrouter"]).api_key
    assert key is not None
    assert key.reveal() == "sk-router"
    moved = {"kind": "openrouter", "base_url": f"{wire.url}/v1"}
    assert ask(configured({"mine": moved}, {"OPENROUTER_API_KEY": "sk-router"}), "mine:ok")
    assert "sk-router" not in str(wire.requests[0].headers)


def test_a_variable_that_is_to_hold_the_key_and_does_not_is_named(wire: Wire) -> None:
    """Who says where the key is means that there is one."""
    own = {"base_url": f"{wire.url}/v1", "api_key_env": "OWN_KEY"}
    assert not ProviderManager(configured({"own": own})).has_key("own")
    with pytest.raises(errors.MissingKeyError, match="Set OWN_KEY"):
        ask(configured({"own": own}), "own:ok")


BARE = b'data: {"choices": [{"index": 0, "delta": {"content": "all of it"}}]}\n\n'


def test_a_server_that_just_closes_is_a_setting(wire: Wire) -> None:
    """Neither a reason nor `[DONE]`: incomplete, unless `ends_by` says that this server ends so."""
    wire.script("m", body=BARE)
    own = {"base_url": f"{wire.url}/v1"}
    for ends in ({}, {"ends_by": "event"}):
        with pytest.raises(errors.IncompleteStreamError):
            ask(configured({"own": {**own, **ends}}), "own:m")
    assert ask(configured({"own": {**own, "ends_by": "close"}}), "own:m") == "all of it"


def test_a_server_that_refuses_stream_options_is_a_setting(wire: Wire) -> None:
    """The usage is asked for, unless `usage_option` says that this server does not know the option."""
    wire.script("m", rejects=["stream_options"])
    own = {"base_url": f"{wire.url}/v1"}
    with pytest.raises(errors.InvalidRequestError, match="stream_options"):
        ask(configured({"own": own}), "own:m")
    assert ask(configured({"own": {**own, "usage_option": False}}), "own:m")


def test_an_endpoint_may_speak_responses(wire: Wire) -> None:
    """`api` picks the API of every call to it."""
    assert ask(configured({"own": {"base_url": f"{wire.url}/v1", "api": "responses"}}), "own:ok")
    assert wire.requests[0].path == "/v1/responses"


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("My Server", {"kind": "vllm"}, "no endpoint can be named"),
        ("-own", {"kind": "vllm"}, "no endpoint can be named"),
        ("a:b", {"kind": "vllm"}, "no endpoint can be named"),
        ("own", "http://localhost", "must be dict"),
        ("own", {"base_ulr": "http://localhost:1/v1"}, "has no setting 'base_ulr'"),
        ("own", {"base_url": 5}, "must be str"),
        ("own", {"kind": "vllm", "usage_option": "no"}, "must be bool"),
        ("own", {"kind": "vllm", "ends_by": "magic"}, "must be event or close"),
        ("own", {"kind": "vllm", "api": "assistants"}, "must be chat or responses"),
        ("own", {"kind": "vllm", "max_tokens": 0}, "must be from 1"),
        ("own", {"base_url": "ftp://x"}, "not a plain http or https URL"),
        ("own", {}, "has no address"),
        ("own", {"kind": "vlm"}, "Did you mean vllm"),
        ("openai", {"kind": "vllm"}, "takes the name of a provider"),
        ("huggingface", {"kind": "vllm"}, "takes the name of a provider"),
    ],
)
def test_what_cannot_be_an_endpoint_is_said(name: str, table: Any, said: str) -> None:
    """Names, unknown settings, wrong values, no address, a provider's name: errors that say what to correct."""
    with pytest.raises(errors.ConfigError, match=said) as caught:
        ProviderManager(configured({name: table})).get_available_providers()
    assert caught.value.action


def test_endpoints_of_the_users_file_are_read_and_those_of_a_project_need_trust(tmp_path: Path) -> None:
    """A cloned repository can neither add a server, nor move one, nor give one's key to another."""
    user, project = tmp_path / "config.toml", tmp_path / "nbllm.toml"
    user.write_text('[endpoints.lab]\nbase_url = "http://lab:8000/v1"\napi_key = "sk-lab"\nmodel = "m"\n')
    project.write_text(
        '[endpoints.lab]\nbase_url = "https://evil.example/v1"\n[endpoints.evil]\nbase_url = "https://evil.example/v1"\n'
        'api_key_env = "OPENAI_API_KEY"\n[providers.lab]\nbase_url = "https://evil.example/v1"\nmodel = "n"\n'
    )
    config = ConfigManager(user_file=user, project_file=project, environ={"OPENAI_API_KEY": "sk-1"})
    assert set(config.ignored) == {"endpoints", "providers.lab.base_url"}
    assert config.endpoints == ("lab",)
    spec = specs_of(config)["lab"]
    assert spec.default_model == "m"
    settings = settings_of(config, spec)
    assert (settings.base_url, settings.base_url_source) == ("http://lab:8000/v1", "endpoint")
    config.trust()
    assert config.endpoints == ("lab", "evil")


def test_the_commands_know_endpoints(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """`%llm use`, `%llm models` and `%llm providers` take an endpoint as they take a provider."""
    endpoints = {"lab": {"base_url": f"{wire.url}/v1"}, "router": {"kind": "openrouter"}}
    llm = session.LLM(ProviderManager(configured(endpoints, provider="huggingface")))
    monkeypatch.setattr(session, "_session", llm)
    try:
        run_command("use lab:ok")
        assert (llm.provider, llm.model) == ("lab", "ok")
        assert ["lab:ok", "current"] in [[row[0], row[-1]] for row in run_command("models lab").rows]
        rows = {row[0]: row for row in run_command("providers").rows}
        assert rows["lab"] == ["lab", "lab", "needs none", "current"]
        assert rows["router"] == ["router", "router", "set OPENROUTER_API_KEY", ""]
    finally:
        asyncio.run(llm.manager.close())
