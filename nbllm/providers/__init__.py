"""Which providers there are: a table of strings, and what other packages register.

A third party registers its provider under the entry-point group `nbllm.providers`, the entry's name being the
provider's and its value a `ProviderSpec`.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from nbllm.errors import ConfigError

if TYPE_CHECKING:
    from nbllm.providers.base import Provider

__all__ = ["BUILT_IN", "ProviderSpec", "model_revision", "provider_class", "registry"]


logger = logging.getLogger("nbllm.providers")


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """What is known of a provider without importing it.

    Attributes:
        name: Its registered name, in lower case.
        label: Its name to show.
        target: Its class, as `module:Class`.
        default_model: The model to use where none is set.
        key_variables: Environment variables that may hold its key; empty where it needs none.
        url_variables: Its SDK's environment variables for the base URL.
        local: Whether the model runs on this machine.
        revision: As `module:function`, what tells one state of a model's files from another, called with its name; for
            the identity of a request to a model that may change under its name.
        endpoint: Whether it is one of the configuration's `[endpoints.NAME]`. One with no key variables needs no key.
    """

    name: str
    label: str
    target: str
    default_model: str
    key_variables: tuple[str, ...] = ()
    url_variables: tuple[str, ...] = ()
    local: bool = False
    revision: str = ""
    endpoint: bool = False


BUILT_IN = (
    ProviderSpec(
        name="openai",
        label="OpenAI",
        target="nbllm.providers.openai:OpenAIProvider",
        default_model="gpt-5.4-mini",
        key_variables=("OPENAI_API_KEY",),
        url_variables=("OPENAI_BASE_URL",),
    ),
    ProviderSpec(
        name="anthropic",
        label="Anthropic",
        target="nbllm.providers.anthropic:AnthropicProvider",
        default_model="claude-haiku-5-5",
        key_variables=("ANTHROPIC_API_KEY",),
        url_variables=("ANTHROPIC_BASE_URL",),
    ),
    ProviderSpec(
        name="mistral",
        label="Mistral",
        target="nbllm.providers.mistral:MistralProvider",
        default_model="mistral-small-latest",
        key_variables=("MISTRAL_API_KEY",),
    ),
    ProviderSpec(
        name="google",
        label="Google",
        target="nbllm.providers.google:GoogleProvider",
        default_model="gemini-3.8-flash",
        key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        url_variables=("GOOGLE_GEMINI_BASE_URL",),
    ),
    ProviderSpec(
        name="huggingface-hosted",
        label="HuggingFace (hosted)",
        target="nbllm.providers.huggingface_hosted:HuggingFaceHostedProvider",
        default_model="openai/gpt-oss-20b",
        key_variables=("HF_TOKEN",),
    ),
    ProviderSpec(
        name="google-legacy",
        label="Google (google-generativeai)",
        target="nbllm.providers.google_legacy:GoogleLegacyProvider",
        default_model="gemini-3.8-flash",
        key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    ProviderSpec(
        name="huggingface",
        label="HuggingFace (this machine)",
        target="nbllm.providers.huggingface:HuggingFaceProvider",
        default_model="bundled",
        local=True,
        revision="nbllm.local.load:revision",
    ),
)


@cache
def registry() -> dict[str, ProviderSpec]:
    """Every provider by name; a plug-in cannot take the name of one that is there, and with it that one's key."""
    found = {spec.name: spec for spec in BUILT_IN}
    for entry in entry_points(group="nbllm.providers"):
        try:
            spec = entry.load()
        except Exception:
            logger.exception("the provider %s of %s cannot be loaded", entry.name, entry.value)
            continue
        if not isinstance(spec, ProviderSpec) or spec.name in found:
            logger.error("%s registers no provider of its own under the name %s", entry.value, entry.name)
            continue
        found[spec.name] = spec
    return found


def model_revision(spec: ProviderSpec, model: str) -> str | None:
    """What tells one state of the model from another, for a provider whose models may change under their names."""
    if not spec.revision:
        return None
    module, _, name = spec.revision.partition(":")
    found: str | None = getattr(importlib.import_module(module), name)(model)
    return found


def provider_class(spec: ProviderSpec) -> type[Provider]:
    """Import the provider's class; its SDK is imported when it is built.

    Raises:
        ConfigError: where the target is not there or is no provider.
    """
    from nbllm.providers.base import Provider

    module, _, name = spec.target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(
            f"The provider {spec.name} cannot be imported from {spec.target}: {exc}.",
            action="Reinstall the package that registers it.",
        ) from exc
    if not (isinstance(found, type) and issubclass(found, Provider)):
        raise ConfigError(
            f"{spec.target} is not a nbllm.providers.base.Provider.",
            action="Correct the entry point of the package that registers it.",
        )
    return found
