"""`%llm config`, `%llm alias` and `%llm dealias`: the settings and where each comes from; short names of models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from nbllm.config import ConfigManager
from nbllm.display.safe import safe_text
from nbllm.display.table import Table
from nbllm.errors import ConfigError, UsageError
from nbllm.providers import ProviderSpec
from nbllm.session import get_session
from nbllm.settings import OF_AN_ENDPOINT, TYPES

__all__ = ["alias", "config", "dealias"]

_ALIAS = re.compile(r"\w[\w.-]*")


def config() -> Table:
    """The settings that are set and where each comes from; of a key, only where it is."""
    session = get_session()
    manager = session.manager
    found = manager.config
    files = {"user": str(found.user_file), "project": str(found.project_file), "runtime": "this session"}
    rows: list[list[Any]] = []
    for name, kinds in TYPES.items():
        if dict not in kinds and (layer := found.source(name)):
            rows.append([name, found.get(name), files.get(layer, layer)])
    for name, target in sorted(found.aliases.items()):
        rows.append([f"alias {name}", target, _place(found, name)])
    for name, spec in manager.specs().items():
        rows += [[f"{name} {setting}", value, place] for setting, value, place in _of_provider(found, spec)]
        try:
            place = found.key_place(name, spec.key_variables)
        except ConfigError as exc:
            rows.append([f"{name} key", "cannot be used", exc.message])
        else:
            if place is not None and not spec.local:
                rows.append([f"{name} key", "set", place])
    rows = [[name, _said(found, value), place] for name, value, place in rows]
    note = f"{session.provider}:{session.model} answers. Set for this session: %config LLM.NAME = VALUE; for good: "
    note += str(found.user_file)
    if found.ignored:
        note = f"Not trusted, so ignored: {', '.join(found.ignored)} (%llm trust). {note}"
    return Table(["setting", "value", "from"], rows, note=safe_text(note))


def _of_provider(found: ConfigManager, spec: ProviderSpec) -> Iterator[tuple[str, Any, str]]:
    """What is configured of a provider or an endpoint, as far as nbllm knows the setting; never a key."""
    name = spec.name
    url, layer = found.base_url(name, spec.url_variables)
    own = found.provider(name)
    place = f"[{'endpoints' if name in found.endpoints else 'providers'}.{name}]"
    if url is not None:
        yield "base_url", url, layer if layer in ("environment", "runtime") else place
    for setting, value in own.items():
        if setting not in ("base_url", "api_key"):
            yield setting, value if setting in OF_AN_ENDPOINT else "set", place


def _said(found: ConfigManager, value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found.redact(text)


def alias(name: str | None = None, target: str | None = None) -> Table | None:
    """Show the short names, or make one for this session.

    Raises:
        UsageError: where the name cannot be a short name, or its target is missing.
        ConfigError: where the target names no model.
    """
    manager = get_session().manager
    found = manager.config
    if name is None:
        rows = [[known, model, _place(found, known)] for known, model in sorted(found.aliases.items())]
        return Table(["alias", "model", "from"], rows, note="" if rows else "There is none: %llm alias NAME MODEL")
    if target is None:
        raise UsageError(f"%llm alias {name} names no model.", action=f"Write %llm alias {name} MODEL.")
    if name.lower() in manager.specs():
        raise UsageError(
            f"{name} is a provider's name, which no alias can take.", action="Choose another name, such as fast."
        )
    if not _ALIAS.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be an alias.", action="Take letters, digits, points, hyphens and underscores."
        )
    if target == name:
        raise UsageError(f"{name} cannot stand for itself.", action=f"Write %llm alias {name} provider:MODEL.")
    provider, model = manager.resolve(target)  # raises where it names none
    if target not in found.aliases and target.lower() not in manager.specs():
        target = f"{provider}:{model}"  # a bare name would be another model once another provider is current
    found.alias(name, target)
    print(safe_text(f"{name} is {target} in this session. For good: [aliases] in {found.user_file}"))
    return None


def dealias(name: str) -> None:
    """Forget a short name of this session.

    Raises:
        UsageError: where there is none, or a file says it.
    """
    found = get_session().manager.config
    if name not in found.aliases:
        known = ", ".join(sorted(found.aliases))
        raise UsageError(
            f"There is no alias {name}.", action=f"There are: {known}." if known else "There is none at all."
        )
    if found.source("aliases", name) != "runtime":
        raise UsageError(f"{name} is an alias of {_place(found, name)}.", action="Take it out there.")
    found.alias(name, None)
    left = found.aliases.get(name)
    print(
        safe_text(f"{name} is {left} again, from {_place(found, name)}." if left else f"{name} is no alias any more.")
    )


def _place(found: ConfigManager, name: str) -> str:
    layer = found.source("aliases", name)
    return {"user": str(found.user_file), "project": str(found.project_file)}.get(str(layer), "this session")
