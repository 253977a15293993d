"""The layout that DESIGN fixes: who imports whom, and what loads nothing heavy."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbllm

PACKAGE = Path(nbllm.__file__).parent
LEVELS = (
    # `display.safe` are pure text functions: `Response` displays by them, wherever it is displayed.
    {"errors", "types", "display.safe", "display.safe_inline", "display.safe_characters"},
    {"_loop"},
    {
        "config",
        "settings",
        "keys",
        "key_file",
        "response",
        "messages",
        "identity",
        "cache",
        "cache_file",
        "cached",
        "prices",
        "accounting",
        "log",
        "conversation",
        "chats",
        "chat_file",
        "transcript",
        "retry",
    },
    {"local", "providers"},
    {"manager", "calls", "forms"},
    {"session", "jobs"},
    {"display"},
    {"widgets"},
    {"magics"},
    {"__init__", "__main__", "_demo", "_doctor"},
)
"""From below to above: a module may import those of its own level and of the levels below."""

HEAVY = {
    "openai", "anthropic", "mistralai", "google", "huggingface_hub", "torch", "transformers", "httpx2", "pandas",
    "numpy", "keyring", "anywidget", "pydantic", "genai_prices",
}  # fmt: skip
"""What `import nbllm` and `%load_ext nbllm` must not load."""

OWNERS = {
    "openai": {"providers.openai"},
    "mistralai": {"providers.mistral"},
    "google": {"providers.google", "providers.google_legacy"},
    "requests": {"providers.worker", "providers.google_legacy"},
    "huggingface_hub": {"local", "providers.huggingface_hosted"},
    "torch": {"local"},
    "transformers": {"local"},
    "tokenizers": {"local"},
    "safetensors": {"local"},
    "httpx2": {"providers"},
    "genai_prices": {"prices"},
    "IPython": {"display", "magics"},
    "anywidget": {"display", "widgets"},
    "ipywidgets": {"display", "widgets"},
}
"""Who alone may import a library, at whatever depth of a function."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Each module of the package by its dotted name below `nbllm`, parsed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts if parts == ("__init__",) or parts[-1] != "__init__" else parts[:-1])
        yield name, ast.parse(path.read_text("utf-8"))


MODULES = list(modules())


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported, functions included; what only type checkers see is left out."""
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(name: str) -> int:
    """The level of a module below `nbllm`; its own entry goes before its package's."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for index, level_modules in enumerate(LEVELS):
            if ".".join(parts[:end]) in level_modules:
                return index
    raise AssertionError(f"{name} has no place in the layout")


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_go_downwards_only(name: str, tree: ast.Module) -> None:
    """A module imports nothing of a level above its own."""
    names = {found for found, _ in MODULES}
    for target in imported(tree):
        if not target.startswith("nbllm."):
            continue
        below = target.removeprefix("nbllm.")
        while below not in names and "." in below:
            below = below.rpartition(".")[0]
        if below in names:  # else a public name such as `nbllm.__version__`
            assert level(below) <= level(name), f"{name} imports {below}, which lies above it"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_a_library_is_imported_only_by_its_owner(name: str, tree: ast.Module) -> None:
    """An SDK in its own provider, torch in `local`, IPython nowhere below `display`."""
    for target in imported(tree):
        owners = OWNERS.get(target.partition(".")[0])
        if owners is not None and not name.startswith("_d"):
            assert any(name == owner or name.startswith(f"{owner}.") for owner in owners), f"{name}: {target}"


def test_no_module_bears_the_name_of_a_public_function() -> None:
    """A submodule's import would overwrite the function."""
    functions = {name for name in nbllm.__all__ if callable(getattr(nbllm, name))}
    assert not functions & {path.stem for path in PACKAGE.iterdir()}


def test_all_is_what_is_there() -> None:
    """Each public name can be had, is sorted, and is in `dir`; there are no others."""
    assert list(nbllm.__all__) == sorted(nbllm.__all__)
    for name in nbllm.__all__:
        assert getattr(nbllm, name) is not None
        assert name in dir(nbllm)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = nbllm.nonsense
    for name in ("errors", "types", "response", "config", "settings", "manager", "session"):
        module = importlib.import_module(f"nbllm.{name}")
        assert list(module.__all__) == sorted(module.__all__), name
        assert all(hasattr(module, public) for public in module.__all__)


LOAD = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = {name.partition(".")[0] for name in sys.modules}
import nbllm
shell.run_line_magic("load_ext", "nbllm")
shell.run_line_magic("llm", "help")
print(json.dumps(sorted({name for name in {n.partition(".")[0] for n in sys.modules} - before})))
"""


def test_loading_the_extension_loads_nothing_heavy() -> None:
    """`import nbllm` and `%load_ext nbllm` load no SDK, no torch, no widget library."""
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & HEAVY
    assert "nbllm" in loaded


def test_importing_the_package_imports_only_itself() -> None:
    """`import nbllm` alone loads no module of its own but the package."""
    code = "import sys, nbllm; print(sorted(name for name in sys.modules if name.startswith('nbllm')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nbllm']"
