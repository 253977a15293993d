"""Google by google-generativeai, whose support has ended: for code that needs it; `google` is the one to use.

Its REST calls are synchronous, so each runs in a thread of its own; nothing of its process-wide configuration is read
or changed. Options: the common ones but `seed`, which it does not know and which is left out; the fields of its
`GenerationConfig` (`top_k`, `candidate_count`, `response_mime_type`, …), `safety_settings`, `tool_config` and
`cached_content`. A `schema`, and the parameters of tools, may hold what its `Schema` can say: no `$ref`, no `anyOf`.
Models that think do so without a word: thoughts and their signatures are newer than this library.

Images, PDFs, audio, video and text go as inline data. Proxies and certificates are those that `requests` takes from the
environment.
Protocol: https://ai.google.dev/api/generate-content.
"""

from __future__ import annotations

import base64
import codecs
import difflib
import json
import re
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

from nbllm import errors
from nbllm.config import ProviderSettings, origin
from nbllm.errors import Phase, ProviderError
from nbllm.providers import google_messages as protocol
from nbllm.providers import mapping
from nbllm.providers.base import Provider
from nbllm.providers.google_messages import ResponseDecoder
from nbllm.providers.hosted import preview
from nbllm.providers.worker import Job, Refused, adapter, transport_error
from nbllm.types import Completion, Event, ModelInfo, Request

__all__ = ["GoogleLegacyProvider"]

DEFAULT_URL: Final = "https://generativelanguage.googleapis.com"

OF_THE_REQUEST: Final = frozenset({"tool_config", "safety_settings", "cached_content"})
"""Options that are no part of the generation's configuration."""

NO_OPTIONS: Final = frozenset({"max_output_tokens", "temperature", "stop_sequences"})
"""Fields of that configuration that have names of our own."""


class GoogleLegacyProvider(Provider):
    """The Gemini API by the older of Google's two SDKs."""

    label = "Google (google-generativeai)"

    def __init__(self, settings: ProviderSettings) -> None:
        super().__init__(settings)
        self.base_url = (settings.base_url or DEFAULT_URL).rstrip("/").removesuffix("/v1beta")
        self.key_variable = settings.key_variable or "GEMINI_API_KEY"
        if settings.api_key is None and (settings.key_needed or origin(self.base_url) == origin(DEFAULT_URL)):
            raise errors.MissingKeyError(
                f"There is no key for {self.label}.",
                action=f"Set {self.key_variable} (in a notebook: %llm key {settings.name}, which asks for it unseen).",
                provider=settings.name,
            )
        try:
            with warnings.catch_warnings():  # that its support has ended, and when this Python's will
                warnings.simplefilter("ignore", FutureWarning)
                import google.ai.generativelanguage as service
                import google.generativeai as genai
        except ImportError as exc:
            raise errors.MissingExtraError("google-generativeai", "google-legacy") from exc
        self._genai: Any = genai
        self._protos: Any = genai.protos
        self._answers = self._client(service.GenerativeServiceClient)
        self._lists = self._client(service.ModelServiceClient)

    async def open(self, request: Request) -> Job:
        message = self._message(request)

        def work(job: Job) -> None:
            self._answers.stream_generate_content(message, retry=None)
            job.say(None)
            # The SDK takes the array apart a character at a time, and drops the errors and all that is new in it.
            for chunk in job.answer.raw.stream(2**16, decode_content=True):
                job.say(chunk)

        job = Job(work)
        try:
            await job.next()
        except BaseException:
            await job.leave()
            raise
        return job

    async def decode(self, stream: Job, request: Request) -> AsyncGenerator[list[Event], None]:
        decoder, array = self._decoder(request), _Array()
        while True:
            chunk: bytes | None = await stream.next()
            events: list[Event] = []
            try:
                for element in array.feed(chunk or b"", last=chunk is None):
                    decoder.take(element, events)
                if chunk is None:
                    decoder.end(events)
            except ProviderError:
                yield events
                raise
            except (ValueError, AttributeError, TypeError, LookupError) as exc:
                yield events
                raise errors.ResponseFormatError(
                    f"{self.label} sent what is not of its protocol: {preview(array.rest.encode())}",
                    action=f"What had arrived is kept; check the base URL, {self.base_url}.",
                ) from exc
            if events:
                yield events
            if chunk is None:
                return

    async def close(self, stream: Job) -> None:
        await stream.leave()

    def request_id(self, stream: Job) -> str | None:
        return mapping.request_id(stream.answer.headers)

    async def complete(self, request: Request) -> Completion:
        message = self._message(request)

        def work(job: Job) -> Any:
            self._answers.generate_content(message, retry=None)
            return job.answer.json()

        raw = await self._result(work)
        if not isinstance(raw, dict) or (found := protocol.completion(raw, self._decoder(request))) is None:
            raise self._no_protocol(f"an answer of {request.model} that is no completion")
        return found

    async def models(self) -> list[ModelInfo]:
        options = {"retry": None}
        listed = await self._result(
            lambda job: list(self._genai.list_models(page_size=1000, client=self._lists, request_options=options))
        )
        if not listed:
            raise self._no_protocol("no list of models")
        return [
            ModelInfo(
                id=model.name.removeprefix("models/"),
                provider=self.name,
                name=model.display_name,
                context_window=model.input_token_limit,
                max_output_tokens=model.output_token_limit,
                details={"version": model.version, "description": model.description},
            )
            for model in listed
            if "generateContent" in model.supported_generation_methods
        ]

    async def aclose(self) -> None:
        for client in (self._answers, self._lists):
            client.transport.close()

    def map_error(self, exc: Exception, request: Request | None, phase: Phase) -> ProviderError | None:
        if isinstance(exc, Refused):
            response = exc.response
            try:
                body = response.json()
            except ValueError:
                body = preview(response.content) if response.content else ""
            return self._refusal(body, request, response.status_code, response.headers)
        found = transport_error(exc, self.label, self.base_url, self.settings.timeout, phase)
        odd = isinstance(exc, (ValueError, TypeError, AttributeError, LookupError))
        if found is None and (odd or type(exc).__module__.startswith("google.protobuf")):
            return self._no_protocol("an answer that is not of its protocol" if request else "no list of models")
        return found

    def _client(self, kind: Any) -> Any:
        """A client of the SDK's by REST, with a session that answers to a `Job`."""
        from google.api_core.client_options import ClientOptions

        key = self.settings.api_key.reveal() if self.settings.api_key else "not-needed"
        client = kind(transport="rest", client_options=ClientOptions(api_endpoint=self.base_url, api_key=key))
        session = client.transport._session  # noqa: SLF001 - the SDK takes none
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter(self.name, self.base_url, self.settings.timeout))
        return client

    async def _result(self, work: Callable[[Job], Any]) -> Any:
        job = Job(work)
        try:
            return await job.next()
        finally:
            await job.leave()

    def _decoder(self, request: Request) -> ResponseDecoder:
        # The SDK asks for enumerations as numbers.
        feedback = self._protos.GenerateContentResponse.PromptFeedback
        return ResponseDecoder(
            lambda body: self._refusal(body, request),
            finish_reason=lambda value: _name(self._protos.Candidate.FinishReason, value),
            block_reason=lambda value: _name(feedback.BlockReason, value),
        )

    def _message(self, request: Request) -> Any:
        """The request as the SDK's message."""
        fields = set(self._protos.GenerationConfig.meta.fields) - NO_OPTIONS
        options = {name: value for name, value in request.options.items() if name != "seed"}
        config: dict[str, Any] = {
            sent: getattr(request, name)
            for name, sent in (("max_tokens", "max_output_tokens"), ("temperature", "temperature"))
            if name not in request.dropped
        }
        model = request.model if "/" in request.model else f"models/{request.model}"
        if not re.fullmatch(r"(models|tunedModels)/[^/]+", model):
            raise errors.InvalidRequestError(f"No model of Google's is named {model}.", action="Correct its name.")
        body: dict[str, Any] = {"model": model}
        if (stop := options.pop("stop", None)) is not None:
            config["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
        if (schema := options.pop("schema", None)) is not None:
            config |= {"response_mime_type": "application/json", "response_schema": _schema(schema)}
        if tools := options.pop("tools", None):
            body["tools"] = protocol.declarations(tools, lambda schema: {"parameters": _schema(schema)})
        for name, value in options.items():
            if name not in fields | OF_THE_REQUEST:
                known = fields | OF_THE_REQUEST | {"stop", "schema", "tools"}
                close = difflib.get_close_matches(name, known, n=3)
                raise errors.InvalidRequestError(
                    f"{self.label} has no option {name!r}.",
                    action=f"Did you mean {' or '.join(close)}?" if close else f"It has: {', '.join(sorted(known))}.",
                )
            (config if name in fields else body)[name] = value
        if system := protocol.system_of(request):
            body["system_instruction"] = {"parts": [{"text": system}]}
        body |= {"contents": protocol.contents(request.messages, signatures=False), "generation_config": config}
        try:
            return self._protos.GenerateContentRequest.from_json(json.dumps(body, default=_base64))
        except Exception as exc:
            raise errors.InvalidRequestError(
                f"{self.label}: {mapping.sentence(str(exc))}", action="Correct that option."
            ) from exc

    def _refusal(
        self, body: Any, request: Request | None, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> ProviderError:
        said = protocol.said(body)
        return mapping.error_for(
            mapping.Failure(
                label=self.label,
                key_variable=self.key_variable,
                message=str(said.get("message") or ""),
                status=said.get("status") or status,
                code=str(said.get("code") or ""),
                param=said.get("param"),
                headers=headers,
                base_url=self.base_url,
                provider=self.name,
                retry_after=said.get("retry_after"),
            ),
            model=request.model if request else None,
        )

    def _no_protocol(self, what: str) -> errors.ResponseFormatError:
        return errors.ResponseFormatError(
            f"{self.label} sent {what}.",
            action=f"Check the base URL, {self.base_url}: a proxy or another service may answer there.",
        )


class _Array:
    """Takes a JSON array apart that comes in pieces, cut anywhere."""

    def __init__(self) -> None:
        self.rest = ""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._json = json.JSONDecoder()
        self._began = self._ended = False

    def feed(self, chunk: bytes, *, last: bool = False) -> list[Any]:
        """The elements that this piece completes.

        Raises:
            ValueError: where it is no array, or at its end where something is left that is no element.
        """
        self.rest += self._decode(chunk, last)
        if not self._began and (self.rest.strip() or last):
            if not self.rest.lstrip().startswith("["):
                raise ValueError("no array")
            self._began, self.rest = True, self.rest.lstrip()[1:]
        found: list[Any] = []
        while (rest := self.rest.lstrip(" \t\r\n,")) and not self._ended:
            if rest.startswith("]"):
                self._ended = True
            elif b"}" not in chunk and not last:  # no object ends here: a huge one is not tried again and again
                break
            else:
                try:
                    element, end = self._json.raw_decode(rest)
                except ValueError:
                    if last:
                        raise
                    break
                found.append(element)
                self.rest = rest[end:]
        return found


def _schema(schema: Any) -> dict[str, Any]:
    """A JSON Schema as the SDK's `Schema`, OpenAPI's of old.

    Raises:
        InvalidRequestError: where it says what that cannot.
    """
    if not isinstance(schema, Mapping):
        raise errors.InvalidRequestError("A schema is no object.", action="Give a JSON Schema as a dict.")
    found: dict[str, Any] = {}
    kinds = schema.get("type")
    if isinstance(kinds, list):
        found["nullable"] = "null" in kinds
        kinds = next(iter(kind for kind in kinds if kind != "null"), None)
    if not isinstance(kinds, str):
        raise errors.InvalidRequestError(
            f"google-generativeai cannot say a schema without a type: {preview(json.dumps(dict(schema)).encode())}",
            action="Write it without $ref and anyOf, or use the provider google.",
        )
    found["type"] = kinds.upper()
    for name in ("description", "format", "enum", "required", "nullable", "minItems", "maxItems"):
        if name in schema:
            found[name] = schema[name]
    if "properties" in schema:
        found["properties"] = {name: _schema(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        found["items"] = _schema(schema["items"])
    return found


def _name(kind: Any, value: Any) -> str:
    """The name of a value of an enumeration that comes by its number; of one that the SDK does not know, the number."""
    try:
        return str(kind(value).name) if isinstance(value, int) else str(value)
    except ValueError:
        return str(value)


def _base64(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is not JSON")
