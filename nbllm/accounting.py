"""What calls may cost, what they did cost, and a cautious guess at how many tokens a prompt will be."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from nbllm.errors import BudgetExceededError
from nbllm.prices import Price, Prices
from nbllm.types import Attachment, Message, State

__all__ = ["Budget", "Call", "Ledger", "Price", "Prices", "Reservation", "Totals", "estimate_tokens", "usd"]

logger = logging.getLogger("nbllm.accounting")


# -- how many tokens


PER_REQUEST: Final = 16
"""Tokens around a conversation: what begins it and what opens the answer."""

PER_MESSAGE: Final = 8
"""Tokens around a message, its role among them; chat templates were seen to take 3 to 6."""

PER_IMAGE: Final = 2500
"""Tokens of an image whose size cannot be told, and of a large one. Anthropic takes (width x height)/750, at most about
1,600; OpenAI's small models 1.62 for each 32 x 32 patch, of at most 1,536 patches; Google 258 for each tile."""

PER_PAGE: Final = 4600
"""Tokens of a page of a PDF, which is read as text and as an image: 3,000 and 1,600, by Anthropic's documentation."""

_PIECES: Final = re.compile(r"[A-Za-z0-9+/=]{40,}|[A-Za-z]+| +")


def estimate_tokens(
    messages: Iterable[Message] = (), text: str = "", *, options: Mapping[str, Any] | None = None
) -> int:
    """More tokens than the messages will likely be, so that a budget that is kept by it is kept in truth.

    The text is counted piece by piece, since bytes divided by 3, a common rule, was measured to fall short by two
    thirds for numbers and by half for JSON and Korean: a word of ASCII letters is a token for each 4 letters or part
    of them (3 where it has capitals); each other ASCII character is one (Llama's, Mistral's and Google's vocabularies
    have digits only one by one); a space is part of the word after it, and one elsewhere; a character of an alphabet of
    two bytes in UTF-8 is one, of three bytes (Chinese, Japanese, Korean, Indian scripts) two, of four bytes (emoji)
    four; what looks like base64 is a token a character. Against six vocabularies (OpenAI's cl100k and o200k, Claude
    2's, DeepSeek's, Mistral's v3 and Tekken) it is 1.3 to 1.5 times the largest count for English and code, 1.0 to 1.4
    times for numbers and JSON, and up to 2 times for CJK. Random punctuation and ancient scripts can exceed it.

    Args:
        messages: A conversation.
        text: Other text, such as an answer so far.
        options: The request's options: tools and schemas are sent along, and count.
    """
    total = _of_text(text)
    for message in messages:
        total += PER_MESSAGE + _of_text(message.content)
        total += sum(_of_attachment(attachment) for attachment in message.attachments)
        total += sum(PER_MESSAGE + _of_text(call.name + call.arguments) for call in message.tool_calls)
    for name in ("tools", "schema"):
        if options and options.get(name):
            try:
                said = json.dumps(options[name], default=str, ensure_ascii=False)
            except (TypeError, ValueError, RecursionError):  # whether it can be sent at all is the provider's to say
                said = repr(options[name])
            total += _of_text(said)
    return total + PER_REQUEST


def _of_text(text: str) -> int:
    total = 0
    for match in _PIECES.finditer(text):
        piece = match[0]
        length = len(piece)
        if piece[0] == " ":
            follows = text[match.end() : match.end() + 1]
            total += int(length > 1 or not (follows.isascii() and follows.isalpha())) + length // 16
        elif length > 24:
            total += length
        elif length == 1 or piece[1:].islower():
            total += (length + 3) // 4
        else:
            total += 1 + length // 3
    for character in _PIECES.sub("", text):
        total += 1 if character < "\u0800" else 2 if character <= "\uffff" else 4
    return total


def _of_attachment(attachment: Attachment) -> int:
    kind = attachment.media_type
    if kind.startswith("image/"):
        size = _size_of_image(attachment.data)
        if size is None:
            return PER_IMAGE
        patches = math.ceil(size[0] / 32) * math.ceil(size[1] / 32)
        return min(PER_IMAGE, max(300, math.ceil(patches * 1.7)))
    if kind.startswith("text/") or kind == "application/json":
        return _of_text(attachment.data.decode("utf-8", "replace")) + PER_MESSAGE
    # A PDF's text is compressed about as much as it has bytes a token; fonts and pictures make it larger.
    return max(PER_PAGE, len(attachment.data) // 3)


def _size_of_image(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG or GIF, whose headers say so at once."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    return None


# -- what calls may cost


class Budget:
    """How much may be spent, in US dollars. Its methods may be called from any thread.

    What a call may cost is reserved before it is sent, so that calls that run together do not exceed the limit
    together, and settled afterwards.

    Args:
        limit: The most; None for no limit.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._spent = 0.0
        self._open: dict[Reservation, float] = {}

    @property
    def limit(self) -> float | None:
        """The most that may be spent; None for no limit. It may be set at any time."""
        return self._limit

    @limit.setter
    def limit(self, limit: float | None) -> None:
        with self._lock:
            self._limit = limit

    @property
    def spent(self) -> float:
        """What the calls that were settled cost."""
        return self._spent

    @property
    def reserved(self) -> float:
        """What the calls that run may cost."""
        with self._lock:
            return math.fsum(self._open.values())

    @property
    def left(self) -> float | None:
        """What may still be reserved, never below 0; None where there is no limit."""
        with self._lock:
            return self._left()

    def reserve(
        self,
        estimate: float | None,
        *,
        allow_unknown: bool = False,
        provider: str | None = None,
        model: str | None = None,
    ) -> Reservation:
        """Hold back what a call may cost.

        Args:
            estimate: The most that it may cost; None where its price is not known.
            allow_unknown: Whether a call of unknown price may be made under a limit. It reserves nothing.
            provider: Its provider, for the error.
            model: Its model, for the error.

        Raises:
            BudgetExceededError: where that is more than is left, or not known; nothing is reserved then.
            ValueError: where the estimate is no amount.
        """
        if estimate is not None and not 0 <= estimate < math.inf:
            raise ValueError("the estimate of a cost is a finite number of at least 0")
        name = f"{provider}:{model}" if provider and model else "this model"
        with self._lock:
            left = self._left()
            if estimate is None and left is not None and not allow_unknown:
                raise BudgetExceededError(
                    f"The price of {name} is not known, and the budget is {usd(self._limit)}.",
                    action=f'Set it in the configuration as [prices."{name}"] with input and output, US dollars per '
                    'million tokens; or allow unknown prices: unknown_prices = "allow".',
                    provider=provider,
                    model=model,
                )
            # A billionth of a dollar: sums of decimal fractions are not exact.
            if estimate is not None and left is not None and estimate > left + 1e-9:
                raise BudgetExceededError(
                    f"The call may cost {usd(estimate)}; of the budget of {usd(self._limit)}, {usd(left)} is left.",
                    action="Lower max_tokens, use a cheaper model, or raise the budget (%llm budget USD).",
                    provider=provider,
                    model=model,
                )
            reservation = Reservation(self, estimate)
            self._open[reservation] = estimate or 0.0
            return reservation

    def _left(self) -> float | None:
        if self._limit is None:
            return None
        return max(0.0, self._limit - self._spent - math.fsum(self._open.values()))

    def _close(self, reservation: Reservation, spent: float) -> None:
        with self._lock:
            if self._open.pop(reservation, None) is not None:
                self._spent += spent


class Reservation:
    """What is held back for one call: settled or released once, which may be told several times; the first counts.

    As a context manager it is released at the end unless it was settled.
    """

    def __init__(self, budget: Budget, estimate: float | None) -> None:
        self.estimate = estimate
        self._budget = budget

    def settle(self, actual: float | None) -> None:
        """The call cost this much; where that is not known, what was estimated counts as spent."""
        if actual is None or not 0 <= actual < math.inf:
            actual = self.estimate or 0.0
        self._budget._close(self, actual)  # noqa: SLF001 - its own budget

    def release(self) -> None:
        """The call cost nothing: it was not made, or refused."""
        self._budget._close(self, 0.0)  # noqa: SLF001 - its own budget

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def usd(amount: float | None) -> str:
    """An amount of US dollars to read, small ones with the digits that say something."""
    amount = amount or 0.0
    return f"${amount:.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.2g}" if amount < 1e-4 else f"${amount:.4f}"


# -- what calls did cost


@dataclass(frozen=True)  # not slotted: the log takes its `vars`
class Call:
    """One call, when it had ended.

    Attributes:
        time: When it began, in seconds since 1970.
        provider: Who answered.
        model: What answered.
        state: How it ended.
        input_tokens: Tokens of the prompt, cached ones included.
        output_tokens: Tokens of the answer, reasoning included.
        cached_tokens: Those of the prompt that the provider's cache had.
        reasoning_tokens: Those of the answer spent on reasoning.
        cost: US dollars, or None where that is not known; for a replayed answer, what the original call cost.
        cached: Whether the answer was replayed from the response cache, so that nothing was spent.
        latency: Seconds from beginning to end.
        time_to_first_token: Seconds to the first event; None where there was none.
        request_id: The provider's id of the request.
        error: The class of the error that ended it.
        attempts: How often it was sent.
        fallback_of: The models, as `provider:model`, that were asked before this one and failed.
    """

    time: float
    provider: str
    model: str
    state: State
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: float | None = None
    cached: bool = False
    latency: float | None = None
    time_to_first_token: float | None = None
    request_id: str | None = None
    error: str | None = None
    attempts: int = 1
    fallback_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over calls of one model. Tokens and cost are those of calls that were really made.

    Attributes:
        calls: How many calls.
        cached_calls: Those of them that were replayed from the response cache.
        failed: Those that failed or broke off.
        input_tokens: Tokens of the prompts.
        output_tokens: Tokens of the answers.
        cached_tokens: Those of the prompts that the provider's cache had.
        reasoning_tokens: Those of the answers spent on reasoning.
        cost: US dollars, as far as they are known.
        unknown_cost_calls: Calls that were billed, as far as can be told, at a cost that is not known.
        saved: US dollars that replayed answers cost originally, as far as they are known.
    """

    calls: int = 0
    cached_calls: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float = 0.0
    unknown_cost_calls: int = 0
    saved: float = 0.0

    def plus(self, call: Call) -> Totals:
        """These totals with one more call."""
        if call.cached:
            return dataclasses.replace(
                self, calls=self.calls + 1, cached_calls=self.cached_calls + 1, saved=self.saved + (call.cost or 0.0)
            )
        # What failed before the answer began was refused, and costs nothing.
        billed = call.state != "failed" or call.time_to_first_token is not None
        return dataclasses.replace(
            self,
            calls=self.calls + 1,
            failed=self.failed + (call.state in ("failed", "incomplete")),
            input_tokens=self.input_tokens + (call.input_tokens or 0),
            output_tokens=self.output_tokens + (call.output_tokens or 0),
            cached_tokens=self.cached_tokens + (call.cached_tokens or 0),
            reasoning_tokens=self.reasoning_tokens + (call.reasoning_tokens or 0),
            cost=self.cost + (call.cost or 0.0),
            unknown_cost_calls=self.unknown_cost_calls + (billed and call.cost is None),
        )


class Ledger:
    """The calls of this process. Its methods may be called from any thread.

    Args:
        keep: How many of the last calls are kept one by one; the totals are over all of them.

    Attributes:
        observers: Called with each call, on the thread that adds it; one that raises is logged.
    """

    def __init__(self, keep: int = 1000) -> None:
        self.observers: list[Callable[[Call], None]] = []
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque(maxlen=keep)
        self._totals: dict[tuple[str, str], Totals] = {}

    def add(self, call: Call) -> None:
        """Take note of a call that has ended."""
        key = (call.provider, call.model)
        with self._lock:
            self._calls.append(call)
            self._totals[key] = self._totals.get(key, Totals()).plus(call)
        for observer in tuple(self.observers):
            try:
                observer(call)
            except Exception:  # a panel's fault is not the call's
                logger.exception("an observer of the ledger failed")

    def calls(self) -> list[Call]:
        """The last calls, oldest first."""
        with self._lock:
            return list(self._calls)

    def totals(self) -> dict[tuple[str, str], Totals]:
        """The totals by provider and model."""
        with self._lock:
            return dict(self._totals)

    def rows(self) -> list[dict[str, Any]]:
        """The last calls as the rows of a table: `pandas.DataFrame(ledger.rows())`."""
        return [{**vars(call), "time": datetime.fromtimestamp(call.time, UTC)} for call in self.calls()]
