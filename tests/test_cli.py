"""The `nbllm` command, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import pytest

import nbllm
from nbllm import _doctor
from nbllm.__main__ import main, tutorials
from tests.isolation import child_environment
from tests.wire import Wire


def run(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nbllm", *arguments],
        cwd=cwd,
        env=child_environment(**environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_demo_streams_and_leaves_an_executed_notebook_and_a_page(tmp_path: Path) -> None:
    """Without key or network: each cell and its answer in the terminal, then where the files are and what is next."""
    pytest.importorskip("torch")
    done = run("demo", cwd=tmp_path, OPENAI_API_KEY="sk-demo-0123456789abcdef")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "In [2]: %%llm" in done.stdout
    assert "Jupyter-native toolkit" in done.stdout
    assert "nbllm lab" in done.stdout
    folder = tmp_path / "nbllm-demo"
    assert str(folder / "01_quickstart.ipynb") in done.stdout
    notebook = nbformat.read(folder / "01_quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    answers = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "nbllm" in output.get("metadata", {})
    ]
    assert len(answers) >= 4
    for answer in answers:  # who answered is said, and that a key was there changed nothing
        assert answer.metadata.nbllm["state"] == "complete"
        assert answer.metadata.nbllm["provider"] == "huggingface"
        assert set(answer.data) == {"text/markdown", "text/plain"}
    page = (folder / "01_quickstart.html").read_text()
    assert "Jupyter-native toolkit" in page
    for text in (done.stdout, page, (folder / "01_quickstart.ipynb").read_text()):
        assert "sk-demo" not in text
    assert str(tmp_path) not in page + (folder / "01_quickstart.ipynb").read_text()


def test_a_demo_that_fails_shows_the_error_and_keeps_what_it_has(tmp_path: Path, wire: Wire) -> None:
    """A model that cannot answer: two lines, the files all the same, and an exit status."""
    environ = {"NBLLM_OPENAI_BASE_URL": f"{wire.url}/v1"}
    done = run("demo", "--model", "openai:e401", "--output", "out", cwd=tmp_path, **environ)
    assert done.returncode == 1
    assert "AuthenticationError" in done.stdout
    assert "→ Set OPENAI_API_KEY" in done.stdout
    assert (tmp_path / "out" / "01_quickstart.ipynb").is_file()
    assert (tmp_path / "out" / "01_quickstart.html").is_file()


@pytest.mark.parametrize("command", ["demo", "lab"])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, command: str) -> None:
    """A file in the way, or a read-only place: two lines in place of a traceback."""
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "below")
    done = run(command, *(["--output", folder] if command == "demo" else [folder]), cwd=tmp_path)
    assert done.returncode == 1
    assert "Choose a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_without_the_local_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On the core alone the demo names the extra before it starts anything."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", "--output", str(tmp_path / "out")]) == 1
    assert "pip install 'nbllm[local]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _get(url: str) -> Any:
    """The server's JSON; it names its address a moment before it listens."""
    end = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def test_lab_opens_on_a_writable_copy_and_leaves_changes_alone(tmp_path: Path) -> None:
    """The tutorials are copied, a notebook that was changed stays as it is, and JupyterLab answers."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "01_quickstart.ipynb").write_text("changed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "nbllm", "lab", str(folder), "--no-browser", "--allow-root", f"--port={port}"],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "http://127.0.0.1" in line and "token=" in line:
                url = line[line.index("http://") :].strip().replace("/lab?", "/api/contents?")
                break
        names = {item["name"] for item in _get(url)["content"]}
        assert "01_quickstart.ipynb" in names
        assert (folder / "01_quickstart.ipynb").read_text() == "changed"
        assert names == {path.name for path in tutorials().iterdir() if not path.name.startswith(".")}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)


def test_lab_copies_files_that_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only installation gives a copy that can be saved."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "call", lambda command: 7)  # JupyterLab itself is started in the test above
    assert main(["lab"]) == 7
    copy = tmp_path / "nbllm-tutorials" / "01_quickstart.ipynb"
    assert copy.read_bytes() == (tutorials() / "01_quickstart.ipynb").read_bytes()
    assert os.access(copy, os.W_OK)


def test_lab_without_jupyterlab_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The error is two lines on stderr with the command to run."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["lab", str(tmp_path)]) == 1
    assert "pip install 'nbllm[lab]'" in capsys.readouterr().err


def test_the_doctor_says_what_works_and_what_to_do(tmp_path: Path) -> None:
    """Extras, machine and providers, each "no" with its next action; the bundled model really answers."""
    done = run("doctor", cwd=tmp_path)
    lines = done.stdout.splitlines()
    openai = next(index for index, line in enumerate(lines) if "provider openai" in line)
    assert lines[openai].startswith("no")
    assert "→ Set OPENAI_API_KEY" in lines[openai + 1]
    local = next(line for line in lines if "provider huggingface " in line)
    if _doctor._installed("torch"):
        assert local.startswith("yes")
        assert "the bundled model answers: " in local
        assert done.returncode == 0
    for index, line in enumerate(lines[:-1]):
        if line.startswith("no"):
            assert "→" in lines[index + 1]


def test_the_doctor_tells_a_key_that_works_from_one_that_does_not(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider with a key is asked; a refusal and silence are said with what to do; no key is printed."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{wire.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-doctor-0123456789")

    def openai() -> _doctor.Finding:
        (found,) = (finding for finding in _doctor._providers() if finding.subject == "provider openai")
        assert "sk-doctor" not in repr(found)
        return found

    assert openai().well
    wire.script("/models", status=401)
    refused = openai()
    assert not refused.well
    assert "OPENAI_API_KEY" in refused.action
    wire.script("/models", fault="hang")
    monkeypatch.setattr(_doctor, "SECONDS", 0.5)
    assert "No answer within" in openai().found
    wire.stop()
    assert "cannot be reached" in openai().found


def test_the_doctor_knows_every_extra() -> None:
    """Its table is what pyproject.toml says."""
    import tomllib

    project = Path(nbllm.__file__).parent.parent / "pyproject.toml"
    if not project.is_file():
        pytest.skip("nbllm is not run from its checkout")
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    named = {name: [entry.split(">")[0] for entry in extras[name]] for name in _doctor.EXTRAS}
    assert {name: sorted(packages) for name, packages in _doctor.EXTRAS.items()} == {
        name: sorted(packages) for name, packages in named.items()
    }
    assert set(_doctor.EXTRAS) == set(extras) - {"all", "test"}


def test_the_version_is_one() -> None:
    """The command says the version that the package has."""
    done = subprocess.run([sys.executable, "-m", "nbllm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"nbllm {nbllm.__version__}\n"
