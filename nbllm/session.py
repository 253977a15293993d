"""The kernel's face of the manager: the one manager of this process, and its state as traits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import traitlets
from traitlets.config import Configurable

from nbllm._loop import background_loop
from nbllm.chats import Chats, chats_path
from nbllm.conversation import Conversation, History
from nbllm.errors import NbllmError
from nbllm.jobs import Jobs
from nbllm.manager import Change, ProviderManager
from nbllm.messages import Messages
from nbllm.response import Response, ResponseStream
from nbllm.types import Message

__all__ = ["LLM", "ask", "get_manager", "get_session"]


class LLM(Configurable):
    """What `%config LLM` shows and sets: a mirror of the manager, on the kernel's main thread.

    Setting a trait changes the manager first; where it refuses, the trait keeps its value.
    """

    provider = traitlets.Unicode(help="The provider that answers.").tag(config=True)
    model = traitlets.Unicode(help="The model that answers; `provider:model` switches both.").tag(config=True)
    max_tokens = traitlets.Int(4000, min=1, help="The most tokens to answer with.").tag(config=True)
    temperature = traitlets.Float(0.0, min=0.0, max=2.0, help="The sampling temperature.").tag(config=True)
    system = traitlets.Unicode(
        None, allow_none=True, help="The system prompt of every cell that does not set its own."
    ).tag(config=True)

    def __init__(self, manager: ProviderManager | None = None, **kwargs: Any) -> None:
        self._mirroring = False
        self._guard = threading.Lock()
        self._chats: Chats | None = None
        self.jobs = Jobs()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.manager = manager or ProviderManager()
        with self._mirror():
            super().__init__(**kwargs)
        self.manager.observe(self._changed)
        with contextlib.suppress(RuntimeError):  # without a running loop, as in a terminal, there is none to hop to
            self._loop = asyncio.get_running_loop()

    def use(self, model: str) -> None:
        """Make a model (`provider:model`, a provider, an alias or a bare name) the current one.

        Raises:
            NbllmError: where it cannot be; nothing has changed then.
        """
        background_loop().run(self.manager.set_model(model))
        self._take(self.manager.current())

    @property
    def chats(self) -> Chats:
        """The kernel's conversations; asked for first, those that an earlier kernel stored are taken in."""
        with self._guard:
            if self._chats is None:
                config = self.manager.config
                self._chats = Chats(
                    redact=config.redact, place=lambda: chats_path(self.manager.notebook, config.environ)
                )
            return self._chats

    def conversation(self, name: str | None = None) -> Conversation:
        """The conversation of this name, a new one where there is none; by default the current one.

        Raises:
            UsageError: where it cannot be a name.
        """
        return self.chats.conversation(name)

    def fitting(
        self, history: History, own: Sequence[Message], model: str | None = None, max_tokens: int | None = None
    ) -> History:
        """The history as far as it fits into the model's context window; `left_out` says how much does not.

        Only a model on this machine is known well enough; to a provider all of it is sent.

        Args:
            history: Earlier turns.
            own: The system prompt and what is asked now.
            model: Whom to ask; by default the current model.
            max_tokens: The most tokens to answer with; by default the configured number.
        """
        if not history:
            return history
        provider, name = self.manager.resolve(model)
        window = self.manager.huggingface.window(name) if provider == "huggingface" else None
        if window is None:
            return history
        # A long answer may take all that is left, but is no reason to forget everything.
        room = min(self.max_tokens if max_tokens is None else max_tokens, window.tokens // 4)
        return history.fitting(own, limit=window.tokens - room, count=window.count)

    def messages(self, prompt: str, system: str | None = None) -> list[Message]:
        """The prompt as a conversation, with the system prompt given or else the configured one."""
        system = self.system if system is None else system
        opening = [Message("system", system)] if system else []
        return [*opening, Message("user", prompt)]

    @traitlets.default("provider")
    def _provider(self) -> str:
        return self.manager.get_current_provider()

    @traitlets.default("model")
    def _model(self) -> str:
        return self.manager.get_current_model()

    @traitlets.default("max_tokens")
    def _max_tokens(self) -> int:
        return self.manager.current().max_tokens

    @traitlets.default("temperature")
    def _temperature(self) -> float:
        return self.manager.current().temperature

    @traitlets.default("system")
    def _system(self) -> str | None:
        return self.manager.current().system

    @traitlets.validate("provider", "model", "max_tokens", "temperature", "system")
    def _set(self, proposal: traitlets.Bunch) -> Any:
        if self._mirroring:
            return proposal.value
        name = proposal.trait.name
        try:
            if name == "provider":
                background_loop().run(self.manager.switch_llm_provider(proposal.value))
            elif name == "model":
                background_loop().run(self.manager.set_model(proposal.value))
            else:
                self.manager.set_parameters(**{name: proposal.value})
        except NbllmError as exc:
            raise traitlets.TraitError(str(exc)) from exc
        now = self.manager.current()
        self._take(now)
        return getattr(now, name)

    def _changed(self, change: Change) -> None:
        if self._loop is None or self._loop.is_closed():
            self._take(change)
        else:
            # Traits belong to the main thread, and so do the widgets that observe them.
            self._loop.call_soon_threadsafe(lambda: self._take(self.manager.current()))

    def _take(self, change: Change) -> None:
        with self._mirror(), self.hold_trait_notifications():
            self.provider, self.model = change.provider, change.model
            self.max_tokens, self.temperature = change.max_tokens, change.temperature
            self.system = change.system

    @contextlib.contextmanager
    def _mirror(self) -> Iterator[None]:
        before, self._mirroring = self._mirroring, True
        try:
            yield
        finally:
            self._mirroring = before


_session: LLM | None = None
_guard = threading.Lock()


def get_session() -> LLM:
    """The process's session, made at the first call."""
    global _session  # noqa: PLW0603 - one per kernel is the point
    with _guard:
        if _session is None:
            _session = LLM()
        return _session


def get_manager() -> ProviderManager:
    """The kernel's own manager: what `%%llm` and the panels use."""
    return get_session().manager


@overload
def ask(
    prompt: Messages,
    model: str | None = None,
    *,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stream: Literal[False] = False,
    **provider_options: Any,
) -> Response: ...


@overload
def ask(
    prompt: Messages,
    model: str | None = None,
    *,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stream: Literal[True],
    **provider_options: Any,
) -> ResponseStream: ...


def ask(
    prompt: Messages,
    model: str | None = None,
    *,
    system: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stream: bool = False,
    **provider_options: Any,
) -> Response | ResponseStream:
    """Ask the kernel's manager and wait for the answer; the form for code that does not await.

    Args:
        prompt: A prompt, or a list of `{"role", "content"}`.
        model: Whom to ask in place of the current model.
        system: A system prompt, for a prompt that is a str.
        max_tokens: The most tokens to answer with.
        temperature: The sampling temperature.
        stream: Whether to return a `ResponseStream` at once; iterate over it with a plain `for`.
        provider_options: What else the provider takes.

    Raises:
        NbllmError: where it fails; the error says what to do.
    """
    session = get_session()
    messages: Messages = session.messages(prompt, system) if isinstance(prompt, str) else prompt

    def start() -> ResponseStream:
        return session.manager.start(messages, model, max_tokens, temperature, **provider_options)

    async def whole() -> Response:
        return await start()  # on the loop, so that no interrupt strikes between the start and the wait

    return start() if stream else background_loop().run(whole())
