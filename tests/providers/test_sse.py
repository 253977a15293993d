"""Server-sent events, however they are cut."""

import re
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm.providers.sse import SSEDecoder

TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
EVENTS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), max_size=6)

# What a stream is made of, whole and torn: fields, line ends, characters of several bytes and halves of them.
PIECES = st.sampled_from(
    [
        *(b"data:", b"data: ", b"data", b"event:", b"event: ", b"id: 1", b"retry: 9", b": comment", b":", b" ", b"a"),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r", b"\x00", "é".encode(), "😀".encode()),
        *("é".encode()[:1], "😀".encode()[1:], b"\xff", b"\xef\xbb\xbf", "\u2028".encode(), "\x85".encode()),
    ]
)
BODIES = st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=30).map(b"".join))


def reference(body: bytes) -> list[tuple[str, str]]:
    """The events of a whole body, by the words of the standard (section 9.2.6); an unfinished one counts as well."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    events: list[tuple[str, str]] = []
    data: list[str] = []
    event = ""
    for line in [*re.split("\r\n|\n|\r", text), ""]:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            if data:
                events.append((event, "\n".join(data)))
            data, event = [], ""
        elif name == "data" and ":" in line:
            data.append(value)
        elif name == "event":
            event = value
    return events


def decoded(body: bytes, cuts: list[int]) -> list[tuple[str, str]]:
    """What the decoder makes of a body that comes in these pieces."""
    decoder, found = SSEDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        found += decoder.feed(body[start:end])
    return found + decoder.end()


@given(EVENTS, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.data())
def test_events_survive_any_cut_and_any_line_ending(
    events: list[tuple[str, list[str]]], newline: str, comments: bool, data: st.DataObject
) -> None:
    """Whatever the line ending and wherever the bytes are cut, characters included, the same events come out."""
    lines: list[str] = []
    for name, texts in events:
        lines += [": keep-alive"] if comments else []
        lines += [f"event: {name}"] if name else []
        lines += [*(f"data: {text}" for text in texts), ""]
    body = newline.join([*lines, ""]).encode() if lines else b""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    assert decoded(body, cuts) == [(name, "\n".join(texts)) for name, texts in events]


@given(BODIES, st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_give_what_a_plain_parser_of_the_whole_gives(body: bytes, data: st.DataObject) -> None:
    """Random bytes and torn streams, cut anywhere: never an exception, and the events of the uncut body."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    assert decoded(body, cuts) == reference(body)
    assert decoded(body, list(range(1, len(body)))) == reference(body)


def test_a_huge_event_in_many_pieces_takes_a_few_times_its_size() -> None:
    """10 MB in pieces of 1 kB: each piece is kept once and joined once, at the end."""
    size = 10_000_000
    decoder, piece = SSEDecoder(), b"x" * 1000
    tracemalloc.start()
    try:
        assert decoder.feed(b"data: ") == []
        for _ in range(size // 1000):
            assert decoder.feed(piece) == []
        ((name, data),) = decoder.feed(b"\n\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (name, len(data)) == ("", size)
    assert peak < 6 * size


def test_an_event_without_its_last_blank_line_is_kept_at_the_end() -> None:
    """Servers that close right after the last line have said it all the same."""
    decoder = SSEDecoder()
    assert decoder.feed(b"\xef\xbb\xbfdata:a\nid: 1\nretry: 3\n") == []
    assert decoder.end() == [("", "a")]
    assert decoder.end() == []
    assert decoded(b"data:a\xc2", []) == [("", "a\ufffd")]
