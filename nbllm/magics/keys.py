"""`%llm key`: ask for a key without showing it, keep it, forget it."""

from __future__ import annotations

import contextlib
import getpass
import warnings
from typing import Any, Final, cast, get_args

from nbllm.config import KeyPlace
from nbllm.display.safe import safe_text
from nbllm.errors import ConfigError, NbllmError, UsageError
from nbllm.keys import Secret, checked, keyring_name, require_keyring
from nbllm.providers import ProviderSpec
from nbllm.session import get_session

__all__ = ["PLACES", "key"]

PLACES: Final = (*get_args(KeyPlace), "forget")


LONGEST_NAME: Final = 20
"""Characters of a name that is repeated in an error; keys are longer."""

REVOKE: Final = (
    "A key is asked for unseen. If there was one in the cell, revoke it: the notebook and its history have it."
)


def key(provider: str, place: str | None = None) -> None:
    """Ask for the provider's key and keep it; or `forget` it.

    Args:
        provider: A provider or an endpoint.
        place: `session`, `keyring` or `file`; by default the keyring where there is one, else the session.

    Raises:
        UsageError: where the front end cannot ask, or nothing was typed.
        NbllmError: where the key cannot be kept there.
    """
    manager = get_session().manager
    config = manager.config
    # What is no name of a provider or of a place is not said again: it may be the key itself.
    if len(provider) > LONGEST_NAME and provider.lower() not in manager.specs():
        raise UsageError("That is no provider's name.", action=f"Write %llm key PROVIDER. {REVOKE}")
    spec = manager.spec(provider)
    if place is not None and place not in PLACES:
        raise UsageError(
            "That is no place for a key.",
            action=f"Write %llm key {spec.name}, and behind it one of: {', '.join(PLACES)}. {REVOKE}",
        )
    if spec.local:
        raise UsageError(
            f"{spec.label} needs no key.", action="For the Hub's servers: %llm key huggingface-hosted. Else go on."
        )
    if place == "forget":
        _forget(config, spec)
        return
    kept = cast("KeyPlace", place or ("keyring" if keyring_name() else "session"))
    if kept == "keyring":
        require_keyring()
    elif kept == "file":
        config.key_file.require()
    config.store_key(spec.name, _asked(spec), kept)
    print(safe_text(f"{_said(config, spec, kept)} It is used from the next call on.{_next_step(manager, spec)}"))


def _asked(spec: ProviderSpec) -> Secret:
    """The key that the user types, unseen."""
    variable = spec.key_variables[0] if spec.key_variables else f"[endpoints.{spec.name}] api_key_env"
    cannot = UsageError(
        f"There is nobody here to ask for the key of {spec.label}.",
        action=f"Set {variable} before the kernel starts; or run %llm key {spec.name} once where you can type, and say "
        "`keyring` or `file` behind it to keep the key.",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would show what is typed
            return _typed(getpass.getpass(f"Key of {spec.label} (it is not shown): "))
    except (NotImplementedError, EOFError, getpass.GetPassWarning) as exc:  # the first is IPython's word for no stdin
        raise cannot from exc


def _typed(text: str) -> Secret:
    found = checked(text, "what was typed")
    if not found:
        raise UsageError("No key was given.", action="Nothing has changed.")
    return found


def _said(config: Any, spec: ProviderSpec, kept: KeyPlace) -> str:
    if kept == "session":
        after = "" if keyring_name() else " (where there is one, after pip install 'nbllm[keyring]')"
        return (
            f"The key of {spec.label} is kept until this kernel ends. To keep it longer: %llm key {spec.name} keyring"
            f"{after}, or %llm key {spec.name} file ({config.key_file.path}, which only you can read)."
        )
    where = f"on the keyring ({keyring_name()})" if kept == "keyring" else f"in {config.key_file.path}"
    own = "the keyring" if kept == "keyring" else str(config.key_file.path)
    said = f"The key of {spec.label} is kept {where}."
    first = _lasting(config, spec)
    if first is not None and first != own:
        said += f" In the next session the key in {first} goes before it."
    return said


def _next_step(manager: Any, spec: ProviderSpec) -> str:
    with contextlib.suppress(NbllmError):  # the current one cannot be told: using it says why
        if manager.get_current_provider() != spec.name:
            return f" To let {spec.label} answer: %llm use {spec.name}"
    return ""


def _lasting(config: Any, spec: ProviderSpec) -> str | None:
    try:
        found: str | None = config.key_place(spec.name, spec.key_variables, lasting=True)
    except ConfigError:  # one that cannot be used: using it says so
        return None
    return found


def _forget(config: Any, spec: ProviderSpec) -> None:
    gone = config.forget_key(spec.name)
    said = f"Forgotten: {', '.join(gone)}." if gone else f"nbllm keeps no key of {spec.label}."
    try:
        left = config.key_place(spec.name, spec.key_variables)
    except ConfigError as exc:
        left = f"a place where it cannot be used ({exc.message})"
    if left is not None:
        said += f" There is one still in {left}, which is not nbllm's to delete."
    print(safe_text(said))
