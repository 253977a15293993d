"""JupyterLab in a real browser: Debian's Chromium, driven by Playwright for Python.

Playwright's own pytest plugin is not used: its fixtures live as long as the session, and the synchronous API
leaves a *running* event loop in the main thread for as long as it lives, so that `asyncio.run` fails in every
test after the first with a browser. Here the browser lives from the first test of this folder to the last
(package scope). Inside those tests, what needs an event loop of its own belongs into a thread or a kernel.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from playwright.sync_api import Browser

    from tests.browser.harness import LabPage, Notebook
    from tests.browser.lab import Lab

FAILED = pytest.StashKey[bool]()


def _unavailable(reason: str) -> NoReturn:
    """Skip; where TESTS_REQUIRE_BROWSER is set (in CI) fail, so that no skip passes unseen there."""
    if os.environ.get("TESTS_REQUIRE_BROWSER"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """The browser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _unavailable("no browser tests: pip install playwright")
    from tests.browser.harness import CHROMIUM_FLAGS, find_chromium

    with sync_playwright() as playwright:
        path = find_chromium(playwright.chromium.executable_path)
        if path is None:
            _unavailable("no browser tests: no Chromium; apt install chromium, or set CHROMIUM to its path")
        try:
            browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        except Error as error:
            _unavailable(f"no browser tests: {path} does not start: {error.message[:500]}")
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab's process; `lab.restart()`, `lab.rest("sessions")`, `lab.root`."""
    try:
        import jupyterlab  # type: ignore[import-untyped] # noqa: F401 - only to know whether it is there
        import playwright  # noqa: F401
    except ImportError as error:
        _unavailable(f"no browser tests: pip install {error.name}")
    from tests.browser.lab import Lab

    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="package")
def lab_page(chromium: Browser, lab: Lab) -> Iterator[LabPage]:
    """The page that the tests share: loading JupyterLab takes longer than most tests."""
    from tests.browser.harness import LabPage

    host = LabPage(chromium, lab)
    yield host
    host.discard()


@pytest.fixture
def notebook(
    lab: Lab, lab_page: LabPage, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Notebook]]:
    """Open a notebook: `notebook("print(1)", ("markdown", "# Title"), env={"NAME": "value"})`.

    `env` are variables for its kernel. Everything is closed and every kernel ended when the test ends.
    """
    from tests.browser.harness import Notebook

    shots = Path(os.environ.get("NBLLM_SCREENSHOTS") or tmp_path)
    opened: list[Notebook] = []

    def open_notebook(*cells: Any, env: dict[str, str] | None = None, name: str = "") -> Notebook:
        kernel = lab.kernel_spec(env) if env else "python3"
        path = lab.write(name or f"{uuid.uuid4().hex[:12]}.ipynb", *cells, kernel=kernel)
        opened.append(Notebook(lab_page, path, shots))
        return opened[-1]

    yield open_notebook
    if request.node.stash.get(FAILED, False) and opened:
        shot = opened[-1].screenshot("failed-" + re.sub(r"\W+", "-", request.node.name))
        print(f"the page when the test failed: {shot}\nits errors: {lab_page.errors}")
    lab_page.tidy()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Remember that the test failed, so that its page can be photographed."""
    report: Any = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report
