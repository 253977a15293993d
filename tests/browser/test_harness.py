"""The browser harness: plain cells and a small anywidget, nothing of nbllm."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from tests.browser.harness import find_chromium

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.browser.harness import LabPage, Notebook
    from tests.browser.lab import Lab

COUNTER = """
import anywidget, traitlets
class Counter(anywidget.AnyWidget):
    _esm = '''
    function render({model, el}) {
        const button = document.createElement('button');
        button.className = 'count';
        const show = () => { button.textContent = `count is ${model.get('value')}`; };
        button.onclick = () => { model.set('value', model.get('value') + 1); model.save_changes(); };
        model.on('change:value', show); show(); el.append(button);
    }
    export default {render};
    '''
    value = traitlets.Int(0).tag(sync=True)
counter = Counter()
counter
"""


def test_runs_a_cell_and_reads_its_output(notebook: Callable[..., Notebook]) -> None:
    """A cell prints: seen in the page, in the model and in the saved file."""
    nb = notebook("print('hello', 6 * 7)", ("markdown", "# Title"))
    nb.run(0)
    assert nb.output(0).inner_text().strip() == "hello 42"
    assert nb.outputs(0) == [{"output_type": "stream", "name": "stdout", "text": "hello 42\n"}]
    assert nb.saved().cells[0].outputs[0].text == "hello 42\n"
    assert len(nb) == 2
    assert nb.cell(1).locator("h1").inner_text().startswith("Title")


def test_clicks_a_widget(notebook: Callable[..., Notebook]) -> None:
    """A click on an anywidget reaches the kernel, and the kernel's change the page."""
    nb = notebook(COUNTER, "print(counter.value)", "counter.value = 40")
    nb.run(0)
    button = nb.output(0).locator("button.count")
    button.click()
    nb.output(0).get_by_text("count is 1").wait_for()
    nb.run(1)
    assert nb.output(1).inner_text().strip() == "1"
    nb.run(2)
    nb.output(0).get_by_text("count is 40").wait_for()
    assert nb.errors == []


def test_waits_and_interrupts(notebook: Callable[..., Notebook]) -> None:
    """A cell can be started without waiting, watched, and interrupted."""
    nb = notebook("import time\nfor i in range(600): print(f'tok{i}', flush=True); time.sleep(.05)")
    nb.run(0, wait=False)
    nb.output(0).get_by_text("tok3").wait_for()
    nb.interrupt()
    nb.wait_idle()
    assert nb.outputs(0)[-1]["ename"] == "KeyboardInterrupt"


def test_edits_runs_all_and_sees_the_cell_id(notebook: Callable[..., Notebook]) -> None:
    """Cells can be edited and run together; JupyterLab sends their ids."""
    nb = notebook("1", "print(get_ipython().kernel.get_parent()['metadata']['cellId'])")
    nb.edit(0, "print('edited')")
    assert nb.source(0) == "print('edited')"
    nb.run_all()
    assert nb.outputs(0)[0]["text"] == "edited\n"
    assert nb.outputs(1)[0]["text"].strip() == nb.cell_id(1)


def test_kernel_gets_variables(notebook: Callable[..., Notebook]) -> None:
    """The kernel of a notebook gets the test's variables, in the isolated environment."""
    nb = notebook("1", env={"NBLLM_OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    names = "os.environ['NBLLM_OPENAI_BASE_URL'], 'OPENAI_API_KEY' in os.environ, os.environ['HOME']"
    code = f"import os; print({names})"
    url, key, home = nb.evaluate(code).split()
    assert (url, key) == ("http://127.0.0.1:1/v1", "False")
    assert "nbllm-" in home
    assert "NameError" in nb.evaluate("undefined_name")


def test_reload_keeps_the_kernel(notebook: Callable[..., Notebook]) -> None:
    """After a reload the saved outputs are there and the kernel has its names; a widget lives on."""
    nb = notebook(COUNTER, "x = 1; print('shown')", "print(x)")
    nb.run(0)
    nb.run(1)
    nb.output(0).locator("button.count").click()
    nb.output(0).get_by_text("count is 1").wait_for()
    nb.reload()
    assert nb.output(1).inner_text().strip() == "shown"
    nb.output(0).get_by_text("count is 1").wait_for()
    nb.run(2)
    assert nb.outputs(2)[0]["text"] == "1\n"


def test_reload_while_a_cell_runs(notebook: Callable[..., Notebook]) -> None:
    """A page can be reloaded in the middle of a cell."""
    nb = notebook("import time\nprint('begun', flush=True); time.sleep(600)")
    nb.run(0, wait=False)
    nb.output(0).get_by_text("begun").wait_for()
    nb.reload(idle=False)
    assert nb.output(0).inner_text().strip() == "begun"
    nb.interrupt()
    nb.wait_idle()


def test_restart_empties_the_kernel(notebook: Callable[..., Notebook]) -> None:
    """A restarted kernel knows no names."""
    nb = notebook("x = 1")
    nb.run(0)
    nb.restart()
    assert nb.evaluate("print('x' in globals())") == "False\n"


def test_themes_and_screenshots(notebook: Callable[..., Notebook], monkeypatch: pytest.MonkeyPatch) -> None:
    """Light and dark differ in a picture, of the page or of one element."""
    monkeypatch.delenv("NBLLM_SCREENSHOTS", raising=False)
    nb = notebook("print('hello')")
    nb.run(0)
    nb.theme("light")  # the page is shared: another test may have left it dark
    light = nb.screenshot("light")
    nb.theme("dark")
    dark, element = nb.screenshot("dark"), nb.screenshot("element", nb.output(0))
    assert light.read_bytes() != dark.read_bytes()
    assert 0 < element.stat().st_size < dark.stat().st_size


def test_page_survives_its_loss(notebook: Callable[..., Notebook], lab_page: LabPage) -> None:
    """A page that a test has ruined is replaced."""
    notebook("1")
    lab_page.page.goto("about:blank")
    lab_page.tidy()
    nb = notebook("print(2)")
    nb.run(0)
    assert nb.outputs(0)[0]["text"] == "2\n"


def test_lab_restarts(notebook: Callable[..., Notebook], lab: Lab, lab_page: LabPage) -> None:
    """JupyterLab can be restarted on its port; a page connects again."""
    notebook("1")
    url = lab.url
    lab_page.discard()
    lab.restart()
    assert lab.url == url
    assert lab.rest("kernels") == []
    nb = notebook("print(3)")
    nb.run(0)
    assert nb.outputs(0)[0]["text"] == "3\n"


def test_browser_has_no_network(lab_page: LabPage) -> None:
    """No name but this machine's resolves in the page."""
    js = "url => fetch(url, {mode: 'no-cors'}).then(() => 'reached', () => 'refused')"
    assert lab_page.page.evaluate(js, "https://example.org/") == "refused"
    assert lab_page.page.evaluate(js, lab_page.lab.url + "/api/status") == "reached"


def test_asyncio_runs_in_a_thread(notebook: Callable[..., Notebook]) -> None:
    """While the browser lives the main thread has a running loop; another thread is free of it."""
    notebook("1")
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(asyncio.run(asyncio.sleep(0, 1))))
    thread.start()
    thread.join()
    assert done == [1]


def test_chromium_is_found_where_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$CHROMIUM decides; an empty one says that there is none."""
    monkeypatch.setenv("CHROMIUM", "/somewhere/chromium")
    assert find_chromium() == "/somewhere/chromium"
    monkeypatch.setenv("CHROMIUM", "")
    assert find_chromium(str(tmp_path)) is None
