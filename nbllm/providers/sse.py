"""Server-sent events, decoded incrementally: https://html.spec.whatwg.org/multipage/server-sent-events.html.

The SDKs build an object tree for each event, which costs several times what the event itself does. A provider whose
SDK hands out its HTTP response decodes that instead.
"""

from __future__ import annotations

import codecs

__all__ = ["SSEDecoder"]


class SSEDecoder:
    """Turns the bytes of a stream, cut anywhere, into the `(event, data)` pairs that are complete by then."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest: list[str] = []  # pieces of a line that is not complete yet
        self._event = ""
        self._data: list[str] = []
        self._started = False

    def feed(self, chunk: bytes) -> list[tuple[str, str]]:
        """The events that this chunk completes, in order; `event` is empty where the stream names none."""
        text = self._decode(chunk)
        if not self._started and text:
            text = text.removeprefix("\ufeff")
            self._started = True
        if "\n" not in text and "\r" not in text and not (self._rest and self._rest[-1].endswith("\r")):
            if text:
                self._rest.append(text)  # joined once the line ends, so that a huge event stays linear
            return []
        text = "".join([*self._rest, text])
        # A CR at the end may be the first half of CRLF: it waits for the next chunk.
        held = text.endswith("\r")
        lines = (text[:-1] if held else text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        rest = lines.pop() + ("\r" if held else "")
        self._rest = [rest] if rest else []
        return self._events(lines)

    def end(self) -> list[tuple[str, str]]:
        """What a stream that lacks its last blank line still held; the standard drops it, servers send it so."""
        text = "".join([*self._rest, self._decode(b"", True)])  # a character that broke off is part of it
        self._rest = []
        return self._events([*text.replace("\r", "\n").split("\n"), ""])

    def _events(self, lines: list[str]) -> list[tuple[str, str]]:
        found = []
        for line in lines:
            if not line:
                if self._data:
                    found.append((self._event, "\n".join(self._data)))
                    self._data = []
                self._event = ""
            elif line.startswith("data:"):
                self._data.append(line[6:] if line.startswith("data: ") else line[5:])
            elif line.startswith("event:"):
                self._event = line[6:].removeprefix(" ")
            # Comments (a leading colon), ids, retries and unknown fields carry nothing for us.
        return found
