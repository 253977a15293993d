"""What an HTTP answer, or its absence, means in nbllm's terms, with the next action: the same for every provider."""

from __future__ import annotations

import difflib
import email.utils
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nbllm import errors
from nbllm.errors import Phase, ProviderError

__all__ = ["Failure", "connection_error", "error_for", "model_not_found", "retry_after", "timeout_error"]


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


_Rule = tuple[Callable[[int, str], bool], type[ProviderError], str]


def _says(*words: str) -> Callable[[int, str], bool]:
    return lambda status, text: any(word in text for word in words)


def _is(*statuses: int) -> Callable[[int, str], bool]:
    return lambda status, text: status in statuses


_RULES: Final[tuple[_Rule, ...]] = (
    (_is(401), errors.AuthenticationError, "Set {key_variable} to a valid key, then run it again."),
    (
        lambda status, text: status == 402 or "insufficient_quota" in text,
        errors.QuotaExceededError,
        "Add credit to the {label} account, or use another model.",
    ),
    (_is(429), errors.RateLimitError, "Wait a moment and run it again, or use another model."),
    (_is(403), errors.PermissionDeniedError, "Check what this key and its project may use."),
    (
        _says("context_length", "context length", "context window", "maximum context", "too many tokens"),
        errors.ContextLengthError,
        "Shorten the prompt, lower max_tokens, or use a larger model.",
    ),
    (
        _says("content_filter", "content_policy", "content management policy"),
        errors.ContentFilterError,
        "Reword the prompt.",
    ),
    (
        lambda status, text: status == 404 and "model" in text,
        errors.ModelNotFoundError,
        "Run %llm models to see what there is.",
    ),
    (_is(404), errors.InvalidRequestError, "Check the base URL, {base_url}."),
    (
        lambda status, text: status in (503, 529) or "overloaded" in text,
        errors.OverloadedError,
        "Run it again in a while, or use another model.",
    ),
    (lambda status, text: 400 <= status < 500, errors.InvalidRequestError, "Correct the request."),
    (
        lambda status, text: True,
        errors.ServerError,
        "Run it again; if it stays so, look at the provider's status page.",
    ),
)
"""Status and words to error and action; the first that fits counts, so the most specific come first."""


def error_for(failure: Failure, *, model: str | None = None) -> ProviderError:
    """The error that a refusal means."""
    text = f"{failure.code} {failure.message}".lower()
    kind, action = next((kind, action) for fits, kind, action in _RULES if fits(failure.status or 0, text))
    if kind is errors.InvalidRequestError and failure.param:
        action = f"Change or leave out {failure.param}."
    fields = {"key_variable": failure.key_variable, "label": failure.label, "base_url": failure.base_url}
    for name, value in fields.items():  # not str.format: what the provider says may hold braces
        action = action.replace(f"{{{name}}}", value)
    status, said = failure.status, _sentence(failure.message)
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
