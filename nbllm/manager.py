"""The `ProviderManager`: one in the kernel, behind the magics, the panels and the Python API."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import difflib
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

from nbllm import errors
from nbllm._loop import GRACE, BackgroundLoop, Channel, Job, background_loop, resolve
from nbllm.cache import ResponseCache, cache_path
from nbllm.calls import CacheUse, Calls, Plan
from nbllm.config import ConfigManager, ProviderSettings
from nbllm.messages import Messages, normalized, text_of
from nbllm.providers import ProviderSpec, endpoints
from nbllm.providers.pool import ProviderPool
from nbllm.response import Record, Response, ResponseStream
from nbllm.types import Attachment, Event, Message, ModelInfo, Request

if TYPE_CHECKING:
    from nbllm.local import LocalModels

__all__ = ["Change", "ProviderManager"]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What observers are told: what is now true. Delivered on whatever thread the change was made."""

    provider: str
    model: str
    max_tokens: int
    temperature: float
    system: str | None


class ProviderManager:
    """Which provider and model answer, and the calls to them.

    Its coroutines may be awaited on any event loop, and its plain methods called from any thread.

    Args:
        config_manager: The configuration; by default the user's, the project's and the environment's.
    """

    def __init__(self, config_manager: ConfigManager | None = None) -> None:
        self.config = config_manager or ConfigManager()
        self._models: dict[str, str] = {}
        self._current: str | None = None
        self._pool = ProviderPool(self._settings)
        self._owner: BackgroundLoop | None = None
        self._switching = asyncio.Lock()
        self._guard = threading.Lock()
        self._running: weakref.WeakSet[Job[None]] = weakref.WeakSet()
        self._observers: list[Callable[[Change], None]] = []
        self._response_cache: ResponseCache | None = None
        self.notebook: Path | None = None
        """The notebook that this kernel runs, where the front end says so."""
        self.calls = Calls(self.config, lambda: self._pool, self._spec, self.response_cache)
        """What runs the calls: its ledger, budget, prices and log."""

    @classmethod
    async def create(cls, config_manager: ConfigManager | None = None) -> Self:
        """A manager with its default provider switched in.

        Raises:
            NbllmError: where that provider cannot be built; the error says what to do.
        """
        self = cls(config_manager)
        await self._ours().bridge(self._switch(self._spec(self._provider), self.get_current_model()))
        return self

    # -- what is current

    def get_current_provider(self) -> str:
        """The name of the provider that answers."""
        return self._provider

    def get_current_model(self) -> str:
        """The model that answers, by the provider's own name of it."""
        return self._model_of(self._provider)

    def current(self) -> Change:
        """All of what is current."""
        return Change(
            provider=self._provider,
            model=self.get_current_model(),
            max_tokens=self.config.get("max_tokens"),
            temperature=self.config.get("temperature"),
            system=self.config.get("system"),
        )

    def get_available_providers(self) -> list[str]:
        """The names of all providers, those of other packages and the configured endpoints included."""
        return list(self.specs())

    def specs(self) -> dict[str, ProviderSpec]:
        """Every provider by name: those of nbllm, those of other packages, then the configured endpoints."""
        return endpoints.specs_of(self.config)

    def has_key(self, provider: str) -> bool:
        """Whether the provider has what it needs to be used: a key, or no need of one."""
        spec = self._spec(provider)
        if spec.local or not spec.key_variables:
            return True
        try:
            settings = self._settings(spec)
        except errors.ConfigError:  # there is something that cannot be used as it is: using it says why
            return True
        return bool(settings.api_key) or (settings.base_url is not None and not spec.endpoint)

    def spec(self, provider: str) -> ProviderSpec:
        """What is known of a provider or an endpoint, by its name in any case.

        Raises:
            ConfigError: where there is none of this name; it names the closest.
        """
        return self._spec(provider)

    def resolve(self, model: str | None = None) -> tuple[str, str]:
        """Which provider and model a name means.

        `provider:model` is split at the first colon where the left side names a provider or an alias of one;
        anything else is a name for the current provider (`llama3:8b`), in which a slash means nothing special. An
        alias stands for its target; a provider's name alone for that provider with its current model.
        """
        if not model:
            return self._provider, self.get_current_model()
        provider, name = self._named(model)
        if provider is None:
            return self._provider, name
        if name:
            return provider, name
        if model.endswith(":"):
            raise errors.ConfigError(f"{model} names no model.", action="Write the model behind the colon.")
        return provider, self._model_of(provider)

    # -- switching

    async def switch_llm_provider(self, llm_provider: str) -> None:
        """Make another provider current: `openai`, `OpenAI`, or `openai:MODEL` for its model at the same time.

        All or nothing: the new one is imported and built first, then swapped in; the old one closes when its
        calls have ended.

        Raises:
            NbllmError: where it cannot be; the old one stays current and usable, and the error says what to do.
        """
        provider, model = self._named(llm_provider)
        await self._switch_to(self._spec(provider or model.partition(":")[0]), model or None)

    set_provider = switch_llm_provider

    async def set_model(self, model: str) -> None:
        """Set the current provider's model; `provider:model` or an alias switches the provider too.

        Raises:
            NbllmError: where that provider cannot be used; nothing has changed then.
        """
        provider, name = self.resolve(model)
        await self._switch_to(self._spec(provider), name)

    def set_parameters(self, **parameters: Any) -> None:
        """Set `max_tokens`, `temperature` or `system` for all calls that do not set their own; None takes it back.

        Raises:
            ConfigError: where there is no such parameter or its value has the wrong type.
        """
        for name, value in parameters.items():
            self.config.set(name, value)
        self._notify()

    def observe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call back after each change of provider, model or parameters; returns what ends it."""
        self._observers.append(callback)
        return lambda: self._observers.remove(callback)

    # -- asking

    @overload
    async def generate_response(
        self,
        messages: Messages,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stream: Literal[True] = True,
        *,
        cache: CacheUse | None = None,
        fallback: Sequence[str] | None = None,
        **provider_options: Any,
    ) -> ResponseStream: ...

    @overload
    async def generate_response(
        self,
        messages: Messages,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        *,
        stream: Literal[False],
        cache: CacheUse | None = None,
        fallback: Sequence[str] | None = None,
        **provider_options: Any,
    ) -> Response: ...

    async def generate_response(
        self,
        messages: Messages,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stream: bool = True,
        *,
        cache: CacheUse | None = None,
        fallback: Sequence[str] | None = None,
        **provider_options: Any,
    ) -> ResponseStream | Response:
        """Ask the model.

        Args:
            messages: A prompt, or a list of `{"role", "content"}`, oldest first.
            model: Whom to ask in place of the current model; see `resolve`.
            max_tokens: The most tokens to answer with; by default the configured number.
            temperature: The sampling temperature; by default the configured one.
            stream: Whether to return at the first sign of the answer, or the whole of it by the provider's own
                call without streaming.
            cache: Whether the response cache is used: `auto` where the answer is repeatable (temperature 0 or a
                seed), `on`, `off`, or `refresh` for a new answer in the old one's place; by default the configured.
            fallback: Models to ask, in this order, where the first cannot answer; by default the configured ones. The
                response says which one did.
            provider_options: What else the provider takes: `seed`, `top_p`, `stop`, `tools`, `schema` and its own.

        Returns:
            A `ResponseStream` once the provider has begun to answer, or a `Response`.

        Raises:
            UsageError: where the arguments make no request.
            ProviderError: where the provider refused or failed before it answered.
        """
        plan = self.plan(messages, model, max_tokens, temperature, cache=cache, fallback=fallback, **provider_options)
        if not stream:
            return await self._ours().bridge(self.calls.complete(plan))
        answer, opened = self._start(plan)
        try:
            await asyncio.wrap_future(opened)
        except asyncio.CancelledError:
            answer.cancel()
            raise
        if answer.state == "failed" and not answer.text:
            await answer  # raises what went wrong before the answer began
        return answer

    def start(
        self,
        messages: Messages,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stream: bool = True,
        *,
        cache: CacheUse | None = None,
        fallback: Sequence[str] | None = None,
        **provider_options: Any,
    ) -> ResponseStream:
        """The same as a stream that is returned at once, before anything is sent; for code that does not await.

        Without `stream` the provider's call without streaming is made, and the answer arrives in one piece.

        Raises:
            UsageError: where the arguments make no request. All other errors are raised by reading.
        """
        plan = self.plan(
            messages, model, max_tokens, temperature, stream, cache=cache, fallback=fallback, **provider_options
        )
        return self._start(plan)[0]

    def plan(
        self,
        messages: Messages,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stream: bool = True,
        *,
        cache: CacheUse | None = None,
        fallback: Sequence[str] | None = None,
        **provider_options: Any,
    ) -> Plan:
        """The call as `start` would make it; nothing is sent.

        Raises:
            UsageError: where the arguments make no request.
        """
        plan = self._plan(
            messages,
            model,
            max_tokens=max_tokens,
            temperature=temperature,
            cache=cache,
            fallback=fallback,
            options=provider_options,
        )
        return plan if stream else dataclasses.replace(plan, whole=True)

    @staticmethod
    async def process_streaming_response(response: AsyncIterator[Any]) -> str:
        """The whole text of any async iterator of str, of chunks as dicts, or of events.

        A chunk is OpenAI's (`choices[0].delta.content`), Anthropic's (`delta.text`) or has its text under
        `text` or `content`.
        """
        return "".join([text_of(chunk) async for chunk in response])

    # -- models

    async def models(self, provider: str | None = None) -> list[ModelInfo]:
        """What models the provider, by default the current one, has: asked of it now.

        Raises:
            ProviderError: where it cannot be asked.
        """
        spec = self._spec(provider or self._provider)
        return await self._ours().bridge(self._list(spec))

    async def get_available_models(self, provider: str | None = None) -> list[str]:
        """The names of `models()`."""
        return [model.id for model in await self.models(provider)]

    # -- what was used

    def usage(self) -> list[dict[str, Any]]:
        """What was used since the kernel started, a row for each model: calls, tokens, cost; for a DataFrame."""
        totals = self.calls.ledger.totals()
        return [
            {"provider": provider, "model": model, **dataclasses.asdict(used)}
            for (provider, model), used in totals.items()
        ]

    def set_budget(self, limit: float | None) -> None:
        """Refuse calls that could take the cost of all calls from now on above so many US dollars; None ends it."""
        self.config.set("budget", limit)
        self.calls.set_budget(limit)

    def response_cache(self) -> ResponseCache:
        """The cache of answers, opened at the first call: in the user's folder, or beside the notebook."""
        with self._guard:
            if self._response_cache is None:
                place = cache_path(self.config.get("cache_place"), notebook=self.notebook, environ=self.config.environ)
                self._response_cache = ResponseCache(place)
            return self._response_cache

    @property
    def huggingface(self) -> LocalModels:
        """The models on this machine: load, unload, list.

        Raises:
            MissingExtraError: where the extra `local` is not installed.
        """
        from nbllm.local import LocalModels

        return LocalModels()

    # -- the end

    async def close(self) -> None:
        """Stop what still streams and close every client that it made. Used again, it makes new ones."""
        await self._ours().bridge(self._close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # -- inside

    def _ours(self) -> BackgroundLoop:
        """The background loop; after a fork a new one, and then the parent's clients are let go unclosed."""
        loop = background_loop()
        with self._guard:
            if self._owner is not loop:
                self._owner, self._switching = loop, asyncio.Lock()
                self._pool, self._running = ProviderPool(self._settings), weakref.WeakSet()
        return loop

    @property
    def _provider(self) -> str:
        """The current provider; by default the configured one, the first with a key, or the local one.

        Found out when it is first asked for: looking for keys may ask the keyring, which takes its time to import.
        """
        if self._current is None:
            model, provider = self.config.get("model"), self.config.get("provider")
            if provider is None:
                # An endpoint was configured to be used, but only one with a model can be without a word more.
                known = {name: spec for name, spec in self.specs().items() if spec.key_variables or spec.endpoint}
                ready = (name for name, spec in known.items() if spec.default_model and self.has_key(name))
                provider = next(ready, "huggingface")
            self._current = self._spec(provider).name
            if model is not None:
                self._current, name = self.resolve(model)
                self._models.setdefault(self._current, name)
        return self._current

    def _model_of(self, provider: str) -> str:
        configured: str | None = self._models.get(provider) or self.config.provider(provider).get("model")
        if model := configured or self.specs()[provider].default_model:
            return model
        raise errors.ConfigError(
            f"No model is set for the endpoint {provider}.",
            action=f"Name it behind the colon, {provider}:MODEL (%llm models {provider} lists them), or set "
            f"[endpoints.{provider}] model.",
        )

    def _named(self, name: str) -> tuple[str | None, str]:
        """The provider and the model that a name says, aliases followed: None and empty where it says none.

        A registered name goes before an alias of it: an alias cannot stand in a provider's way.
        """
        aliases, seen, known = self.config.aliases, set(), self.specs()
        while name in aliases and name not in seen and name.partition(":")[0].lower() not in known:
            seen.add(name)
            name = aliases[name]
        left, _, right = name.partition(":")
        provider = left.lower() if left.lower() in known else aliases.get(left, left).lower()
        return (provider, right) if provider in known else (None, name)

    def _spec(self, name: str) -> ProviderSpec:
        known = self.specs()
        spec = known.get(name.lower())
        if spec is None:
            close = difflib.get_close_matches(name.lower(), list(known), n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise errors.ConfigError(f"There is no provider {name!r}.", action=f"{hint}There are: {', '.join(known)}.")
        return spec

    def _settings(self, spec: ProviderSpec) -> ProviderSettings:
        return endpoints.settings_of(self.config, spec)

    def _notify(self) -> None:
        change = self.current()
        for callback in list(self._observers):
            try:
                callback(change)
            except Exception:  # an observer's fault must not undo a switch that has happened
                self.config.logger.exception("an observer of the manager failed")

    async def _switch_to(self, spec: ProviderSpec, model: str | None) -> None:
        with contextlib.suppress(errors.NbllmError):  # what is left behind need not be usable
            self.get_current_provider()  # found out here, and with it the configured model: it may ask the keyring
        await self._ours().bridge(self._switch(spec, model))

    async def _switch(self, spec: ProviderSpec, model: str | None) -> None:
        async with self._switching:
            if model is None:
                self._model_of(spec.name)  # raises where there is none
            await self._pool.build(spec)
            before, self._current = self._current, spec.name
            if model is not None:
                self._models[spec.name] = model
        self._notify()
        if before not in (None, spec.name):
            await self._pool.retire(before)

    async def _list(self, spec: ProviderSpec) -> list[ModelInfo]:
        async with self._pool.lease(spec) as provider:
            found = await provider.list_models()
            return await self.calls.prices.informed(found, base_url=provider.settings.base_url)

    async def _close(self) -> None:
        running = [job for job in self._running if not job.ended.done()]
        for job in running:
            job.cancel()
        if running:
            await asyncio.wait([asyncio.wrap_future(job.ended) for job in running], timeout=GRACE)
        await self._pool.close()
        if self._response_cache is not None:
            await asyncio.to_thread(self._response_cache.close)

    def _plan(
        self,
        messages: Messages,
        model: str | None,
        *,
        max_tokens: int | None,
        temperature: float | None,
        cache: CacheUse | None,
        fallback: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> Plan:
        cache = cache or self.config.get("cache")
        if cache not in get_args(CacheUse):
            raise errors.UsageError(f"cache is {cache!r}.", action=f"Give one of: {', '.join(get_args(CacheUse))}.")
        fallback = self.config.get("fallback") or () if fallback is None else fallback
        if isinstance(fallback, str):
            raise errors.UsageError("fallback is a str.", action=f"Give a list of models: [{fallback!r}].")
        redact = self.config.redactor()
        asked = tuple(_redacted(message, redact) for message in normalized(messages))
        models = dict.fromkeys(self.resolve(name) for name in (model, *fallback))
        given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "options": options}
        return Plan(tuple(self._request(asked, *whom, **given) for whom in models), cache)

    def _request(
        self,
        messages: tuple[Message, ...],
        provider: str,
        model: str,
        *,
        max_tokens: int | None,
        temperature: float | None,
        options: Mapping[str, Any],
    ) -> Request:
        own = self.config.provider(provider)
        given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        explicit = frozenset(key for key, value in given.items() if value is not None)
        for key, value in given.items():
            if value is None:
                given[key] = own.get(key, self.config.get(key))
        max_tokens, temperature = given["max_tokens"], given["temperature"]
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise errors.UsageError(f"max_tokens is {max_tokens!r}.", action="Give a whole number above 0.")
        if not isinstance(temperature, (int, float)) or not 0 <= temperature <= 2:
            raise errors.UsageError(f"temperature is {temperature!r}.", action="Give a number from 0 to 2.")
        return Request(
            provider=provider,
            model=model,
            messages=messages,
            max_tokens=max_tokens,
            temperature=float(temperature),
            options=dict(options),
            explicit=explicit,
        )

    def _start(self, plan: Plan) -> tuple[ResponseStream, concurrent.futures.Future[None]]:
        record = Record(provider=plan.requests[0].provider, model=plan.requests[0].model)
        channel: Channel[Event] = Channel()
        opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        loop = self._ours()
        job: Job[None] = loop.job()
        self._running.add(job)
        # Whatever its end, even one before its first step, whoever waits for the beginning goes on.
        job.ended.add_done_callback(lambda _: resolve(opened))
        stream = ResponseStream(record, channel, job, loop)
        try:
            job.start(self.calls.stream(plan, record, channel, opened))
        except BaseException:  # an interrupt: nobody would hold the stream
            stream.cancel()
            raise
        return stream, opened


def _redacted(message: Message, redact: Callable[[str], str]) -> Message:
    """The message without the keys that are known here: none of them is for a model to see."""
    return dataclasses.replace(
        message,
        content=redact(message.content),
        attachments=tuple(_redacted_file(attachment, redact) for attachment in message.attachments),
        tool_calls=tuple(dataclasses.replace(call, arguments=redact(call.arguments)) for call in message.tool_calls),
    )


def _redacted_file(file: Attachment, redact: Callable[[str], str]) -> Attachment:
    try:
        text = file.data.decode()
    except UnicodeDecodeError:  # a picture, say
        return file
    clean = redact(text)
    return file if clean == text else dataclasses.replace(file, data=clean.encode())
