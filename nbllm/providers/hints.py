"""What can be said of an error beyond the provider's words: which model, which provider or which key it is about."""

from __future__ import annotations

import asyncio
import contextlib
import difflib

from nbllm import errors
from nbllm.config import ConfigManager
from nbllm.errors import NbllmError
from nbllm.providers import ProviderSpec
from nbllm.providers.base import Provider
from nbllm.providers.endpoints import specs_of
from nbllm.providers.mapping import model_not_found

__all__ = ["add_hint"]


async def add_hint(
    error: NbllmError, provider: Provider, spec: ProviderSpec, model: str, config: ConfigManager
) -> None:
    """Name in the error's action what was likely meant, where that can be told.

    Args:
        error: What ended the call.
        provider: Who was asked.
        spec: Its spec.
        model: The model that was asked for.
        config: The configuration that names the providers and keeps the keys.
    """
    with contextlib.suppress(Exception):  # a hint is not worth a second error
        if isinstance(error, (errors.ModelNotFoundError, errors.ModelLoadError)):
            if (meant := _provider_meant(model, specs_of(config))) is not None:
                error.action = meant
            elif isinstance(error, errors.ModelNotFoundError):
                async with asyncio.timeout(5):
                    model_not_found(error, [listed.id for listed in await provider.list_models()])
        elif isinstance(error, errors.AuthenticationError):
            place = config.key_place(spec.name, spec.key_variables)
            if place not in (None, *spec.key_variables):
                error.action = f"The key that was refused is that of {place}. {error.action or ''}".strip()


def _provider_meant(model: str, known: dict[str, ProviderSpec]) -> str | None:
    """What to do about a model whose name begins much like that of a provider: `opnai:gpt-5`."""
    left, colon, right = model.partition(":")
    close = difflib.get_close_matches(left.lower(), known, n=1, cutoff=0.75) if colon else []
    return f"Did you mean {close[0]}:{right}? The providers are: {', '.join(known)}." if close else None
