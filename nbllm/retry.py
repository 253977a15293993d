"""When a call that failed is made again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nbllm.errors import NbllmError, ProviderError

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, within a deadline.

    The waits are drawn evenly from 0 to `base * 2 ** n`, which spreads clients that failed together best
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). A provider's `Retry-After` is a floor.

    Attributes:
        max_retries: How often a call is made again.
        deadline: Seconds from the first attempt; a wait that would end later is not begun.
        base: Seconds of the first wait at most.
        longest: Seconds of any wait at most, a `Retry-After` apart.
    """

    max_retries: int = 2
    deadline: float = 60.0
    base: float = 0.5
    longest: float = 8.0

    def wait(self, attempt: int, error: NbllmError, elapsed: float) -> float | None:
        """Seconds to wait before the next attempt, or None where there is to be none.

        Args:
            attempt: How many attempts there were, 1 after the first.
            error: How the last one failed.
            elapsed: Seconds since the first one began.
        """
        if attempt > self.max_retries or not isinstance(error, ProviderError) or not error.retryable:
            return None
        wait = random.uniform(0, min(self.longest, self.base * 2 ** (attempt - 1)))  # noqa: S311 - no secret
        asked: float | None = getattr(error, "retry_after", None)
        if asked is not None:
            wait += asked
        return wait if elapsed + wait <= self.deadline else None
