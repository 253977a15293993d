"""`%llm key` in a real kernel: the key is asked for unseen, used, kept, and in nothing that the kernel leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import file_keyring

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.harness import Kernel, Result
    from tests.wire import Wire

ROOT = Path(__file__).parent.parent.parent
KEY = "sk-typed-5d0e8b71c93f46a2"
SECOND = "sk-typed-again-c0ffee19a7"
BAD = "sk-pasted badly-0123456789"

Where = dict[str, str]


@pytest.fixture
def place(tmp_path: Path) -> Where:
    """An environment with private folders, and with a keyring that works."""
    folders = {
        "HOME": "home", "XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data", "XDG_STATE_HOME": "state",
        "XDG_CACHE_HOME": "cache", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    for name in folders.values():
        (tmp_path / name).mkdir(mode=0o700)
    return {
        **{variable: str(tmp_path / name) for variable, name in folders.items()},
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
        "PYTHON_KEYRING_BACKEND": f"{file_keyring.__name__}.{file_keyring.FileKeyring.__name__}",
        file_keyring.VARIABLE: str(tmp_path / "ring.json"),
    }


@pytest.fixture
def start(
    new_kernel: Callable[..., Kernel], place: Where, wire: Wire, tmp_path: Path
) -> Iterator[Callable[..., Kernel]]:
    """Start a kernel with nbllm loaded, whose OpenAI is the server and has no key."""

    def started(**environ: str) -> Kernel:
        env = {**place, "NBLLM_OPENAI_BASE_URL": f"{wire.url}/v1", **environ}
        kernel = new_kernel(env=env, cwd=tmp_path)
        kernel.run("%load_ext nbllm").check()
        return kernel

    return started


def asked(result: Result) -> list[dict[str, object]]:
    """What the kernel asked the user."""
    return [message.content for message in result.history if message.type == "input_request"]


def sent(wire: Wire) -> str:
    """The key that the last request had."""
    return wire.requests[-1].headers["authorization"].removeprefix("Bearer ")


def test_a_key_is_asked_for_unseen_used_at_once_and_left_nowhere_else(
    start: Callable[..., Kernel], wire: Wire, tmp_path: Path
) -> None:
    """The request hides what is typed; no message, no history and no file holds the key but those it is kept in."""
    kernel = start(OPENAI_API_KEY="sk-of-the-environment")
    results = [kernel.run("%xmode Verbose")]
    typed = kernel.run("%llm key OpenAI", inputs=(KEY,)).check()
    (request,) = asked(typed)
    assert request["password"] is True
    assert "OpenAI" in str(request["prompt"])
    assert "on the keyring (file keyring FileKeyring" in typed.stdout
    assert "In the next session the key in OPENAI_API_KEY goes before it." in typed.stdout
    results.append(typed)
    results.append(kernel.run("%%llm openai:ok\nHi").check())
    assert sent(wire) == KEY
    results.append(kernel.run("%llm key openai file", inputs=(SECOND,)).check())
    assert "keys.toml" in results[-1].stdout
    results.append(kernel.run("%%llm openai:ok\nHi again").check())
    assert sent(wire) == SECOND
    failed = kernel.run("%llm key openai", inputs=(BAD,))
    assert failed.error is not None
    assert failed.error.ename == "ConfigError"
    results.append(failed)
    # The user's own code has them too, and asks about them.
    results += [
        kernel.run("import json, nbllm\nring = json.load(open('ring.json'))['nbllm/openai']").check(),
        kernel.run("file = open('config/nbllm/keys.toml').read()").check(),
        kernel.run("%%llm openai:echo\nWhat is {ring} in {file}?").check(),
        kernel.run("nbllm.ask(f'What is {ring} in {file}?', 'openai:echo')").check(),
    ]
    for request in wire.requests[-2:]:
        assert "What is [openai] in " in str(request.body)
        assert KEY not in str(request.body)
        assert SECOND not in str(request.body)
    results += [
        kernel.run(code)
        for code in (
            "%llm log", "%llm providers", "%llm status", "%history -g", "1/0", "vars(nbllm.get_manager().config)",
            "nbllm.get_manager().config.key('openai'), nbllm.get_manager().config.settings('openai')",
            "def f(config=nbllm.get_manager().config):\n    raise ValueError(config)\nf()",
        )
    ]  # fmt: skip
    shown = [repr(message) for result in results for message in result.history]
    assert len(shown) > 60
    for text in [*shown, kernel.printed]:
        for secret in (KEY, SECOND, "badly"):
            assert secret not in text
    kernel.close()
    holding = {
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.is_file() and (KEY.encode() in path.read_bytes() or SECOND.encode() in path.read_bytes())
    }
    assert holding == {"ring.json", "config/nbllm/keys.toml"}
    assert (tmp_path / "ipython" / "profile_default" / "history.sqlite").stat().st_size
    assert (tmp_path / "state" / "nbllm" / "log" / "nbllm.log").stat().st_size


def test_what_is_typed_is_not_in_the_history(start: Callable[..., Kernel], tmp_path: Path) -> None:
    """Nor is it in any file, where it is kept for the session alone."""
    kernel = start()
    said = kernel.run("%llm key mistral session", inputs=(KEY,)).check()
    assert "until this kernel ends" in said.stdout
    assert "To keep it longer: %llm key mistral keyring, or %llm key mistral file" in said.stdout
    assert "key found" in kernel.run("%llm providers").check().text
    kernel.run("%history").check()
    kernel.close()
    assert (tmp_path / "ipython" / "profile_default" / "history.sqlite").stat().st_size
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_kept_key_serves_the_next_kernel_until_it_is_forgotten(start: Callable[..., Kernel], wire: Wire) -> None:
    """From the keyring and from the file; what another kernel forgets is gone for a new one."""
    for where in ("keyring", "file"):
        first = start()
        first.run(f"%llm key openai {where}", inputs=(KEY,)).check()
        second = start()
        second.run("%%llm openai:ok\nHi").check()
        assert sent(wire) == KEY
        assert "Forgotten: " in second.run("%llm key openai forget").check().stdout
        second.run("%%llm openai:ok\nHi").check()
        assert sent(wire) != KEY
        third = start()
        third.run("%%llm openai:ok\nHi").check()
        assert sent(wire) != KEY
        for kernel in (first, second, third):
            kernel.close()


def test_without_stdin_the_variable_to_set_is_named(start: Callable[..., Kernel]) -> None:
    """What runs notebooks unattended cannot ask: the error is one of ours, with the next step."""
    result = start().run("%llm key anthropic")
    assert result.error is not None
    assert result.error.ename == "UsageError"
    assert "Set ANTHROPIC_API_KEY before the kernel starts" in result.error.traceback


def test_nothing_typed_changes_nothing(start: Callable[..., Kernel]) -> None:
    """An empty answer is not a key."""
    kernel = start()
    result = kernel.run("%llm key mistral", inputs=("  ",))
    assert result.error is not None
    assert "No key was given" in result.error.evalue
    assert "set MISTRAL_API_KEY" in kernel.run("%llm providers").check().text
