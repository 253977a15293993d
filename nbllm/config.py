"""Where settings come from, which of them a project may set, and where its keys may go.

Layers, the later one wins: defaults < user TOML < project `nbllm.toml` < keyring (keys only) < environment <
runtime. The project's file lies in the working folder or a folder above it and may have come with a cloned
repository, so it is somebody else's: it may set models, parameters and aliases (`PROJECT_MAY_SET`), and
everything else in it is ignored until the user says `%llm trust`, which is remembered by the file's hash.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import platformdirs

from nbllm.errors import ConfigError, UntrustedConfigError

__all__ = ["ConfigManager", "ProviderSettings", "Secret", "origin"]


class Secret:
    """A key, kept out of every repr, log line and traceback: only `reveal()` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('…')"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a key is not pickled")


DEFAULTS: Final[Mapping[str, Any]] = {
    "max_tokens": 4000,
    "temperature": 0.0,
    "timeout": 300.0,
    "display": "auto",
}

PROJECT_MAY_SET: Final = frozenset({"provider", "model", "max_tokens", "temperature", "aliases"})
PROJECT_MAY_SET_OF_A_PROVIDER: Final = frozenset({"model", "max_tokens", "temperature"})

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

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "max_tokens": (1, 2**31),
    "temperature": (0, 2),
    "timeout": (0.001, 86_400),
}
"""The least and the most of a number."""

TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "provider": (str,),
    "model": (str,),
    "max_tokens": (int,),
    "temperature": (int, float),
    "timeout": (int, float),
    "system": (str,),
    "display": (str,),
    "aliases": (dict,),
    "providers": (dict,),
}
"""Every top-level setting and what it may hold."""


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """What a provider is built from.

    Attributes:
        name: Its registered name.
        api_key: Its key, where one is configured.
        base_url: Where it is reached, where that is not the SDK's own default.
        base_url_source: Which layer said so: `user`, `project`, `environment`, `runtime`; else `default`.
        timeout: Seconds without a byte after which a call fails.
        extra: The other settings of `[providers.NAME]`.
    """

    name: str
    api_key: Secret | None = None
    base_url: str | None = None
    base_url_source: str = "default"
    timeout: float = 300.0
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
        """Read the files again."""
        self._user, _ = _read(self.user_file)
        whole, self._project_hash = _read(self.project_file) if self.project_file else ({}, None)
        if self._project_hash is None or self._project_hash in _trusted():
            self._project, self.ignored = whole, ()
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
        for _, layer in self._layers():
            if name in layer:
                return layer[name]
        return None

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

    @property
    def aliases(self) -> dict[str, str]:
        """Short names of models, from every layer."""
        merged: dict[str, str] = {}
        for _, layer in reversed(list(self._layers())):
            merged.update(layer.get("aliases", {}))
        return merged

    def provider(self, name: str) -> dict[str, Any]:
        """The merged `[providers.NAME]`."""
        merged: dict[str, Any] = {}
        for _, layer in reversed(list(self._layers())):
            merged.update(layer.get("providers", {}).get(name, {}))
        return merged

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
        base_url, source = self._base_url(name, url_variables)
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
        """The provider's key: runtime, then environment, then keyring, then the user's file."""
        if own := self._of_provider(name, "runtime").get("api_key"):
            return _secret(own, f"[providers.{name}] api_key")
        named = self.provider(name).get("api_key_env")
        for variable in (*([named] if named else []), *variables):
            if value := self.environ.get(variable, "").strip():
                return _secret(value, variable)
        if ringed := _from_keyring(name):
            return _secret(ringed, "the keyring")
        for layer in ("project", "user"):
            if own := self._of_provider(name, layer).get("api_key"):
                return _secret(own, f"[providers.{name}] api_key")
        return None

    def redact(self, text: str) -> str:
        """The text without the keys that are known here: what the environment calls a key, and the files' own."""
        known = {value: name for name, value in self.environ.items() if len(value) >= 8 and _KEY_NAME.search(name)}
        for layer in (self._user, self._project, self._runtime):
            for name, table in layer.get("providers", {}).items():
                if key := table.get("api_key"):
                    known[key.reveal()] = name
        for value in sorted(known, key=len, reverse=True):
            text = text.replace(value, f"[{known[value]}]")
        return text

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment that settings are read from."""
        return os.environ if self._environ is None else self._environ

    def _base_url(self, name: str, url_variables: tuple[str, ...]) -> tuple[str | None, str]:
        if url := self._of_provider(name, "runtime").get("base_url"):
            return _checked_url(url, f"[providers.{name}] base_url"), "runtime"
        own = f"NBLLM_{name.upper().replace('-', '_')}_BASE_URL"
        for variable in (own, *url_variables):
            if url := self.environ.get(variable, "").strip():
                return _checked_url(url, variable), "environment"
        for layer in ("project", "user"):
            if url := self._of_provider(name, layer).get("base_url"):
                return _checked_url(url, f"[providers.{name}] base_url"), layer
        return None, "default"

    def _environment(self) -> dict[str, Any]:
        """`NBLLM_PROVIDER`, `NBLLM_MODEL`, `NBLLM_MAX_TOKENS` and so on: the settings that are one value."""
        found: dict[str, Any] = {}
        for name, kinds in TYPES.items():
            text = "" if dict in kinds else self.environ.get(f"NBLLM_{name.upper()}", "").strip()
            if text:
                try:
                    found[name] = kinds[-1](text)
                except ValueError:
                    found[name] = text  # refused in the next line, as a file's value of the wrong type is
                _check_value(name, found[name], kinds, f"NBLLM_{name.upper()}")
        return found

    def _layers(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield "runtime", self._runtime
        yield "environment", self._environment()
        yield "project", self._project
        yield "user", self._user
        yield "default", DEFAULTS

    def _of_provider(self, name: str, layer: str) -> dict[str, Any]:
        layers = {"runtime": self._runtime, "project": self._project, "user": self._user}
        found: dict[str, Any] = layers[layer].get("providers", {}).get(name, {})
        return found


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
    for alias, target in settings.get("aliases", {}).items():
        _check_value(f"[aliases] {alias}", target, (str,), where)
    for provider, table in settings.get("providers", {}).items():
        _check_value(f"[providers] {provider}", table, (dict,), where)
        for name, value in table.items():
            kinds = OF_A_PROVIDER.get(name)
            if kinds:
                _check_value(f"[providers.{provider}] {name}", value, kinds, where)
            if name == "api_key" and not isinstance(value, Secret):
                table[name] = _secret(value, f"{where}: [providers.{provider}] api_key")


def _check_value(name: str, value: object, kinds: tuple[type, ...], where: str) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{where}: {name} must be {wanted}, not {type(value).__name__}.", action="Correct it.")
    low, high = RANGES.get(name.rpartition(" ")[2], (None, None))
    if isinstance(value, (int, float)) and low is not None and high is not None and not low <= value <= high:
        raise ConfigError(f"{where}: {name} must be from {low:g} to {high:g}.", action="Correct it.")


def _secret(value: object, where: str) -> Secret:
    if isinstance(value, Secret):
        return value
    text = str(value).strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"The key in {where} holds a character that no key has: a line break, a space or a curly quote.",
            action="Copy it again.",
        )
    return Secret(text)


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
        ignored += [_shown(f"providers.{provider}.{name}") for name in table if name not in kept]
        if kept:
            allowed.setdefault("providers", {})[provider] = kept
    return allowed, tuple(ignored)


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


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


@cache
def _from_keyring(name: str) -> str | None:
    try:
        import keyring
        import keyring.errors
    except ImportError:  # the extra is optional; without it there is no keyring to ask
        return None
    try:
        found: str | None = keyring.get_password("nbllm", name)
    except keyring.errors.KeyringError:  # locked, or none on this machine: as good as no key there
        return None
    return found
