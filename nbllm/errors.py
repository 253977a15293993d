"""Every error nbllm raises on purpose.

::

    NbllmError
    ├── ConfigError                     a setting, a file or a name that cannot be used
    │   └── UntrustedConfigError        a project file asks for what needs `%llm trust`
    ├── MissingExtraError               a library that an extra installs is absent (also an ImportError)
    ├── UsageError                      nbllm was called in a way that cannot work
    ├── InterpolationError              `{=expression}` in a prompt failed
    ├── ModelLoadError                  a local model cannot be loaded
    └── ProviderError                   talking to a provider failed
        ├── MissingKeyError             no key is configured
        ├── AuthenticationError         the key was refused                        (401)
        ├── PermissionDeniedError       the key may not do this                    (403)
        ├── ModelNotFoundError          the provider does not have this model      (404)
        ├── InvalidRequestError         the provider refused the request           (400, 422)
        │   └── ContextLengthError      prompt and answer exceed the context window
        ├── ContentFilterError          the provider declined to answer this content
        ├── QuotaExceededError          the account is out of credit; waiting does not help
        ├── RateLimitError              too many requests; see `retry_after`       (429)
        ├── OverloadedError             the provider is short of capacity          (503, 529)
        ├── ServerError                 the provider failed                        (other 5xx)
        ├── ConnectionError             no connection, or it broke; see `phase`
        ├── TimeoutError                no answer in time; see `phase`
        ├── ResponseFormatError         the answer does not follow the provider's protocol
        ├── IncompleteStreamError       the stream ended before its terminal event; see `text`
        └── BudgetExceededError         the call would exceed the budget

Each carries what happened in its message and what to do about it in `action`; IPython shows just these two.
`ConnectionError` and `TimeoutError` are also the built-in exceptions of the same name, and
`MissingExtraError` is an `ImportError`, so that code which catches those keeps working.
"""

from __future__ import annotations

import builtins
from typing import Literal

__all__ = [
    "AuthenticationError",
    "BudgetExceededError",
    "ConfigError",
    "ConnectionError",
    "ContentFilterError",
    "ContextLengthError",
    "IncompleteStreamError",
    "InterpolationError",
    "InvalidRequestError",
    "MissingExtraError",
    "MissingKeyError",
    "ModelLoadError",
    "ModelNotFoundError",
    "NbllmError",
    "OverloadedError",
    "PermissionDeniedError",
    "ProviderError",
    "QuotaExceededError",
    "RateLimitError",
    "ResponseFormatError",
    "ServerError",
    "TimeoutError",
    "UntrustedConfigError",
    "UsageError",
]

Phase = Literal["connect", "open", "stream"]


class NbllmError(Exception):
    """The base of every error.

    Args:
        message: What happened, in one sentence.
        action: What to do next, in one sentence.
    """

    def __init__(self, message: str, *, action: str | None = None) -> None:
        # A provider's message is somebody else's text and is shown in terminals: no escape sequences, one line.
        self.message = _plain(message)
        self.action = _plain(action) if action else action
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.action}" if self.action else self.message

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: two plain lines instead of two hundred of frames inside an SDK."""
        lines = [f"{type(self).__name__}: {_plain(self.message)}"]
        if self.action:
            lines.append(f"→ {_plain(self.action)}")
        return lines


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


class ConfigError(NbllmError):
    """A setting, a configuration file or a name in it cannot be used."""


class UntrustedConfigError(ConfigError):
    """A project's `nbllm.toml` asks for something that needs the user's trust first."""


class MissingExtraError(NbllmError, ImportError):
    """A library that one of nbllm's extras installs is not there."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"{library} is not installed.",
            action=f"Run: pip install 'nbllm[{extra}]', then restart the kernel.",
        )
        self.library = library
        self.extra = extra


class UsageError(NbllmError):
    """nbllm was called in a way that cannot work."""


class InterpolationError(NbllmError):
    """An expression in a prompt failed."""


class ModelLoadError(NbllmError):
    """A local model cannot be loaded."""


class ProviderError(NbllmError):
    """Talking to a provider failed.

    Args:
        message: What happened.
        action: What to do next.
        provider: The provider's name, such as `openai`.
        model: The model asked for.
        status: The HTTP status, where there was one.
        request_id: The provider's id of the request, to quote to its support.
    """

    retryable = False
    """Whether the same request may succeed later."""

    def __init__(
        self,
        message: str,
        *,
        action: str | None = None,
        provider: str | None = None,
        model: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, action=action)
        self.provider = provider
        self.model = model
        self.status = status
        self.request_id = request_id


class MissingKeyError(ProviderError):
    """No key is configured for the provider."""


class AuthenticationError(ProviderError):
    """The provider refused the key."""


class PermissionDeniedError(ProviderError):
    """The key is valid but may not do this."""


class ModelNotFoundError(ProviderError):
    """The provider does not have this model."""


class InvalidRequestError(ProviderError):
    """The provider refused the request.

    Attributes:
        param: The parameter that it refused, where it says so.
    """

    param: str | None = None


class ContextLengthError(InvalidRequestError):
    """The prompt and the room for the answer exceed the model's context window."""


class ContentFilterError(ProviderError):
    """The provider declined to answer this content."""


class QuotaExceededError(ProviderError):
    """The account is out of credit: waiting does not help."""


class RateLimitError(ProviderError):
    """Too many requests.

    Attributes:
        retry_after: Seconds to wait, where the provider says so.
    """

    retryable = True
    retry_after: float | None = None


class OverloadedError(ProviderError):
    """The provider is short of capacity."""

    retryable = True
    retry_after: float | None = None


class ServerError(ProviderError):
    """The provider failed."""

    retryable = True
    retry_after: float | None = None


class ConnectionError(ProviderError, builtins.ConnectionError):  # noqa: A001 - it is one, too
    """No connection could be made, or it broke.

    Attributes:
        phase: `connect` before a connection stood, `open` before the answer began, `stream` within it.
    """

    retryable = True
    phase: Phase = "connect"


class TimeoutError(ProviderError, builtins.TimeoutError):  # noqa: A001 - it is one, too
    """No answer in time.

    Attributes:
        phase: `connect` before a connection stood, `open` before the answer began, `stream` within it.
    """

    retryable = True
    phase: Phase = "open"


class ResponseFormatError(ProviderError):
    """The answer does not follow the provider's protocol: a proxy's login page, say, or a broken event."""


class IncompleteStreamError(ProviderError):
    """The stream ended without the provider's terminal event: the answer is cut off.

    Attributes:
        text: What had arrived.
    """

    retryable = True
    text: str = ""


class BudgetExceededError(ProviderError):
    """The call would exceed the budget; nothing was sent."""
