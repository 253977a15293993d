"""The faults as data: how each is made to happen, and what a caller gets."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nbllm import errors
from nbllm.errors import ProviderError

PROVIDERS: Final = ("openai", "anthropic", "mistral", "google", "huggingface-hosted")

MODEL: Final = "m"

KEY: Final = "sk-secret-0123456789abcdef"

SO_FAR: Final = "tok0 tok1 tok2 tok3 tok4 "
"""What has arrived when a fault inside a stream strikes: the server waits until it was read."""

ACCENTS: Final = "Naïve café, 日本語, 👩‍🔬 and the end."

HUGE: Final = "0123456789abcdef" * 625_000
"""10 MB."""

QUICK: Final = 0.4
"""Seconds until a silent server is given up."""

Place = Literal["wire", "refused", "dns", "tls"]
"""Where the provider's address leads: the wire server, a port where nothing listens, a name that does not resolve, a
server whose certificate nobody trusts."""

Reader = Literal["reads", "cancels before headers", "cancels", "breaks", "two loops", "forks"]
"""What whoever asked does."""

Kept = Literal["nothing", "so far", "whole"]
"""Which text is there afterwards."""


@dataclass(frozen=True)
class Cell:
    """One fault.

    Attributes:
        name: Its short name, for the test's.
        says: What happens, as the table words it.
        error: The exact type of the error; None where there is none to be.
        fields: What the error says besides; a pair is a range.
        words: What its message or action contains.
        kept: The text that is there afterwards.
        script: The settings of the server's `Script`; a value that can be called is called when the test runs.
        gate: The server stands still before this delta (-1: before the headers) until the text so far was read.
        place: Where the address leads.
        reader: What whoever asked does.
        timeout: The setting of that name.
    """

    name: str
    says: str
    error: type[ProviderError] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""
    kept: Kept = "nothing"
    script: Mapping[str, Any] = field(default_factory=dict)
    gate: int | None = None
    place: Place = "wire"
    reader: Reader = "reads"
    timeout: float = 30.0

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return bool(self.fields.get("retryable", False))

    @property
    def retried(self) -> bool:
        """Whether the manager tries again by itself: never once a part of the answer was handed out."""
        return self.retryable and self.kept == "nothing"


def _in_half_a_minute() -> str:
    return email.utils.formatdate(time.time() + 30, usegmt=True)


def _refused(name: str, says: str, error: type[ProviderError], status: int, **more: Any) -> Cell:
    script = more.pop("script", {"status": status})
    fields = {"status": status, "retryable": False, **more.pop("fields", {})}
    return Cell(name, says, error, fields, script=script, **more)


def _may_pass(name: str, says: str, error: type[ProviderError], status: int, **more: Any) -> Cell:
    fields = {"retryable": True, "retry_after": None, **more.pop("fields", {})}
    return _refused(name, says, error, status, fields=fields, **more)


def _unreachable(name: str, says: str, place: Place, **more: Any) -> Cell:
    fields = {"status": None, "phase": "connect", "retryable": True, **more.pop("fields", {})}
    return Cell(name, says, errors.ConnectionError, fields, place=place, **more)


def _broken(name: str, says: str, error: type[ProviderError], fault: str, **more: Any) -> Cell:
    """A fault in the middle of a stream, after five deltas."""
    return Cell(name, says, error, kept="so far", script={"fault": fault, "at": 5}, gate=5, **more)


def _harmless(name: str, says: str, **script: Any) -> Cell:
    return Cell(name, says, kept="whole", script=script)


CELLS: Final = (
    # Refusals.
    _refused(
        "401",
        "401",
        errors.AuthenticationError,
        401,
        script={"status": 401, "message": f"Bad key: {KEY}"},
        words="valid key",
    ),
    _refused("403", "403", errors.PermissionDeniedError, 403),
    _refused("404", "404", errors.ModelNotFoundError, 404),
    _may_pass(
        "429-seconds",
        "429 with `Retry-After` in seconds",
        errors.RateLimitError,
        429,
        script={"status": 429, "retry_after": 7},
        fields={"retry_after": 7.0},
    ),
    _may_pass(
        "429-date",
        "as a date",
        errors.RateLimitError,
        429,
        script={"status": 429, "retry_after": _in_half_a_minute},
        fields={"retry_after": (20.0, 31.0)},
    ),
    _may_pass("429", "or without it", errors.RateLimitError, 429),
    _refused(
        "quota", "an account out of credit", errors.QuotaExceededError, 429, script={"reason": "insufficient_quota"}
    ),
    _refused(
        "400-context",
        "400: the context window exceeded",
        errors.ContextLengthError,
        400,
        script={"reason": "context_length_exceeded"},
    ),
    _refused(
        "400-parameter",
        "400: a parameter not supported",
        errors.InvalidRequestError,
        400,
        script={"reason": "unsupported_parameter", "param": "logit_bias"},
        words="logit_bias",
    ),
    _may_pass("500", "500", errors.ServerError, 500),
    _may_pass("503", "503", errors.OverloadedError, 503),
    _may_pass("529", "529", errors.OverloadedError, 529),
    # No answer.
    _unreachable("refused", "nothing listens", "refused"),
    _unreachable("dns", "no such host", "dns"),
    _unreachable("tls", "a certificate not trusted", "tls", fields={"retryable": False}, words="SSL_CERT_FILE"),
    Cell(
        "closed",
        "closed before the answer",
        errors.ConnectionError,
        {"status": None, "phase": "open", "retryable": True},
        script={"fault": "close"},
    ),
    Cell(
        "hang",
        "no answer",
        errors.TimeoutError,
        {"status": None, "phase": "open", "retryable": True},
        script={"fault": "hang"},
        timeout=QUICK,
    ),
    # A stream that goes wrong.
    _broken("stall", "silence in mid-stream", errors.TimeoutError, "stall", fields={"phase": "stream"}, timeout=QUICK),
    _broken("cut", "a clean end, too early", errors.IncompleteStreamError, "cut", fields={"text": SO_FAR}),
    _broken("drop", "closed in mid-stream", errors.ConnectionError, "drop", fields={"phase": "stream"}),
    _broken("reset", "reset in mid-stream", errors.ConnectionError, "reset", fields={"phase": "stream"}),
    _broken("error-event", "an error event in the stream", errors.ServerError, "error_event"),
    _broken("malformed", "a malformed chunk", errors.ResponseFormatError, "malformed", fields={"retryable": False}),
    # A 200 that is no stream.
    Cell(
        "not-sse",
        "a web page in place of a stream",
        errors.ResponseFormatError,
        {"retryable": False},
        script={"fault": "not_sse"},
        words="base URL",
    ),
    Cell(
        "empty",
        "an empty body",
        errors.ResponseFormatError,
        {"retryable": False},
        script={"fault": "empty"},
        words="base URL",
    ),
    # What must make no difference.
    _harmless("utf-8", "characters cut by chunks", text=ACCENTS, write=1),
    _harmless("crlf", "CRLF and comment lines", newline="\r\n", comments=True),
    _harmless("huge", "an event of 10 MB", deltas=[HUGE]),
    Cell("two-loops", "two event loops at once", kept="whole", gate=5, reader="two loops"),
    Cell("fork", "a forked child that asks as well", kept="whole", reader="forks"),
    # A reader who leaves.
    Cell("cancel-early", "cancelled before the answer", gate=-1, reader="cancels before headers"),
    Cell("cancel", "cancelled in mid-stream", kept="so far", gate=5, reader="cancels"),
    Cell("break", "left by `break`", kept="so far", gate=5, reader="breaks"),
)
"""Every fault; each is made to happen to each of the `PROVIDERS`."""
