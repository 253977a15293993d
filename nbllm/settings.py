"""What may be set, what each setting may hold, and what of it a project may set that nobody has said to trust."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from nbllm import keys
from nbllm.errors import ConfigError
from nbllm.key_file import shown
from nbllm.keys import Secret

__all__ = [
    "BOOLEANS",
    "DEFAULTS",
    "OF_AN_ENDPOINT",
    "ONLY_THE_USERS",
    "PROJECT_MAY_SET",
    "TYPES",
    "check",
    "check_value",
    "checked_url",
    "harmless",
]

DEFAULTS: Final[Mapping[str, Any]] = {
    "max_tokens": 4000,
    "temperature": 0.0,
    "timeout": 300.0,
    "max_retries": 2,
    "retry_deadline": 60.0,
    "cache": "auto",
    "cache_place": "user",
    "unknown_prices": "refuse",
    "log": "on",
    "log_content": False,
}

PROJECT_MAY_SET: Final = frozenset({"provider", "model", "max_tokens", "temperature", "aliases", "cache"})
PROJECT_MAY_SET_OF_A_PROVIDER: Final = frozenset({"model", "max_tokens", "temperature"})

ONLY_THE_USERS: Final = frozenset({"log", "log_content"})
"""What no project sets, trusted or not: whether somebody's prompts are written to disk is theirs to say."""

OF_A_PROVIDER: Final[Mapping[str, tuple[type, ...]]] = {
    "model": (str,),
    "base_url": (str,),
    "api_key": (str, Secret),
    "api_key_env": (str,),
    "max_tokens": (int,),
    "temperature": (int, float),
    "timeout": (int, float),
}
"""What the settings of `[providers.NAME]` that nbllm itself reads may hold."""

OF_AN_ENDPOINT: Final[Mapping[str, tuple[type, ...]]] = {
    **OF_A_PROVIDER,
    "kind": (str,),
    "label": (str,),
    "api": (str,),
    "ends_by": (str,),
    "usage_option": (bool,),
}
"""Every setting of `[endpoints.NAME]`: an OpenAI-compatible server under a name of the user's own."""

CHOICES_OF_AN_ENDPOINT: Final[Mapping[str, tuple[str, ...]]] = {
    "api": ("chat", "responses"),
    "ends_by": ("event", "close"),
}
"""What a setting of an endpoint may say that takes one of a few words."""

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "max_tokens": (1, 2**31),
    "temperature": (0, 2),
    "timeout": (0.001, 86_400),
    "max_retries": (0, 20),
    "retry_deadline": (0, 86_400),
    "budget": (0, 1e9),
}
"""The least and the most of a number."""

CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "cache": ("auto", "on", "off"),
    "unknown_prices": ("refuse", "allow"),
    "log": ("on", "off"),
}
"""What a setting may say that takes one of a few words."""

TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "provider": (str,),
    "model": (str,),
    "max_tokens": (int,),
    "temperature": (int, float),
    "timeout": (int, float),
    "system": (str,),
    "max_retries": (int,),
    "retry_deadline": (int, float),
    "fallback": (list,),
    "cache": (str,),
    "cache_place": (str,),
    "budget": (int, float),
    "unknown_prices": (str,),
    "prices": (dict,),
    "log": (str,),
    "log_content": (bool,),
    "aliases": (dict,),
    "providers": (dict,),
    "endpoints": (dict,),
}
"""Every top-level setting and what it may hold."""

BOOLEANS: Final[Mapping[str, bool]] = {
    "1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip
"""How the environment says yes and no."""


_ENDPOINT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")


def check(settings: Mapping[str, Any], where: str) -> None:
    """Refuse what cannot be used. The values themselves are never said: one of them may be a key."""
    for name, value in settings.items():
        if name not in TYPES:
            raise ConfigError(
                f"{where}: there is no setting {name!r}.", action=f"The settings are: {', '.join(sorted(TYPES))}."
            )
        check_value(name, value, TYPES[name], where)
    for model in settings.get("fallback", ()):
        check_value("fallback", model, (str,), where)
    for model, table in settings.get("prices", {}).items():
        check_value(f"[prices] {model}", table, (dict,), where)
        for kind, price in table.items():
            check_value(f"[prices.{model}] {kind}", price, (int, float), where)
    for alias, target in settings.get("aliases", {}).items():
        check_value(f"[aliases] {alias}", target, (str,), where)
    _check_providers(settings.get("providers", {}), where)
    for endpoint, table in settings.get("endpoints", {}).items():
        check_value(f"[endpoints] {endpoint}", table, (dict,), where)
        _check_endpoint(endpoint, table, where)


def _check_providers(providers: dict[str, Any], where: str) -> None:
    for provider in [name for name in providers if name != name.lower()]:  # in any case, as everywhere
        providers.setdefault(provider.lower(), providers.pop(provider))
    for provider, table in providers.items():
        check_value(f"[providers] {provider}", table, (dict,), where)
        for name, value in table.items():
            kinds = OF_A_PROVIDER.get(name)
            if kinds:
                check_value(f"[providers.{provider}] {name}", value, kinds, where)
            if name == "api_key" and not isinstance(value, Secret):
                table[name] = keys.checked(value, f"{where}: [providers.{provider}] api_key")


def _check_endpoint(endpoint: str, table: dict[str, Any], where: str) -> None:
    if not _ENDPOINT_NAME.fullmatch(endpoint):
        raise ConfigError(
            f"{where}: no endpoint can be named {endpoint!r}.",
            action="Name it with small letters, digits, points, hyphens and underscores.",
        )
    for name, value in table.items():
        if name not in OF_AN_ENDPOINT:
            raise ConfigError(
                f"{where}: [endpoints.{endpoint}] has no setting {name!r}.",
                action=f"Its settings are: {', '.join(sorted(OF_AN_ENDPOINT))}.",
            )
        check_value(f"[endpoints.{endpoint}] {name}", value, OF_AN_ENDPOINT[name], where)
        if value not in CHOICES_OF_AN_ENDPOINT.get(name, (value,)):
            wanted = " or ".join(CHOICES_OF_AN_ENDPOINT[name])
            raise ConfigError(f"{where}: [endpoints.{endpoint}] {name} must be {wanted}.", action="Correct it.")
        if name == "api_key" and not isinstance(value, Secret):
            table[name] = keys.checked(value, f"{where}: [endpoints.{endpoint}] api_key")


def check_value(name: str, value: object, kinds: tuple[type, ...], where: str) -> None:
    """Refuse a value of the wrong type or out of its range.

    Raises:
        ConfigError: which names the setting and `where` it stands, and never the value.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{where}: {name} must be {wanted}, not {type(value).__name__}.", action="Correct it.")
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"{where}: {name} must be {' or '.join(CHOICES[name])}.", action="Correct it.")
    low, high = RANGES.get(name.rpartition(" ")[2], (None, None))
    if isinstance(value, (int, float)) and low is not None and high is not None and not low <= value <= high:
        raise ConfigError(f"{where}: {name} must be from {low:g} to {high:g}.", action="Correct it.")


def checked_url(url: str, where: str) -> str:
    """The URL, which is a plain http or https one.

    Raises:
        ConfigError: where it is not.
    """
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        plain = plain and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        plain = False
    if not plain:  # it is not said: it may hold a password
        raise ConfigError(
            f"{where} is not a plain http or https URL.", action="Give one such as http://localhost:8000/v1."
        )
    return url


def harmless(settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a file that is not trusted may set, and the names of the rest. An allow-list: what is new is refused."""
    allowed = {name: value for name, value in settings.items() if name in PROJECT_MAY_SET}
    ignored = [name for name in settings if name not in PROJECT_MAY_SET and name != "providers"]
    for provider, table in settings.get("providers", {}).items():
        kept = {name: value for name, value in table.items() if name in PROJECT_MAY_SET_OF_A_PROVIDER}
        # The names are the file's own words and are shown in terminals.
        ignored += [shown(f"providers.{provider}.{name}") for name in table if name not in kept]
        if kept:
            allowed.setdefault("providers", {})[provider] = kept
    return allowed, tuple(ignored)
