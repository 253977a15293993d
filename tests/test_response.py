"""Answers: whole ones, and while they stream."""

import asyncio
import copy
import pickle
from typing import Any

import pytest

from nbllm import ConfigManager, ProviderManager, Response, ResponseStream
from nbllm.errors import IncompleteStreamError, UsageError
from nbllm.response import Record
from nbllm.types import Finish, TextDelta, ToolCall, ToolCallDelta, Usage
from tests.wire import Wire


def manager(wire: Wire) -> ProviderManager:
    return ProviderManager(
        ConfigManager(runtime={"provider": "openai", "providers": {"openai": {"base_url": f"{wire.url}/v1"}}})
    )


def response(text: str) -> Response:
    record = Record("openai", "m", state="complete", usage=Usage(1, 2), finish=Finish("stop", "stop"))
    return Response(text, record)


def test_a_response_is_a_str_that_knows_where_it_came_from() -> None:
    """It can be used wherever a str can, and copying or pickling it loses nothing."""
    answer = response("Hello")
    assert answer + "!" == "Hello!"
    assert (str(answer), type(str(answer))) == ("Hello", str)
    for twin in (answer, copy.copy(answer), pickle.loads(pickle.dumps(answer))):
        assert (twin, twin.provider, twin.model, twin.state) == ("Hello", "openai", "m", "complete")
        assert (twin.usage, twin.finish_reason, twin.cost, twin.cached) == (Usage(1, 2), "stop", None, False)


def test_code_blocks_are_taken_out_as_they_are() -> None:
    """Fences of either kind, longer ones around shorter ones, indented in a list, unclosed at the end."""
    text = "a\n```python x=1\nprint('hi')\n```\n- b\n\n  ~~~\n  c\n    d\n  ~~~\n````md\n```\nin\n```\n````\n```js\nend"
    assert response(text).code_blocks == [
        ("python", "print('hi')\n"), ("", "c\n  d\n"), ("md", "```\nin\n```\n"), ("js", "end\n"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['{"a": [1]}', 'Here:\n```json\n{"a": [1]}\n```\nDone.', '```\n{"a": [1]}\n```'])
def test_json_is_read_from_the_whole_or_its_block(text: str) -> None:
    """Models wrap JSON in a code block as often as not."""
    assert response(text).json() == {"a": [1]}


def test_an_answer_that_is_no_json_says_so() -> None:
    """The error names the next action."""
    with pytest.raises(UsageError, match="not JSON"):
        response("Sorry.").json()


def test_a_response_displays_harmless_markdown() -> None:
    """What a notebook shows cannot execute; the str itself is exact."""
    text = "<script>alert(1)</script> **bold**\x1b[2J"
    answer = response(text)
    bundle = answer._repr_mimebundle_()
    assert "<script>" not in bundle["text/markdown"]
    assert "**bold**" in bundle["text/markdown"]
    assert "\x1b" not in bundle["text/plain"]
    assert answer._repr_markdown_() == bundle["text/markdown"]
    assert str(answer) == text


def test_tool_calls_are_put_together_from_their_pieces() -> None:
    """Fragments of two calls that arrive in turns become two whole calls."""
    record = Record("openai", "m")
    record.add([ToolCallDelta(0, "a", "f", '{"x"'), ToolCallDelta(1, "b", "g"), ToolCallDelta(0, arguments=": 1}")])
    assert record.tool_calls == (ToolCall("a", "f", '{"x": 1}'), ToolCall("b", "g", ""))


def test_the_final_state_is_the_first_one() -> None:
    """A stream that was stopped does not become failed by what its closing raises."""
    record = Record("openai", "m")
    record.end("interrupted")
    record.end("failed", ValueError())
    assert (record.state, record.error) == ("interrupted", None)


def test_a_stream_is_read_in_a_cell_without_await(wire: Wire) -> None:
    """A plain `for` works, a `with` closes, and `collect` gives the whole answer."""
    own = manager(wire)
    with own.start("Hi", "ok") as stream:
        assert "".join(stream) == stream.text == "".join(f"tok{i} " for i in range(10))
    assert stream.state == "complete"
    with own.start("Hi", "slow") as stream:
        assert next(iter(stream)).startswith("tok0 ")
    assert stream.state == "interrupted"
    wire.wait_closed(1)
    assert "slow interrupted" in repr(stream)
    asyncio.run(own.close())


def test_reading_twice_is_refused_with_the_place_of_the_text(wire: Wire) -> None:
    """A stream can be read once, and broken off and taken up again; its text stays."""
    own = manager(wire)
    script = wire.script("m", deltas=["a", "b"], gates=[1])

    async def main() -> None:
        stream = await own.generate_response("Hi", "m")
        async for piece in stream:
            assert piece == "a"
            break
        script.release()
        assert [piece async for piece in stream] == ["b"]
        with pytest.raises(UsageError, match=r"\.text"):
            async for _ in stream:
                pass
        with pytest.raises(UsageError, match=r"\.text"):
            async for _ in stream.events():
                pass
        assert await stream == "ab"
        assert stream.response() == stream.text
        await own.close()

    asyncio.run(main())


def test_an_error_in_mid_stream_comes_after_what_had_arrived(wire: Wire) -> None:
    """A reader gets every piece, then the error; both forms of reading alike."""
    own = manager(wire)

    async def read() -> list[str]:
        pieces = []
        with pytest.raises(IncompleteStreamError) as caught:
            async for piece in await own.generate_response("Hi", "cut"):
                pieces.append(piece)
        assert caught.value.text == "".join(pieces)
        return pieces

    text = "".join(f"tok{i} " for i in range(5))
    assert "".join(asyncio.run(read())) == text
    blocking: list[str] = []
    with pytest.raises(IncompleteStreamError):
        for piece in own.start("Hi", "cut"):
            blocking.append(piece)  # noqa: PERF402 - extend would lose what came before the error
    assert "".join(blocking) == text
    asyncio.run(own.close())


def test_reading_in_a_task_that_is_cancelled_stops_the_call(wire: Wire) -> None:
    """Cancelling whoever reads closes the socket."""
    own = manager(wire)
    script = wire.script("m", deltas=["a", "b"], gates=[1])

    async def main() -> ResponseStream:
        stream = await own.generate_response("Hi", "m")
        assert await anext(stream) == "a"
        task = asyncio.create_task(stream.collect())
        await asyncio.to_thread(script.wait_gate)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.to_thread(wire.wait_closed, 1)
        await own.close()
        return stream

    stream = asyncio.run(main())
    assert (stream.state, stream.text) == ("interrupted", "a")


def test_closing_waits_for_the_socket_even_after_a_cancel(wire: Wire) -> None:
    """`cancel` returns at once; a following `aclose` or `close` returns when the connection is closed."""
    own = manager(wire)

    async def main() -> None:
        stream = await own.generate_response("Hi", "slow")
        stream.cancel()
        await stream.aclose()
        assert stream.ended.done()
        await own.close()

    asyncio.run(main())
    stream = own.start("Hi", "slow")
    stream.cancel()
    stream.close()
    assert stream.ended.done()
    asyncio.run(own.close())


def test_a_failed_stream_stays_failed(wire: Wire) -> None:
    """Awaiting it again raises again: half an answer is never handed over as a whole one."""
    own = manager(wire)

    async def main() -> None:
        stream = own.start("Hi", "cut")
        for _ in range(2):
            with pytest.raises(IncompleteStreamError):
                await stream
        with pytest.raises(IncompleteStreamError):
            aiter(stream)
        await own.close()

    asyncio.run(main())


def test_two_readers_of_one_stream_are_told(wire: Wire) -> None:
    """The second reader gets an error, and the first its text."""
    own = manager(wire)
    script = wire.script("m", deltas=["a", "b"], gates=[1])

    async def main() -> None:
        stream = await own.generate_response("Hi", "m")
        assert await anext(stream) == "a"
        first = asyncio.create_task(anext(stream))
        await asyncio.to_thread(script.wait_gate)
        with pytest.raises(UsageError, match="somebody else"):
            await anext(stream)
        assert not first.done()
        await own.close()
        first.cancel()
        await asyncio.wait([first])

    asyncio.run(main())


def test_nothing_arrives_after_the_end() -> None:
    """A stream that was stopped stays stopped, whatever was still on its way."""
    record = Record("openai", "m")
    record.end("interrupted")
    record.add([TextDelta("late")])
    record.end("complete")
    assert (record.state, record.text) == ("interrupted", "")


def test_a_burst_is_one_piece_per_read(wire: Wire) -> None:
    """A thousand tokens that arrive together are handed over together, not one by one."""
    own = manager(wire)

    async def main() -> list[str]:
        pieces = [piece async for piece in await own.generate_response("Hi", "burst-1000")]
        await own.close()
        return pieces

    pieces = asyncio.run(main())
    assert "".join(pieces) == "".join(f"tok{i} " for i in range(1000))
    assert len(pieces) < 100


async def _aiter(items: list[Any]) -> Any:
    for item in items:
        yield item


def test_any_stream_of_chunks_becomes_text(wire: Wire) -> None:
    """str, the dict chunks of several providers, and our own streams."""
    process = ProviderManager.process_streaming_response
    chunks = [
        "a", {"choices": [{"delta": {"content": "b"}}]}, {"choices": [{"delta": {}}]}, {"delta": {"text": "c"}},
        {"text": "d"}, {"content": "e"}, {"type": "ping"}, Finish("stop"), 5,
    ]  # fmt: skip
    assert asyncio.run(process(_aiter(chunks))) == "abcde"
    own = manager(wire)

    async def main() -> str:
        text = await process((await own.generate_response("Hi", "ok")).events())
        text += await process(await own.generate_response("Hi", "ok"))
        await own.close()
        return text

    assert asyncio.run(main()) == "".join(f"tok{i} " for i in range(10)) * 2
