"""Where settings come from, which of them a project may set, and where its keys may go.

Layers, the later one wins: defaults < user TOML < the user's `keys.toml` (keys only) < project `nbllm.toml` < keyring
(keys only) < environment < what `%llm key` was told in this session < runtime. The project's file lies in the working
folder or a folder above it and may have come with a cloned repository, so it is somebody else's: it may set models,
parameters and aliases (`PROJECT_MAY_SET`), and everything else in it is ignored until the user says `%llm trust`, which
is remembered by the file's hash.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import platformdirs

from nbllm import keys
from nbllm.errors import ConfigError, UntrustedConfigError
from nbllm.key_file import KeyFile, shown, warn_if_loose
from nbllm.keys import Secret

__all__ = ["ConfigManager", "ProviderSettings", "Secret", "origin"]

DEFAULTS: Final[Mapping[str, Any]] = {
    "max_tokens": 4000,
    "temperature": 0.0,
    "timeout": 300.0,
    "display": "auto",
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

LARGEST: Final = 1 << 20
"""Bytes of a configuration file that are read: somebody else's is not to fill the memory."""

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
    "display": (str,),
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


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """What a provider is built from.

    Attributes:
        name: Its registered name.
        api_key: Its key, where one is configured.
        base_url: Where it is reached, where that is not the SDK's own default.
        base_url_source: Which layer said so: `user`, `project`, `environment`, `runtime`; else `default`. `endpoint`
            for every endpoint: what the environment holds for the SDK is not meant for it.
        timeout: Seconds without a byte after which a call fails.
        label: Its name to show, where it is not the provider's own: an endpoint's.
        key_variable: What to set its key by, where that is not the provider's own: an endpoint's.
        key_needed: Whether it cannot be used without a key, wherever it is.
        extra: The other settings of `[providers.NAME]`.
    """

    name: str
    api_key: Secret | None = None
    base_url: str | None = None
    base_url_source: str = "default"
    timeout: float = 300.0
    label: str | None = None
    key_variable: str | None = None
    key_needed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


BOOLEANS: Final[Mapping[str, bool]] = {
    "1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip
"""How the environment says yes and no."""

KeyPlace = Literal["session", "keyring", "file"]
"""Where nbllm keeps a key: until the process ends, on the system's keyring, or in the user's `keys.toml`."""

_KEY_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)

_ENDPOINT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")


def origin(url: str) -> str:
    """The origin of a URL (RFC 6454): scheme, host and port, the port always named."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{port}"


class ConfigManager:
    """The merged settings, and the `nbllm` logger.

    Args:
        user_file: The user's TOML; by default `config.toml` in the platform's configuration folder.
        project_file: The project's `nbllm.toml`; by default the nearest one at or above the working folder.
        environ: The environment; by default the process's, read anew at each look.
        runtime: Settings that win over all others.

    Raises:
        ConfigError: where a file cannot be read or a setting has the wrong type.
    """

    def __init__(
        self,
        *,
        user_file: Path | None = None,
        project_file: Path | None = None,
        environ: Mapping[str, str] | None = None,
        runtime: Mapping[str, Any] | None = None,
    ) -> None:
        self.logger = logging.getLogger("nbllm")
        self.user_file = user_file or Path(platformdirs.user_config_dir("nbllm", appauthor=False)) / "config.toml"
        self.project_file = project_file or _nearest_project_file(self.user_file)
        self.key_file = KeyFile(self.user_file.with_name("keys.toml"))
        """The keys that nbllm keeps in a file: beside the user's configuration, never the project's."""
        self._environ = environ
        self._runtime: dict[str, Any] = copy.deepcopy(dict(runtime or {}))
        _check(self._runtime, "the arguments")
        self._user: dict[str, Any] = {}
        self._project: dict[str, Any] = {}
        self._project_hash: str | None = None
        self.ignored: tuple[str, ...] = ()
        """Settings of the project's file that are ignored because the file is not trusted."""
        self.reload()

    def reload(self) -> None:
        """Read the files again, and look keys up anew."""
        keys.forget_lookups()
        self._user, _ = _read(self.user_file)
        if any("api_key" in table for table in _tables(self._user).values()):
            warn_if_loose(self.user_file)
        whole, self._project_hash = _read(self.project_file) if self.project_file else ({}, None)
        if self._project_hash is None or self._project_hash in _trusted():
            self._project = {name: value for name, value in whole.items() if name not in ONLY_THE_USERS}
            self.ignored = ()
        else:
            self._project, self.ignored = _harmless(whole)
        if self.ignored:
            self.logger.warning("%s is not trusted; ignored: %s", self.project_file, ", ".join(self.ignored))

    def trust(self) -> Path:
        """Trust the project's file as it is now; a later change to it needs trust again.

        Raises:
            ConfigError: where there is no project file.
        """
        if self.project_file is None:
            raise ConfigError(
                "There is no nbllm.toml in this folder or above it.", action="Nothing needs trust: go on."
            )
        _, found = _read(self.project_file)
        if found != self._project_hash:
            self.reload()
            raise UntrustedConfigError(
                f"{self.project_file} has changed since it was read.",
                action="Look at it, then run %llm trust again.",
            )
        _remember_trust(self.project_file, found)
        self.reload()
        return self.project_file

    def get(self, name: str) -> Any:
        """A top-level setting, or None."""
        return next((settings[name] for _, settings in self._layers(name) if name in settings), None)

    def set(self, name: str, value: Any) -> None:
        """Set a top-level setting for this process; None takes it back.

        Raises:
            ConfigError: where there is no such setting or the value has the wrong type.
        """
        if value is None:
            self._runtime.pop(name, None)
            return
        value = copy.deepcopy(value)
        _check({name: value}, "the setting")
        self._runtime[name] = value

    def source(self, name: str, entry: str | None = None) -> str | None:
        """The layer that a top-level setting, or an entry of its table, comes from; None where it is not set."""
        for layer, settings in self._layers(name):
            if name in settings and (entry is None or entry in settings[name]):
                return layer
        return None

    def alias(self, name: str, target: str | None) -> None:
        """Set a short name of a model for this process; None takes back what was set so.

        Raises:
            ConfigError: where the target is no str.
        """
        own = {known: model for known, model in self._runtime.get("aliases", {}).items() if known != name}
        self.set("aliases", own if target is None else {**own, name: target})

    @property
    def aliases(self) -> dict[str, str]:
        """Short names of models, from every layer."""
        merged: dict[str, str] = {}
        for _, layer in reversed(list(self._layers("aliases"))):
            merged.update(layer.get("aliases", {}))
        return merged

    def provider(self, name: str) -> dict[str, Any]:
        """The merged `[providers.NAME]`, or the merged `[endpoints.NAME]` where the name is an endpoint's."""
        section = self._section(name)
        merged: dict[str, Any] = {}
        for _, layer in reversed(list(self._layers(section))):
            merged.update(layer.get(section, {}).get(name, {}))
        return merged

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The names of all `[endpoints.NAME]`."""
        layers = (self._user, self._project, self._runtime)
        return tuple(dict.fromkeys(name for layer in layers for name in layer.get("endpoints", {})))

    def _section(self, name: str) -> str:
        return "endpoints" if name in self.endpoints else "providers"

    def settings(
        self, name: str, *, key_variables: tuple[str, ...] = (), url_variables: tuple[str, ...] = ()
    ) -> ProviderSettings:
        """What the provider is built from.

        Args:
            name: Its registered name.
            key_variables: Environment variables that may hold its key, the first one set wins.
            url_variables: Those of its SDK that may hold its base URL, after `NBLLM_<NAME>_BASE_URL`.
        """
        extra = self.provider(name)
        base_url, source = self.base_url(name, url_variables)
        timeout = float(extra.pop("timeout", self.get("timeout")))
        for known in ("base_url", "api_key", "api_key_env"):
            extra.pop(known, None)
        return ProviderSettings(
            name=name,
            api_key=self.key(name, key_variables),
            base_url=base_url,
            base_url_source=source,
            timeout=timeout,
            extra=extra,
        )

    def key(self, name: str, variables: tuple[str, ...] = ()) -> Secret | None:
        """The provider's key: runtime, then this session's, environment, keyring, and the files.

        Raises:
            ConfigError: where the key that counts cannot be used as it is.
        """
        for _, key in self._keys(name, variables):
            return keys.note(key, name)
        return None

    def key_place(self, name: str, variables: tuple[str, ...] = (), *, lasting: bool = False) -> str | None:
        """Where the provider's key comes from, in words; `lasting` leaves out what ends with this process.

        Raises:
            ConfigError: where the key that counts cannot be used as it is.
        """
        return next((place for place, _ in self._keys(name, variables, lasting=lasting)), None)

    def _keys(self, name: str, variables: tuple[str, ...], *, lasting: bool = False) -> Iterator[tuple[str, Secret]]:
        """Every key of the provider's and its place, the one that counts first."""
        own = f"[{self._section(name)}.{name}] api_key"
        if not lasting:
            if key := self._of_provider(name, "runtime").get("api_key"):
                yield "the program's own settings", key
            if key := keys.in_session(name):
                yield "this session", key
        named = self.provider(name).get("api_key_env")
        for variable in (*([named] if named else []), *variables):
            if value := self.environ.get(variable, "").strip():
                yield variable, keys.checked(value, variable)
        if key := keys.from_keyring(name):
            yield "the keyring", key
        if key := self._of_provider(name, "project").get("api_key"):
            yield f"{own} of {self.project_file}", key
        if key := self.key_file.find(name):
            yield str(self.key_file.path), key
        if key := self._of_provider(name, "user").get("api_key"):
            yield f"{own} of {self.user_file}", key

    def store_key(self, name: str, key: Secret, place: KeyPlace) -> None:
        """Keep a provider's key. Wherever it is kept, it is used from now on in this process.

        Raises:
            NbllmError: where it cannot be kept there; nothing has changed then.
        """
        if place == "keyring":
            keys.keep_on_keyring(name, key)
        elif place == "file":
            self.key_file.store(name, key)
        keys.keep_in_session(name, key)
        own = self._of_provider(name, "runtime")
        if "api_key" in own:
            own["api_key"] = key  # it would go before the session's

    def forget_key(self, name: str) -> tuple[str, ...]:
        """Let go of a provider's key wherever nbllm keeps it; the places where there was one.

        Raises:
            ConfigError: where it cannot be deleted in one of them; in the others it is.
        """
        gone, failed = [], []
        for place, forget in (
            ("this session", keys.forget_in_session),
            (str(self.key_file.path), self.key_file.forget),
            ("the keyring", keys.forget_on_keyring),
        ):
            try:
                if forget(name):
                    gone.append(place)
            except ConfigError as exc:
                failed.append(exc)
        if failed:
            raise failed[0]
        return tuple(gone)

    def redact(self, text: str) -> str:
        """The text without the keys that are known here: `[NAME]` is in the place of each.

        They are what the environment calls a key, a token or a password, those of the files, those that nbllm keeps,
        and each that was used in this process.
        """
        return self.redactor()(text)

    def redactor(self) -> Callable[[str], str]:
        """The same for many texts: what is known is gathered once, for the moment."""
        known = self._known_keys()
        return lambda text: keys.redacted(text, known)

    def _known_keys(self) -> dict[str, str]:
        known = {**self.key_file.known(), **keys.noted()}
        environ = self.environ
        tables = [_tables(layer) for layer in (self._user, self._project, self._runtime)]
        named = {table["api_key_env"] for layer in tables for table in layer.values() if "api_key_env" in table}
        for name in environ:
            value = environ.get(name, "").strip()
            # Letters alone are no key of any provider, but may be a word: `POSTGRES_PASSWORD=postgres`.
            if name in named or (_names_a_key(name) and not value.isalpha()):
                known[value] = name
        for layer in tables:
            known |= {table["api_key"].reveal(): name for name, table in layer.items() if "api_key" in table}
        return known

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that settings are read from."""
        return os.environ if self._environ is None else self._environ

    def base_url(self, name: str, url_variables: tuple[str, ...] = ()) -> tuple[str | None, str]:
        """Where the provider is reached, None where that is not configured, and which layer says so."""
        if url := self._of_provider(name, "runtime").get("base_url"):
            return _checked_url(url, f"[{self._section(name)}.{name}] base_url"), "runtime"
        own = f"NBLLM_{re.sub('[-.]', '_', name.upper())}_BASE_URL"
        for variable in (own, *url_variables):
            if url := self.environ.get(variable, "").strip():
                return _checked_url(url, variable), "environment"
        for layer in ("project", "user"):
            if url := self._of_provider(name, layer).get("base_url"):
                return _checked_url(url, f"[{self._section(name)}.{name}] base_url"), layer
        return None, "default"

    def _environment(self, name: str) -> dict[str, Any]:
        """What `NBLLM_PROVIDER`, `NBLLM_MAX_TOKENS` and so on say of a setting, where it is one value."""
        kinds = TYPES.get(name, (dict,))
        text = "" if kinds[0] in (dict, list) else self.environ.get(f"NBLLM_{name.upper()}", "").strip()
        if not text:
            return {}
        found: Any = text
        with contextlib.suppress(ValueError):  # refused in the next line, as a file's value of the wrong type is
            found = BOOLEANS.get(text.lower(), text) if bool in kinds else kinds[-1](text)
        _check_value(name, found, kinds, f"NBLLM_{name.upper()}")
        return {name: found}

    def _layers(self, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The layers by their names, the one that counts first: whole, but of the environment only this setting."""
        yield "runtime", self._runtime
        yield "environment", self._environment(name)
        yield "project", self._project
        yield "user", self._user
        yield "default", DEFAULTS

    def _of_provider(self, name: str, layer: str) -> dict[str, Any]:
        layers = {"runtime": self._runtime, "project": self._project, "user": self._user}
        found: dict[str, Any] = layers[layer].get(self._section(name), {}).get(name, {})
        return found


@lru_cache(4096)  # asked of every variable for each prompt
def _names_a_key(variable: str) -> bool:
    return _KEY_NAME.search(variable) is not None


def _tables(layer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables of all providers and endpoints of a layer."""
    return {**layer.get("providers", {}), **layer.get("endpoints", {})}


def _nearest_project_file(user_file: Path) -> Path | None:
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # the working folder was deleted
        return None
    for candidate in (folder, *folder.parents):
        path = candidate / "nbllm.toml"
        if path.is_file() and path != user_file:
            return path
    return None


def _read(path: Path) -> tuple[dict[str, Any], str | None]:
    """The file's settings, checked, and the hash of its bytes and place; `({}, None)` where there is no file."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST)
    except FileNotFoundError:
        return {}, None
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}.", action="Mend its permissions.") from exc
    try:
        settings = tomllib.loads(content.decode("utf-8-sig"))  # Windows' editor writes a byte order mark
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}.", action="Mend that line, or remove the file.") from exc
    _check(settings, str(path))
    # The place is part of it: trust in one project's file says nothing of a copy of it elsewhere.
    return settings, hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()


def _check(settings: Mapping[str, Any], where: str) -> None:
    """Refuse what cannot be used. The values themselves are never said: one of them may be a key."""
    for name, value in settings.items():
        if name not in TYPES:
            raise ConfigError(
                f"{where}: there is no setting {name!r}.", action=f"The settings are: {', '.join(sorted(TYPES))}."
            )
        _check_value(name, value, TYPES[name], where)
    for model in settings.get("fallback", ()):
        _check_value("fallback", model, (str,), where)
    for model, table in settings.get("prices", {}).items():
        _check_value(f"[prices] {model}", table, (dict,), where)
        for kind, price in table.items():
            _check_value(f"[prices.{model}] {kind}", price, (int, float), where)
    for alias, target in settings.get("aliases", {}).items():
        _check_value(f"[aliases] {alias}", target, (str,), where)
    _check_providers(settings.get("providers", {}), where)
    for endpoint, table in settings.get("endpoints", {}).items():
        _check_value(f"[endpoints] {endpoint}", table, (dict,), where)
        _check_endpoint(endpoint, table, where)


def _check_providers(providers: dict[str, Any], where: str) -> None:
    for provider in [name for name in providers if name != name.lower()]:  # in any case, as everywhere
        providers.setdefault(provider.lower(), providers.pop(provider))
    for provider, table in providers.items():
        _check_value(f"[providers] {provider}", table, (dict,), where)
        for name, value in table.items():
            kinds = OF_A_PROVIDER.get(name)
            if kinds:
                _check_value(f"[providers.{provider}] {name}", value, kinds, where)
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
        _check_value(f"[endpoints.{endpoint}] {name}", value, OF_AN_ENDPOINT[name], where)
        if value not in CHOICES_OF_AN_ENDPOINT.get(name, (value,)):
            wanted = " or ".join(CHOICES_OF_AN_ENDPOINT[name])
            raise ConfigError(f"{where}: [endpoints.{endpoint}] {name} must be {wanted}.", action="Correct it.")
        if name == "api_key" and not isinstance(value, Secret):
            table[name] = keys.checked(value, f"{where}: [endpoints.{endpoint}] api_key")


def _check_value(name: str, value: object, kinds: tuple[type, ...], where: str) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{where}: {name} must be {wanted}, not {type(value).__name__}.", action="Correct it.")
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"{where}: {name} must be {' or '.join(CHOICES[name])}.", action="Correct it.")
    low, high = RANGES.get(name.rpartition(" ")[2], (None, None))
    if isinstance(value, (int, float)) and low is not None and high is not None and not low <= value <= high:
        raise ConfigError(f"{where}: {name} must be from {low:g} to {high:g}.", action="Correct it.")


def _checked_url(url: str, where: str) -> str:
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


def _harmless(settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
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


def _trust_file() -> Path:
    return Path(platformdirs.user_data_dir("nbllm", appauthor=False)) / "trusted.json"


def _trusted() -> dict[str, str]:
    try:
        found = json.loads(_trust_file().read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember_trust(path: Path, digest: str | None) -> None:
    if digest is None:
        raise ConfigError(f"{path} is gone.", action="Nothing needs trust: go on.")
    file = _trust_file()
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**_trusted(), digest: str(path.resolve())}, indent=1), "utf-8")
        temporary.replace(file)
    except OSError as exc:
        raise ConfigError(f"{file} cannot be written: {exc.strerror}.", action="Mend its permissions.") from exc
