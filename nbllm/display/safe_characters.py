"""Text without the characters that do something: escape sequences, controls, overrides of its direction."""

from __future__ import annotations

import re

__all__ = ["safe_text"]

# A whole CSI sequence (ECMA-48 5.4) goes, so that colours leave no "[31m"; other escapes lose their control
# characters only and show what they carried.
_CSI = re.compile(r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]")
_NEWLINE = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# C0, DEL, C1; bidirectional embeddings, overrides and isolates (UAX 9): all can make code read other than it
# runs. The implicit marks (U+200E, U+200F, U+061C), which Arabic and Hebrew need, stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def safe_text(text: str) -> str:
    """`text` for a terminal: without escape sequences, control characters and bidirectional overrides.

    A carriage return, and whatever else some reader takes for a line break, becomes a newline, so that
    nothing is overwritten or hidden. Lone surrogates, which no JSON message can carry, become U+FFFD.
    """
    text = _NEWLINE.sub("\n", _CSI.sub("", text))
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("", text))
