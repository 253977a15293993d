"""What the tests may see of the machine, in this process and its children: no keys, no configuration.

The one place for the names of variables. `begin()` changes this process's environment, which every child
inherits.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

REMOVED_PREFIXES = (
    "OPENAI_",
    "ANTHROPIC_",
    "MISTRAL_",
    "GOOGLE_",
    "GEMINI_",
    "VERTEX",
    "AZURE_",
    "AWS_",
    "OLLAMA_",
    "OPENROUTER_",
    "NBLLM_",
    "HF_",
    "HUGGINGFACE_",
    "HUGGING_FACE_",
    "TRANSFORMERS_",
    "WANDB_",
    "JUPYTER_",
    "JUPYTERLAB_",
    "IPYTHON",
    "PYTHON_KEYRING_",
    "VSCODE_",
)
"""Variables that begin so are unset: keys, tokens, base URLs, caches, all that configures Jupyter."""

REMOVED = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "JPY_SESSION_NAME",
    "JPY_PARENT_PID",
    "JPY_INTERRUPT_EVENT",
    "COLAB_RELEASE_TAG",
    "KAGGLE_KERNEL_RUN_TYPE",
    "BINDER_SERVICE_HOST",
    "MPLBACKEND",
    "PYTHONSTARTUP",
    "PYTHONWARNINGS",
    "DISPLAY",
)
"""Single variables that are unset, in either case."""

KEPT = ("NBLLM_SCREENSHOTS",)
"""Variables for the tests themselves, kept although they look like the above."""

FIXED = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    # Threads of several processes on few cores cost ten times (FACTS.md, section 3).
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
    # jupyter_core warns where it has to guess, and warnings are errors.
    "JUPYTER_PLATFORM_DIRS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    # An answer of one test is not to be replayed in another, whose server has the same port.
    "NBLLM_CACHE": "off",
    # A fault is to be seen at once; what tests retries sets its own.
    "NBLLM_MAX_RETRIES": "0",
}
"""Variables that are set."""

FOLDERS = {
    "HOME": "home",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_STATE_HOME": "home/.local/state",
    "XDG_RUNTIME_DIR": "run",
    "HF_HOME": "hf",
    "IPYTHONDIR": "ipython",
    "JUPYTER_CONFIG_DIR": "jupyter/config",
    "JUPYTER_DATA_DIR": "jupyter/data",
    "JUPYTER_RUNTIME_DIR": "jupyter/run",
    "JUPYTERLAB_SETTINGS_DIR": "jupyter/lab/settings",
    "JUPYTERLAB_WORKSPACES_DIR": "jupyter/lab/workspaces",
    "MPLCONFIGDIR": "matplotlib",
}
"""Variables that name a private folder, below the session's own."""

GUARD = Path(__file__).parent / "guard"
GUARD_LOG = "TESTS_NETWORK_GUARD"
"""Switches the guard of `tests/guard/sitecustomize.py` on in children, and names its log."""

SESSION_MARK = "TESTS_SESSION"
"""A variable by which a process that left the process tree is still known as ours."""


@dataclass
class Session:
    """An isolated environment: `folder` holds the private folders, `before` the environment to go back to."""

    folder: Path
    mark: str
    before: dict[str, str]

    @property
    def refusals(self) -> Path:
        """Where the guard writes what it refused, a line each."""
        return self.folder / "refused.log"

    def end(self) -> None:
        """Put the environment back and delete the private folders."""
        os.environ.clear()
        os.environ.update(self.before)
        rmtree(self.folder, ignore_errors=True)


def environment(before: dict[str, str], folder: Path, mark: str) -> dict[str, str]:
    """The isolated form of an environment, with private folders below `folder`."""
    names = {name.upper() for name in REMOVED}
    env = {
        name: value
        for name, value in before.items()
        if name in KEPT or not (name.upper() in names or name.upper().startswith(REMOVED_PREFIXES))
    }
    env |= FIXED | {name: str(folder / below) for name, below in FOLDERS.items()}
    env |= {GUARD_LOG: str(folder / "refused.log"), SESSION_MARK: mark}
    # First on the path, so that Python finds the guard's sitecustomize; that one goes on to any other.
    env["PYTHONPATH"] = os.pathsep.join([str(GUARD), *filter(None, [before.get("PYTHONPATH")])])
    # Browsers that Playwright downloaded lie below the real home.
    browsers = Path(before.get("HOME", "~")).expanduser() / ".cache/ms-playwright"
    env.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(browsers))
    return env


def begin() -> Session:
    """Isolate this process; call it before anything reads the environment."""
    before = dict(os.environ)
    # A short path: a Unix socket's name has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="nbllm-")).resolve()
    for below in FOLDERS.values():
        (folder / below).mkdir(parents=True, exist_ok=True, mode=0o700)
    session = Session(folder, uuid.uuid4().hex, before)
    env = environment(before, folder, session.mark)
    os.environ.clear()
    os.environ.update(env)
    return session


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a child process: this process's, which is isolated, and what the test adds."""
    return dict(os.environ) | extra
