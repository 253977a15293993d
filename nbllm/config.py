"""Where settings come from, which of them a project may set, and where its keys may go.

Layers, the later one wins: defaults < user TOML < the user's `keys.toml` (keys only) < project `nbllm.toml` < keyring
(keys only) < environment < what `%llm key` was told in this session < runtime. The project's file lies in the working
folder or a folder above it and may have come with a cloned repository, so it is somebody else's: it may set models,
parameters and aliases (`settings.PROJECT_MAY_SET`), and everything else in it is ignored until the user says
`%llm trust`, which is remembered by the file's hash.
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
from nbllm.key_file import KeyFile, warn_if_loose
from nbllm.keys import Secret
from nbllm.settings import (
    BOOLEANS,
    DEFAULTS,
    ONLY_THE_USERS,
    TYPES,
    check,
    check_value,
    checked_url,
    harmless,
)

__all__ = ["ConfigManager", "ProviderSettings", "Secret", "origin"]

LARGEST: Final = 1 << 20
"""Bytes of a configuration file that are read: somebody else's is not to fill the memory."""


KeyPlace = Literal["session", "keyring", "file"]
"""Where nbllm keeps a key: until the process ends, on the system's keyring, or in the user's `keys.toml`."""


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


_KEY_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)


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
        check(self._runtime, "the arguments")
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
            self._project, self.ignored = harmless(whole)
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
        check({name: value}, "the setting")
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
            return checked_url(url, f"[{self._section(name)}.{name}] base_url"), "runtime"
        own = f"NBLLM_{re.sub('[-.]', '_', name.upper())}_BASE_URL"
        for variable in (own, *url_variables):
            if url := self.environ.get(variable, "").strip():
                return checked_url(url, variable), "environment"
        for layer in ("project", "user"):
            if url := self._of_provider(name, layer).get("base_url"):
                return checked_url(url, f"[{self._section(name)}.{name}] base_url"), layer
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
        check_value(name, found, kinds, f"NBLLM_{name.upper()}")
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
    check(settings, str(path))
    # The place is part of it: trust in one project's file says nothing of a copy of it elsewhere.
    return settings, hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()


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
