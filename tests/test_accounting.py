"""Prices, budgets, the ledger, and the guess at how many tokens a prompt will be."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import struct
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm.accounting import PER_IMAGE, PER_PAGE, Budget, Call, Ledger, Reservation, Totals, estimate_tokens
from nbllm.errors import BudgetExceededError
from nbllm.prices import Price, Prices
from nbllm.types import Attachment, Message, ModelInfo, ToolCall, Usage

HUGGINGFACE = "huggingface-hosted"


def price(provider: str, model: str, **how: Any) -> Price | None:
    return asyncio.run(Prices(how.pop("own", None)).price(provider, model, **how))


def cost(provider: str, model: str, usage: Usage, **how: Any) -> float | None:
    return asyncio.run(Prices(how.pop("own", None)).cost(provider, model, usage, **how))


# -- prices


@pytest.mark.parametrize(
    ("provider", "model", "usage", "dollars"),
    [
        # By hand, dollars per million tokens: the rest of the prompt, what was cached, what was written, the answer.
        ("openai", "gpt-4o", Usage(10_000, 500, 6_000, 100), 4_000 * 2.5 + 6_000 * 1.25 + 500 * 10),
        ("openai", "gpt-4o", Usage(10_000, 500), 10_000 * 2.5 + 500 * 10),
        (
            "anthropic",
            "claude-haiku-4-5",
            Usage(10_000, 500, 6_000, None, 2_000),
            2_000 * 1 + 6_000 * 0.1 + 2_000 * 1.25 + 500 * 5,
        ),
        ("anthropic", "claude-haiku-4-5-20251001", Usage(10, 10), 10 * 1 + 10 * 5),
        ("google", "gemini-2.5-flash", Usage(10_000, 500, 6_000), 4_000 * 0.3 + 6_000 * 0.03 + 500 * 2.5),
        ("google", "models/gemini-2.5-flash", Usage(100, 100), 100 * 0.3 + 100 * 2.5),
        ("google-legacy", "gemini-2.5-flash", Usage(100, 100), 100 * 0.3 + 100 * 2.5),
        # Google's longer prompts cost more from 200,000 tokens on.
        ("google", "gemini-2.5-pro", Usage(300_000, 1_000), 300_000 * 2.5 + 1_000 * 15),
        ("google", "gemini-2.5-pro", Usage(100_000, 1_000), 100_000 * 1.25 + 1_000 * 10),
        ("mistral", "mistral-large-latest", Usage(10_000, 500), 10_000 * 2 + 500 * 6),
        (HUGGINGFACE, "openai/gpt-oss-20b:together", Usage(10_000, 500), 10_000 * 0.05 + 500 * 0.2),
        ("openai", "gpt-4o", Usage(0, 0), 0),
    ],
)
def test_a_call_costs_what_its_tokens_do(provider: str, model: str, usage: Usage, dollars: float) -> None:
    """Each token of the prompt is billed once, at the price of how it was read; numbers worked out by hand."""
    assert cost(provider, model, usage) == pytest.approx(dollars / 1e6, abs=1e-12)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "no-such-model"),
        ("my-openai", "gpt-4o"),  # a name with `openai` in it is not OpenAI
        ("google", "gemma-3"),  # in the table, without prices
        ("openai", "text-embedding-3-small"),  # has no price for an answer
        (HUGGINGFACE, "openai/gpt-oss-20b"),  # the router chooses who answers
        (HUGGINGFACE, "openai/gpt-oss-20b:nobody"),
        (HUGGINGFACE, ":together"),
        ("", ""),
        ("huggingface", "bundled"),
    ],
)
def test_an_unknown_price_is_none_never_zero(provider: str, model: str) -> None:
    """What the table does not say is not known."""
    assert price(provider, model) is None
    assert cost(provider, model, Usage(1000, 1000)) is None


@pytest.mark.parametrize(
    "usage",
    [
        Usage(),
        Usage(10),
        Usage(None, 10),
        Usage(10, 10, 20),  # more cached than there were
        Usage(-10, 10),
        Usage("many", 10),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("own", [None, {"openai:gpt-4o": {"input": 1, "output": 2}}])
def test_unknown_or_impossible_tokens_have_no_cost(usage: Usage, own: Any) -> None:
    """Where the tokens are not known, or nonsense, neither is the cost; by the user's own prices too."""
    assert cost("openai", "gpt-4o", usage, own=own) is None


def test_where_a_call_is_sent_decides_what_it_costs() -> None:
    """A proxy's prices are unknown, a known provider's hold under whatever name it is configured."""
    usage = Usage(1_000_000, 0)
    assert cost("openai", "gpt-4o", usage, base_url="https://api.openai.com/v1") == pytest.approx(2.5)
    assert cost("openai", "gpt-4o", usage, base_url="https://API.OpenAI.com:443/v1/") == pytest.approx(2.5)
    for url in ("http://localhost:8000/v1", "https://api.openai.com.evil.example/v1", "https://proxy.example/v1", ""):
        assert cost("openai", "gpt-4o", usage, base_url=url) is None, url
    assert cost("mine", "openai/gpt-4o", usage, base_url="https://openrouter.ai/api/v1") == pytest.approx(2.5)
    assert cost("mine", "some/model:free", usage, base_url="https://openrouter.ai/api/v1") is None
    router = "https://router.huggingface.co/v1"
    assert cost(HUGGINGFACE, "openai/gpt-oss-20b:together", usage, base_url=router) == pytest.approx(0.05)
    mine = "https://x.endpoints.huggingface.cloud"
    assert cost(HUGGINGFACE, "openai/gpt-oss-20b:together", usage, base_url=mine) is None


def test_what_runs_here_costs_nothing() -> None:
    """A local model's tokens are free, however many there were."""
    assert cost("huggingface", "bundled", Usage(), local=True) == 0.0
    assert price("huggingface", "bundled", local=True) == Price(0.0, 0.0)


def test_the_users_own_prices_come_first(caplog: pytest.LogCaptureFixture) -> None:
    """They win over the table, for a proxy, and for a local model; what they leave out is billed as the prompt is."""
    usage = Usage(1_000_000, 1_000_000, 500_000, None, 100_000)
    own = {"openai:gpt-4o": {"input": 1.0, "output": 2.0, "cached": 0.1}, "mine:m": {"input": 1.0, "output": 2.0}}
    assert cost("openai", "gpt-4o", usage, own=own) == pytest.approx(0.4 + 0.05 + 0.1 + 2)
    assert cost("openai", "gpt-4o", usage, own=own, base_url="http://proxy/v1") == pytest.approx(2.55)
    assert cost("mine", "m", usage, own=own, local=True) == pytest.approx(3)
    assert price("openai", "gpt-4o", own=lambda: own) == Price(1.0, 2.0, 0.1)
    full = {"mine:m": {"input": 1.0, "output": 2.0, "cached": 0.0, "cache_write": 10.0}}
    assert cost("mine", "m", usage, own=full) == pytest.approx(0.4 + 1 + 2)
    for wrong in ({"input": 1.0}, {"input": 1.0, "output": -1}, {"input": 1.0, "output": 1.0, "x": 1}, {"input": "1"}):
        with caplog.at_level(logging.WARNING):
            assert cost("mine", "m", usage, own={"mine:m": wrong}) is None
        assert "mine:m" in caplog.text
        caplog.clear()


def test_a_service_tier_has_its_own_price() -> None:
    """OpenAI's flex costs half; a tier that has no price of its own costs the standard one."""
    usage = Usage(1_000_000, 0)
    standard = cost("openai", "gpt-5.4-mini", usage)
    assert standard is not None
    assert cost("openai", "gpt-5.4-mini", usage, service_tier="flex") == pytest.approx(standard / 2)
    assert cost("openai", "gpt-5.4-mini", usage, service_tier="auto") == pytest.approx(standard)


def test_the_default_models_have_prices() -> None:
    """A budget works for the models that are there from the beginning."""
    from nbllm.providers import BUILT_IN

    for spec in BUILT_IN:
        if spec.name not in (HUGGINGFACE, "huggingface"):
            assert price(spec.name, spec.default_model) is not None, spec.name


def test_models_are_told_their_prices() -> None:
    """A list of models is filled with what the table knows; what the provider says itself stays."""
    models = [
        ModelInfo("gemini-2.5-pro", "google"),
        ModelInfo("claude-haiku-4-5", "anthropic"),
        ModelInfo("gpt-4o", "openai", input_price=7.0, output_price=8.0, context_window=5),
        ModelInfo("no-such-model", "openai"),
        ModelInfo("mine", "openai", input_price=7.0),
    ]
    own = {"openai:mine": {"input": 1.0, "output": 2.0}}
    first, claude, second, third, fourth = asyncio.run(Prices(own).informed(models))
    assert (first.input_price, first.output_price) == (1.25, 10.0)
    assert claude.context_window == 200_000
    assert (second, third) == tuple(models[2:4])
    assert (fourth.input_price, fourth.output_price) == (1.0, 2.0)
    assert (price("google", "gemini-2.5-pro") or Price(0, 0)).tiered
    assert not (price("openai", "gpt-4o") or Price(0, 0)).tiered


LOADING = """
import asyncio, sys, time
from nbllm.prices import Prices
from nbllm.types import Usage
assert "genai_prices" not in sys.modules
async def main():
    prices = Prices()
    assert prices.cost_now("openai", "gpt-4o", Usage(1, 1)) is None
    assert prices.cost_now("x", "y", Usage(), local=True) == 0.0
    prices.warm()
    found = await asyncio.gather(*(prices.cost("openai", "gpt-4o", Usage(1_000_000, 0)) for _ in range(5)))
    assert found == [2.5] * 5, found
    assert prices.cost_now("openai", "gpt-4o", Usage(1_000_000, 0)) == 2.5
asyncio.run(main())
print("fine")
"""


def test_the_table_is_loaded_when_it_is_first_needed() -> None:
    """Importing loads no table; until it is there a cost that cannot wait is unknown; many may wait for it at once."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "fine\n", done.stderr


MISSING = """
import asyncio, sys
sys.modules["genai_prices"] = None
from nbllm.prices import Prices
from nbllm.types import Usage
prices = Prices({"a:b": {"input": 1, "output": 1}})
for _ in range(3):
    assert asyncio.run(prices.cost("openai", "gpt-4o", Usage(1, 1))) is None
assert asyncio.run(prices.cost("a", "b", Usage(1_000_000, 0))) == 1.0
"""


def test_without_the_table_no_price_is_known() -> None:
    """Where the library is broken, calls go on, their cost is unknown, and it is said once."""
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be loaded") == 1


# -- tokens

EMOJI = "😀🎉👩\u200d👩\u200d👧\u200d👦🚀🔥🇩🇪👍🏽" * 4
LARGEST_COUNT = {
    "The quick brown fox jumps over the lazy dog, while forty-two curious engineers measure its latency. " * 3: 70,
    "Donaudampfschifffahrtsgesellschaftskapitäne führen Größenordnungsüberlegungen durch.": 30,
    "def total(rows: list[dict[str, float]]) -> float:\n    return sum(row['x'] ** 2 for row in rows if row)\n"
    * 3: 108,
    json.dumps([{"id": i, "name": f"user{i}", "ok": True, "v": [1, 2.5, None]} for i in range(20)], indent=2): 1063,
    "\n".join(" ".join(f"{i * j / 7:.6f}" for i in range(1, 7)) for j in range(20)): 1096,
    "\n".join(f"| row {i} | {i * 37 % 101} | {i / 7:.3f} |" for i in range(30)): 526,
    r"\begin{align} \frac{\partial u}{\partial t} &= \nabla^2 u + \sum_{i=1}^{n} x_i^2 \\ \end{align}" * 3: 130,
    "ERROR_CODE_UNKNOWN: THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG. " * 3: 85,
    "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4//8/w38GIAXDIBKE0DHxgljNBAAO9TXL0Y4OHwAAAABJRU5Erk"
    "Jggg==": 81,
    "大型语言模型在笔记本内核中运行,答案以流的形式写入单元格。我们测量了每个令牌的处理时间,并与其他工具进行了比较。": 57,  # noqa: E501
    "大規模言語モデルはノートブックのカーネル内で動作し、回答はセルにストリーミングされます。これは日本語の文章の例です。": 59,  # noqa: E501
    "대규모 언어 모델이 노트북 커널 안에서 실행되며 답변은 셀로 스트리밍됩니다. 이것은 한국어 문장의 예입니다.": 71,
    "Большие языковые модели работают внутри ядра блокнота, и ответ передаётся в ячейку потоком.": 48,
    "تعمل نماذج اللغة الكبيرة داخل نواة دفتر الملاحظات ويتم بث الإجابة إلى الخلية.": 70,
    "बड़े भाषा मॉडल नोटबुक कर्नेल के अंदर चलते हैं और उत्तर सेल में प्रवाहित होता है।": 86,
    EMOJI: 204,
}
"""Texts with the largest count of six vocabularies: OpenAI's cl100k and o200k, Claude 2's, DeepSeek's, Mistral's v3 and
Tekken, counted with their own tokenizers."""


@pytest.mark.parametrize(("text", "count"), LARGEST_COUNT.items(), ids=lambda value: str(value)[:12])
def test_the_estimate_is_cautious(text: str, count: int) -> None:
    """It is at least what the greediest of six vocabularies takes, and not more than about twice that."""
    estimate = estimate_tokens(text=text)
    assert count <= estimate <= 2.2 * count + 16


@given(st.text(), st.text())
def test_more_text_is_more_tokens(one: str, other: str) -> None:
    """Adding to a prompt never lowers the estimate, and no text has more tokens than it may have bytes and one."""
    assert estimate_tokens(text=one) <= estimate_tokens(text=one + other)
    assert estimate_tokens(text=one) <= estimate_tokens() + 1 + 4 * len(one)


def test_all_of_a_request_counts() -> None:
    """Messages, calls of tools, their definitions, schemas, texts, images by their size and PDFs by theirs."""

    def of(*messages: Message, **options: Any) -> int:
        return estimate_tokens(messages, options=options)

    def file(kind: str, data: bytes) -> int:
        return of(Message("user", "", (Attachment(kind, data),))) - of(Message("user", ""))

    def png(width: int, height: int) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)

    assert of() < of(Message("user", "")) < of(Message("user", "Hello")) < of(Message("user", "Hello there"))
    assert of(Message("user", "a")) < of(Message("user", "a"), Message("assistant", ""))
    assert of(Message("user", "a")) < of(Message("user", "a"), seed=1, tools=[{"name": "f"}])
    assert of(Message("user", "a")) < of(Message("user", "a"), schema={"type": "object"})
    assert of(Message("user", "a"), seed=1) == of(Message("user", "a"))
    assert of(Message("user", "a")) < of(Message("user", "a"), schema={(1, 2): print})  # no JSON, and no error here
    called = Message("assistant", "", tool_calls=(ToolCall("c", "f", '{"a": [1, 2, 3]}'),))
    assert of(Message("assistant", "")) < of(called)
    assert file("image/png", png(200, 200)) == 300
    assert 300 < file("image/png", png(1000, 1000)) < PER_IMAGE  # 32 x 32 patches
    assert file("image/png", png(9000, 9000)) == PER_IMAGE
    assert file("image/png", b"\x89PNG\r\n\x1a\n") == PER_IMAGE
    assert file("image/gif", b"GIF89a" + struct.pack("<HH", 640, 640)) == 680
    assert file("image/jpeg", b"anything") == PER_IMAGE
    assert file("application/pdf", b"%PDF") == PER_PAGE
    assert file("application/pdf", b"%" * 300_000) == 100_000
    assert file("text/csv", b"1,2,3\n" * 100) >= 600


def test_a_long_prompt_is_estimated_fast() -> None:
    """A megabyte takes well below a second, whatever is in it."""
    for text in ("word " * 200_000, "a1" * 500_000, "大" * 330_000, " " * 1_000_000, "a" * 39 + "é" * 100_000):
        started = time.perf_counter()
        estimate_tokens(text=text)
        assert time.perf_counter() - started < 2


# -- budget


def test_a_budget_is_kept() -> None:
    """What runs is held back, what has run is spent, what was refused is free, and the limit may change."""
    budget = Budget(1.0)
    first = budget.reserve(0.5)
    assert (budget.spent, budget.reserved, budget.left) == (0.0, 0.5, 0.5)
    with pytest.raises(BudgetExceededError):
        budget.reserve(0.6)
    first.settle(0.2)
    assert (budget.spent, budget.reserved, budget.left) == (0.2, 0.0, 0.8)
    second = budget.reserve(0.8)
    second.release()
    assert budget.left == 0.8
    budget.limit = 0.1
    assert budget.left == 0.0
    with pytest.raises(BudgetExceededError):
        budget.reserve(0.05)
    budget.reserve(0.0).release()  # what costs nothing may always be done
    budget.limit = None
    assert budget.left is None
    budget.reserve(1e9).settle(3.0)
    assert budget.spent == pytest.approx(3.2)


def test_the_refusal_says_how_much_and_what_to_do() -> None:
    """Both numbers are in the message, the next step in the action; nothing is reserved."""
    budget = Budget(2.0)
    budget.reserve(1.9766)
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(0.5, provider="openai", model="gpt-4o")
    assert "$0.50" in caught.value.message
    assert "$0.0234" in caught.value.message
    assert "max_tokens" in (caught.value.action or "")
    assert (caught.value.provider, caught.value.model) == ("openai", "gpt-4o")
    assert budget.reserved == pytest.approx(1.9766)


def test_an_unknown_price_is_refused_unless_allowed() -> None:
    """Under a budget a call of unknown price is not made, unless the user says so; without one it is."""
    budget = Budget(1.0)
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(None, provider="mine", model="m")
    assert "mine:m" in caught.value.message
    assert "unknown_prices" in (caught.value.action or "")
    assert 'prices."mine:m"' in (caught.value.action or "")
    budget.reserve(None, allow_unknown=True).settle(None)
    assert budget.spent == 0.0
    budget.reserve(None, allow_unknown=True).settle(0.25)
    assert budget.spent == 0.25
    Budget().reserve(None).settle(None)


@pytest.mark.parametrize("estimate", [-1.0, float("nan"), float("inf")])
def test_an_estimate_that_is_no_amount_is_refused(estimate: float) -> None:
    """A fault in the caller's arithmetic does not become room in the budget."""
    budget = Budget(1.0)
    with pytest.raises(ValueError, match="estimate"):
        budget.reserve(estimate)
    assert budget.left == 1.0


def test_what_a_call_cost_counts_once() -> None:
    """The first word counts: settled twice, or released and settled, changes nothing; unknown means the estimate."""
    budget = Budget(10.0)
    one = budget.reserve(1.0)
    one.settle(0.5)
    one.settle(0.7)
    one.release()
    two = budget.reserve(1.0)
    two.release()
    two.settle(1.0)
    assert budget.spent == 0.5
    for actual in (None, float("nan"), -5.0):
        budget.reserve(1.0).settle(actual)
    assert budget.spent == 3.5
    budget.reserve(1.0).settle(2.0)  # more than was thought: it was spent all the same
    assert (budget.spent, budget.reserved) == (5.5, 0.0)
    with budget.reserve(1.0) as held:
        assert isinstance(held, Reservation)
    with budget.reserve(1.0) as held:
        held.settle(0.25)
    assert (budget.spent, budget.reserved) == (5.75, 0.0)


@given(st.lists(st.floats(0, 2), max_size=30), st.floats(0, 5))
def test_what_is_reserved_never_exceeds_the_limit(estimates: list[float], limit: float) -> None:
    """Whatever is asked for, in whatever order, the sum of what is granted stays within the limit."""
    budget = Budget(limit)
    granted = 0.0
    for estimate in estimates:
        try:
            budget.reserve(estimate)
        except BudgetExceededError:
            assert granted + estimate > limit
        else:
            granted += estimate
    assert budget.reserved <= limit + 1e-6
    assert budget.reserved == pytest.approx(granted)


def test_calls_that_run_together_keep_the_budget_together() -> None:
    """A hundred threads that reserve at once get no more than there is."""
    budget = Budget(1.0)
    granted: list[Reservation] = []
    ready = threading.Barrier(20)

    def ask() -> None:
        ready.wait()
        for _ in range(5):
            try:
                granted.append(budget.reserve(0.03))
            except BudgetExceededError:
                return

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 33
    for reservation in granted:
        reservation.settle(0.03)
    assert budget.spent == pytest.approx(0.99)
    assert budget.reserved == 0.0


# -- ledger

CALL = Call(
    time=1_700_000_000.5,
    provider="openai",
    model="gpt-4o",
    state="complete",
    input_tokens=100,
    output_tokens=50,
    cached_tokens=20,
    reasoning_tokens=5,
    cost=0.01,
    latency=1.5,
    time_to_first_token=0.3,
    request_id="r",
)


def test_the_ledger_adds_up() -> None:
    """Totals by provider and model: what was replayed is not spent again, what failed early cost nothing."""
    ledger = Ledger()
    other = dataclasses.replace(CALL, provider="mistral", model="m")
    for call in (
        CALL,
        CALL,
        dataclasses.replace(CALL, cached=True),
        dataclasses.replace(CALL, cost=None),
        other,
        Call(1.0, "mistral", "m", "failed", error="AuthenticationError"),
        Call(1.0, "mistral", "m", "failed", time_to_first_token=0.1, error="ServerError"),
        Call(1.0, "mistral", "m", "incomplete", output_tokens=7, time_to_first_token=0.1),
        Call(1.0, "mistral", "m", "interrupted", cost=0.5),
    ):
        ledger.add(call)
    totals = ledger.totals()
    assert list(totals) == [("openai", "gpt-4o"), ("mistral", "m")]
    assert totals["openai", "gpt-4o"] == Totals(
        calls=4,
        cached_calls=1,
        failed=0,
        input_tokens=300,
        output_tokens=150,
        cached_tokens=60,
        reasoning_tokens=15,
        cost=0.02,
        unknown_cost_calls=1,
        saved=0.01,
    )
    found = totals["mistral", "m"]
    assert (found.calls, found.failed, found.output_tokens, found.unknown_cost_calls) == (5, 3, 57, 2)
    assert found.cost == pytest.approx(0.51)


def test_the_ledger_forgets_calls_but_not_sums() -> None:
    """Only the last calls are kept one by one; the totals are over all of them."""
    ledger = Ledger(keep=10)
    for number in range(1000):
        ledger.add(dataclasses.replace(CALL, input_tokens=number))
    assert [call.input_tokens for call in ledger.calls()] == list(range(990, 1000))
    assert ledger.totals()["openai", "gpt-4o"].input_tokens == sum(range(1000))
    assert ledger.totals()["openai", "gpt-4o"].cost == pytest.approx(10.0)


def test_the_rows_make_a_table() -> None:
    """A row for each call with every field of it, ready for a DataFrame."""
    pandas = pytest.importorskip("pandas")
    ledger = Ledger()
    assert ledger.rows() == []
    ledger.add(CALL)
    ledger.add(dataclasses.replace(CALL, cost=None))
    frame = pandas.DataFrame(ledger.rows())
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Call)]
    assert frame["cost"].sum() == 0.01
    assert str(frame["time"][0]) == "2023-11-14 22:13:20.500000+00:00"


def test_observers_see_each_call(caplog: pytest.LogCaptureFixture) -> None:
    """One that fails is logged, and keeps neither the others nor the call from going on."""
    ledger = Ledger()
    seen: list[Call] = []
    ledger.observers += [lambda call: 1 / 0, seen.append]
    ledger.add(CALL)
    assert seen == [CALL]
    assert "observer" in caplog.text
    assert ledger.totals()["openai", "gpt-4o"].calls == 1


def test_threads_share_one_ledger() -> None:
    """Calls that end at once on many threads are all counted."""
    ledger = Ledger(keep=5)
    threads = [threading.Thread(target=lambda: [ledger.add(CALL) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.totals()["openai", "gpt-4o"].calls == 4000
    assert ledger.totals()["openai", "gpt-4o"].input_tokens == 400_000
