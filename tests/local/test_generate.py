"""Local models: loading, streaming, stopping, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from nbllm import ConfigManager, ProviderManager, errors
from nbllm.local import LocalModels
from nbllm.local.bundled import MODEL_DIR
from nbllm.local.generate import Generation
from nbllm.local.load import registry
from nbllm.types import Finish, Message, Request, TextDelta, UsageUpdate

MODELS = LocalModels()
QUESTION = "What is nbllm?"


def request(**fields: Any) -> Request:
    settings: dict[str, Any] = {
        "provider": "huggingface",
        "model": "bundled",
        "messages": (Message("user", QUESTION),),
    }
    return Request(**{**settings, **fields})


def events(generation: Generation) -> list[Any]:
    generation.start()
    found: list[Any] = []
    while batch := generation.channel.get_blocking():
        found += batch
    generation.join()
    return found


def text(found: list[Any]) -> str:
    return "".join(event.text for event in found if isinstance(event, TextDelta))


async def ask(**arguments: Any) -> Any:
    async with ProviderManager(ConfigManager()) as own:
        return await (await own.generate_response(**{"messages": QUESTION, **arguments}))


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """A folder of one's own with the bundled model in it, to be spoiled."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    yield folder
    with contextlib.suppress(errors.ModelLoadError):  # the test may have spoiled it beyond recognition
        MODELS.unload(folder)


def test_the_bundled_model_streams_through_the_manager() -> None:
    """Without a key and without a network: text in many pieces, usage, a reason, and a cost of nothing."""

    async def main() -> tuple[list[str], Any]:
        async with await ProviderManager.create(ConfigManager()) as own:
            stream = await own.generate_response(QUESTION)
            return [piece async for piece in stream], stream

    pieces, stream = asyncio.run(main())
    assert len(pieces) > 5
    assert "Jupyter" in "".join(pieces)
    assert (stream.state, stream.finish_reason, stream.cost) == ("complete", "stop", 0.0)
    assert stream.usage.input_tokens > 0
    assert stream.usage.output_tokens >= len(pieces)


def test_streamed_and_whole_are_the_same() -> None:
    """Greedy answers are equal, whichever way they are asked for."""

    async def main() -> tuple[str, Any]:
        async with ProviderManager(ConfigManager()) as own:
            return await (await own.generate_response(QUESTION)), await own.generate_response(QUESTION, stream=False)

    streamed, whole = asyncio.run(main())
    assert streamed == whole
    assert streamed.usage == whole.usage


def test_a_model_is_loaded_once_and_unloaded_on_demand(copy: Path) -> None:
    """Explicit and on-demand loads share one copy; a folder is a name as good as any."""
    info = MODELS.load(copy)
    assert MODELS.load(str(copy)) is info
    assert (info.quantization, info.context_window >= 2048, info.parameters > 1_000_000) == (
        "none",
        True,
        True,
    )
    assert info.memory_bytes >= info.parameters * 2
    answer = asyncio.run(ask(model=f"huggingface:{copy}"))
    assert "Jupyter" in answer
    assert [model.name for model in MODELS.loaded()].count(str(copy)) == 1
    MODELS.unload(copy)
    MODELS.unload(copy)
    assert str(copy) not in [model.name for model in MODELS.loaded()]


def test_two_loads_at_once_are_one(copy: Path) -> None:
    """Two cells that want the same model wait for one load."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(registry.load(str(copy)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(resident) for resident in found}) == 1


def test_stopping_ends_within_one_token() -> None:
    """After `stop` no more than the token under way is generated, and the model is free for the next call."""
    resident = registry.load("bundled")
    generation = Generation(resident, request(max_tokens=1000, temperature=2.0, options={"seed": 1}))
    generation.start()
    first = generation.channel.get_blocking()
    generation.stop()
    rest: list[Any] = []
    while batch := generation.channel.get_blocking():
        rest += batch
    generation.join()
    assert first
    assert not [event for event in rest if isinstance(event, Finish)]
    assert not resident.lock.locked()


def test_cancelling_a_stream_frees_the_model() -> None:
    """A cancelled stream is interrupted, keeps its text, and the next call answers."""

    async def main() -> Any:
        async with ProviderManager(ConfigManager()) as own:
            stream = await own.generate_response(QUESTION, temperature=2.0, seed=5)
            async for _ in stream:
                break
            await stream.aclose()
            assert not registry.load("bundled").lock.locked()
            assert await (await own.generate_response("Hello", max_tokens=3))
            return stream

    stream = asyncio.run(main())
    assert stream.state == "interrupted"
    assert stream.text


def test_answers_wait_for_each_other() -> None:
    """Two questions to one model at once are both answered, and a waiting one can be cancelled."""

    async def main() -> None:
        async with ProviderManager(ConfigManager()) as own:
            both = await asyncio.gather(*(own.generate_response(QUESTION, stream=False) for _ in range(2)))
            assert both[0] == both[1]
            resident = registry.load("bundled")
            with resident.lock:
                waiting = own.start(QUESTION)
                await asyncio.sleep(0)
                await waiting.aclose()
            assert waiting.state == "interrupted"

    asyncio.run(main())


def test_sampling_is_repeatable_by_seed_and_leaves_the_random_state_alone() -> None:
    """The same seed gives the same answer; the process's own random numbers go on as if nothing had happened."""
    import torch

    resident = registry.load("bundled")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    answers = [
        text(events(Generation(resident, request(max_tokens=60, temperature=2.0, options={"seed": seed}))))
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]
    assert torch.equal(torch.rand(3), expected)


def test_the_room_for_an_answer_is_kept_to() -> None:
    """max_tokens ends an answer with the reason `length`; what is above the context window is clamped to it."""
    resident = registry.load("bundled")
    found = events(Generation(resident, request(max_tokens=5)))
    assert found[-1] == Finish("length")
    usage = next(event.usage for event in found if isinstance(event, UsageUpdate))
    assert usage.output_tokens == 5
    assert Generation(resident, request(max_tokens=10**9))._room < resident.info.context_window


def test_every_character_arrives_whole() -> None:
    """Pieces never cut a character, and together they are the tokenizer's own text."""
    from nbllm.local.generate import _TextOf

    tokenizer = registry.load("bundled").tokenizer
    original = "naïve 日本語 👩‍🔬 Привет"
    decoder = _TextOf(tokenizer)
    pieces = [decoder.step(token) for token in tokenizer.encode(original, add_special_tokens=False)]
    assert "".join(pieces) + decoder.rest() == original
    assert "\ufffd" not in "".join(pieces)
    decoder = _TextOf(tokenizer)
    tokens = tokenizer.encode("👩", add_special_tokens=False)
    assert "".join(decoder.step(token) for token in tokens[:-1]) == ""
    assert decoder.rest() == "\ufffd"
    assert decoder.rest() == ""


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers() -> None:
    """The error says how long the prompt is and how much the model takes."""
    with pytest.raises(errors.ContextLengthError, match=r"The prompt has \d+ tokens; bundled takes \d+"):
        asyncio.run(ask(messages="word " * 5000))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"nonsense": 1}, "no option 'nonsense'"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "chat template"),
    ],
)
def test_what_a_local_model_cannot_do_is_refused(arguments: dict[str, Any], said: str) -> None:
    """An unknown option or a role that the chat template does not have: an error that names it."""
    with pytest.raises(errors.InvalidRequestError, match=said) as caught:
        asyncio.run(ask(**arguments))
    assert caught.value.action


def test_an_attachment_is_refused_rather_than_dropped() -> None:
    """A text model does not silently lose a picture."""
    from nbllm.types import Attachment

    with pytest.raises(errors.InvalidRequestError, match="text model"):
        asyncio.run(ask(messages=[Message("user", "Look", attachments=(Attachment("image/png", b"x"),))]))


def test_an_error_while_generating_reaches_the_reader() -> None:
    """An exception inside `generate` does not hang the stream (transformers' own streamer does)."""
    with pytest.raises(errors.InvalidRequestError, match="penalty"):
        asyncio.run(ask(repetition_penalty=-1.0))
    assert asyncio.run(ask(max_tokens=3))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "no pickle files",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    ],
    ids=["pickle", "no config", "torn weights", "torn config", "no template"],
)
def test_a_folder_that_cannot_be_loaded_says_why(copy: Path, spoil: Any, said: str) -> None:
    """Pickles are not loaded; a torn or half a folder is named; a base model says that it is none for chat."""
    spoil(copy)
    with pytest.raises(errors.ModelLoadError, match=said) as caught:
        MODELS.load(copy)
    assert caught.value.action


def test_code_of_a_repository_is_never_run(copy: Path, tmp_path: Path) -> None:
    """A model folder that brings its own Python is refused, and its code does not run."""
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (copy / "config.json").write_text(json.dumps(config))
    proof = tmp_path / "ran"
    (copy / "evil.py").write_text(f"open({str(proof)!r}, 'w')")
    with pytest.raises(errors.ModelLoadError):
        MODELS.load(copy)
    assert not proof.exists()


@pytest.mark.parametrize("file", ["weights.bin", "../weights.safetensors"])
def test_an_index_cannot_smuggle_other_files_in(copy: Path, file: str) -> None:
    """An index of safetensors that names a pickle, or a file outside the folder, is refused."""
    (copy / "model.safetensors").rename(copy / "w.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": file}}))
    with pytest.raises(errors.ModelLoadError, match="index of its weights"):
        MODELS.load(copy)


def test_compiled_code_from_the_hub_is_not_asked_for(copy: Path) -> None:
    """A configuration that names a kernel of a Hub repository is refused."""
    config = json.loads((copy / "config.json").read_text())
    config["_attn_implementation"] = config["attn_implementation"] = "kernels-community/flash-attn"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.ModelLoadError, match="compiled code"):
        MODELS.load(copy)


@pytest.mark.parametrize("template", ["{{ 1/0 }}", "{{ 1 + 'a' }}", "{% for %}"])
def test_a_chat_template_that_fails_is_named(copy: Path, template: str) -> None:
    """A template is a program of the repository's: whatever it raises is an error of ours."""
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(errors.InvalidRequestError, match="chat template"):
        asyncio.run(ask(model=f"huggingface:{copy}"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "There is no model in"),
        ("~/nowhere", "There is no model in"),
        ("acme/not-here", "the Hub is turned off"),
        ("not a name", "cannot be loaded"),
    ],
)
def test_a_name_that_leads_nowhere_says_so(name: str, said: str) -> None:
    """A path without a model, a Hub id that is not cached while offline, and no name at all."""
    with pytest.raises(errors.ModelLoadError, match=said) as caught:
        MODELS.load(name)
    assert caught.value.action


def test_quantization_is_none_for_now() -> None:
    """An unknown quantization names what there is; a loaded model is not silently taken for another."""
    with pytest.raises(errors.ModelLoadError, match="'nf4' is not known"):
        registry._models.clear()
        MODELS.load("bundled", quantization="nf4")
    MODELS.load("bundled")
    with pytest.raises(errors.ModelLoadError, match="Unload it first"):
        MODELS.load("bundled", quantization="nf4")


def test_the_cache_of_the_hub_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was downloaded is listed after the bundled model; a half downloaded model is not."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert MODELS.cached() == ["bundled"]
    for name, files in {
        "acme--whole": ["config.json", "model.safetensors"],
        "acme--half": ["config.json"],
    }.items():
        snapshot = tmp_path / "hub" / f"models--{name}" / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        for file in files:
            (snapshot / file).write_text("{}")
    found = asyncio.run(ProviderManager(ConfigManager()).get_available_models("huggingface"))
    assert found[0] == "bundled"
    assert "acme/half" not in found
