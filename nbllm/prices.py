"""What calls cost, by the table that genai-prices brings along: no network, and off the loop, for it loads slowly.

Unknown is None, never 0: a model that the table does not have, one that it has without prices, a call whose tokens are
not known, and a server of one's own. Where a call is sent to another URL than the provider's own, it is the URL that
decides: `https://openrouter.ai/api/v1` has OpenRouter's prices, a proxy has none. The user's own prices come first.
Prices that depend on the prompt's length or the date are the table's business; a cache write that is kept for an hour
is priced as one kept for five minutes, since `Usage` does not tell them apart.

HuggingFace's router bills as the inference provider that answers does: `MODEL:together` has a price, `MODEL` alone has
none, since the router chooses.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from nbllm.types import ModelInfo, Usage

if TYPE_CHECKING:
    from genai_prices import types as genai
    from genai_prices.data_snapshot import DataSnapshot

__all__ = ["OwnPrices", "Price", "Prices"]

logger = logging.getLogger("nbllm.prices")

OwnPrices = Mapping[str, Mapping[str, float]]
"""The user's prices, by `provider:model`: `input`, `output`, `cached`, `cache_write`, in dollars per million tokens."""

MILLION: Final = 1_000_000

ROUTER: Final = "router.huggingface.co"

_SAME: Final[Mapping[str, str]] = {"google-legacy": "google"}
"""Our names of providers that the table has under another."""

_table: DataSnapshot | None = None
_tried = False


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens; None where it is not known.

    Attributes:
        input: Of the prompt.
        output: Of the answer.
        cached: Of the prompt's part that the provider's cache had.
        cache_write: Of the prompt's part that was written to it.
        tiered: Whether a long prompt costs more; these are the prices of a short one.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    tiered: bool = False


class Prices:
    """What calls cost.

    Args:
        own: The user's own prices, or what looks them up.
    """

    def __init__(self, own: OwnPrices | Callable[[], OwnPrices] | None = None) -> None:
        self._own = own if callable(own) else lambda: own or {}

    def warm(self) -> None:
        """Begin to load the table, in a thread of the running loop, so that the first price comes at once."""
        if not _tried:
            asyncio.get_running_loop().run_in_executor(None, _load)

    async def price(
        self, provider: str, model: str, *, base_url: str | None = None, local: bool = False
    ) -> Price | None:
        """The prices of a model.

        Args:
            provider: Its provider's registered name.
            model: The provider's name of it.
            base_url: Where it is reached, where that is not the provider's own URL.
            local: Whether it runs on this machine, where tokens cost nothing.
        """
        await _loaded()
        return self._price(provider, model, base_url, local=local)

    async def cost(
        self,
        provider: str,
        model: str,
        usage: Usage,
        *,
        base_url: str | None = None,
        local: bool = False,
        service_tier: str | None = None,
    ) -> float | None:
        """What a call cost in US dollars; None where that is not known.

        Args:
            provider: Its provider's registered name.
            model: The model that answered.
            usage: Its tokens.
            base_url: Where it was sent, where that is not the provider's own URL.
            local: Whether it ran on this machine.
            service_tier: The option of this name that it was sent with, such as `flex` or `priority`.
        """
        await _loaded()
        return self.cost_now(provider, model, usage, base_url=base_url, local=local, service_tier=service_tier)

    def cost_now(
        self,
        provider: str,
        model: str,
        usage: Usage,
        *,
        base_url: str | None = None,
        local: bool = False,
        service_tier: str | None = None,
    ) -> float | None:
        """The same without waiting: None, too, where the table is not loaded yet."""
        own = self._of_the_user(provider, model)
        if own is None and local:
            return 0.0
        if not _are_known(usage):
            return None
        if own is not None:
            return _cost_of(own, usage)
        found = _found(provider, model, base_url)
        return None if found is None else _cost(*found, usage, service_tier)

    async def informed(self, models: Sequence[ModelInfo], *, base_url: str | None = None) -> list[ModelInfo]:
        """The models with their prices and context window, where they do not say so themselves and the table does.

        A price of the user's own is put in place of the provider's.
        """
        await _loaded()
        # A first look-up goes through a provider's whole list, and a provider may have hundreds of models.
        return await asyncio.to_thread(lambda: [self._informed(model, base_url) for model in models])

    def _informed(self, model: ModelInfo, base_url: str | None) -> ModelInfo:
        price = self._price(model.provider, model.id, base_url, local=False)
        found = _found(model.provider, model.id, base_url)
        known: dict[str, Any] = {}
        if price is not None and (model.input_price is None or self._of_the_user(model.provider, model.id)):
            known |= {"input_price": price.input, "output_price": price.output}
        if model.context_window is None and found is not None:
            known["context_window"] = found[1].context_window
        return dataclasses.replace(model, **known)

    def _price(self, provider: str, model: str, base_url: str | None, *, local: bool) -> Price | None:
        own = self._of_the_user(provider, model)
        if own is not None:
            return own
        if local:
            return Price(0.0, 0.0)
        found = _found(provider, model, base_url)
        prices = None if found is None else _prices_of(found[1])
        if prices is None:
            return None
        return Price(
            input=_base(prices.input_mtok) or 0.0,
            output=_base(prices.output_mtok) or 0.0,
            cached=_base(prices.cache_read_mtok),
            cache_write=_base(prices.cache_write_mtok),
            tiered=hasattr(prices.input_mtok, "tiers") or hasattr(prices.output_mtok, "tiers"),
        )

    def _of_the_user(self, provider: str, model: str) -> Price | None:
        own = self._own().get(f"{provider}:{model}")
        if own is None:
            return None
        right = all(isinstance(value, (int, float)) and 0 <= value < math.inf for value in own.values())
        if not right or not {"input", "output"} <= own.keys() <= _NAMES:
            logger.warning(
                "the price of %s:%s is ignored: it takes input and output, cached and cache_write, none below 0",
                provider,
                model,
            )
            return None
        return Price(own["input"], own["output"], own.get("cached"), own.get("cache_write"))


_NAMES: Final = frozenset({"input", "output", "cached", "cache_write"})
"""The parts of a price of the user's own; the first two are needed."""


def _are_known(usage: Usage) -> bool:
    """Whether the tokens can be priced: what a server says of them can be nonsense, a str even."""
    prompt, answer = usage.input_tokens, usage.output_tokens
    parts = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    counts = all(isinstance(count, int) and count >= 0 for count in (prompt, answer, *parts))
    return counts and prompt is not None and sum(parts) <= prompt


def _cost_of(price: Price, usage: Usage) -> float:
    """What the tokens cost, each of the prompt's counted once: cached ones and those written are among them."""
    cached, written = usage.cached_tokens or 0, usage.cache_write_tokens or 0
    total = (
        ((usage.input_tokens or 0) - cached - written) * price.input
        + cached * (price.input if price.cached is None else price.cached)
        + written * (price.input if price.cache_write is None else price.cache_write)
        + (usage.output_tokens or 0) * price.output
    )
    return total / MILLION


async def _loaded() -> None:
    if not _tried:
        await asyncio.to_thread(_load)


def _load() -> None:
    """Import the table; that twice at once does no harm, and a lock could stay locked in a forked child."""
    global _table, _tried  # noqa: PLW0603 - one per process is the point
    try:
        from genai_prices.data_snapshot import get_snapshot

        _table = get_snapshot()
    except Exception:
        logger.exception("the table of prices cannot be loaded: no price is known")
    _tried = True


def _found(provider: str, model: str, base_url: str | None) -> tuple[genai.Provider, genai.ModelInfo] | None:
    """The model in the table, with the provider that bills it."""
    table = _table
    if table is None:
        return None
    model = model.removeprefix("models/")  # as Google's own list names them
    routed = provider == "huggingface-hosted" and (base_url is None or urlsplit(base_url).hostname == ROUTER)
    if routed and ":" in model:
        model, _, answers = model.rpartition(":")
        billed = [found for found in table.providers if found.id == f"huggingface_{answers}"]
    elif base_url is None:
        # By the very name: the table's own search takes any name with `openai` in it for OpenAI's.
        billed = [found for found in table.providers if found.id == _SAME.get(provider, provider)]
    else:
        billed = [found for found in table.providers if _is_at(found.api_pattern, base_url)]
    for biller in billed:
        try:
            return table.find_provider_model(model, biller, None, None)
        except (LookupError, ValueError):
            continue
    return None


def _is_at(pattern: str, url: str) -> bool:
    """Whether a URL is a provider's by its pattern, host and all: `api.openai.com.example` is not OpenAI's."""
    match = re.match(pattern, url := url.lower())
    return match is not None and (url[match.end() - 1 : match.end()] == "/" or url[match.end() :][:1] in ("", "/", ":"))


def _prices_of(model: genai.ModelInfo, context: Mapping[str, str] | None = None) -> genai.ModelPrice | None:
    """The prices just now; None where one of the two is missing: what has no price would be counted as free."""
    prices = model.get_prices(datetime.now(UTC), context)
    return None if prices.input_mtok is None or prices.output_mtok is None else prices


def _base(price: Any) -> float | None:
    price = getattr(price, "base", price)
    return None if price is None else float(price)


def _cost(provider: genai.Provider, model: genai.ModelInfo, usage: Usage, tier: str | None) -> float | None:
    from genai_prices import Usage as Tokens

    context = {"service_tier": tier} if isinstance(tier, str) else None
    try:
        if _prices_of(model, context) is None:
            return None
        # The table takes cached tokens, and those written, for part of the prompt's, as we do.
        tokens = Tokens(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        )
        return float(model.calc_price(tokens, provider, price_context=context).total_price)
    except (LookupError, ValueError, TypeError):
        return None
