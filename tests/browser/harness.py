"""A browser page with JupyterLab, and a notebook in it as a test handles it."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any

import nbformat
from playwright.sync_api import Error as PlaywrightError

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

    from tests.browser.lab import Lab

CHROMIUM_FLAGS = [
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The network guard of Python processes, for the browser: no name but this machine's resolves.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]

NOISE = (
    # The debugger asks each new kernel for its state, and is disappointed where a test ends before the
    # answer.
    "Could not restore the debugger state",
)
"""Beginnings of JupyterLab's own errors in the console that say nothing about what is tested."""

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


def find_chromium(bundled: str = "") -> str | None:
    """Chromium's path: $CHROMIUM, Debian's, any on the path, or the one Playwright downloaded (`bundled`)."""
    if "CHROMIUM" in os.environ:
        return os.environ["CHROMIUM"] or None
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    candidates = ["/usr/bin/chromium", *(shutil.which(name) for name in names), bundled]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


class LabPage:
    """One browser page with JupyterLab, shared by tests; made anew where a test has left it unusable."""

    def __init__(self, browser: Browser, lab: Lab) -> None:
        self.lab, self._browser = lab, browser
        self._page: Page | None = None
        self.errors: list[str] = []

    @property
    def page(self) -> Page:
        """The page, loaded and restored."""
        if self._page is None:
            context = self._browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
            page = context.new_page()
            page.set_default_timeout(30_000)
            page.on("dialog", lambda dialog: dialog.accept())  # "leave this page?" at a reload
            page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
            page.on("console", self._note)
            page.goto(f"{self.lab.url}/lab?reset")
            self._page = page
            self.wait_restored()
        return self._page

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(NOISE):
            self.errors.append(message.text)

    def wait_restored(self) -> None:
        """Wait until JupyterLab has put its layout in place."""
        assert self._page is not None
        # The scripts of the page run after its load event.
        self._page.wait_for_function("() => window.jupyterapp?.restored")
        self._page.evaluate("() => window.jupyterapp.restored.then(() => null)")
        self.wait_clear()

    def wait_clear(self) -> None:
        """Wait until JupyterLab's splash, shown at its start and at a change of theme, is gone."""
        assert self._page is not None
        self._page.wait_for_function("() => !document.getElementById('jupyterlab-splash')")

    def discard(self) -> None:
        """Close the page; the next use makes another."""
        page, self._page = self._page, None
        if page is not None:
            with contextlib.suppress(PlaywrightError):
                page.context.close()

    def tidy(self) -> None:
        """Close every document and dialog, end the kernels, go back to the light theme."""
        self.errors.clear()
        try:
            if self._page is not None:
                self._page.evaluate(
                    """async () => {
                        for (const w of [...jupyterapp.shell.widgets('main')]) {
                            if (w.context) { w.context.model.dirty = false; w.dispose(); }
                        }
                        document.querySelectorAll('.jp-Dialog .jp-mod-reject').forEach(b => b.click());
                        if (document.body.dataset.jpThemeName !== 'JupyterLab Light')
                            await jupyterapp.commands.execute('apputils:change-theme', {theme: THEME});
                    }""".replace("THEME", repr(THEMES["light"]))
                )
        except PlaywrightError:
            self.discard()
        self.lab.end_sessions()


class Notebook:
    """A notebook open in JupyterLab, its kernel idle. Cells are named by their index."""

    def __init__(self, host: LabPage, path: Path, shots: Path) -> None:
        self._host, self.path, self._shots = host, path, shots
        self._open()

    @property
    def page(self) -> Page:
        """Playwright's page."""
        return self._host.page

    @property
    def errors(self) -> list[str]:
        """What the page has written to its console as an error so far, uncaught exceptions included."""
        return self._host.errors

    @property
    def name(self) -> str:
        """The path below the server's root."""
        return str(self.path.relative_to(self._host.lab.root))

    def _open(self, idle: bool = True) -> None:
        self.page.evaluate(
            """async path => {
                await jupyterapp.serviceManager.kernelspecs.refreshSpecs();
                await jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook'});
                window.nbtest = {runs: {}, n: 0};
            }""",
            self.name,
        )
        self.page.wait_for_function(
            """([path, idle]) => {
                const w = jupyterapp.shell.currentWidget, k = w?.sessionContext?.session?.kernel;
                return w?.context?.path === path && w.context.isReady && k?.connectionStatus === 'connected'
                    && (!idle || k.status === 'idle') && w.content.widgets.length > 0;
            }""",
            arg=[self.name, idle],
        )

    # Cells --------------------------------------------------------------------------------------

    def run(self, index: int, wait: bool = True, timeout: float = 30) -> None:
        """Run a cell as Ctrl+Enter does; `wait` until it has ended (well or not)."""
        run = self.page.evaluate(
            """i => {
                const nb = jupyterapp.shell.currentWidget.content, n = ++nbtest.n;
                nb.activeCellIndex = i; nb.deselectAll();
                const end = () => { nbtest.runs[n] = true; };
                jupyterapp.commands.execute('notebook:run-cell').then(end, end);
                return n;
            }""",
            index,
        )
        if wait:
            self.page.wait_for_function("n => nbtest.runs[n]", arg=run, timeout=timeout * 1000)

    def run_all(self, timeout: float = 60) -> None:
        """Run every cell and wait for the end."""
        self.page.evaluate("() => { window.nbtest.all = false; }")
        self.page.evaluate(
            """() => { const end = () => { nbtest.all = true; };
                       jupyterapp.commands.execute('notebook:run-all-cells').then(end, end); }"""
        )
        self.page.wait_for_function("() => nbtest.all", timeout=timeout * 1000)

    def wait_idle(self, timeout: float = 30) -> None:
        """Wait until every run that was started has ended and the kernel is idle."""
        self.page.wait_for_function(
            """() => Array.from({length: nbtest.n}, (_, i) => i + 1).every(n => nbtest.runs[n])
                     && jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'""",
            timeout=timeout * 1000,
        )

    def cell(self, index: int) -> Locator:
        """The cell's element."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell").nth(index)

    def output(self, index: int) -> Locator:
        """The cell's output area; empty outputs have an element too."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """The cell's outputs as they would be saved now."""
        js = "i => jupyterapp.shell.currentWidget.content.widgets[i].model.outputs.toJSON()"
        return list(self.page.evaluate(js, index))

    def source(self, index: int) -> str:
        """The cell's text."""
        js = "i => jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel.source"
        return str(self.page.evaluate(js, index))

    def edit(self, index: int, source: str) -> None:
        """Replace the cell's text."""
        js = "([i, s]) => jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel.setSource(s)"
        self.page.evaluate(js, [index, source])

    def cell_id(self, index: int) -> str:
        """The cell's id, which JupyterLab sends with each request."""
        return str(self.page.evaluate("i => jupyterapp.shell.currentWidget.content.widgets[i].model.id", index))

    def __len__(self) -> int:
        return int(self.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets.length"))

    # Kernel -------------------------------------------------------------------------------------

    def evaluate(self, code: str) -> str:
        """Run code in the notebook's kernel beside its cells; what it printed, or its traceback."""
        return str(
            self.page.evaluate(
                """async code => {
                    const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                    const future = kernel.requestExecute({code, store_history: false, stop_on_error: false});
                    let text = '';
                    future.onIOPub = m => {
                        if (m.header.msg_type === 'stream') text += m.content.text;
                        if (m.header.msg_type === 'error') text += m.content.traceback.join('\\n');
                    };
                    await future.done;
                    return text;
                }""",
                code,
            )
        )

    def interrupt(self) -> None:
        """Interrupt the kernel as the toolbar's stop button does."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:interrupt-kernel').then(() => null)")

    def restart(self) -> None:
        """Restart the kernel, without the question, and wait until it is idle."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        self.page.evaluate("() => { window.nbtest = {runs: {}, n: 0}; }")
        self.page.wait_for_function(
            "() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
        )

    # The document -------------------------------------------------------------------------------

    def save(self) -> None:
        """Save, and wait until it is saved."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.context.save()")

    def saved(self) -> Any:
        """Save, and read the file as an nbformat notebook."""
        self.save()
        return nbformat.read(self.path, as_version=4)

    def reload(self, save: bool = True, idle: bool = True) -> None:
        """Reload the page, as F5 does; the kernel lives on. `idle` False where a cell still runs."""
        if save:
            self.save()
        self.page.reload()
        self._host.wait_restored()
        self._open(idle)

    # Looks --------------------------------------------------------------------------------------

    def theme(self, name: str) -> None:
        """Switch to the "light" or the "dark" theme."""
        theme = THEMES[name]
        self.page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme}).then(() => null)", theme
        )
        self.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
        self._host.wait_clear()

    def screenshot(self, name: str, of: Locator | None = None) -> Path:
        """A picture of the page or of one element: NAME.png in $NBLLM_SCREENSHOTS or the test's folder."""
        self._shots.mkdir(parents=True, exist_ok=True)
        path = self._shots / f"{name}.png"
        if of is None:
            self.page.screenshot(path=path)
        else:
            of.screenshot(path=path)
        return path
