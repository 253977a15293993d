"""Servers that speak OpenAI's protocol, under names of the user's own: `[endpoints.NAME]` in the configuration.

::

    [endpoints.ollama]                    # a known kind needs nothing more: then ollama:llama3:8b

    [endpoints.lab]                       # any name; then lab:MODEL
    kind = "vllm"
    base_url = "http://gpu7:8000/v1"
    model = "Qwen/Qwen3-8B"               # what lab alone means
    api_key_env = "LAB_KEY"

An endpoint is used as a provider is. What a server does in its own way is a setting: `ends_by = "close"` for one that
sends neither a reason to finish nor `[DONE]`, `usage_option = false` for one that refuses `stream_options`,
`api = "responses"` for the Responses API. `NBLLM_<NAME>_BASE_URL` moves it, as it does a provider.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nbllm.config import ConfigManager, ProviderSettings, origin
from nbllm.errors import ConfigError
from nbllm.providers import ProviderSpec, registry

__all__ = ["PRESETS", "Preset", "settings_of", "specs_of"]

TARGET: Final = "nbllm.providers.openai:OpenAIProvider"


@dataclass(frozen=True, slots=True)
class Preset:
    """What is known of a kind of server.

    Attributes:
        label: Its name to show.
        base_url: Where it listens unless told otherwise.
        key_variable: The environment variable of its key; empty where it mostly wants none.
        model: The model to name where it serves one and does not mind its name.
        quirks: Settings that it needs.
    """

    label: str
    base_url: str
    key_variable: str = ""
    model: str = ""
    quirks: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Final[Mapping[str, Preset]] = {
    "llama.cpp": Preset("llama.cpp", "http://localhost:8080/v1", model="default"),
    "lmstudio": Preset("LM Studio", "http://localhost:1234/v1"),
    "ollama": Preset("Ollama", "http://localhost:11434/v1"),
    "openrouter": Preset("OpenRouter", "https://openrouter.ai/api/v1", key_variable="OPENROUTER_API_KEY"),
    "tgi": Preset("TGI", "http://localhost:8080/v1", model="tgi"),
    "transformers": Preset("transformers serve", "http://localhost:8000/v1"),
    "vllm": Preset("vLLM", "http://localhost:8000/v1"),
}
"""The known kinds, by the name that stands for them as an endpoint's own and as its `kind`."""


def specs_of(config: ConfigManager) -> dict[str, ProviderSpec]:
    """Every provider of this configuration by name: the registered ones, then its endpoints.

    Raises:
        ConfigError: where an endpoint takes a provider's name, is of no known kind, or has no address.
    """
    found = dict(registry())
    for name in config.endpoints:
        if name in found:
            raise ConfigError(
                f"[endpoints.{name}] takes the name of a provider.",
                action=f"Rename it; to move the provider itself, set [providers.{name}] base_url.",
            )
        found[name] = _spec(config, name)
    return found


def settings_of(config: ConfigManager, spec: ProviderSpec) -> ProviderSettings:
    """What the provider, or the endpoint, is built from."""
    settings = config.settings(spec.name, key_variables=spec.key_variables, url_variables=spec.url_variables)
    if not spec.endpoint:
        return settings
    preset = _preset(spec.name, config.provider(spec.name))
    return replace(
        settings,
        base_url=settings.base_url or (preset.base_url if preset else None),
        base_url_source="endpoint",
        label=spec.label,
        key_variable=spec.key_variables[0] if spec.key_variables else f"[endpoints.{spec.name}] api_key",
        key_needed=bool(spec.key_variables),
        extra={**(preset.quirks if preset else {}), **settings.extra},
    )


def _spec(config: ConfigManager, name: str) -> ProviderSpec:
    table = config.provider(name)
    preset = _preset(name, table)
    url = config.base_url(name)[0]
    if preset is None and url is None:
        raise ConfigError(
            f"The endpoint {name} has no address.",
            action=f"Set [endpoints.{name}] base_url, or its kind: {', '.join(PRESETS)}.",
        )
    variables: tuple[str, ...] = ()
    if "api_key_env" in table:
        variables = (table["api_key_env"],)
    elif preset and preset.key_variable and (url is None or origin(url) == origin(preset.base_url)):
        variables = (preset.key_variable,)  # a key of that service is for its own address
    return ProviderSpec(
        name=name,
        label=table.get("label") or (preset.label if preset and name in PRESETS else name),
        target=TARGET,
        default_model=table.get("model") or (preset.model if preset else ""),
        key_variables=variables,
        endpoint=True,
    )


def _preset(name: str, table: Mapping[str, Any]) -> Preset | None:
    kind = table.get("kind")
    if kind is None:
        return PRESETS.get(name)
    if kind not in PRESETS:
        close = difflib.get_close_matches(kind, PRESETS, n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"[endpoints.{name}] kind is not one that is known: {kind!r}.",
            action=f"{hint}There are: {', '.join(PRESETS)}. Any other server needs no kind, only a base_url.",
        )
    return PRESETS[kind]
