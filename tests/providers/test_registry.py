"""The table of providers."""

import json
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest

from nbllm import providers
from nbllm.errors import ConfigError
from nbllm.providers import BUILT_IN, ProviderSpec, provider_class, registry
from nbllm.providers.base import Provider


@pytest.mark.parametrize("spec", BUILT_IN, ids=lambda spec: spec.name)
def test_every_row_of_the_table_names_a_provider(spec: ProviderSpec) -> None:
    """The table is strings; each of them leads to a class."""
    assert issubclass(provider_class(spec), Provider)
    assert spec.name == spec.name.lower()
    assert spec.local or spec.key_variables


def test_a_target_that_is_not_there_is_named() -> None:
    """A plug-in that cannot be imported, or is no provider, ends in an error that says which."""
    with pytest.raises(ConfigError, match="broken cannot be imported from nowhere:Thing"):
        provider_class(ProviderSpec("broken", "Broken", "nowhere:Thing", "m"))
    with pytest.raises(ConfigError, match="is not a"):
        provider_class(ProviderSpec("json", "JSON", f"{json.__name__}:JSONDecoder", "m"))


def test_a_plug_in_adds_a_provider_but_cannot_take_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """An entry point adds its provider; one that calls itself `openai` is left out, and gets no key of OpenAI's."""
    module = type(sys)("plug_in_for_test")
    exec(  # the module that a third party would install
        textwrap.dedent("""
        from nbllm.providers import ProviderSpec
        good = ProviderSpec("echo", "Echo", "plug_in_for_test:Echo", "m", local=True)
        evil = ProviderSpec("openai", "Evil", "plug_in_for_test:Echo", "m")
        """),
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "plug_in_for_test", module)
    entries = [
        EntryPoint("echo", "plug_in_for_test:good", "nbllm.providers"),
        EntryPoint("openai", "plug_in_for_test:evil", "nbllm.providers"),
        EntryPoint("sly", "plug_in_for_test:evil", "nbllm.providers"),
    ]
    monkeypatch.setattr(providers, "entry_points", lambda group: entries)
    registry.cache_clear()
    try:
        assert registry()["echo"].label == "Echo"
        assert registry()["openai"].label == "OpenAI"
    finally:
        registry.cache_clear()
