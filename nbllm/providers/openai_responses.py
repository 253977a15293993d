"""OpenAI's Responses API, by the option `api="responses"`: messages into items, its events and responses out of it.

Options: the common ones, tools in either API's shape; whatever `responses.create` takes (`reasoning`, `include`,
`instructions`, `previous_response_id`, `text`, hosted tools such as `{"type": "web_search"}`, …); what the SDK does not
know goes into the request's body as it is. `reasoning_effort` means what it means to Chat Completions. `store` is off
unless it is set, so that nothing is kept at the provider. OpenAI itself has no `seed` here, a mere hint, which is left
out, and no `stop`, which is refused.

What is of this API alone (hosted tools, annotations, finished items, the response's id) comes as `ProviderEvent`.
Protocol: https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from nbllm.errors import InvalidRequestError, ProviderError
from nbllm.providers.chat_completions import data_url, exceeds_with_answer, response_format, text_of
from nbllm.providers.hosted import Decoder
from nbllm.types import (
    Attachment,
    Completion,
    Event,
    Finish,
    FinishReason,
    Message,
    ProviderEvent,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageUpdate,
)

__all__ = ["ResponsesDecoder", "adapted", "arguments", "completion"]

INCOMPLETE: Final[dict[str, FinishReason]] = {"max_output_tokens": "length", "content_filter": "content_filter"}

REQUEST_AT_FAULT: Final = ("invalid_", "image_", "unsupported_", "empty_image", "failed_to_download", "data_residency")
"""How the codes of a failed response begin that running it again does not help."""

SAID_OTHERWISE: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_text.done",
        "response.refusal.done",
        "response.reasoning_text.done",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    }
)
"""Events that tell nothing that others do not."""


class ResponsesDecoder(Decoder):
    """Decodes the events of one response.

    Args:
        refusal: Makes an error of an error's body.
    """

    def __init__(self, refusal: Callable[[Any], ProviderError]) -> None:
        self._refusal = refusal
        self._calls: dict[int, int] = {}  # the place of each item among the calls
        self._said: dict[int, int] = {}  # how much of its arguments has come

    def feed(self, name: str, data: str, events: list[Event]) -> None:
        if data.startswith("[DONE]"):  # not OpenAI's: some compatible servers end so
            self.done = True
            return
        event = json.loads(data)
        kind = event.get("type") or name or ("error" if event["error"] else "")
        if kind in ("response.output_text.delta", "response.refusal.delta"):
            events.append(TextDelta(text_of(event["delta"])))
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            events.append(ReasoningDelta(text_of(event["delta"])))
        elif kind == "response.reasoning_summary_part.added":
            if event.get("summary_index"):
                events.append(ReasoningDelta("\n\n"))
        elif kind == "response.function_call_arguments.delta":
            self._arguments(event["output_index"], text_of(event["delta"]), events)
        elif kind == "response.function_call_arguments.done":
            self._rest(event["output_index"], text_of(event["arguments"]), events)
        elif kind.startswith("response.output_item."):
            self._item(kind, event, events)
        elif kind in ("response.completed", "response.incomplete"):
            self._end(kind, event["response"], events)
        elif kind in ("error", "response.failed"):
            raise self._refusal(event if kind == "error" else failure(event["response"]))
        elif kind not in SAID_OTHERWISE:
            events.append(ProviderEvent(kind, event))

    def _arguments(self, item: int, piece: str, events: list[Event]) -> None:
        events.append(ToolCallDelta(self._calls[item], arguments=piece))
        self._said[item] += len(piece)

    def _rest(self, item: int, whole: str, events: list[Event]) -> None:
        """Append what no delta brought: some servers send none."""
        if rest := whole[self._said[item] :]:
            self._arguments(item, rest, events)

    def _item(self, kind: str, event: Mapping[str, Any], events: list[Event]) -> None:
        item, at, done = event["item"], event["output_index"], kind.endswith(".done")
        if item.get("type") == "function_call":
            if at not in self._calls:
                self._calls[at], self._said[at] = len(self._calls), 0
                events.append(ToolCallDelta(self._calls[at], text_of(item["call_id"]), text_of(item["name"])))
            if done:
                self._rest(at, text_of(item.get("arguments")), events)
        elif done and item.get("type") != "message":
            events.append(ProviderEvent(kind, event))

    def _end(self, kind: str, response: Mapping[str, Any], events: list[Event]) -> None:
        self.done = True
        events.append(ProviderEvent("response", {"id": response.get("id")}))
        if usage := response.get("usage"):
            events.append(UsageUpdate(usage_of(usage)))
        if kind == "response.incomplete":
            response = {**response, "status": "incomplete"}
        events.append(finish_of(response, calls=bool(self._calls)))


def completion(response: Mapping[str, Any], refusal: Callable[[Any], ProviderError]) -> Completion | None:
    """The completion that a response holds; None where it holds none.

    Raises:
        ProviderError: where it says that it failed.
        ValueError, TypeError, AttributeError, LookupError: where it is not of the protocol.
    """
    if response.get("status") == "failed":
        raise refusal(failure(response))
    if response.get("status") not in ("completed", "incomplete") or not isinstance(response.get("output"), list):
        return None
    items = response["output"]
    calls = tuple(
        ToolCall(item["call_id"], item["name"], item["arguments"])
        for item in items
        if item.get("type") == "function_call"
    )
    parts = [part for item in items if item.get("type") == "message" for part in item.get("content") or ()]
    return Completion(
        text="".join(text_of(part.get("text") or part.get("refusal")) for part in parts),
        finish=finish_of(response, calls=bool(calls)),
        usage=usage_of(response.get("usage") or {}),
        model=response.get("model"),
        tool_calls=calls,
        reasoning="".join(_reasoning(item) for item in items if item.get("type") == "reasoning"),
        raw=response,
    )


def _reasoning(item: Mapping[str, Any]) -> str:
    return "\n\n".join(text_of(part.get("text")) for part in item.get("summary") or ()) + text_of(item.get("content"))


def finish_of(response: Mapping[str, Any], *, calls: bool) -> Finish:
    """Why the model stopped: calls of tools have no reason of their own here."""
    if response.get("status") == "incomplete":
        reason = (response.get("incomplete_details") or {}).get("reason")
        return Finish(INCOMPLETE.get(reason or "", "other"), reason)
    return Finish("tool_calls" if calls else "stop", "completed")


def failure(response: Mapping[str, Any]) -> dict[str, Any]:
    """The error of a failed response, in the words that errors of requests are told apart by."""
    error = dict(response.get("error") or {})
    code = str(error.get("code") or "server_error")
    if "policy" in code:
        code = "content_filter"
    elif code.startswith(REQUEST_AT_FAULT):
        code = f"invalid_request_error {code}"
    return {"error": {**error, "code": code}}


def usage_of(usage: Mapping[str, Any]) -> Usage:
    """The token counts that a response reports."""
    details = usage.get("input_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        cached_tokens=details.get("cached_tokens"),
        reasoning_tokens=(usage.get("output_tokens_details") or {}).get("reasoning_tokens"),
        cache_write_tokens=details.get("cache_write_tokens"),
    )


def arguments(request: Request, known: frozenset[str], *, official: bool) -> dict[str, Any]:
    """The arguments of `responses.create` that the request comes to.

    Args:
        request: What is asked.
        known: The names of all that it takes; what else the caller set goes into the body as it is.
        official: Whether it goes to OpenAI itself, as against a compatible server with ways of its own.

    Raises:
        InvalidRequestError: where the API has no way to say it.
    """
    found: dict[str, Any] = {"model": request.model, "store": False, "input": list(_items(request.messages))}
    if "max_output_tokens" not in request.dropped:
        found["max_output_tokens"] = request.max_tokens
    if "temperature" not in request.dropped:
        found["temperature"] = request.temperature
    options = dict(request.options)
    if official:
        options.pop("seed", None)
        if options.pop("stop", None) is not None:
            raise InvalidRequestError(
                "OpenAI's Responses API has no stop sequences.", action='Leave out stop, or set api="chat".'
            )
    if (tools := options.get("tools")) is not None:
        # Not strict unless it says so, as in Chat Completions: this API's own default would change what it means.
        options["tools"] = [_flat(tool, parameters=None, strict=False) for tool in tools]
    if (choice := options.get("tool_choice")) is not None:
        options["tool_choice"] = _flat(choice)
    if (effort := options.pop("reasoning_effort", None)) is not None:
        options["reasoning"] = {"effort": effort, **(options.get("reasoning") or {})}
    if (schema := options.pop("schema", None)) is not None:
        form = {"type": "json_schema", **response_format(schema)["json_schema"]}
        options["text"] = {**(options.get("text") or {}), "format": form}
    extra = {name: options.pop(name) for name in list(options) if name not in known}
    found.update(options)
    if extra:
        found["extra_body"] = {**extra, **(found.get("extra_body") or {})}
    return found


def adapted(request: Request, error: InvalidRequestError) -> Request | None:
    """The request without a default that the model refuses; None where the caller set it, or it is none of them."""
    for ours, theirs in (("temperature", "temperature"), ("max_tokens", "max_output_tokens")):
        named = error.param == theirs or (error.param is None and theirs in error.message.lower())
        named = named or (ours == "max_tokens" and exceeds_with_answer(error))
        if named and ours not in request.explicit and theirs not in request.dropped:
            return replace(request, dropped=request.dropped | {theirs})
    return None


def _items(messages: Iterable[Message]) -> Iterable[dict[str, Any]]:
    for message in messages:
        if message.role == "tool":
            yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": message.content}
            continue
        if message.content or message.attachments or not message.tool_calls:
            yield {"role": message.role, "content": _content(message)}
        for call in message.tool_calls:
            yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments}


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.attachments:
        return message.content
    if message.role == "assistant":
        raise InvalidRequestError(
            "OpenAI's Responses API takes no files in an assistant's turn.", action="Attach them to a user's turn."
        )
    text = [{"type": "input_text", "text": message.content}] if message.content else []
    return [*text, *map(_part, message.attachments)]


def _part(attachment: Attachment) -> dict[str, Any]:
    kind = attachment.media_type.partition("/")[0]
    if kind == "image":
        return {"type": "input_image", "detail": "auto", "image_url": data_url(attachment)}
    if kind in ("audio", "video"):
        raise InvalidRequestError(f"OpenAI's Responses API takes no {kind}.", action='Leave it out, or set api="chat".')
    return {"type": "input_file", "filename": attachment.name or "attachment", "file_data": data_url(attachment)}


def _flat(tool: Any, **defaults: Any) -> Any:
    """A tool, or the choice of one, of Chat Completions' shape in this API's; any other as it is."""
    if isinstance(tool, Mapping) and tool.get("type") == "function" and isinstance(tool.get("function"), Mapping):
        return {"type": "function", **defaults, **tool["function"]}
    return tool
