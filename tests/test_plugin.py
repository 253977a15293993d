"""A provider of another package: pip installs it, and `%%llm` uses it."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nbllm.providers import registry
from tests.isolation import child_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kernel.harness import Kernel

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("pip", "setuptools")),
    reason="installing a package needs pip, and building it setuptools",
)

PACKAGE = {
    "pyproject.toml": """
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"

        [project]
        name = "nbllm-echo"
        version = "1.0"

        [project.entry-points."nbllm.providers"]
        broken = "nbllm_echo.nowhere:spec"
        echo = "nbllm_echo:spec"
        openai = "nbllm_echo:impostor"

        [tool.setuptools]
        packages = ["nbllm_echo"]
        """,
    "nbllm_echo/__init__.py": """
        from nbllm.providers import ProviderSpec

        spec = ProviderSpec("echo", "Echo", "nbllm_echo.provider:EchoProvider", default_model="loud")
        impostor = ProviderSpec("openai", "Impostor", "nbllm_echo.provider:EchoProvider", default_model="loud")
        """,
    "nbllm_echo/provider.py": """
        from nbllm.errors import ServerError
        from nbllm.providers.base import Provider
        from nbllm.types import Completion, Finish, ModelInfo, TextDelta, Usage, UsageUpdate


        class EchoBroke(Exception):
            pass


        class EchoProvider(Provider):
            label = "Echo"

            async def open(self, request):
                if request.model == "broken":
                    raise EchoBroke("the wall is gone")
                return request.messages[-1].content

            async def decode(self, stream, request):
                yield [TextDelta(f"**{request.model}**: "), TextDelta(stream)]
                yield [TextDelta(f" {request.options.get('tail', '…')}"), UsageUpdate(Usage(3, 4))]
                if request.model != "cut":
                    yield [Finish("stop")]

            async def close(self, stream):
                pass

            async def complete(self, request):
                return Completion(f"**{request.model}**: {request.messages[-1].content} …", Finish("stop"), Usage(3, 4))

            async def models(self):
                return [ModelInfo("loud", self.name), ModelInfo("soft", self.name)]

            def map_error(self, exc, request, phase):
                return ServerError(f"Echo: {exc}.", action="Build it again.") if isinstance(exc, EchoBroke) else None
        """,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the package."""
    import textwrap

    source, target = tmp_path_factory.mktemp("echo"), tmp_path_factory.mktemp("site")
    for name, text in PACKAGE.items():
        file = source / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        str(target),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(source)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture
def shell(installed: Path, new_kernel: Callable[..., Kernel], tmp_path: Path) -> Kernel:
    """A kernel that finds the installed package, with nbllm loaded."""
    path = os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])
    kernel = new_kernel(env={"PYTHONPATH": path}, cwd=tmp_path)
    kernel.run("%load_ext nbllm").check()
    return kernel


@pytest.fixture
def _found(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process finds the installed package, too."""
    monkeypatch.syspath_prepend(str(installed))
    registry.cache_clear()
    yield
    registry.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "nbllm_echo"]:
        del sys.modules[name]


def test_an_installed_provider_answers_in_a_cell(shell: Kernel) -> None:
    """`%%llm echo:anything` streams its answer into the cell; it is listed, switched to, and asked for its models."""
    (answer,) = shell.run("%%llm echo:anything\nHello wall").check().displays
    assert answer.data["text/markdown"].startswith("**anything**: Hello wall …\n\n*echo:anything · ")
    assert answer.metadata["nbllm"]["provider"] == "echo"
    providers = shell.run("%llm providers").check().text
    assert "Echo" in providers
    assert "OpenAI" in providers
    assert "Impostor" not in providers
    assert "echo:loud" in shell.run("%llm use echo").check().stdout
    (models,) = shell.run("%llm models").check().displays
    assert "echo:soft" in models.data["text/plain"]
    assert shell.run("import nbllm; print(nbllm.ask('Hi', 'echo:soft', tail='!'))").check().stdout == "**soft**: Hi !\n"


def test_its_errors_are_shown_as_those_of_any_provider(shell: Kernel) -> None:
    """Two plain lines with what to do next; and a stream that it does not end is incomplete, its text kept."""
    error = shell.run("%%llm echo:broken\nHello").error
    assert error is not None
    assert error.ename == "ServerError"
    assert error.traceback.splitlines() == ["ServerError: Echo: the wall is gone.", "→ Build it again."]
    cut = shell.run("%%llm echo:cut\nHello")
    assert cut.error is not None
    assert cut.error.ename == "IncompleteStreamError"
    assert "Hello" in cut.displays[0].data["text/markdown"]


@pytest.mark.usefixtures("_found")
def test_what_cannot_be_loaded_or_takes_a_name_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """One broken entry point, and one that calls itself `openai`, cost nothing but a line each in the log."""
    with caplog.at_level(logging.ERROR, "nbllm.providers"):
        found = registry()
    assert found["echo"].label == "Echo"
    assert found["openai"].label == "OpenAI"
    assert "broken" not in found
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "the provider broken of nbllm_echo.nowhere:spec cannot be loaded" in said
    assert any("nbllm_echo:impostor registers no provider of its own under the name openai" in line for line in said)


@pytest.mark.usefixtures("_found")
def test_listing_providers_imports_none(caplog: pytest.LogCaptureFixture) -> None:
    """What a plug-in needs to answer is imported when it answers, as for the providers of nbllm itself."""
    with caplog.at_level(logging.CRITICAL, "nbllm.providers"):
        assert "echo" in registry()
    assert "nbllm_echo" in sys.modules
    assert "nbllm_echo.provider" not in sys.modules
