"""JupyterLab as a process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any, Self

import nbformat

from tests.isolation import child_environment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Cell = str | tuple[str, str]

SETTINGS: dict[str, dict[str, Any]] = {
    # Nothing that pops up over what a test looks at, and nothing that asks the network.
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/extensionmanager-extension/plugin": {"enabled": False},
    # Only what a test saves is saved.
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
    # Every cell is in the page: with windowing, a cell out of sight has no element to look at.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


class Lab:
    """JupyterLab on loopback without a token, in private folders; a context manager.

    Attributes: `url`; `root`, the folder that it shows; `log`, the file with what it printed.
    """

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.root, self.log, self.port = folder / "notebooks", folder / "lab.log", 0
        self._data, self._runtime, self._settings = folder / "data", folder / "run", folder / "settings"
        for path in (self.root, self._data, self._runtime, self._settings):
            path.mkdir(parents=True, exist_ok=True)
        self.env = child_environment(
            JUPYTER_DATA_DIR=str(self._data),
            JUPYTER_RUNTIME_DIR=str(self._runtime),
            JUPYTER_CONFIG_DIR=str(folder / "config"),
            JUPYTERLAB_SETTINGS_DIR=str(self._settings),
            JUPYTERLAB_WORKSPACES_DIR=str(folder / "workspaces"),
            **(env or {}),
        )
        for name, values in SETTINGS.items():
            self.set(name, **values)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def set(self, plugin: str, **values: Any) -> None:
        """Write a plugin's user settings; JupyterLab reads them when a page is loaded."""
        path = self._settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def start(self, timeout: float = 60) -> Self:
        """Start the process and wait until it answers."""
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            "--ip=127.0.0.1",
            f"--port={self.port}",
            "--ServerApp.port_retries=0",
            "--IdentityProvider.token=",
            "--ServerApp.password=",
            "--ServerApp.disable_check_xsrf=True",
            f"--ServerApp.root_dir={self.root}",
            # `window.jupyterapp`, by which a test says what is to happen without hunting for menus.
            "--LabApp.expose_app_in_browser=True",
            "--LabApp.extension_manager=readonly",
            "--LabApp.news_url=None",
            "--LanguageServerManager.autodetect=False",
            "--ServerApp.terminals_enabled=False",
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self.env, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait_ready(self._process, timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_ready(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        """Port 0 takes a free port without a race; the server writes the one it got into a file."""
        end = time.monotonic() + timeout
        info = self._runtime / f"jpserver-{process.pid}.json"
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-4000:]}")
            with contextlib.suppress(OSError, ValueError):
                self.port = int(json.loads(info.read_text())["port"])
                self.rest("status")
                return
            time.sleep(0.05)  # the interval of a poll, ended by what it waits for

    def stop(self) -> None:
        """End every kernel and the process."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(OSError):
                self.end_sessions()
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def restart(self) -> None:
        """Stop and start again on the same port: kernels are lost, pages can connect again."""
        self.stop()
        self.start()

    def rest(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """A request to the server's REST API (`rest("sessions")`)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def end_sessions(self) -> None:
        """End every session and its kernel."""
        for session in self.rest("sessions"):
            with contextlib.suppress(urllib.error.HTTPError):
                self.rest(f"sessions/{session['id']}", "DELETE")
        for kernel in self.rest("kernels"):
            with contextlib.suppress(urllib.error.HTTPError):
                self.rest(f"kernels/{kernel['id']}", "DELETE")

    def kernel_spec(self, env: Mapping[str, str]) -> str:
        """Write a kernel spec whose kernels get these variables; returns its name."""
        name = f"python3-{uuid.uuid4().hex[:8]}"
        folder = self._data / "kernels" / name
        folder.mkdir(parents=True)
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": name,
            "language": "python",
            "env": dict(env),
        }
        (folder / "kernel.json").write_text(json.dumps(spec))
        return name

    def write(self, name: str, *cells: Cell, kernel: str = "python3") -> Path:
        """Write a notebook with these cells: a str is code, a pair is ("markdown" or "raw", text)."""
        made = []
        for cell in cells:
            kind, source = ("code", cell) if isinstance(cell, str) else cell
            made.append(getattr(nbformat.v4, f"new_{kind}_cell")(source))
        metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=metadata), path)
        return path
