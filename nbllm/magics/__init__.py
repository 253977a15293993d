"""`%%llm` and `%llm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["register", "unregister"]


def register(shell: InteractiveShell) -> None:
    """Register the magics and their completion, and the session for `%config LLM`; twice is as good as once."""
    from nbllm.magics import chat, complete, executions
    from nbllm.magics.llm import LLMMagics
    from nbllm.session import get_session

    shell.register_magics(LLMMagics)
    if _with_a_body not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.insert(0, _with_a_body)
    chat.install(shell)
    complete.install(shell)
    executions.install(shell)
    session = get_session()
    configurables: list[Any] = shell.configurables  # IPython's annotation names only its own
    if session not in configurables:
        configurables.append(session)
        if "LLM" in shell.config:  # set in the user's ipython_config.py
            session.update_config(shell.config)


def unregister(shell: InteractiveShell) -> None:
    """Take all of it away again."""
    from nbllm.magics import chat, complete, executions
    from nbllm.session import get_session

    chat.uninstall(shell)
    complete.uninstall(shell)
    executions.uninstall(shell)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("llm", None)
    shell.magics_manager.registry.pop("LLMMagics", None)
    if _with_a_body in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(_with_a_body)
    configurables: list[Any] = shell.configurables
    configurables[:] = [known for known in configurables if known is not get_session()]


def _with_a_body(lines: list[str]) -> list[str]:
    # IPython refuses a cell magic without a body before we see it; `%%llm --help` alone is no mistake.
    if len(lines) == 1 and lines[0].split()[:1] == ["%%llm"]:
        return [lines[0].rstrip("\n") + "\n", "\n"]
    return lines


_with_a_body.has_side_effects = True  # type: ignore[attr-defined]  # so IPython leaves it out when it asks for completeness
