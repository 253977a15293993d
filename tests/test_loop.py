"""The background loop and its bridges."""

import asyncio
import concurrent.futures
import os
import signal
import threading

import pytest

from nbllm._loop import Channel, background_loop
from nbllm.errors import UsageError


async def where() -> str:
    return threading.current_thread().name


def test_every_form_runs_on_the_one_loop() -> None:
    """Whether awaited, waited for or submitted, a coroutine runs on the loop's own thread."""
    loop = background_loop()
    assert loop.run(where()) == "nbllm"
    assert asyncio.run(loop.bridge(where())) == "nbllm"
    assert asyncio.run(loop.bridge(where())) == "nbllm"  # from a second loop of the user's too
    job = loop.job()
    job.start(where())
    assert job.outcome.result(5) == "nbllm"
    assert loop.run(loop.bridge(where())) == "nbllm"  # and on the loop itself


def test_a_blocking_call_on_the_loop_itself_is_refused() -> None:
    """A sync form called on the loop's own thread would wait for itself: it raises instead."""

    async def nested() -> None:
        background_loop().run(where())

    with pytest.raises(UsageError, match="own event loop"):
        background_loop().run(nested())


def test_cancelling_the_awaiter_cancels_the_job() -> None:
    """A user's cancelled task takes its job on the background loop along."""
    started, ended = threading.Event(), threading.Event()

    async def job() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def main() -> None:
        task = asyncio.create_task(background_loop().bridge(job()))
        await asyncio.to_thread(started.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended.wait(5)


def test_an_interrupt_ends_the_wait_after_the_job_has_closed_what_it_opened() -> None:
    """KeyboardInterrupt leaves `run` at once, but not before the job's own cleanup has run."""
    steps: list[str] = []

    async def job() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            steps.append("closed")

    with pytest.raises(KeyboardInterrupt):
        background_loop().run(job())
    assert steps == ["closed"]


def test_a_timeout_of_the_job_is_not_taken_for_one_of_the_wait() -> None:
    """A job that raises TimeoutError raises it to the caller, rather than being waited for for ever."""

    async def job() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        background_loop().run(job())


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """After a fork the parent's loop is left alone, and the child starts its own."""
    mine = background_loop()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child's lines are not measured
        ok = background_loop() is not mine and background_loop().run(where()) == "nbllm"
        os.write(writing, b"1" if ok else b"0")
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    assert mine.run(where()) == "nbllm"


def test_a_channel_hands_over_all_that_has_gathered_and_then_the_error() -> None:
    """A reader gets whole batches in order, then the writer's error, then the end."""
    channel: Channel[int] = Channel()
    channel.put([1, 2])
    channel.put([3])
    channel.close(ValueError("cut"))
    channel.close()
    assert channel.get_blocking() == [1, 2, 3]
    with pytest.raises(ValueError, match="cut"):
        channel.get_blocking()
    assert channel.get_blocking() == []


@pytest.mark.parametrize("blocking", [True, False])
def test_a_channel_loses_nothing_between_threads(blocking: bool) -> None:
    """Ten thousand items put on one thread arrive on another, whole and in order."""
    channel: Channel[int] = Channel()

    def write() -> None:
        for start in range(0, 10_000, 10):
            channel.put(list(range(start, start + 10)))
        channel.close()

    async def read() -> list[int]:
        found: list[int] = []
        while batch := (channel.get_blocking() if blocking else await channel.get()):
            found += batch
        return found

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(write)
        assert asyncio.run(read()) == list(range(10_000))
