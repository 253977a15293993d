"""What an HTTP answer, or its absence, means in nbllm's terms, with the next action: the same for every provider."""

from __future__ import annotations

import difflib
import email.utils
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nbllm import errors
from nbllm.errors import Phase, ProviderError

__all__ = ["Failure", "connection_error", "error_for", "model_not_found", "retry_after", "timeout_error"]

_CONTEXT: Final = ("context_length", "context length", "context window", "maximum context", "too many tokens")
_FILTER: Final = ("content_filter", "content_policy", "content management policy")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a provider said when it refused.

    Attributes:
        label: The provider's name to show.
        key_variable: The environment variable of its key.
        message: Its own words.
        status: The HTTP status; for an error inside a stream, the one it stands for.
        code: Its own code or type.
        param: The parameter that it names.
        headers: Its response headers.
        base_url: Where it was reached.
    """

    label: str
    key_variable: str
    message: str
    status: int | None = None
    code: str = ""
    param: str | None = None
    headers: Mapping[str, str] | None = None
    base_url: str = ""


def error_for(failure: Failure, *, model: str | None = None) -> ProviderError:
    """The error that a refusal means; the most specific wins."""
    status, said = failure.status, _sentence(failure.message)
    text = f"{failure.code} {failure.message}".lower()
    kind: type[ProviderError]
    if status == 401:
        kind, action = errors.AuthenticationError, f"Set {failure.key_variable} to a valid key, then run it again."
    elif "insufficient_quota" in text or status == 402:
        kind, action = errors.QuotaExceededError, f"Add credit to the {failure.label} account, or use another model."
    elif status == 429:
        kind, action = errors.RateLimitError, "Wait a moment and run it again, or use another model."
    elif status == 403:
        kind, action = errors.PermissionDeniedError, "Check what this key and its project may use."
    elif any(word in text for word in _CONTEXT):
        kind, action = errors.ContextLengthError, "Shorten the prompt, lower max_tokens, or use a larger model."
    elif any(word in text for word in _FILTER):
        kind, action = errors.ContentFilterError, "Reword the prompt."
    elif status == 404:
        if model and "model" in text:
            kind, action = errors.ModelNotFoundError, "Run %llm models to see what there is."
        else:
            kind, action = errors.InvalidRequestError, f"Check the base URL, {failure.base_url}."
    elif status in (503, 529) or "overloaded" in text:
        kind, action = errors.OverloadedError, "Run it again in a while, or use another model."
    elif status is not None and status >= 500:
        kind, action = errors.ServerError, "Run it again; if it stays so, look at the provider's status page."
    elif status is not None and status >= 400:
        kind = errors.InvalidRequestError
        action = f"Change or leave out {failure.param}." if failure.param else "Correct the request."
    else:
        kind, action = errors.ServerError, "Run it again; if it stays so, look at the provider's status page."
    number = f" ({status})" if status else ""
    headers = failure.headers or {}
    error = kind(
        f"{failure.label}{number}: {said}",
        action=action,
        model=model,
        status=status,
        request_id=headers.get("x-request-id") or headers.get("request-id"),
    )
    if isinstance(error, (errors.RateLimitError, errors.OverloadedError, errors.ServerError)):
        error.retry_after = retry_after(headers)
    if isinstance(error, errors.InvalidRequestError):
        error.param = failure.param
    return error


def model_not_found(error: errors.ModelNotFoundError, names: Iterable[str]) -> None:
    """Name the closest of the models that there are in the error's action."""
    close = difflib.get_close_matches(error.model or "", list(names), n=3, cutoff=0.5)
    if close:
        error.action = f"Did you mean {' or '.join(close)}? Run %llm models to see what there is."


def connection_error(label: str, base_url: str, exc: Exception, phase: Phase) -> errors.ConnectionError:
    """No connection, or one that broke."""
    if phase == "stream":
        error = errors.ConnectionError(
            f"The connection to {label} broke in the middle of the answer.",
            action="What had arrived is kept; run it again for the whole answer.",
        )
    else:
        error = errors.ConnectionError(
            f"{label} cannot be reached at {base_url}: {_sentence(_root(exc))}",
            action="Check the address, the network and the proxy; a local server must be running.",
        )
    error.phase = phase
    return error


def timeout_error(label: str, seconds: float, phase: Phase) -> errors.TimeoutError:
    """Nothing was heard for too long."""
    error = errors.TimeoutError(
        f"{label} sent nothing for {seconds:g} s.",
        action="Run it again, or raise the setting `timeout` if the model thinks for that long.",
    )
    error.phase = phase
    return error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `Retry-After` (RFC 9110, section 10.2.3: seconds or a date), or None."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _sentence(text: str) -> str:
    text = " ".join(text.split()) or "no reason given"
    text = text if len(text) <= 300 else text[:297] + "…"
    return text if text.endswith((".", "!", "?", "…")) else text + "."


def _root(exc: BaseException) -> str:
    """The words of the innermost cause: `[Errno 111] Connection refused`, not "Connection error."."""
    while (inner := exc.__cause__ or exc.__context__) is not None:
        exc = inner
    return str(exc) or type(exc).__name__
