"""The table of faults says what is so."""

from __future__ import annotations

import asyncio

import pytest

from nbllm import ConfigManager, ProviderManager
from tests.faults.matrix import CELLS, KEY, MODEL, PROVIDERS, Cell
from tests.faults.table import README, written
from tests.wire import Wire

SCRIPTED = [cell for cell in CELLS if cell.error is not None and cell.place == "wire"]


def test_the_readmes_table_is_current() -> None:
    """It is what `python -m tests.faults.table` writes."""
    readme = README.read_text("utf-8")
    assert written(readme) == readme


def test_every_cell_has_a_name_of_its_own() -> None:
    """No cell hides behind another's name."""
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert len({cell.says for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize("cell", SCRIPTED, ids=[cell.name for cell in SCRIPTED])
def test_what_the_table_calls_retried_is_retried_and_nothing_else(cell: Cell, wire: Wire) -> None:
    """A fault that strikes once ends in the whole answer where the table says so, and in its error elsewhere."""
    own = {"base_url": wire.base(PROVIDERS[0]), "api_key": KEY, "timeout": cell.timeout}
    runtime = {"provider": PROVIDERS[0], "max_retries": 1, "providers": {PROVIDERS[0]: own}}
    # No test waits as long as a server may ask for.
    soon = {"retry_after": 0.01} if "retry_after" in cell.script else {}
    script = wire.script(MODEL, times=1, **cell.script | soon)

    async def ask() -> str:
        async with ProviderManager(ConfigManager(runtime=runtime)) as manager:
            return str(await (await manager.generate_response("Hi", MODEL)))

    if cell.retried:
        assert asyncio.run(ask()) == "".join(script.answer({}))
    else:
        assert cell.error is not None
        with pytest.raises(cell.error):
            asyncio.run(ask())
    assert script.hits == (2 if cell.retried else 1)
