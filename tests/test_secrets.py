"""Keys: in no artifact of a run."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from nbllm import ConfigManager, ProviderManager
from nbllm.errors import NbllmError
from tests.wire import Wire

if TYPE_CHECKING:
    from tests.kernel.harness import Kernel

KEY = "sk-needle-8d1f6a3b5c7e9024"

CODE = [
    "%load_ext nbllm",
    "import logging, sys; logging.basicConfig(level=0, filename='debug.log')",
    "%llm status",
    "%llm providers",
    "%llm models",
    "%%llm openai:ok -o kept\nHi",
    "kept, kept.__dict__",
    "%%llm openai:e401\nHi",
    "%%llm openai:cut\nHi",
    "%%llm openai:hang -n 1\nHi",
    "%xmode Verbose",
    "import nbllm; nbllm.ask('Hi', 'openai:e500')",
    "from nbllm.session import get_session\nmanager = nbllm.get_manager()\nvars(manager), vars(manager.config)",
    "slot = list(manager._pool._slots.values())[0]; slot.__dict__, slot.provider.__dict__",
    (
        "import traceback\n"
        "try: nbllm.ask('Hi', 'openai:e401')\n"
        "except Exception as e: print(traceback.format_exc(), repr(e), vars(e))"
    ),
    "def f(m=manager):\n    raise ValueError(m)\nf()",
    "%config LLM",
]


def test_a_key_that_a_run_uses_is_in_nothing_that_the_run_leaves(
    new_kernel: Callable[..., Kernel], wire: Wire, tmp_path: Path
) -> None:
    """Outputs, tracebacks of every style, reprs, comm messages, the saved notebook, its page, logs, files."""
    from nbconvert import HTMLExporter

    kernel = new_kernel(env={"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": KEY}, cwd=tmp_path)
    notebook = nbformat.v4.new_notebook()
    seen: list[str] = []
    for index, code in enumerate(CODE):
        before = len(wire.requests)
        running = kernel.start(code, cell_id=f"cell-{index}")
        if "hang" in code:
            wire.wait_requests(before + 1)
            running.interrupt()
        result = running.result()
        seen += [repr(message) for message in result.history]
        outputs = [
            nbformat.v4.new_output("display_data", output.data, metadata=output.metadata) for output in result.displays
        ]
        notebook.cells.append(nbformat.v4.new_code_cell(code, outputs=outputs))
    nbformat.write(notebook, tmp_path / "saved.ipynb")
    (tmp_path / "page.html").write_text(HTMLExporter().from_notebook_node(notebook)[0])
    assert any(request.headers.get("authorization") == f"Bearer {KEY}" for request in wire.requests)
    assert sum(len(text) for text in seen) > 10_000
    for text in [*seen, kernel.printed]:
        assert KEY not in text
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def test_a_key_is_in_no_log_record_and_no_traceback_of_python(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """With logging at its most talkative, through success, refusal and a broken stream."""
    openai = {"base_url": f"{wire.url}/v1", "api_key": KEY}
    config = ConfigManager(runtime={"provider": "openai", "providers": {"openai": openai}})
    texts: list[str] = []

    async def main() -> None:
        async with ProviderManager(config) as manager:
            for model in ("ok", "e401", "e429", "reset", "notsse"):
                try:
                    await (await manager.generate_response("Hi", model))
                except NbllmError as exc:
                    texts.append("".join(traceback.format_exception(exc)) + repr(exc) + repr(vars(exc)))

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert len(texts) == 4
    assert KEY not in caplog.text
    assert not [text for text in texts if KEY in text]
    assert all(KEY not in repr(record.__dict__) for record in caplog.records)
