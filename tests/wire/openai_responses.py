"""OpenAI's Responses API, streaming and not: https://platform.openai.com/docs/api-reference/responses.

The events and their fields are those of the SDK's own types, `openai.types.responses`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.wire.openai import CREATED, OpenAI
from tests.wire.protocol import Call, Event
from tests.wire.script import Refusal, Script, Usage, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.wire.connection import Request

REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


class OpenAIResponses(OpenAI):
    """Serves `/v1/responses`; keys, models and the answers that refuse are those of Chat Completions."""

    name = "openai-responses"

    def route(self, request: Request) -> Call | None:
        """Claim what is asked of the Responses API."""
        if request.path == "/v1/responses" and request.method == "POST":
            body = request.body if isinstance(request.body, dict) else {}
            return Call("generate", str(body.get("model", "")), stream=bool(body.get("stream")))
        return None

    def events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[Event]:
        """The events of a streamed response, numbered."""
        for number, (kind, fields) in enumerate(self._events(script, request, answer)):
            data = {"type": kind, **fields, "sequence_number": number}
            counts = kind == "response.output_text.delta"
            yield Event(json.dumps(data, ensure_ascii=False), event=kind, counts=counts)

    def _events(self, script: Script, request: Request, answer: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        begun = self._response(script, request, answer) | {
            "status": "in_progress",
            "output": [],
            "usage": None,
            "incomplete_details": None,
        }
        yield "response.created", {"response": begun}
        yield "response.in_progress", {"response": begun}
        items = self._items(script, answer)
        for index, item in enumerate(items):
            empty = {"summary": []} if item["type"] == "reasoning" else {"content": []}
            empty = {"arguments": ""} if item["type"] == "function_call" else empty
            yield (
                "response.output_item.added",
                {
                    "output_index": index,
                    "item": item | empty | {"status": "in_progress"},
                },
            )
            yield from self._within(script, index, item, answer)
            yield "response.output_item.done", {"output_index": index, "item": item}
        if script.terminal:
            done = self._response(script, request, answer)
            yield f"response.{done['status']}", {"response": done}

    @staticmethod
    def _within(
        script: Script, index: int, item: dict[str, Any], answer: Sequence[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "reasoning":
            part = at | {"summary_index": 0}
            yield "response.reasoning_summary_part.added", part | {"part": {"type": "summary_text", "text": ""}}
            for thought in script.reasoning:
                yield "response.reasoning_summary_text.delta", part | {"delta": thought}
            yield "response.reasoning_summary_text.done", part | {"text": "".join(script.reasoning)}
            yield "response.reasoning_summary_part.done", part | {"part": item["summary"][0]}
        elif item["type"] == "message":
            part, empty = at | {"content_index": 0}, item["content"][0] | {"text": ""}
            yield "response.content_part.added", part | {"part": empty}
            for delta in answer:
                yield "response.output_text.delta", part | {"delta": delta, "logprobs": []}
            yield "response.output_text.done", part | {"text": "".join(answer), "logprobs": []}
            yield "response.content_part.done", part | {"part": item["content"][0]}
        else:
            call = next(call for call in script.tool_calls if call.id == item["call_id"])
            for piece in call.parts():
                yield "response.function_call_arguments.delta", at | {"delta": piece}
            yield "response.function_call_arguments.done", at | {"arguments": call.arguments}

    def whole(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any]:
        """The response in one piece."""
        return self._response(script, request, answer)

    def _response(self, script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any]:
        reason = REASONS.get(script.finish or "")
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": CREATED,
            "status": "incomplete" if reason else "completed",
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": request.body.get("instructions"),
            "max_output_tokens": request.body.get("max_output_tokens"),
            "metadata": {},
            "model": request.body.get("model"),
            "output": self._items(script, answer),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": request.body.get("store", True),
            "temperature": request.body.get("temperature", 1.0),
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": request.body.get("tools", []),
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": self._response_usage(script, request, answer),
        }

    @staticmethod
    def _items(script: Script, answer: Sequence[str]) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        if script.reasoning:
            summary = [{"type": "summary_text", "text": "".join(script.reasoning)}]
            items.append({"id": "rs_1", "type": "reasoning", "status": "completed", "summary": summary})
        if answer or not script.tool_calls:
            text = {"type": "output_text", "text": "".join(answer), "annotations": [], "logprobs": []}
            message = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant"}
            items.append(message | {"content": [text]})
        for call in script.tool_calls:
            own = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
            items.append({"id": f"fc_{call.id}", "type": "function_call", "status": "completed"} | own)
        return items

    def error(self, refusal: Refusal, model: str) -> dict[str, Any]:
        """The body of an error answer: Chat Completions', with this API's name of what holds the messages."""
        body = super().error(refusal, model)
        if body["error"]["param"] == "messages":
            body["error"]["param"] = "input"
        return body

    def error_events(self, script: Script) -> Iterator[Event]:
        """An error inside a stream: an `error` event, its fields not within an object of their own."""
        said = self.error(Refusal(500, script.reason or "server_error", script.message), script.model)["error"]
        data = {"type": "error", "code": said["code"], "message": said["message"], "param": said["param"]}
        yield Event(json.dumps(data | {"sequence_number": 9}), event="error")

    def malformed(self) -> Event:
        """An event whose JSON breaks off."""
        return Event('{"type": "response.output_te', event="response.output_text.delta")

    @staticmethod
    def _response_usage(script: Script, request: Request, answer: Sequence[str]) -> dict[str, Any] | None:
        if script.usage is None:
            return None
        usage = Usage() if script.usage == "auto" else script.usage
        asked = request.body.get("input", ())
        asked = [{"content": asked}] if isinstance(asked, str) else asked
        said = "".join(str(item.get("content") or item.get("output") or "") + " " for item in asked)
        prompt = len(words(said)) if usage.prompt is None else usage.prompt
        completion = len(answer) + usage.reasoning if usage.completion is None else usage.completion
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": prompt + completion,
        }
