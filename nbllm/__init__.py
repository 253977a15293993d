"""Large language models inside the notebook kernel.

In a notebook::

    %load_ext nbllm

    %%llm
    What can I do with this?

In Python::

    import nbllm
    answer = nbllm.ask("Name three rivers.")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from nbllm import errors
    from nbllm.config import ConfigManager
    from nbllm.manager import ProviderManager
    from nbllm.response import Response, ResponseStream
    from nbllm.session import ask, get_manager

__all__ = [
    "ConfigManager",
    "ProviderManager",
    "Response",
    "ResponseStream",
    "__version__",
    "allow_nested_loops",
    "ask",
    "errors",
    "get_manager",
    "load_ipython_extension",
    "unload_ipython_extension",
]

__version__ = "0.1.0"

_PUBLIC = {
    "ConfigManager": "nbllm.config",
    "ProviderManager": "nbllm.manager",
    "Response": "nbllm.response",
    "ResponseStream": "nbllm.response",
    "allow_nested_loops": "nbllm._loop",
    "ask": "nbllm.session",
    "get_manager": "nbllm.session",
}
"""Each public name and the module that has it, imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("nbllm.errors")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nbllm' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register `%llm` and `%%llm`; what `%load_ext nbllm` calls."""
    from nbllm.magics import register

    register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take them away again; what `%unload_ext nbllm` calls."""
    from nbllm.magics import unregister

    unregister(shell)
