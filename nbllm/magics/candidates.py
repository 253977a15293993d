"""What there is to complete: models, providers, chats, files, and the notebook's names, whose code is never run.

Each function gives what may stand in a place, the likeliest first, whatever is typed there already.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import types
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from nbllm.magics import chat, executions, keys, usage
from nbllm.magics.interpolate import is_a
from nbllm.magics.model_lists import ONLY_BY_NAME, ModelLists
from nbllm.session import get_session

__all__ = ["ARGUMENTS", "FREE", "LISTS", "attributes", "drawings", "files", "keys_of", "models", "names", "value_of"]

LISTS: Final = ModelLists()
"""The providers' lists of models in this kernel."""

MOST_FILES: Final = 2000
"""Entries of a folder that are looked at."""


# -- what nbllm knows


def models(typed: str) -> Iterator[str]:
    """Models as `provider:model`, aliases, and providers alone; asks for lists that are missing, for the next time."""
    session = get_session()
    manager = session.manager
    specs, aliases = manager.specs(), manager.config.aliases
    named = typed.partition(":")[0]
    named = aliases.get(named, named).lower()
    if session.trait_has_value("provider") and session.trait_has_value("model"):
        current, model = session.provider, session.model
    else:  # not asked for yet: finding out may take its time
        current, model = LISTS.current(manager) or ("", "")
    LISTS.refresh(manager, [named] if ":" in typed and named in specs else [n for n in specs if n not in ONLY_BY_NAME])
    if current:
        yield f"{current}:{model}"
    yield from aliases
    configured = {
        name: manager.config.provider(name).get("model") or spec.default_model for name, spec in specs.items()
    }
    yield from (f"{name}:{model}" for name, model in configured.items() if model)
    known = sorted(LISTS.known(), key=lambda pair: (pair[0] != current, pair))
    yield from (f"{provider}:{model}" for provider, model in known)
    yield from specs


def _providers(_: str) -> Iterable[str]:
    return get_session().manager.get_available_providers()


def _failed(_: str) -> Iterable[str]:
    return [str(number) for number in sorted(executions.errors(), reverse=True)]


def _aliases(_: str) -> Iterable[str]:
    return get_session().manager.config.aliases


def _jobs(_: str) -> Iterable[str]:
    running = get_session().jobs.running()
    return [*(str(job.number) for job in running), *(["all"] if running else [])]


def _chats(_: str) -> Iterable[str]:
    return list(get_session().chats.names())


def files(typed: str) -> Iterator[str]:
    """Files and folders at what is typed, folders with a slash behind them; hidden ones where a point is typed."""
    folder, _, beginning = typed.rpartition("/")
    folder += "/" if "/" in typed else ""
    try:
        with os.scandir(Path(folder or ".").expanduser()) as entries:
            found = sorted(itertools.islice(entries, MOST_FILES), key=lambda entry: entry.name)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: `~nobody`
        return
    for entry in found:
        if beginning.startswith(".") or not entry.name.startswith("."):
            with contextlib.suppress(OSError):
                yield folder + entry.name + ("/" if entry.is_dir() else "")


# -- what stands behind a command's name


def _words(*words: str) -> Callable[[str], Iterable[str]]:
    return lambda _: words


ARGUMENTS: Final[Mapping[str, Callable[[str], Iterable[str]]]] = {
    "MODEL": models,
    "PROVIDER": _providers,
    "ALIAS": _aliases,
    "alias NAME": _aliases,
    "fix N": _failed,
    "explain N": _failed,
    "CHAT": _chats,
    "chat ACTION": _words(*chat.ACTIONS),
    "chat MORE": _chats,
    "chat fork CHAT": _words(),
    "chat name CHAT": _words(),
    "chat export CHAT": files,
    "chat import CHAT": files,
    "chat save CHAT": _words("on", "off"),
    "stop JOB": _jobs,
    "cache ACTION": _words(*usage.CACHE_ACTIONS),
    "key WHERE": _words(*keys.PLACES),
    "log N": _words("on", "off", "path"),
    "budget USD": _words("off"),
}
"""What an argument of `%llm` may be: by `COMMAND ACTION ARGUMENT`, by `COMMAND ARGUMENT`, or the same everywhere."""

FREE: Final = frozenset[str]()
"""Arguments of which nothing can be said."""


# -- the notebook's names


def names(namespace: Mapping[str, Any], hidden: Container[str]) -> Iterator[str]:
    """The names that a prompt may use: values first, then functions, classes and modules."""
    known = {name: type(value) for name, value in namespace.items() if isinstance(name, str) and name.isidentifier()}
    shown = [name for name in known if name not in hidden]
    yield from sorted(shown, key=lambda name: (issubclass(known[name], _TOOLS), name))
    yield from (name for name in ("In", "Out", "Err") if name in known and name not in shown)


def drawings(namespace: Mapping[str, Any]) -> Iterator[str]:
    """The names of what can be sent along: figures, images, arrays, tables, paths."""
    for name, value in namespace.items():
        if isinstance(name, str) and not name.startswith("_") and not issubclass(type(value), _TOOLS):
            package = str(type(value).__module__).partition(".")[0]
            if package in ("matplotlib", "PIL", "numpy", "pandas", "polars", "pathlib"):
                yield name


def attributes(value: object) -> list[str]:
    """The attributes of a value as far as they stand in itself and its classes."""
    found: dict[str, object] = {}
    for kind in reversed(_MRO(type(value))):
        found |= _VARS(kind)
    if issubclass(type(value), type):
        for kind in reversed(_MRO(value)):
            found |= _VARS(kind)
    found |= _own(value)
    if is_a(value, "pandas", "DataFrame"):
        found |= dict.fromkeys(column for column in keys_of(value) if column.isidentifier())
    # What is no method comes first: plain braces call nothing.
    return sorted((name for name in found if isinstance(name, str)), key=lambda name: (_is_method(found[name]), name))


def keys_of(value: object) -> list[str]:
    """The keys of a dict and the columns of a frame, as far as they are text."""
    keys: Iterable[object] = ()
    if isinstance(value, dict):
        keys = dict.keys(value)
    elif is_a(value, "pandas", "DataFrame") or is_a(value, "polars", "DataFrame"):
        keys = value.columns  # type: ignore[attr-defined]
    # More than a subscript in braces may hold is of no use.
    return [k for k in itertools.islice(keys, 1000) if isinstance(k, str) and len(k) <= 200 and k.isprintable()]


def value_of(namespace: Mapping[str, Any], path: Iterable[str]) -> tuple[object] | None:
    """The value of a dotted name, if it can be had without running a property: in a tuple, or None."""
    first, *rest = path
    if first not in namespace:
        return None
    value: object = namespace[first]
    for name in rest:
        try:
            found = inspect.getattr_static(value, name)
        except AttributeError:
            return None
        if isinstance(found, types.MemberDescriptorType):  # a slot
            try:
                found = found.__get__(value)
            except AttributeError:
                return None
        elif name not in _own(value):
            return None
        value = found
    return (value,)


def _own(value: object) -> dict[str, Any]:
    """What stands in the value itself."""
    for kind in _MRO(type(value)):
        if (found := _VARS(kind).get("__dict__")) is not None:
            if type(found) in (types.GetSetDescriptorType, types.MemberDescriptorType):  # else it is code of the user's
                return dict(found.__get__(value) or {})
            break
    return {}


def _is_method(found: object) -> bool:
    return issubclass(type(found), (staticmethod, classmethod)) or inspect.isroutine(found)


# Attributes of classes without asking the classes, whose metaclass may have code of its own.
_MRO: Final[Callable[[Any], tuple[type, ...]]] = type.__dict__["__mro__"].__get__
_VARS: Final[Callable[[Any], Mapping[str, Any]]] = type.__dict__["__dict__"].__get__
_TOOLS: Final = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
