"""Running a call to its end: from the cache, within the budget, again after a failure, by a fallback; then on record.

The order for each of the models that may answer: what the cache holds is replayed; else the price of the call is
reserved, the call is made, and made again where that can help and nothing has reached the caller yet; what it cost is
settled; a whole answer goes into the cache; the ledger and the log take note. Only when all of that failed before the
first event comes the next model's turn.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Literal

from nbllm import errors
from nbllm._loop import Channel
from nbllm.accounting import Budget, Call, Ledger, estimate_tokens
from nbllm.cache import ResponseCache
from nbllm.cached import Cached
from nbllm.config import ConfigManager
from nbllm.errors import NbllmError
from nbllm.forms import Form, InOnePiece, Streamed, Whole
from nbllm.identity import request_identity
from nbllm.log import CallLog
from nbllm.prices import Prices
from nbllm.providers import ProviderSpec, model_revision
from nbllm.providers.base import Provider
from nbllm.providers.hints import add_hint
from nbllm.providers.pool import ProviderPool
from nbllm.response import Record, Response
from nbllm.retry import RetryPolicy
from nbllm.types import Event, Request, State, Usage

__all__ = ["CacheUse", "Calls", "Plan"]

CacheUse = Literal["auto", "on", "off", "refresh"]
"""Whether a call uses the cache: where its answer is repeatable (temperature 0 or a seed), always, never, or by storing
a new answer without looking at the old one."""

NOT_THE_ANSWERS: Final = frozenset(
    {"model", "max_tokens", "temperature", "label", "kind", "ends_by", "usage_option", "bill_to"}
)
"""Settings of a provider that do not decide what it answers, or do so in the request itself."""

NOT_THE_MODELS: tuple[type[NbllmError], ...] = (errors.UsageError, errors.ContentFilterError)
"""Failures that another model would not mend."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A call as it is to be made.

    Attributes:
        requests: What is asked of the model, and of each fallback in its turn.
        cache: Whether the cache is used.
        whole: Whether an answer that is read as a stream is asked for by the provider's call without streaming.
    """

    requests: tuple[Request, ...]
    cache: CacheUse = "auto"
    whole: bool = False


class Calls:
    """Runs calls, on the background loop.

    Args:
        config: The settings, looked up anew at each call.
        pool: Gives the providers, built, and what they are built from.
        spec: Gives the spec of a provider's name.
        open_cache: Opens the response cache when it is first needed.
    """

    def __init__(
        self,
        config: ConfigManager,
        pool: Callable[[], ProviderPool],
        spec: Callable[[str], ProviderSpec],
        open_cache: Callable[[], ResponseCache],
    ) -> None:
        self.config = config
        self.ledger = Ledger()
        self._configured_budget: float | None = config.get("budget")
        self.budget = Budget(self._configured_budget)
        self.prices = Prices(lambda: config.get("prices") or {})
        self.log = CallLog(config)
        self._pool = pool
        self._spec = spec
        self._open_cache = open_cache
        self._refused: dict[tuple[str, str | None, str], frozenset[str]] = {}

    async def stream(
        self, plan: Plan, record: Record, channel: Channel[Event], opened: concurrent.futures.Future[None]
    ) -> None:
        """Run one streaming call to its end, whatever that is; its errors go to the reader, not to the task."""
        form = (InOnePiece if plan.whole else Streamed)(record, channel, opened)
        state: State = "complete"
        error: Exception | None = None
        try:
            await self._run(plan, record, form)
        except asyncio.CancelledError:
            state = "interrupted"
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the reader's
            state, error = "failed", exc
        finally:
            form.flush()
            if isinstance(error, errors.IncompleteStreamError):
                state, error.text = "incomplete", record.text
            try:
                await self._ended(plan, record, state, error)
            finally:
                channel.close(error)

    async def complete(self, plan: Plan) -> Response:
        """Run one call by the provider's own call without streaming.

        Raises:
            NbllmError: where it fails.
        """
        record = Record(provider=plan.requests[0].provider, model=plan.requests[0].model)
        try:
            await self._run(plan, record, Whole(record))
        except asyncio.CancelledError:
            await self._ended(plan, record, "interrupted")
            raise
        except Exception as exc:
            await self._ended(plan, record, "failed", exc)
            raise
        await self._ended(plan, record, "complete")
        return Response(record.text, record)

    def set_budget(self, limit: float | None) -> None:
        """Begin a new budget; what the configuration says of it counts again when that changes."""
        self.budget, self._configured_budget = Budget(limit), self.config.get("budget")

    async def cost(self, request: Request, usage: Usage) -> float | None:
        """What the call costs with this usage, in US dollars; None where that is not known."""
        return await self.prices.cost(request.provider, request.model, usage, **await self._priced_as(request))

    async def holds(self, plan: Plan, request: Request) -> bool:
        """Whether the cache has the answer, and the call would take it from there."""
        key = None if plan.cache == "refresh" else await self._identity(plan, request)
        return key is not None and await self._cache(lambda cache: cache.get(key)) is not None

    # -- inside

    async def _run(self, plan: Plan, record: Record, form: Form) -> None:
        """Let the first model answer that can.

        Raises:
            NbllmError: of the first model, with what became of the others, where none could.
        """
        failed: list[NbllmError] = []
        for request in plan.requests:
            record.provider, record.model, record.request = request.provider, request.model, request
            try:
                await self._answer(plan, request, record, form)
            except NbllmError as exc:
                last = request is plan.requests[-1]
                if form.begun or isinstance(exc, NOT_THE_MODELS) or type(exc) is errors.InvalidRequestError:
                    raise
                if last and not failed:
                    raise
                failed.append(exc)
                record.fallback_of = (*record.fallback_of, f"{request.provider}:{request.model}")
                self.config.logger.info("%s:%s failed: %s", request.provider, request.model, type(exc).__name__)
            else:
                return
        first, *others = failed
        said = "; ".join(f"{name}: {exc.message}" for name, exc in zip(record.fallback_of[1:], others, strict=True))
        first.action = f"{first.action or ''} The fallbacks failed too: {said}".strip()
        raise first

    async def _answer(self, plan: Plan, request: Request, record: Record, form: Form) -> None:
        """One model's answer: out of the cache, or made and put there."""
        key = await self._identity(plan, request)
        if key is not None and plan.cache != "refresh":
            cached = await self._cache(lambda cache: cache.get(key))
            if cached is not None:
                record.cached = True
                record.cost = cached.cost
                form.replay(cached)
                return
        priced_as = await self._priced_as(request)
        async with self._reserved(request, record, priced_as):
            await self._attempts(request, record, form)
            record.cost = await self.prices.cost(request.provider, request.model, record.usage, **priced_as)
        if key is not None and record.finish is not None and record.finish.reason in ("stop", "length", "tool_calls"):
            # After the reader has it all but the end: an answer that was interrupted never comes here.
            found = Cached.of(record)
            await self._cache(lambda cache: cache.put(key, found))

    async def _attempts(self, request: Request, record: Record, form: Form) -> None:
        """Make the call; again after a failure that may pass, or without a default that the model refuses."""
        policy = RetryPolicy(self.config.get("max_retries"), self.config.get("retry_deadline"))
        started, failures = time.monotonic(), 0
        spec = self._spec(request.provider)
        async with self._pool().lease(spec) as provider:
            key = (request.provider, provider.settings.base_url, request.model)
            request = dataclasses.replace(request, dropped=self._refused.get(key, frozenset()))
            self._require_limit(provider, request)
            self.prices.warm()
            record.sent = record.sent or time.monotonic()
            while True:
                record.attempts += 1
                try:
                    await form.attempt(provider, request)
                except errors.InvalidRequestError as exc:
                    adapted = None if form.begun else provider.adapt(request, exc)
                    if adapted is None:
                        raise
                    self._require_limit(provider, adapted)
                    if not isinstance(exc, errors.ContextLengthError):  # which a shorter prompt does not exceed
                        refused = adapted.dropped - request.dropped
                        self._refused[key] = self._refused.get(key, frozenset()) | refused
                    request = adapted
                except NbllmError as exc:
                    failures += 1
                    wait = None if form.begun else policy.wait(failures, exc, time.monotonic() - started)
                    if wait is None:
                        await add_hint(exc, provider, spec, request.model, self.config)
                        raise
                    self.config.logger.info(
                        "%s:%s: %s; again in %.1f s", request.provider, request.model, type(exc).__name__, wait
                    )
                    await asyncio.sleep(wait)
                else:
                    return

    def _require_limit(self, provider: Provider, request: Request) -> None:
        """Under a budget, no answer without a limit: what was reserved would not be the most that it may cost."""
        if self.budget.limit is not None and not provider.limits(request):
            raise errors.BudgetExceededError(
                f"{request.model} takes no limit of its answer, so the most that a call may cost is not known.",
                action="Use another model or a shorter prompt, or end the budget (%llm budget off).",
                provider=request.provider,
                model=request.model,
            )

    @contextlib.asynccontextmanager
    async def _reserved(self, request: Request, record: Record, priced_as: Mapping[str, Any]) -> AsyncIterator[None]:
        """Hold what the call may cost back from the budget until it is known what it did cost.

        Raises:
            BudgetExceededError: where the budget does not allow it; nothing was sent then.
        """
        if (configured := self.config.get("budget")) != self._configured_budget:
            self._configured_budget = self.budget.limit = configured
        budget = self.budget
        if budget.limit is None:
            yield
            return
        asked = estimate_tokens(request.messages, options=request.options)
        most = Usage(input_tokens=asked, output_tokens=request.max_tokens)
        reservation = budget.reserve(
            await self.prices.cost(request.provider, request.model, most, **priced_as),
            allow_unknown=self.config.get("unknown_prices") == "allow",
            provider=request.provider,
            model=request.model,
        )
        try:
            yield
        except NbllmError as exc:
            if record.first_event is None and not _may_be_billed(exc):
                reservation.release()
            raise
        finally:
            cost = record.cost
            if cost is None and record.first_event is not None:
                # An answer that broke off or was stopped is billed for what had come of it; where the provider has
                # not said how much that was, by our own estimate.
                said = estimate_tokens(text=record.text + record.reasoning)
                usage = Usage(input_tokens=asked, output_tokens=said).updated(record.usage)
                cost = self.prices.cost_now(request.provider, request.model, usage, **priced_as)
            if record.sent is None:
                reservation.release()
            reservation.settle(cost)  # of what was never answered nothing is known: then the most that it may cost

    async def _identity(self, plan: Plan, request: Request) -> str | None:
        """The request's key in the cache; None where the cache has no part in it."""
        repeatable = request.temperature == 0 or request.options.get("seed") is not None
        if plan.cache == "off" or (plan.cache == "auto" and not repeatable):
            return None
        spec = self._spec(request.provider)
        settings = await self._pool().settings(spec)

        def identity() -> str | None:
            # Of two APIs of one provider, or two services behind one router, each answers in its own way.
            own = {name: value for name, value in settings.extra.items() if name not in NOT_THE_ANSWERS}
            extra = {**own, "revision": model_revision(spec, request.model)}
            return request_identity(request, base_url=settings.base_url, extra=extra)

        return await asyncio.to_thread(identity)  # attachments are hashed, and a local model's files looked at

    async def _cache(self, use: Callable[[ResponseCache], Any]) -> Any:
        # In a thread: another kernel may hold the file for a moment.
        return await asyncio.to_thread(lambda: use(self._open_cache()))

    async def _priced_as(self, request: Request) -> dict[str, Any]:
        spec = self._spec(request.provider)
        return {
            "base_url": (await self._pool().settings(spec)).base_url,
            "local": spec.local,
            "service_tier": request.options.get("service_tier"),
        }

    async def _ended(self, plan: Plan, record: Record, state: State, error: Exception | None = None) -> None:
        """Set the final state, and put the call on record."""
        record.end(state, error)
        ended = record.ended or time.monotonic()
        first = None if record.first_event is None else record.first_event - record.started
        usage = record.usage
        call = Call(
            time=time.time() - (time.monotonic() - record.started),
            provider=record.provider,
            model=record.model,
            state=record.state,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cost=record.cost,
            cached=record.cached,
            latency=ended - record.started,
            time_to_first_token=first,
            request_id=record.request_id,
            error=type(error).__name__ if error is not None else None,
            attempts=record.attempts,
            fallback_of=record.fallback_of,
        )
        self.ledger.add(call)

        def write() -> None:
            self.log.record(vars(call), prompt=plan.requests[0].messages, answer=record.text)

        try:
            # The disk may be one of a network; and whoever cancels once more does not lose the record.
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, write))
        except RuntimeError:  # the interpreter ends, and gives no more threads
            write()


def _may_be_billed(error: NbllmError) -> bool:
    """Whether a request that was not answered may have been worked on: it was sent, and then nothing came."""
    return getattr(error, "phase", "connect") != "connect"
