"""The hosted providers as the tests ask them: each with the wire server for its service."""

from __future__ import annotations

import asyncio
import threading
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from nbllm import ConfigManager, ProviderManager, errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.wire import Wire

T = TypeVar("T")

SSE = {"content-type": "text/event-stream"}
SO_FAR = "tok0 tok1 tok2 tok3 tok4 "
"""What a stream that breaks has said before."""

Fault = tuple[str, dict[str, Any], type[errors.ProviderError], dict[str, Any]]
"""The name of a fault, its script, the error that it is, and what the error says."""


@dataclass(frozen=True)
class Asking:
    """Asks one provider: its name, its key, and what the configuration says beside them."""

    provider: str
    key: str
    settings: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)

    def with_manager(self, wire: Wire, use: Callable[[ProviderManager], Awaitable[T]], **settings: Any) -> T:
        """Run `use` with a manager whose provider is the wire server; afterwards it holds no connection, no thread."""
        settings = {"base_url": wire.base(self.provider), "api_key": self.key, **self.settings, **settings}
        runtime = {"provider": self.provider, "providers": {self.provider: settings}, **self.runtime}

        async def main() -> T:
            async with await ProviderManager.create(ConfigManager(runtime=runtime)) as manager:
                return await use(manager)

        result = asyncio.run(main())
        wire.wait_connections(0)
        assert calls() == []
        return result

    def ask(self, wire: Wire, model: str, prompt: Any = "Hello there", **options: Any) -> Any:
        """The whole answer, streamed."""

        async def use(manager: ProviderManager) -> Any:
            return await (await manager.generate_response(prompt, model, **options))

        return self.with_manager(wire, use)

    def ask_whole(self, wire: Wire, model: str, prompt: Any = "Hello there", **options: Any) -> Any:
        """The answer by the call that does not stream."""

        async def use(manager: ProviderManager) -> Any:
            return await manager.generate_response(prompt, model, stream=False, **options)

        return self.with_manager(wire, use)

    def events_of(self, wire: Wire, model: str, **options: Any) -> tuple[list[Any], Any]:
        """The events of a stream, and the stream."""

        async def use(manager: ProviderManager) -> tuple[list[Any], Any]:
            stream = await manager.generate_response("Hi", model, **options)
            return [event async for event in stream.events()], stream

        return self.with_manager(wire, use)

    def both_forms(self, wire: Wire, *models: str) -> list[Any]:
        """The whole answer of each model, after it was found to be what the streamed one is."""

        async def use(manager: ProviderManager) -> list[Any]:
            answers = []
            for model in models:
                streamed = await (await manager.generate_response("Hi", model))
                whole = await manager.generate_response("Hi", model, stream=False)
                for name in ("usage", "finish_reason", "tool_calls", "reasoning"):
                    assert getattr(streamed, name) == getattr(whole, name), (model, name)
                assert streamed == whole
                assert str(streamed) == str(whole)
                answers.append(whole)
            return answers

        return self.with_manager(wire, use)

    def fault(
        self, wire: Wire, script: dict[str, Any], kind: type[errors.ProviderError], fields: dict[str, Any]
    ) -> errors.ProviderError:
        """The error of a fault, after it was found to be of its own type, with a next action and without the key."""
        # A reset throws away what was not read yet: the server waits for the reader.
        gated = script.get("fault") == "reset"
        wired = wire.script("m", **script, gates=(5,) if gated else ())
        if script.get("status") == 200:  # the reason is the error event's
            wired.status = 200
        streams = []

        async def use(manager: ProviderManager) -> None:
            stream = manager.start("Hi", "m")
            streams.append(stream)
            with pytest.raises(kind):
                async for _ in stream:
                    if gated and stream.text.endswith("tok4 "):
                        wired.release()
            await stream  # says it again

        with pytest.raises(kind) as caught:
            self.with_manager(wire, use, timeout=0.5)
        error = caught.value
        assert type(error) is kind
        assert isinstance(error, errors.ProviderError)
        assert (error.provider, error.model) == (self.provider, "m")
        assert error.action
        assert {name: getattr(error, name) for name in fields} == fields
        in_stream = script.get("fault") in {"cut", "drop", "reset", "malformed", "error_event", "stall"}
        assert streams[0].text == (SO_FAR if in_stream or "tokens" in script else "")
        assert streams[0].state == ("incomplete" if kind is errors.IncompleteStreamError else "failed")
        assert self.key not in "".join(traceback.format_exception(error)) + repr(error) + str(error)
        assert calls() == []
        return error


def calls() -> list[threading.Thread]:
    """The threads in which calls run, given a moment to end."""
    found = [thread for thread in threading.enumerate() if thread.name == "nbllm-call"]
    for thread in found:
        thread.join(1)
    return [thread for thread in found if thread.is_alive()]


def faults(*table: Fault) -> pytest.MarkDecorator:
    """One test for each of these faults."""
    return pytest.mark.parametrize(
        ("script", "kind", "fields"), [fault[1:] for fault in table], ids=[fault[0] for fault in table]
    )


OPENAI = Asking("openai", "sk-test-0123456789")
RESPONSES = Asking("openai", "sk-test-0123456789", {"api": "responses"}, {"cache": "off"})
ANTHROPIC = Asking("anthropic", "sk-ant-test-0123456789", runtime={"cache": "off"})
MISTRAL = Asking("mistral", "mk-test-0123456789")
GOOGLE = Asking("google", "AIza-test-0123456789")
GOOGLE_LEGACY = Asking("google-legacy", "AIza-test-0123456789")
HUGGINGFACE = Asking("huggingface-hosted", "hf_test0123456789")

HOSTED = {
    "openai": OPENAI,
    "responses": RESPONSES,
    "anthropic": ANTHROPIC,
    "mistral": MISTRAL,
    "google": GOOGLE,
    "google-legacy": GOOGLE_LEGACY,
    "huggingface": HUGGINGFACE,
}
