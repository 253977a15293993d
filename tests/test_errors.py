"""The error tree."""

import builtins
import pickle
import re

import pytest

from nbllm import errors
from nbllm.errors import NbllmError, ProviderError


def test_every_error_is_public_and_in_the_drawn_tree() -> None:
    """The docstring draws exactly the classes that the module exports, each below its base."""
    drawn = re.findall(r"(\w+Error)\b(?=  |\n)", errors.__doc__.split("Each carries")[0])
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, NbllmError)
    }
    assert set(drawn) == classes == set(errors.__all__)


def test_ipython_shows_two_plain_lines() -> None:
    """IPython shows what happened and the next action, one line each, whatever the provider put into its message."""
    error = ProviderError("It\nbroke\x1b[31m.", action="Mend it.")
    assert error._render_traceback_() == ["ProviderError: It broke [31m.", "→ Mend it."]


@pytest.mark.parametrize("name", ["ConnectionError", "TimeoutError"])
def test_network_errors_are_also_the_built_in_ones(name: str) -> None:
    """Code that catches the built-in exception of the same name catches ours."""
    error = getattr(errors, name)("It broke.", provider="openai", status=500)
    assert isinstance(error, getattr(builtins, name))
    assert (error.provider, error.status, str(error)) == ("openai", 500, "It broke.")


def test_missing_extra_is_an_import_error_that_names_the_command() -> None:
    """A missing library is an ImportError, and says what to install."""
    error = errors.MissingExtraError("torch", "local")
    assert isinstance(error, ImportError)
    assert "pip install 'nbllm[local]'" in str(error)


def test_an_error_survives_pickling() -> None:
    """A worker process can hand an error over."""
    error = errors.IncompleteStreamError("Cut.", action="Again.", provider="openai")
    error.text = "so far"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.text, copy.provider) == ("Cut. Again.", "so far", "openai")
