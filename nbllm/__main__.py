"""The `nbllm` command: `demo`, `lab`, `doctor`."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nbllm import __version__
from nbllm.errors import ConfigError, MissingExtraError, NbllmError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="nbllm", description="Large language models inside the notebook kernel.")
    parser.add_argument("--version", action="version", version=f"nbllm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="run the quickstart notebook and show its answers as they stream")
    demo.add_argument("--output", type=Path, default=Path("nbllm-demo"), help="where to write it (%(default)s)")
    demo.add_argument("--model", default="huggingface:bundled", help="who answers (%(default)s)")

    lab = commands.add_parser("lab", help="open JupyterLab on a copy of the tutorials")
    lab.add_argument("folder", type=Path, nargs="?", default=Path("nbllm-tutorials"), help="the copy (%(default)s)")
    lab.add_argument("options", nargs=argparse.REMAINDER, help="passed on to jupyter lab, such as --no-browser")

    commands.add_parser("doctor", help="say what works here, and what to do about what does not")

    given = parser.parse_args(arguments)
    try:
        if given.command == "demo":
            from nbllm._demo import run_demo

            return run_demo(tutorials(), given.output, given.model)
        if given.command == "lab":
            return open_lab(given.folder, given.options)
        from nbllm._doctor import run_doctor

        return run_doctor()
    except NbllmError as exc:
        print(f"nbllm: {exc.message}", *([f"→ {exc.action}"] if exc.action else []), sep="\n", file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"nbllm: {exc.filename}: {exc.strerror}\n→ Choose a folder that can be written to.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nnbllm: interrupted", file=sys.stderr)
        return 130


def tutorials() -> Path:
    """The folder of the tutorial notebooks: within the installed package, or beside it in a checkout.

    Raises:
        ConfigError: where it is in neither place.
    """
    package = Path(__file__).parent
    for folder in (package / "notebooks", package.parent / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise ConfigError("The tutorial notebooks are not installed.", action="Reinstall nbllm.")


def open_lab(folder: Path, options: Sequence[str]) -> int:
    """Copy the tutorials into `folder`, leaving what is there as it is, and run JupyterLab on it."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise MissingExtraError("JupyterLab", "lab")
    source = tutorials()
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if path.is_dir() or ".ipynb_checkpoints" in path.parts or target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)  # not its mode: the copy is to be written to
    print(f"The tutorials are in {folder.resolve()}; start with 01_quickstart.ipynb.")
    return subprocess.call([sys.executable, "-m", "jupyterlab", f"--notebook-dir={folder}", *options])  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
