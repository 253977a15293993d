"""Server-sent events, however they are cut."""

from hypothesis import given
from hypothesis import strategies as st

from nbllm.providers.sse import SSEDecoder

TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
EVENTS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), max_size=6)


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
    decoder, found = SSEDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        found += decoder.feed(body[start:end])
    found += decoder.end()
    assert found == [(name, "\n".join(texts)) for name, texts in events]


def test_an_event_without_its_last_blank_line_is_kept_at_the_end() -> None:
    """Servers that close right after the last line have said it all the same."""
    decoder = SSEDecoder()
    assert decoder.feed(b"\xef\xbb\xbfdata:a\nid: 1\nretry: 3\n") == []
    assert decoder.end() == [("", "a")]
    assert decoder.end() == []
