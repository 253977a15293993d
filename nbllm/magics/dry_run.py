"""`--dry-run`: what would be sent and may cost. Nothing is sent, and nothing is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbllm._loop import background_loop
from nbllm.accounting import estimate_tokens, usd
from nbllm.display.note import Note
from nbllm.display.safe import safe_text
from nbllm.types import Message, Request, Usage

if TYPE_CHECKING:
    from nbllm.calls import Plan
    from nbllm.manager import ProviderManager

__all__ = ["described"]


def described(manager: ProviderManager, plans: Sequence[Plan], note: Note) -> str:
    """The calls in words: each message as it would be sent, then for each model its tokens, price and parameters.

    Args:
        manager: Whose calls they would be.
        plans: One for each model that is asked; a plan's other requests are its fallbacks.
        note: What would be said below the answer.
    """
    said = ["Nothing was sent. This would be:", ""]
    for message in plans[0].requests[0].messages:
        said += _message(message)
    if note.filled:
        said += [f"Filled in: {', '.join(f'{{{name}}}' for name in note.filled)}.", ""]
    for plan in plans:
        first, *others = plan.requests
        said += background_loop().run(_call(manager, plan, first))
        said += [f"  fallback: {other.provider}:{other.model}" for other in others]
    return safe_text("\n".join(said))


def _message(message: Message) -> list[str]:
    lines = [f"── {message.role} ──", message.content]
    for attachment in message.attachments:
        size = f"{len(attachment.data):,} bytes"
        lines.append(f"[{attachment.name or 'attachment'}: {attachment.media_type}, {size}]")
    lines += [f"[calls {call.name}: {call.arguments}]" for call in message.tool_calls]
    return [*lines, ""]


async def _call(manager: ProviderManager, plan: Plan, request: Request) -> list[str]:
    calls = manager.calls
    tokens = estimate_tokens(request.messages, options=request.options)
    prompt = await calls.cost(request, Usage(input_tokens=tokens, output_tokens=0))
    most = await calls.cost(request, Usage(input_tokens=tokens, output_tokens=request.max_tokens))
    price = "its price is not known"
    if prompt is not None and most is not None:
        price = f"about {usd(prompt)}, with the answer at most {usd(most)}"
    kept = await calls.holds(plan, request)
    parameters: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        **request.options,
    }
    return [
        f"── {request.provider}:{request.model} ──",
        f"  prompt: at most about {tokens:,} tokens; {price}",
        f"  parameters: {', '.join(f'{name}={value!r}' for name, value in parameters.items())}",
        f"  cache ({plan.cache}): {'has the answer, which would be free' if kept else 'does not have the answer'}",
    ]
