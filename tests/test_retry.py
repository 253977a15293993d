"""When a call is made again, and after how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm import errors
from nbllm.retry import RetryPolicy

BUSY = errors.OverloadedError("Busy.")


@given(attempt=st.integers(1, 30), elapsed=st.floats(0, 100))
def test_a_wait_grows_within_its_bounds(attempt: int, elapsed: float) -> None:
    """Waits lie between 0 and the doubling bound, never above the longest, and never end after the deadline."""
    policy = RetryPolicy(max_retries=20, deadline=60, base=0.5, longest=8)
    wait = policy.wait(attempt, BUSY, elapsed)
    if attempt > 20 or elapsed > 60:
        assert wait is None
    elif wait is not None:
        assert 0 <= wait <= min(8, 0.5 * 2 ** (attempt - 1))
        assert elapsed + wait <= 60


def test_waits_are_spread() -> None:
    """Clients that failed together do not come back together."""
    waits = {RetryPolicy().wait(1, BUSY, 0) for _ in range(20)}
    assert len(waits) == 20


def test_retry_after_is_a_floor_and_the_deadline_a_ceiling() -> None:
    """The provider's word counts; where it asks for longer than the deadline allows, there is no retry."""
    limited = errors.RateLimitError("Slow down.")
    limited.retry_after = 20.0
    wait = RetryPolicy(deadline=60).wait(1, limited, 10)
    assert wait is not None
    assert 20 <= wait <= 20.5
    assert RetryPolicy(deadline=60).wait(1, limited, 45) is None


@pytest.mark.parametrize(
    "error",
    [errors.AuthenticationError("No."), errors.InvalidRequestError("No."), errors.QuotaExceededError("No."),
     errors.ResponseFormatError("No."), errors.ConfigError("No.")],
)  # fmt: skip
def test_what_waiting_does_not_mend_is_not_tried_again(error: errors.NbllmError) -> None:
    """A wrong key stays wrong."""
    assert RetryPolicy().wait(1, error, 0) is None
