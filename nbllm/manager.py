"""The `ProviderManager`: one in the kernel, behind the magics, the panels and the Python API."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import difflib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from nbllm import errors
from nbllm._loop import GRACE, BackgroundLoop, Channel, Job, background_loop, resolve
from nbllm.config import ConfigManager, ProviderSettings
from nbllm.messages import Messages, normalized, text_of
from nbllm.providers import ProviderSpec, registry
from nbllm.providers.pool import ProviderPool
from nbllm.response import Record, Response, ResponseStream
from nbllm.types import Event, ModelInfo, ReasoningDelta, Request, TextDelta, UsageUpdate, coalesced

if TYPE_CHECKING:
    from nbllm.local import LocalModels
    from nbllm.providers.base import Provider

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
        self._refused: dict[tuple[str, str | None, str], frozenset[str]] = {}
        self._observers: list[Callable[[Change], None]] = []

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
        """The names of all providers, those of other packages included."""
        return list(registry())

    def has_key(self, provider: str) -> bool:
        """Whether the provider has what it needs to be used: a key, or no need of one."""
        spec = self._spec(provider)
        if spec.local:
            return True
        settings = self._settings(spec)
        return bool(settings.api_key) or settings.base_url is not None

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
        spec = self._spec(provider or model.partition(":")[0])
        await self._ours().bridge(self._switch(spec, model or None))

    set_provider = switch_llm_provider

    async def set_model(self, model: str) -> None:
        """Set the current provider's model; `provider:model` or an alias switches the provider too.

        Raises:
            NbllmError: where that provider cannot be used; nothing has changed then.
        """
        provider, name = self.resolve(model)
        await self._ours().bridge(self._switch(self._spec(provider), name))

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
        **provider_options: Any,
    ) -> Response: ...

    async def generate_response(
        self,
        messages: Messages,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        stream: bool = True,
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
            provider_options: What else the provider takes: `seed`, `top_p`, `stop` and its own.

        Returns:
            A `ResponseStream` once the provider has begun to answer, or a `Response`.

        Raises:
            UsageError: where the arguments make no request.
            ProviderError: where the provider refused or failed before it answered.
        """
        if not stream:
            request = self._request(messages, model, max_tokens, temperature, provider_options)
            return await self._ours().bridge(self._complete(request))
        answer, opened = self._start(messages, model, max_tokens, temperature, provider_options)
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
        **provider_options: Any,
    ) -> ResponseStream:
        """The same as a stream that is returned at once, before anything is sent; for code that does not await.

        Raises:
            UsageError: where the arguments make no request. All other errors are raised by reading.
        """
        return self._start(messages, model, max_tokens, temperature, provider_options)[0]

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
                self._pool = ProviderPool(self._settings)
        return loop

    @property
    def _provider(self) -> str:
        """The current provider; by default the configured one, the first with a key, or the local one.

        Found out when it is first asked for: looking for keys may ask the keyring, which takes its time to import.
        """
        if self._current is None:
            model, provider = self.config.get("model"), self.config.get("provider")
            if provider is None:
                ready = (name for name, spec in registry().items() if not spec.local and self.has_key(name))
                provider = next(ready, "huggingface")
            self._current = self._spec(provider).name
            if model is not None:
                self._current, name = self.resolve(model)
                self._models.setdefault(self._current, name)
        return self._current

    def _model_of(self, provider: str) -> str:
        configured: str | None = self._models.get(provider) or self.config.provider(provider).get("model")
        return configured or registry()[provider].default_model

    def _named(self, name: str) -> tuple[str | None, str]:
        """The provider and the model that a name says, aliases followed: None and empty where it says none.

        A registered name goes before an alias of it: an alias cannot stand in a provider's way.
        """
        aliases, seen = self.config.aliases, set()
        while name in aliases and name not in seen and name.partition(":")[0].lower() not in registry():
            seen.add(name)
            name = aliases[name]
        left, _, right = name.partition(":")
        provider = left.lower() if left.lower() in registry() else aliases.get(left, left).lower()
        return (provider, right) if provider in registry() else (None, name)

    def _spec(self, name: str) -> ProviderSpec:
        spec = registry().get(name.lower())
        if spec is None:
            close = difflib.get_close_matches(name.lower(), list(registry()), n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            raise errors.ConfigError(
                f"There is no provider {name!r}.", action=f"{hint}There are: {', '.join(registry())}."
            )
        return spec

    def _settings(self, spec: ProviderSpec) -> ProviderSettings:
        return self.config.settings(spec.name, key_variables=spec.key_variables, url_variables=spec.url_variables)

    def _notify(self) -> None:
        change = self.current()
        for callback in list(self._observers):
            try:
                callback(change)
            except Exception:  # an observer's fault must not undo a switch that has happened
                self.config.logger.exception("an observer of the manager failed")

    async def _switch(self, spec: ProviderSpec, model: str | None) -> None:
        async with self._switching:
            await self._pool.build(spec)
            before = self._provider
            self._current = spec.name
            if model is not None:
                self._models[spec.name] = model
        if before != spec.name:
            await self._pool.retire(before)
        self._notify()

    async def _list(self, spec: ProviderSpec) -> list[ModelInfo]:
        async with self._pool.lease(spec) as provider:
            return await provider.list_models()

    async def _close(self) -> None:
        running = [job for job in self._running if not job.ended.done()]
        for job in running:
            job.cancel()
        if running:
            await asyncio.wait([asyncio.wrap_future(job.ended) for job in running], timeout=GRACE)
        await self._pool.close()

    def _request(
        self,
        messages: Messages,
        model: str | None,
        max_tokens: int | None,
        temperature: float | None,
        options: Mapping[str, Any],
    ) -> Request:
        provider, name = self.resolve(model)
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
            model=name,
            messages=normalized(messages),
            max_tokens=max_tokens,
            temperature=float(temperature),
            options=dict(options),
            explicit=explicit,
        )

    def _start(
        self,
        messages: Messages,
        model: str | None,
        max_tokens: int | None,
        temperature: float | None,
        options: Mapping[str, Any],
    ) -> tuple[ResponseStream, concurrent.futures.Future[None]]:
        request = self._request(messages, model, max_tokens, temperature, options)
        record = Record(provider=request.provider, model=request.model)
        channel: Channel[Event] = Channel()
        opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        loop = self._ours()
        job: Job[None] = loop.job()
        self._running.add(job)
        # Whatever its end, even one before its first step, whoever waits for the beginning goes on.
        job.ended.add_done_callback(lambda _: resolve(opened))
        stream = ResponseStream(record, channel, job, loop)
        try:
            job.start(self._pump(request, record, channel, opened))
        except BaseException:  # an interrupt: nobody would hold the stream
            stream.cancel()
            raise
        return stream, opened

    async def _pump(
        self,
        request: Request,
        record: Record,
        channel: Channel[Event],
        opened: concurrent.futures.Future[None],
    ) -> None:
        """Run one streaming call to its end, whatever that is; its errors go to the reader, not to the task."""
        loop = asyncio.get_running_loop()
        pending: list[Event] = []

        def emit(batch: list[Event]) -> None:
            # HTTP chunks that one socket read brought are decoded without the loop running in between, so what
            # is called soon is called once for all of them: the reader is woken once a read, not once a token.
            if not pending:
                loop.call_soon(flush)
            pending.extend(batch)

        def flush() -> None:
            if pending:
                batch = coalesced(pending)
                pending.clear()
                record.add(batch)
                channel.put(batch)

        try:
            await self._attempt(
                request,
                lambda provider, adapted: provider.stream(adapted, emit, lambda: resolve(opened)),
                may_repeat=lambda: record.first_event is None and not pending,
            )
        except asyncio.CancelledError:
            flush()
            record.end("interrupted")
            channel.close()
            raise
        except errors.IncompleteStreamError as exc:
            flush()
            exc.text = record.text
            record.end("incomplete", exc)
            channel.close(exc)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the reader's
            flush()
            record.end("failed", exc)
            channel.close(exc)
        else:
            flush()
            self._end_complete(record)
            channel.close()

    @staticmethod
    def _end_complete(record: Record) -> None:
        record.cost = 0.0 if registry()[record.provider].local else None
        record.end("complete")

    async def _complete(self, request: Request) -> Response:
        record = Record(provider=request.provider, model=request.model)
        done = await self._attempt(request, lambda provider, adapted: provider.completion(adapted))
        record.raw = done.raw
        record.add([ReasoningDelta(done.reasoning), TextDelta(done.text), *done.tool_calls])
        record.add([UsageUpdate(done.usage), done.finish])
        self._end_complete(record)
        return Response(record.text, record)

    async def _attempt(
        self,
        request: Request,
        call: Callable[[Provider, Request], Any],
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> Any:
        """Make the call; once more without a default of ours that the model turns out to refuse."""
        async with self._pool.lease(self._spec(request.provider)) as provider:
            key = (request.provider, provider.settings.base_url, request.model)
            request = dataclasses.replace(request, dropped=self._refused.get(key, frozenset()))
            started = time.monotonic()
            while True:
                try:
                    result = await call(provider, request)
                except errors.InvalidRequestError as exc:
                    adapted = provider.adapt(request, exc) if may_repeat() else None
                    if adapted is None:
                        raise
                    self._refused[key] = adapted.dropped
                    request = adapted
                except errors.ModelNotFoundError as exc:
                    await _name_the_closest(provider, exc)
                    raise
                else:
                    self.config.logger.debug(
                        "%s:%s answered in %.2f s",
                        request.provider,
                        request.model,
                        time.monotonic() - started,
                    )
                    return result


async def _name_the_closest(provider: Provider, error: errors.ModelNotFoundError) -> None:
    from nbllm.providers.mapping import model_not_found

    with contextlib.suppress(Exception):  # a hint is not worth a second error
        async with asyncio.timeout(5):
            model_not_found(error, [model.id for model in await provider.list_models()])
