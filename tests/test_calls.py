"""What the manager does around a call: again, by another model, from the cache, within a budget, on record."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.providers.mistral import MistralProvider
from nbllm.types import Attachment, Finish, Message, TextDelta, ToolCall
from tests.wire import Usage, Wire

T = TypeVar("T")

FAST = {"input": 1.0, "output": 2.0}
"""US dollars per million tokens."""


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NBLLM_CACHE", "NBLLM_MAX_RETRIES"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NBLLM_CACHE_PLACE", str(tmp_path / "cache.sqlite"))


def run(wire: Wire, use: Callable[[ProviderManager], Awaitable[T]], *, others: Any = None, **settings: Any) -> T:
    """Run `use` with a manager whose OpenAI is the wire server; the cache is off unless the settings say otherwise."""
    openai = {"base_url": f"{wire.url}/v1", "api_key": "sk-test-0123456789"}
    runtime = {"provider": "openai", "cache": "off", "providers": {"openai": openai, **(others or {})}, **settings}

    async def main() -> T:
        async with ProviderManager(ConfigManager(runtime=runtime)) as manager:
            return await use(manager)

    result = asyncio.run(main())
    wire.wait_connections(0)
    return result


async def both(manager: ProviderManager, model: str, **options: Any) -> list[Any]:
    """The answer streamed, and whole."""
    streamed = await (await manager.generate_response("Hi", model, **options))
    return [streamed, await manager.generate_response("Hi", model, stream=False, **options)]


# -- retries


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "trouble", [{"status": 503}, {"status": 500}, {"status": 429, "retry_after": 0.1}, {"fault": "close"}], ids=str
)
def test_trouble_that_passes_is_not_seen(wire: Wire, trouble: dict[str, Any], stream: bool) -> None:
    """A call that fails before the answer begins is made again, and the record says how often."""
    script = wire.script("m", times=2, **trouble)

    async def use(manager: ProviderManager) -> Any:
        answer = await manager.generate_response("Hi", "m", stream=stream)
        text = await answer if stream else answer
        return text, manager.calls.ledger.calls()[-1]

    text, call = run(wire, use)
    assert text == "".join(f"tok{i} " for i in range(10))
    assert (script.hits, call.attempts, call.state) == (3, 3, "complete")
    if "retry_after" in trouble:
        started = [request.started for request in wire.requests]
        assert all(b - a >= 0.1 for a, b in itertools.pairwise(started))


def test_trouble_that_stays_is_raised_after_the_last_try(wire: Wire) -> None:
    """Two retries by default, none where they are turned off; what is no use to repeat is not repeated."""
    wire.script("m", status=503)
    wire.script("key", status=401)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.OverloadedError):
            await manager.generate_response("Hi", "m")
        assert len(wire.requests) == 3
        manager.config.set("max_retries", 0)
        with pytest.raises(errors.OverloadedError):
            await manager.generate_response("Hi", "m")
        manager.config.set("max_retries", 5)
        with pytest.raises(errors.AuthenticationError):
            await manager.generate_response("Hi", "key")
        assert len(wire.requests) == 5

    run(wire, use)


def test_a_wait_that_the_deadline_does_not_allow_is_not_begun(wire: Wire) -> None:
    """A rate limit of an hour is said at once, with how long it lasts."""
    wire.script("m", status=429, retry_after=3600)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.RateLimitError) as caught:
            await manager.generate_response("Hi", "m")
        assert caught.value.retry_after == 3600

    run(wire, use)
    assert len(wire.requests) == 1


@pytest.mark.parametrize("fault", ["cut", "drop", "malformed", "error_event"])
def test_nothing_is_repeated_once_something_has_arrived(wire: Wire, fault: str) -> None:
    """After the first event a fault is the reader's, with the text so far: no text is ever said twice."""
    wire.script("m", fault=fault, at=3)

    async def use(manager: ProviderManager) -> str:
        stream = manager.start("Hi", "m", fallback=["openai:ok"])
        with pytest.raises(errors.ProviderError):
            await stream
        return stream.text

    assert run(wire, use) == "tok0 tok1 tok2 "
    assert len(wire.requests) == 1


def test_a_cut_before_the_first_event_is_repeated(wire: Wire) -> None:
    """A stream that ends before it said anything has lost nothing."""
    wire.script("m", fault="drop", at=0, times=1)

    async def use(manager: ProviderManager) -> Any:
        return await (await manager.generate_response("Hi", "m"))

    # The wire's first chunk of OpenAI's protocol has the role along with the first delta, so nothing precedes it.
    assert run(wire, use).startswith("tok0 ")
    assert len(wire.requests) == 2


def test_a_wait_can_be_interrupted(wire: Wire) -> None:
    """Cancelling while waiting for the next try ends the call at once."""
    wire.script("m", status=429, retry_after=30)

    async def use(manager: ProviderManager) -> str:
        stream = manager.start("Hi", "m")
        await asyncio.to_thread(wire.wait_done, 1)
        async with asyncio.timeout(5):
            await stream.aclose()
        return stream.state

    assert run(wire, use) == "interrupted"


# -- fallback


def test_another_model_answers_where_the_first_cannot(wire: Wire) -> None:
    """In the order given, and the response says who answered and who did not."""
    wire.script("down", status=500)
    wire.script("gone", status=404)

    async def use(manager: ProviderManager) -> list[Any]:
        return await both(manager, "down", fallback=["openai:gone", "openai:ok", "openai:echo"])

    for answer in run(wire, use, max_retries=0):
        assert (answer.provider, answer.model, answer.state) == ("openai", "ok", "complete")
        assert answer.fallback_of == ("openai:down", "openai:gone")
    assert {request.model for request in wire.requests} == {"down", "gone", "ok", ""}


def test_the_configured_fallback_serves_every_call_and_may_be_local(wire: Wire) -> None:
    """With no network at all the bundled model answers in place of the hosted one."""
    wire.stop()

    async def use(manager: ProviderManager) -> Any:
        return await (await manager.generate_response("What is nbllm?", "m", max_tokens=5))

    answer = run(wire, use, fallback=["huggingface:bundled"], max_retries=0)
    assert (answer.provider, answer.model, answer.cost) == ("huggingface", "bundled", 0.0)
    assert answer


def test_where_all_fail_the_first_error_is_raised_and_names_the_others(wire: Wire) -> None:
    """The error is that of the model that was asked for."""
    wire.script("one", status=401)
    wire.script("two", status=500, message="The other broke")

    async def use(manager: ProviderManager) -> None:
        await manager.generate_response("Hi", "one", fallback=["openai:two"])

    with pytest.raises(errors.AuthenticationError) as caught:
        run(wire, use, max_retries=0)
    assert caught.value.model == "one"
    assert caught.value.action is not None
    assert "openai:two: OpenAI (500): The other broke" in caught.value.action


def test_a_mistake_of_the_callers_is_not_passed_on(wire: Wire) -> None:
    """An invalid request would be invalid elsewhere too: it is said at once."""
    wire.script("m", status=400)

    async def use(manager: ProviderManager) -> None:
        await manager.generate_response("Hi", "m", fallback=["openai:ok"])

    with pytest.raises(errors.InvalidRequestError):
        run(wire, use)
    assert len(wire.requests) == 1


@pytest.mark.parametrize("wrong", [{"fallback": "openai:ok"}, {"cache": "perhaps"}])
def test_arguments_of_the_wrong_kind_are_refused(wire: Wire, wrong: dict[str, Any]) -> None:
    """A str in place of a list would be read letter by letter."""
    own = ProviderManager(ConfigManager(runtime={"provider": "openai"}))
    with pytest.raises(errors.UsageError, match=next(iter(wrong))):
        own.start("Hi", **wrong)


# -- the cache


def test_the_same_question_is_asked_once(wire: Wire) -> None:
    """At temperature 0 the answer comes from the cache, event for event, and describes the original call."""
    wire.script("m", deltas=["a", "b"], reasoning=["hm"], usage=Usage(7, 3))

    async def use(manager: ProviderManager) -> list[Any]:
        first = await (await manager.generate_response("Hi", "m"))
        stream = await manager.generate_response("Hi", "m")
        events = [event async for event in stream.events()]
        return [first, stream.response(), events, manager.usage()]

    first, second, events, usage = run(wire, use, cache="auto", prices={"openai:m": FAST})
    assert len(wire.requests) == 1
    assert (first, first.usage, first.reasoning, first.finish_reason, first.model, first.cost, first.request_id) == (
        second, second.usage, second.reasoning, second.finish_reason, second.model, second.cost, second.request_id,
    )  # fmt: skip
    assert (first.cached, second.cached, second.state) == (False, True, "complete")
    assert first.cost == pytest.approx((7 * 1.0 + 3 * 2.0) / 1e6)
    assert TextDelta("ab") in events
    assert events[-1] == Finish("stop", "stop") or Finish("stop", "stop") in events
    (row,) = usage
    assert (row["calls"], row["cached_calls"]) == (2, 1)
    assert row["cost"] == pytest.approx(first.cost)  # a replay costs nothing


def test_a_cached_answer_needs_no_key_and_no_network(wire: Wire) -> None:
    """A notebook with its cache runs where neither is there, streamed or whole alike."""

    async def fill(manager: ProviderManager) -> Any:
        return await manager.generate_response("Hi", "ok", stream=False)

    async def replay(manager: ProviderManager) -> list[Any]:
        return await both(manager, "ok")

    first = run(wire, fill, cache="auto")
    base_url = f"{wire.url}/v1"
    wire.stop()
    for answer in run(wire, replay, cache="auto", providers={"openai": {"base_url": base_url}}):
        assert (answer, answer.cached) == (first, True)


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.5, "seed": 1}, {"max_tokens": 9}, {"top_p": 0.5}, {"messages": "Ho"}, {"model": "echo"},
     {"messages": [Message("user", "Hi", (Attachment("image/png", b"x"),))]}],
    ids=str,
)  # fmt: skip
def test_another_question_is_another_answer(wire: Wire, change: dict[str, Any]) -> None:
    """Whatever decides the answer is part of what is looked up."""
    base = {"messages": "Hi", "model": "ok"}

    async def use(manager: ProviderManager) -> None:
        for asked in (base, {**base, **change}, base, {**base, **change}):
            await (await manager.generate_response(**asked))

    run(wire, use, cache="auto")
    assert len(wire.requests) == 2


def test_a_setting_that_decides_who_answers_is_part_of_the_question(wire: Wire) -> None:
    """HuggingFace's router asks the inference provider that the configuration names: another one, another answer."""
    hosted = {"base_url": wire.base("huggingface-hosted"), "api_key": "hf_0123456789"}

    async def use(manager: ProviderManager) -> Any:
        return await manager.generate_response("Hi", "huggingface-hosted:ok", stream=False)

    for who in ({"provider": "together"}, {"provider": "groq"}, {"provider": "groq", "bill_to": "us"}):
        run(wire, use, cache="auto", others={"huggingface-hosted": {**hosted, **who}})
    assert len(wire.requests) == 2  # who pays makes no other answer


def test_what_is_not_repeatable_is_not_cached_unless_asked(wire: Wire) -> None:
    """Sampling without a seed gives a new answer each time; `on`, `off` and `refresh` say otherwise."""

    async def use(manager: ProviderManager) -> list[int]:
        counts = []
        for cache in ("auto", "auto", "on", "on", "off", "refresh", "on"):
            await (await manager.generate_response("Hi", "ok", temperature=1.0, cache=cache))
            counts.append(len(wire.requests))
        return counts

    assert run(wire, use) == [1, 2, 3, 3, 4, 5, 5]


@pytest.mark.parametrize("model", ["cut", "malformed", "stall"])
def test_only_whole_answers_are_kept(wire: Wire, model: str) -> None:
    """A broken or interrupted answer is asked for anew."""

    async def use(manager: ProviderManager) -> None:
        for _ in range(2):
            stream = await manager.generate_response("Hi", model)
            try:
                async for _ in stream:
                    if model == "stall":
                        break
            except errors.ProviderError:
                pass
            await stream.aclose()

    run(wire, use, cache="auto")
    assert len(wire.requests) == 2


def test_neither_key_nor_prompt_is_in_the_cache(wire: Wire, tmp_path: Path) -> None:
    """What was asked is hashed; the key is part of nothing."""

    async def use(manager: ProviderManager) -> Any:
        return await (await manager.generate_response("A most secret question", "ok"))

    run(wire, use, cache="auto")
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"tok9" in content
    assert b"secret question" not in content
    assert b"sk-test" not in content


def test_a_cache_that_cannot_be_used_costs_no_answer(wire: Wire, tmp_path: Path) -> None:
    """A place that is no folder is warned of, and the answers come all the same."""
    (tmp_path / "file").write_text("x")

    async def use(manager: ProviderManager) -> list[Any]:
        return await both(manager, "ok")

    assert all(run(wire, use, cache="auto", cache_place=str(tmp_path / "file" / "cache.sqlite")))


# -- the budget


def test_a_call_that_could_exceed_the_budget_is_not_made(wire: Wire) -> None:
    """The worst case is reserved before anything is sent; what it did cost counts afterwards."""
    wire.script("m", usage=Usage(100, 100))
    prices = {"openai:m": {"input": 10.0, "output": 1000.0}}

    async def use(manager: ProviderManager) -> list[Any]:
        with pytest.raises(errors.BudgetExceededError) as caught:
            await manager.generate_response("Hi", "m", max_tokens=1000)
        assert caught.value.action
        assert wire.requests == []
        answers = [await (await manager.generate_response("Hi", "m", max_tokens=400)) for _ in range(2)]
        manager.set_budget(None)
        return [*answers, await (await manager.generate_response("Hi", "m", max_tokens=1000))]

    answers = run(wire, use, budget=0.6, prices=prices)
    assert answers[0].cost == pytest.approx(0.001 + 0.1)


def test_calls_at_once_cannot_exceed_it_together(wire: Wire) -> None:
    """Each has its worst case held back while it runs."""
    script = wire.script("m", gates=[0])
    prices = {"openai:m": {"input": 0.0, "output": 1000.0}}

    async def use(manager: ProviderManager) -> list[Any]:
        first = await manager.generate_response("Hi", "m", max_tokens=600)
        with pytest.raises(errors.BudgetExceededError):
            await manager.generate_response("Hi", "m", max_tokens=600)
        script.release()
        await first
        second = await manager.generate_response("Hi", "m", max_tokens=600)
        script.release()
        return [await second]

    assert run(wire, use, budget=1.0, prices=prices)


def test_an_unknown_price_is_refused_under_a_budget_unless_allowed(wire: Wire) -> None:
    """What a call costs must be known to be kept within bounds; a local model costs nothing."""

    async def use(manager: ProviderManager) -> Any:
        with pytest.raises(errors.BudgetExceededError, match="price"):
            await manager.generate_response("Hi", "ok")
        assert (await manager.generate_response("Hi", "huggingface:bundled", max_tokens=3, stream=False)).cost == 0
        manager.config.set("unknown_prices", "allow")
        return await manager.generate_response("Hi", "ok", stream=False)

    assert run(wire, use, budget=1.0).cost is None


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("end", ["timeout", "cancel"])
def test_a_request_that_was_never_answered_may_have_been_billed(wire: Wire, end: str, stream: bool) -> None:
    """Who gave up waiting does not know what the provider made of it: the worst case counts as spent."""
    prices = {"openai:hang": {"input": 0.0, "output": 1000.0}}

    async def use(manager: ProviderManager) -> float:
        call = asyncio.create_task(manager.generate_response("Hi", "hang", max_tokens=600, stream=stream))
        await asyncio.to_thread(wire.wait_requests, 1)
        if end == "cancel":
            call.cancel()
        await asyncio.wait([call])
        await manager.close()
        assert manager.calls.budget.reserved == 0
        return manager.calls.budget.spent

    timeout = 0.3 if end == "timeout" else 30.0
    assert run(wire, use, budget=1.0, prices=prices, timeout=timeout, max_retries=0) == pytest.approx(0.6)


def test_a_call_that_was_stopped_before_it_was_sent_costs_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its library is imported nothing has left the machine."""
    building, go_on, build = threading.Event(), threading.Event(), MistralProvider.build

    def slowly(self: MistralProvider) -> None:
        building.set()
        go_on.wait(10)
        build(self)

    monkeypatch.setattr(MistralProvider, "build", slowly)

    async def use(manager: ProviderManager) -> float:
        call = asyncio.create_task(manager.generate_response("Hi", "mistral:m", stream=False))
        await asyncio.to_thread(building.wait, 10)
        assert manager.calls.budget.reserved > 0
        call.cancel()
        await asyncio.wait([call])
        go_on.set()
        await manager.close()
        assert manager.calls.budget.reserved == 0
        return manager.calls.budget.spent

    mistral = {"mistral": {"base_url": wire.base("mistral"), "api_key": "key-0123456789"}}
    prices = {"mistral:m": {"input": 1.0, "output": 1.0}}
    assert run(wire, use, budget=1.0, prices=prices, others=mistral) == 0


@pytest.mark.parametrize("model", ["e401", "e500", "refused"])
def test_what_was_refused_or_never_sent_costs_nothing(wire: Wire, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal, a server that is not there and a library that is not installed leave the budget as it was."""
    monkeypatch.setitem(sys.modules, "google.generativeai", None)
    prices = {
        name: {"input": 1e6, "output": 0.0} for name in ("openai:e401", "openai:e500", "lab:m", "google-legacy:m")
    }

    async def use(manager: ProviderManager) -> float:
        for asked in ("lab:m" if model == "refused" else f"openai:{model}", "google-legacy:m"):
            with pytest.raises(errors.NbllmError) as caught:
                await manager.generate_response("Hi", asked)
            assert not isinstance(caught.value, errors.BudgetExceededError)
        return manager.calls.budget.spent

    lab = {"lab": {"base_url": "http://127.0.0.1:9/v1"}}
    legacy = {"google-legacy": {"api_key": "key-0123456789"}}
    found = run(wire, use, budget=100.0, prices=prices, endpoints=lab, max_retries=0, others=legacy)
    assert found == 0


def test_a_length_that_a_model_takes_no_limit_of_is_not_within_a_budget(wire: Wire) -> None:
    """Our default may be dropped for a model that refuses it, but then nothing bounds the cost: not under a budget."""
    wire.script("m", rejects=["max_tokens"])
    mistral = {"base_url": wire.base("mistral"), "api_key": "key-0123456789"}
    prices = {"mistral:m": {"input": 1.0, "output": 1.0}}

    async def use(manager: ProviderManager) -> None:
        assert await manager.generate_response("Hi", "mistral:m", stream=False)  # without a budget, and remembered
        manager.set_budget(1.0)
        with pytest.raises(errors.BudgetExceededError, match="limit"):
            await manager.generate_response("Hi", "mistral:m", stream=False)
        assert manager.calls.budget.spent == 0

    run(wire, use, prices=prices, others={"mistral": mistral})
    assert len(wire.requests) == 2


def test_a_budget_that_the_configuration_gets_later_holds(wire: Wire, tmp_path: Path) -> None:
    """A project's file that the user has just trusted sets it for the calls from now on."""
    project = tmp_path / "nbllm.toml"
    project.write_text("budget = 0.0")
    config = ConfigManager(
        project_file=project,
        runtime={
            "cache": "off",
            "providers": {"openai": {"base_url": wire.base("openai"), "api_key": "sk-test-0123456789"}},
        },
    )

    async def main() -> None:
        async with ProviderManager(config) as manager:
            assert await manager.generate_response("Hi", "openai:ok", stream=False)
            config.trust()
            with pytest.raises(errors.BudgetExceededError):
                await manager.generate_response("Hi", "openai:ok", stream=False)
            manager.set_budget(None)  # for this process, whatever a file says
            assert await manager.generate_response("Hi", "openai:ok", stream=False)

    asyncio.run(main())


def test_a_call_over_the_budget_may_fall_back_to_one_within(wire: Wire) -> None:
    """An expensive model's turn goes to the next."""

    async def use(manager: ProviderManager) -> Any:
        return await manager.generate_response("Hi", "ok", stream=False, fallback=["huggingface:bundled"], max_tokens=3)

    assert run(wire, use, budget=1.0).provider == "huggingface"


# -- what is said


@pytest.mark.parametrize("current", ["openai", "huggingface"])
def test_a_mistyped_provider_is_recognized_in_the_model_that_is_not_there(wire: Wire, current: str) -> None:
    """What names no provider is a model of the current one, which does not have it: the error says what was meant."""
    wire.script("opnai:gpt-5", status=404)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.NbllmError, match=r"Did you mean openai:gpt-5\?"):
            await manager.generate_response("Hi", "opnai:gpt-5")

    run(wire, use, provider=current)


def test_a_model_that_is_listed_is_not_said_to_be_meant_in_place_of_itself(wire: Wire) -> None:
    """A key may not have access to all that is listed: the names that help are others."""
    wire.script("gpt-large", status=404)
    wire.script("gpt-large-2", status=200)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.ModelNotFoundError, match=r"Did you mean gpt-large-2\?"):
            await manager.generate_response("Hi", "gpt-large")

    run(wire, use)


def test_a_refused_key_is_named_by_where_it_comes_from(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has set a variable and is refused a key of another place is told which one counts."""
    monkeypatch.setenv("MISTRAL_API_KEY", "key-0123456789")
    monkeypatch.setenv("NBLLM_MISTRAL_BASE_URL", wire.base("mistral"))
    wire.script("m", status=401)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.AuthenticationError, match=r"MISTRAL_API_KEY .*%llm key mistral"):
            await manager.generate_response("Hi", "mistral:m")
        with pytest.raises(errors.AuthenticationError, match="the program's own settings"):
            await manager.generate_response("Hi", "openai:m")

    run(wire, use)


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "Wait 1 s"), (20, "Wait 20 s"), (3600, "Wait 60 min")])
def test_how_long_to_wait_is_said(wire: Wire, seconds: float, said: str) -> None:
    """Where the provider says how long a limit lasts, so does the error."""
    wire.script("m", status=429, retry_after=seconds)

    async def use(manager: ProviderManager) -> None:
        with pytest.raises(errors.RateLimitError, match=said):
            await manager.generate_response("Hi", "m")

    run(wire, use, max_retries=0)


# -- on record


def test_each_call_is_in_the_ledger_and_in_the_log(wire: Wire) -> None:
    """Provider, model, times, tokens, state and request id; neither prompt nor answer."""

    async def use(manager: ProviderManager) -> tuple[list[Any], str]:
        await both(manager, "ok")
        for model in ("cut", "e401"):
            with pytest.raises(errors.ProviderError):
                await (await manager.generate_response("Hi there", model))
        stream = await manager.generate_response("Hi", "slow")
        await anext(stream)
        await stream.aclose()
        return manager.usage(), "\n".join(json.dumps(record) for record in manager.calls.log.tail(5))

    rows, log = run(wire, use)
    by_model = {row["model"]: row for row in rows}
    assert by_model["ok"]["calls"] == 2
    assert by_model["ok"]["input_tokens"] == 2
    assert by_model["ok"]["output_tokens"] == 20
    assert by_model["cut"]["failed"] == 1
    records = [json.loads(line) for line in log.splitlines()]
    assert [record["state"] for record in records] == ["complete", "complete", "incomplete", "failed", "interrupted"]
    first = records[0]
    assert (first["provider"], first["model"], first["attempts"], first["request_id"]) == ("openai", "ok", 1, "req_1")
    assert 0 < first["time_to_first_token"] <= first["latency"]
    assert records[3]["error"] == "AuthenticationError"
    assert "tok0" not in log
    assert "Hi there" not in log


def test_known_keys_are_taken_out_of_a_prompt(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key pasted into a prompt does not leave the machine, in whatever form the prompt is given."""
    monkeypatch.setenv("SOME_API_KEY", "abcd-secret-1234")

    async def use(manager: ProviderManager) -> None:
        await both(manager, "ok")
        text = "My key is abcd-secret-1234 and sk-test-0123456789."
        for asked in (text, [{"role": "user", "content": text}], [Message("user", text)]):
            await (await manager.generate_response(asked, "ok"))
        called = Message("assistant", "", tool_calls=(ToolCall("c", "f", json.dumps({"key": "abcd-secret-1234"})),))
        file = Attachment("text/x-env", b"A=1\nSOME_API_KEY=abcd-secret-1234\n", ".env")
        picture = Attachment("image/png", b"\x89PNG", "a.png")
        asked = [called, Message("tool", "done", tool_call_id="c"), Message("user", "Hi", (file, picture))]
        await (await manager.generate_response(asked, "ok"))

    run(wire, use)
    sent = json.dumps([request.body for request in wire.requests])
    files = re.findall(r"base64,([\w+/=]+)", sent)
    assert [base64.b64decode(found) for found in files] == [b"A=1\nSOME_API_KEY=[SOME_API_KEY]\n", b"\x89PNG"]
    assert "abcd-secret" not in sent
    assert "sk-test" not in sent
    assert "[SOME_API_KEY]" in sent
