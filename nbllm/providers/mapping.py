"""What an HTTP answer, or its absence, means in nbllm's terms, with the next action: the same for every provider."""

from __future__ import annotations

import difflib
import email.utils
import math
import os
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from nbllm import errors
from nbllm.errors import Phase, ProviderError

__all__ = [
    "Failure",
    "connection_error",
    "error_for",
    "model_not_found",
    "proxy_error",
    "request_id",
    "retry_after",
    "sentence",
    "timeout_error",
]


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
        provider: Its registered name.
        retry_after: Seconds to wait, where the body says so and no header does.
    """

    label: str
    key_variable: str
    message: str
    status: int | None = None
    code: str = ""
    param: str | None = None
    headers: Mapping[str, str] | None = None
    base_url: str = ""
    provider: str = ""
    retry_after: float | None = None


_Rule = tuple[Callable[[int, str], bool], type[ProviderError], str]


def _says(*words: str) -> Callable[[int, str], bool]:
    return lambda status, text: any(word in text for word in words)


def _is(*statuses: int) -> Callable[[int, str], bool]:
    return lambda status, text: status in statuses


_RULES: Final[tuple[_Rule, ...]] = (
    (
        lambda status, text: status == 401 or (not status and "authentication" in text),
        errors.AuthenticationError,
        "Set {key_variable} to a valid key (%llm key {provider} in a notebook), then run it again.",
    ),
    (
        lambda status, text: status == 402 or "insufficient_quota" in text,
        errors.QuotaExceededError,
        "Add credit to the {label} account, or use another model.",
    ),
    (
        lambda status, text: status == 429 or (not status and "rate_limit" in text),
        errors.RateLimitError,
        "Wait a moment and run it again, or use another model.",
    ),
    (
        _says("content_filter", "content_policy", "content management policy"),
        errors.ContentFilterError,
        "Reword the prompt.",
    ),
    (
        lambda status, text: status == 403 or (not status and "permission" in text),
        errors.PermissionDeniedError,
        "Check what this key and its project may use.",
    ),
    (
        _says("context_length", "context length", "context window", "maximum context", "too many tokens"),
        errors.ContextLengthError,
        "Shorten the prompt, lower max_tokens, or use a larger model.",
    ),
    (
        lambda status, text: (status == 404 and "model" in text) or "model_not_found" in text,
        errors.ModelNotFoundError,
        "Run %llm models to see what there is.",
    ),
    (_is(404), errors.InvalidRequestError, "Check the base URL, {base_url}."),
    (
        lambda status, text: status in (503, 529) or "overloaded" in text,
        errors.OverloadedError,
        "Run it again in a while, or use another model.",
    ),
    (
        # 408: nothing was heard in time; 424: TGI's for a generation that failed. Neither is the request's fault.
        lambda status, text: (
            (400 <= status < 500 and status not in (408, 424)) or (not status and "invalid_request" in text)
        ),
        errors.InvalidRequestError,
        "Correct the request.",
    ),
    (
        lambda status, text: True,
        errors.ServerError,
        "Run it again; if it stays so, look at the provider's status page.",
    ),
)
"""Status and words to error and action; the first that fits counts, so the most specific come first."""


_REQUEST_IDS: Final = ("x-request-id", "request-id", "mistral-correlation-id", "x-goog-request-id", "x-amzn-trace-id")


def error_for(failure: Failure, *, model: str | None = None) -> ProviderError:
    """The error that a refusal means."""
    text = f"{failure.code} {failure.message}".lower()
    kind, action = next((kind, action) for fits, kind, action in _RULES if fits(failure.status or 0, text))
    if kind is errors.InvalidRequestError and failure.param:
        action = f"Change or leave out {failure.param}."
    for name in ("key_variable", "label", "base_url", "provider"):  # not str.format: the provider may say braces
        action = action.replace(f"{{{name}}}", getattr(failure, name))
    status, said = failure.status, sentence(failure.message)
    number = f" ({status})" if status else ""
    headers = failure.headers or {}
    error = kind(
        f"{failure.label}{number}: {said}",
        action=action,
        model=model,
        status=status,
        request_id=request_id(headers),
    )
    if isinstance(error, (errors.RateLimitError, errors.OverloadedError, errors.ServerError)):
        found = retry_after(headers)
        error.retry_after = failure.retry_after if found is None else found
        if error.retry_after and isinstance(error, errors.RateLimitError):
            error.action = f"Wait {_duration(error.retry_after)} and run it again, or use another model."
    if isinstance(error, errors.InvalidRequestError):
        error.param = failure.param
    return error


def _duration(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds <= 120 else f"{math.ceil(seconds / 60)} min"


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's id of the request, under whichever name it gives it."""
    return next((headers[name] for name in _REQUEST_IDS if headers.get(name)), None)


def model_not_found(error: errors.ModelNotFoundError, names: Iterable[str]) -> None:
    """Name the closest of the models that there are in the error's action; one that is listed may be denied."""
    others = [name for name in names if name != error.model]
    close = difflib.get_close_matches(error.model or "", others, n=3, cutoff=0.5)
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
        broken = _tls_failure(exc)
        if isinstance(broken, ssl.SSLCertVerificationError):
            action = (
                "If this certificate is meant (a company's proxy, a server of your own), name the file of the "
                "authority that signed it in SSL_CERT_FILE."
            )
        elif broken is not None:
            action = "Check the beginning of the address, http:// or https://, and the proxy."
        else:
            action = _unreached(base_url, phase)
        said = f"{label} cannot be reached at {base_url}"
        if broken is None and phase == "open":
            said = f"The connection to {label} at {base_url} broke before it answered"
        error = errors.ConnectionError(f"{said}: {sentence(_root(exc))}", action=action)
        error.retryable = broken is None  # what is trusted, and what is spoken there, stays as it is
    error.phase = phase
    return error


def _unreached(base_url: str, phase: Phase) -> str:
    """What to do where there is no connection, or no answer on it."""
    host = urlsplit(base_url).hostname or ""
    if phase == "open":
        return f"Run it again; if it stays so, check the address, {base_url}, and the server there."
    names = (f"{urlsplit(base_url).scheme}_PROXY".upper(), "ALL_PROXY")
    proxy = next((name for name in names if os.environ.get(name) or os.environ.get(name.lower())), None)
    if proxy and not proxy_bypass(host):
        return (
            f"Check the network, the address and the proxy in {proxy}; NO_PROXY names hosts that are reached without."
        )
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return "Start the server that is to listen there, or correct the base_url."
    return "Check the network and the address."


def proxy_error(label: str, said: str) -> errors.ConnectionError:
    """The proxy on the way refused."""
    error = errors.ConnectionError(
        f"The proxy on the way to {label} refused: {sentence(said)}",
        action="Check the proxy in HTTPS_PROXY or HTTP_PROXY, its name and password included, or name the host in "
        "NO_PROXY.",
    )
    error.retryable = False
    return error


def _tls_failure(exc: BaseException | None) -> ssl.SSLError | None:
    while exc is not None and not isinstance(exc, ssl.SSLError):
        exc = exc.__cause__ or exc.__context__
    return exc


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


def sentence(text: str) -> str:
    """The text as one sentence on one line, not too long."""
    text = " ".join(text.split()) or "no reason given"
    text = text if len(text) <= 300 else text[:297] + "…"
    return text if text.endswith((".", "!", "?", "…")) else text + "."


def _root(exc: BaseException) -> str:
    """The words of the innermost cause: `[Errno 111] Connection refused`, not "Connection error."."""
    while (inner := exc.__cause__ or exc.__context__) is not None:
        exc = inner
    return str(exc) or type(exc).__name__
