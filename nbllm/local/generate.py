"""Streaming an answer out of a local model, token by token, from a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nbllm._loop import Channel
from nbllm.errors import ContextLengthError, InvalidRequestError
from nbllm.local.load import Resident
from nbllm.types import Event, Finish, Message, Request, TextDelta, Usage, UsageUpdate

__all__ = ["Generation"]

SAMPLING: Final = frozenset({"top_p", "top_k", "min_p", "repetition_penalty"})
"""Options that go to `generate()` as they are."""


class Generation:
    """One answer while it is generated. Events come through `channel`; `stop()` ends it within one token.

    Args:
        resident: The model, which answers one call at a time.
        request: What is asked.

    Raises:
        InvalidRequestError: where an option is not known.
        ContextLengthError: where the prompt leaves no room for an answer.
    """

    def __init__(self, resident: Resident, request: Request) -> None:
        self.channel: Channel[Event] = Channel()
        self._resident = resident
        self._request = request
        self._stop = threading.Event()
        self._arguments = _sampling(request)
        self._inputs = _inputs(resident, request)
        window = resident.info.context_window
        self._prompt_tokens = int(self._inputs["input_ids"].shape[1])
        self._room = min(request.max_tokens, window - self._prompt_tokens)
        if self._room < 1:
            raise ContextLengthError(
                f"The prompt has {self._prompt_tokens} tokens; {request.model} takes {window}.",
                action="Shorten the prompt, send fewer earlier turns (--no-history), or use a larger model.",
            )
        self._thread = threading.Thread(target=self._run, name="nbllm-generate", daemon=True)

    def start(self) -> None:
        """Start generating."""
        self._thread.start()

    def stop(self) -> None:
        """End it within one token; from any thread."""
        self._stop.set()

    def join(self) -> None:
        """Wait until its thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._resident.lock.acquire(timeout=0.05):
                if self._stop.is_set():
                    return
            try:
                self._generate()
            finally:
                self._resident.lock.release()
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the reader must hear of it
            self.channel.close(exc)
        finally:
            self.channel.close()

    def _generate(self) -> None:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList
        from transformers.generation.streamers import BaseStreamer

        generation = self

        class Stop(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
            """Looks at the stop flag after each token."""

            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                return torch.full((input_ids.shape[0],), generation._stop.is_set(), device=input_ids.device)

        class Streamer(BaseStreamer):  # type: ignore[misc]
            """Sends each token on as text; the first call brings the prompt."""

            def __init__(self) -> None:
                self.tokens: list[int] = []
                self.prompt = True
                self.text = _TextOf(generation._resident.tokenizer)

            def put(self, value: Any) -> None:
                if self.prompt:
                    self.prompt = False
                    return
                for token in value.flatten().tolist():
                    self.tokens.append(token)
                    if text := self.text.step(token):
                        generation.channel.put([TextDelta(text)])

            def end(self) -> None:
                if text := self.text.rest():
                    generation.channel.put([TextDelta(text)])

        streamer = Streamer()
        model = self._resident.model
        with torch.inference_mode(), _seeded(torch, self._request.options.get("seed"), model.device):
            model.generate(
                **self._inputs.to(model.device),
                **self._arguments,
                max_new_tokens=self._room,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([Stop()]),
            )
        if self._stop.is_set():
            return
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        ran_out = len(streamer.tokens) >= self._room and streamer.tokens[-1] not in ends
        self.channel.put(
            [
                UsageUpdate(Usage(input_tokens=self._prompt_tokens, output_tokens=len(streamer.tokens))),
                Finish("length" if ran_out else "stop"),
            ]
        )


class _TextOf:
    """Tokens to text as they come, whole characters only (`tokenizers.decoders.DecodeStream`, 7 µs a token)."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def step(self, token: int) -> str:
        self._held.append(token)
        text: str | None = self._stream.step(self._tokenizer, token)
        if text is None:  # in the middle of a character
            return ""
        self._held.clear()
        return text

    def rest(self) -> str:
        """What an answer that ends within a character leaves: a replacement character, or nothing."""
        text: str = self._tokenizer.decode(self._held, skip_special_tokens=True) if self._held else ""
        self._held.clear()
        return text


class _seeded:  # noqa: N801 - used as a function
    """Sampling with a seed that leaves the process's own random state as it was."""

    def __init__(self, torch: Any, seed: Any, device: Any) -> None:
        self._torch, self._seed = torch, seed
        devices = [device] if device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices=devices, enabled=seed is not None)

    def __enter__(self) -> None:
        self._fork.__enter__()
        if self._seed is not None:
            self._torch.manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        self._fork.__exit__(*error)


def _sampling(request: Request) -> dict[str, Any]:
    options = dict(request.options)
    options.pop("seed", None)
    found: dict[str, Any] = {name: options.pop(name) for name in list(options) if name in SAMPLING}
    if options:
        raise InvalidRequestError(
            f"A local model has no option {', '.join(sorted(map(repr, options)))}.",
            action=f"There are: seed, {', '.join(sorted(SAMPLING))}.",
        )
    if request.temperature > 0:
        return {"do_sample": True, "temperature": request.temperature, **found}
    # Greedy; None silences warnings about what the model's own generation config sets for sampling.
    penalty = {name: found[name] for name in ("repetition_penalty",) if name in found}
    return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **penalty}


def _inputs(resident: Resident, request: Request) -> Any:
    if any(message.attachments for message in request.messages):
        raise InvalidRequestError(
            f"{request.model} is used as a text model.",
            action="Leave out the attachment, or use another model.",
        )
    try:
        return resident.tokenizer.apply_chat_template(
            _plain(request.messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    except Exception as exc:  # a template is a program of the repository's: it may raise anything
        raise InvalidRequestError(
            f"The chat template of {request.model} refuses this conversation: {exc}.",
            action="Most want user and assistant in turns, some no system prompt.",
        ) from exc


def _plain(messages: Sequence[Message]) -> list[Mapping[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
