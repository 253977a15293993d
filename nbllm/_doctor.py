"""`nbllm doctor`: what works here, and for each thing that does not, what to do about it."""

from __future__ import annotations

import asyncio
import builtins
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from nbllm import __version__
from nbllm._loop import background_loop
from nbllm.display.safe import safe_text
from nbllm.errors import NbllmError, ProviderError
from nbllm.manager import ProviderManager

__all__ = ["Finding", "examine", "run_doctor"]

EXTRAS = {
    "local": (
        "torch",
        "transformers",
        "accelerate",
        "bitsandbytes",
        "peft",
        "trl",
        "datasets",
        "safetensors",
    ),
    "data": ("pandas", "matplotlib"),
    "lab": ("jupyterlab",),
    "keyring": ("keyring",),
    "nest": ("nest-asyncio2",),
    "google-legacy": ("google-generativeai",),
}
"""What each extra installs; a test holds it against pyproject.toml."""

SECONDS = 10
"""How long a provider may take to answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: whether it is well, what was found, and what to do where it is not."""

    subject: str
    well: bool
    found: str
    action: str = ""


def run_doctor() -> int:
    """Print what is found; 0 where a model can answer."""
    answers = False
    for finding in examine():
        answers = answers or (finding.well and finding.subject.startswith("provider "))
        print(f"{'yes' if finding.well else 'no '}  {finding.subject:<24}  {safe_text(finding.found)}")
        if finding.action:
            print(f"     {'':<24}  → {safe_text(finding.action)}")
    print()
    print(
        "Ready: write %load_ext nbllm in a notebook." if answers else "No model can answer yet: see the arrows above."
    )
    return 0 if answers else 1


def examine() -> Iterator[Finding]:
    """Look at everything, one finding after the other."""
    yield Finding("nbllm", True, f"{__version__}, Python {platform.python_version()}")
    for extra, packages in EXTRAS.items():
        missing = [package for package in packages if not _installed(package)]
        yield Finding(
            f"extra {extra}",
            not missing,
            f"missing: {', '.join(missing)}" if missing else "installed",
            f"pip install 'nbllm[{extra}]'" if missing else "",
        )
    yield from _machine()
    yield from _providers()


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _machine() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    gib = memory.available / 2**30
    # A 4-bit model takes a little over half a byte a parameter, and room for its context besides.
    yield Finding(
        "memory",
        gib >= 1,
        f"{gib:.1f} GiB free of {memory.total / 2**30:.1f}, {os.cpu_count()} cores",
        "" if gib >= 1 else "Close something: a local model needs 1 GiB or more.",
    )
    gpus = _gpus()
    yield Finding(
        "GPU",
        bool(gpus),
        "; ".join(gpus) or "none",
        "" if gpus else "Local models run on the CPU; small ones do well there. Hosted ones need no GPU.",
    )


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program:
        query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603
        if found.returncode == 0:
            return [line.strip() for line in found.stdout.splitlines() if line.strip()]
    return ["Apple (MPS)"] if sys.platform == "darwin" and platform.machine() == "arm64" else []


def _providers() -> Iterator[Finding]:
    manager = ProviderManager()
    try:
        for name, spec in manager.specs().items():
            subject = f"provider {name}"
            if not manager.has_key(name):
                yield Finding(subject, False, "no key", f"Set {spec.key_variables[0]} in the environment.")
                continue
            try:
                yield Finding(subject, True, _answer(manager, name))
            except NbllmError as exc:
                yield Finding(subject, False, exc.message, exc.action or "")
    finally:
        background_loop().run(manager.close())


def _answer(manager: ProviderManager, name: str) -> str:
    """What the provider says when it is asked for its models; a local one is asked to speak."""
    local = manager.specs()[name].local

    async def ask() -> str:
        if local:
            answer = await manager.generate_response("Hello", model=f"{name}:bundled", max_tokens=8, stream=False)
            return f"the bundled model answers: {' '.join(answer.split())}…"
        return f"answers, and has {len(await manager.get_available_models(name))} models"

    async def bounded() -> str:
        seconds = 60 if local else SECONDS  # a first import of torch may take half a minute
        try:
            async with asyncio.timeout(seconds):
                return await ask()
        except builtins.TimeoutError as exc:
            if isinstance(exc, NbllmError):
                raise
            raise ProviderError(f"No answer within {seconds} s.", action="Check the network and the proxy.") from exc

    return background_loop().run(bounded())
