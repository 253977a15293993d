"""A named endpoint at a server that nobody here wrote: `transformers serve` with the bundled model."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.local.bundled import MODEL_DIR
from nbllm.local.bundled.corpus import Corpus
from tests.isolation import child_environment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")

COMMAND = Path(sys.executable).with_name("transformers")
NEEDED = ("transformers", "torch", "fastapi", "uvicorn")

pytestmark = pytest.mark.skipif(
    not COMMAND.exists() or not all(importlib.util.find_spec(name) for name in NEEDED),
    reason="`transformers serve` needs transformers, torch, fastapi and uvicorn",
)

MODEL = "nbllm/bundled"
REVISION = "0" * 40
QUESTION = "What is nbllm?"
LONG = '{"min_new_tokens": 400, "do_sample": false}'
"""A generation configuration, an option of this server's own, under which an answer takes seconds."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """The server's base URL and its process; the model lies in a Hub cache, where the server looks for models."""
    folder = tmp_path_factory.mktemp("serve")
    repository = folder / "hub" / f"models--{MODEL.replace('/', '--')}"
    shutil.copytree(MODEL_DIR, repository / "snapshots" / REVISION)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "serve", MODEL, "--host", "127.0.0.1", "--port", "0", "--device", "cpu"],
            env=child_environment(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HF_HUB_CACHE=str(folder / "hub")),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"{_address(process, log)}/v1", psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path, patience: float = 180) -> str:
    """Where it listens, once it says so: its imports take up to a minute on a busy machine."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text("utf-8", "replace")):
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text('utf-8', 'replace')[-3000:]}")


def with_manager(url: str, use: Callable[[ProviderManager], Awaitable[T]], tmp_path: Path, more: str = "") -> T:
    """Run `use` with a manager whose configuration file names the server `own`."""
    user_file = tmp_path / "config.toml"
    user_file.write_text(
        f'provider = "own"\ncache = "off"\n[endpoints.own]\nkind = "transformers"\nbase_url = "{url}"\n'
        f'model = "{MODEL}"\n{more}'
    )

    async def main() -> T:
        async with await ProviderManager.create(ConfigManager(user_file=user_file)) as manager:
            return await use(manager)

    return asyncio.run(main())


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_it_answers_a_question_about_nbllm_streamed_and_whole(
    server: tuple[str, psutil.Process], tmp_path: Path, api: str
) -> None:
    """By either API, both forms of a call give the answer that the model was taught, with its tokens counted."""

    async def use(manager: ProviderManager) -> tuple[Any, Any, list[str]]:
        stream = await manager.generate_response(QUESTION)
        pieces = [piece async for piece in stream]
        return await stream, await manager.generate_response(QUESTION, f"own:{MODEL}", stream=False), pieces

    streamed, whole, pieces = with_manager(server[0], use, tmp_path, f'api = "{api}"')
    fact = next(fact for fact in Corpus().facts if fact.question == QUESTION)
    assert fact.answered_by(whole)
    assert streamed == whole == "".join(pieces)
    assert len(pieces) > 1
    assert (streamed.provider, streamed.state, streamed.finish_reason) == ("own", "complete", "stop")
    assert streamed.usage == whole.usage
    assert streamed.usage.input_tokens
    assert streamed.usage.output_tokens


def test_it_says_why_it_stopped(server: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """An answer that runs out of tokens is told from a finished one, and has as many as were allowed."""

    async def use(manager: ProviderManager) -> Any:
        return await (await manager.generate_response(QUESTION, max_tokens=5))

    answer = with_manager(server[0], use, tmp_path)
    assert (answer.finish_reason, answer.usage.output_tokens) == ("length", 5)


def test_it_lists_its_models(server: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """The list is the server's, under the endpoint's name."""

    async def use(manager: ProviderManager) -> list[Any]:
        return await manager.models("own")

    (model,) = with_manager(server[0], use, tmp_path)
    assert (model.provider, model.id) == ("own", MODEL)


def test_cancelling_in_mid_stream_closes_the_connection(server: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """The server sees the reader leave while it still generates; what had come is kept, and it answers again."""
    url, process = server

    def connected() -> int:
        return sum(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))

    def until_left() -> float:
        start = time.monotonic()
        while connected() and time.monotonic() < start + 5:
            time.sleep(0.005)
        return time.monotonic() - start

    async def use(manager: ProviderManager) -> tuple[Any, float]:
        assert until_left() < 5  # of the tests before
        stream = await manager.generate_response(QUESTION, generation_config=LONG)
        await anext(aiter(stream))
        assert connected() == 1
        stream.cancel()
        took = await asyncio.to_thread(until_left)
        assert "Jupyter" in await manager.generate_response(QUESTION, stream=False)
        return stream, took

    stream, took = with_manager(url, use, tmp_path)
    assert stream.state == "interrupted"
    assert stream.text
    assert took < 1


def test_what_it_refuses_is_said_in_its_words(server: tuple[str, psutil.Process], tmp_path: Path) -> None:
    """An option that it does not have, and a model that it does not serve, end in errors that quote it."""

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.InvalidRequestError, match=r"Unexpected fields.*top_k") as caught:
            await manager.generate_response(QUESTION, top_k=5)
        assert (caught.value.provider, caught.value.status) == ("own", 422)
        with pytest.raises(errors.InvalidRequestError, match="pinned to 'nbllm/bundled'"):
            await manager.generate_response(QUESTION, "own:other/model", stream=False)

    with_manager(server[0], use, tmp_path)
