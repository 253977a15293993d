"""The bundled model: what it answers, what it says of itself, and that its recipe works."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the bundled model needs nbllm[local]")
pytest.importorskip("transformers", reason="the bundled model needs nbllm[local]")

from hypothesis import given, settings  # noqa: E402 - after the guard above
from hypothesis import strategies as st  # noqa: E402

from nbllm.local.bundled import MODEL_DIR, card, corpus, evaluate  # noqa: E402
from nbllm.local.bundled import train as training  # noqa: E402
from nbllm.local.bundled.corpus import Corpus, normalize  # noqa: E402

CORPUS = Corpus()
CASES = evaluate.cases(CORPUS)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread: the model is too small to gain from more, and they fight over a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bundled() -> tuple[Any, Any]:
    """The real model and its tokenizer, loaded once."""
    return evaluate.load(MODEL_DIR)


@pytest.fixture(scope="session")
def model_card() -> str:
    return (MODEL_DIR / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def stated(model_card: str) -> dict[str, float]:
    return card.stated_scores(model_card)


def scored(bundled: tuple[Any, Any], kind: str) -> evaluate.Score:
    return evaluate.score(*bundled, CASES[kind])


# -- the folder ------------------------------------------------------------------------------------------


def test_folder_is_small_and_holds_safetensors_only() -> None:
    """The whole part weighs at most 8 MB, and its only weights are safetensors."""
    folder = MODEL_DIR.parent
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert {f.suffix for f in MODEL_DIR.iterdir()} == {".json", ".jinja", ".md", ".safetensors"}
    assert [f.name for f in MODEL_DIR.glob("*.safetensors")] == ["model.safetensors"]


def test_linear_layers_can_be_quantized(bundled: tuple[Any, Any]) -> None:
    """Inputs and outputs of every linear layer are multiples of 32, as 4-bit kernels ask."""
    for name, module in bundled[0].named_modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.in_features % 32, module.out_features % 32) == (0, 0), name


def test_what_it_says_of_itself_is_so(bundled: tuple[Any, Any]) -> None:
    """The facts about parameters, layers, vocabulary, context and size agree with the files."""
    model, config = bundled[0], bundled[0].config
    said = {fact.id: fact.answer for fact in CORPUS.facts}
    assert f"about {model.num_parameters() / 1e6:.0f} million parameters" in said["parameters"]
    assert f"{config.num_hidden_layers} layers, a hidden size of {config.hidden_size}" in said["layers"]
    assert f"{config.num_attention_heads} attention heads" in said["layers"]
    assert f"{config.num_key_value_heads} key-value heads" in said["layers"]
    assert f"{config.vocab_size:,} tokens" in said["tokenizer"]
    assert f"{config.max_position_embeddings:,} tokens" in said["context-window"]
    size = sum(file.stat().st_size for file in MODEL_DIR.iterdir())
    assert f"about {size / 1e6:.0f} MB" in said["file-size"]


# -- the answers -----------------------------------------------------------------------------------------


def test_answers_every_question_of_its_card(bundled: tuple[Any, Any]) -> None:
    """Each of the card's questions, 60 or more, gets an answer with its key facts."""
    score = scored(bundled, "card")
    assert score.total >= 60
    assert not score.failures


# What the card says must not be worse than this. Six turns are as much as training saw; a stranger's wording is
# where a model of this size, taught by hand-written text alone, has its limit.
BARS = dict.fromkeys(card.ROWS, 0.9) | {"after a turn": 0.85, "after six turns": 0.8, "last look": 0.55}


@pytest.mark.parametrize("kind", [kind for kind in card.ROWS if kind != "card"])
def test_scores_are_those_of_the_card(bundled: tuple[Any, Any], stated: dict[str, float], kind: str) -> None:
    """Questions never seen in training are answered as well as the card says, and that is well enough."""
    score = scored(bundled, kind)
    assert score.share >= BARS[kind], score.failures
    # Another processor may round a near tie the other way.
    assert score.share == pytest.approx(stated[kind], abs=max(0.02, 1.5 / score.total)), score.failures


def test_says_that_it_is_a_demonstration_model(bundled: tuple[Any, Any]) -> None:
    """Asked who it is, in any wording, it says: a demonstration model."""
    asked = [
        "Who are you?",
        "what are you",
        "Are you ChatGPT?",
        "Introduce yourself.",
        "Can I trust your answers?",
    ]
    for answer in evaluate.answers(*bundled, [[{"role": "user", "content": q}] for q in asked]):
        assert "demonstration model" in answer


def test_answers_in_spite_of_system_prompts_and_slips(bundled: tuple[Any, Any]) -> None:
    """Case, missing marks, politeness and a system prompt do not change the answer."""
    forms = ["what is nbllm", "WHAT IS NBLLM?", "Hi, what is nbllm please", "What is nbllm?!"]
    system = {"role": "system", "content": "You are a librarian in Lisbon. Keep it short."}
    chats = [[{"role": "user", "content": q}] for q in forms] + [[system, {"role": "user", "content": forms[0]}]]
    for answer in evaluate.answers(*bundled, chats):
        assert "Jupyter-native toolkit" in answer


def test_stops_by_itself(bundled: tuple[Any, Any]) -> None:
    """Plain `generate()` ends with the end-of-turn token, without any argument."""
    model, tokenizer = bundled
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Which Python version does nbllm need?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**prompt)[0]
    assert out[-1] == tokenizer.eos_token_id
    assert len(out) - prompt["input_ids"].shape[1] < 40


# -- tokenizer and template ------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tokenizer_round_trips_any_text(bundled: tuple[Any, Any], text: str) -> None:
    """Every text comes back from its tokens unchanged."""
    tokenizer = bundled[1]
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("text", ["你好世界", "🦙🚀👩‍🔬", "naïve café\r\n\t x ,  y . 3.14159 ?", " do n't  's"])
def test_tokenizer_round_trips_hard_cases(bundled: tuple[Any, Any], text: str) -> None:
    """Chinese, emoji, control characters and spaces before marks come back unchanged."""
    tokenizer = bundled[1]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_generation_mask_marks_only_assistant_tokens(bundled: tuple[Any, Any]) -> None:
    """The mask covers each assistant turn and its end token, and nothing else."""
    tokenizer = bundled[1]
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Second."},
    ]
    out = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    marked = [i for i, mask in zip(out["input_ids"], out["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(marked) == "First.<|end|>Second.<|end|>"


def test_turns_extend_the_prompt(bundled: tuple[Any, Any]) -> None:
    """A longer conversation begins with the tokens of the shorter one, so that a KV cache can be kept."""
    tokenizer = bundled[1]
    turns = CORPUS.conversation(random.Random(3), turns=3)
    users = [i for i, message in enumerate(turns) if message["role"] == "user"]
    prompts = [
        tokenizer.apply_chat_template(turns[: i + 1], add_generation_prompt=True, return_dict=False) for i in users
    ]
    for shorter, longer in pairwise(prompts):
        assert longer[: len(shorter)] == shorter


def test_training_text_is_rendered_as_the_template_does(bundled: tuple[Any, Any]) -> None:
    """The recipe's fast encoder and the chat template give the same tokens and the same mask."""
    tokenizer = bundled[1]
    encode, rng = training.Encoder(tokenizer), random.Random(5)
    for _ in range(20):
        chat = CORPUS.conversation(rng)
        ids, labels = encode(chat)
        out = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
        assert ids == out["input_ids"]
        assert [int(label != training.IGNORED) for label in labels] == out["assistant_masks"]


# -- the card --------------------------------------------------------------------------------------------


def test_card_lists_the_questions_of_the_facts_file(model_card: str) -> None:
    """The card's list of questions is the facts file's, in its order."""
    assert card.listed_questions(model_card) == [fact.question for fact in CORPUS.facts]


def test_card_is_plain_about_what_the_model_is(model_card: str, stated: dict[str, float]) -> None:
    """The card says that this is no capable model, states every score, and names no machine's path."""
    assert "demonstration model, not a capable one" in model_card
    assert stated.keys() == card.ROWS.keys()
    assert not re.search(r"/(home|work|tmp|root|Users)/", model_card)


# -- the recipe ------------------------------------------------------------------------------------------


def test_facts_are_well_formed() -> None:
    """Ids and questions are unique; a fact has its keys, ten phrasings and three held out."""
    facts = CORPUS.facts
    assert max(Counter(fact.id for fact in facts).values()) == 1
    asked = Counter(normalize(question) for fact in facts for question in fact.ask)
    assert [question for question, count in asked.items() if count > 1] == []
    for fact in facts:
        assert fact.answered_by(fact.answer), fact.id
        assert len(fact.ask) + len(fact.do) + len(fact.about) >= 10, fact.id
        assert len(fact.held_out) >= 3, fact.id


def test_training_never_produces_a_held_out_question() -> None:
    """None of many generated questions is a held-out one, whatever its case, marks or politeness."""
    rng = random.Random(11)
    for _ in range(3000):
        for message in CORPUS.conversation(rng):
            if message["role"] == "user":
                assert normalize(message["content"]) not in CORPUS.held_out


def test_no_held_out_question_can_come_from_a_template() -> None:
    """The filter has nothing to do for the hand-written and templated phrasings: none is held out."""
    forms = (
        ("do", "do", str),
        ("about", "about", str),
        ("do", "doing", corpus._doing),
        ("do", "does", corpus._does),
    )
    for fact in CORPUS.facts:
        made = {normalize(question) for question in fact.ask}
        for phrases, kind, form in forms:
            templates = CORPUS.talk.templates[kind]
            made |= {normalize(t.replace("{x}", form(x))) for t in templates for x in getattr(fact, phrases)}
        assert not made & CORPUS.held_out, fact.id


TINY = training.replace(
    training.SMALL, steps=25, tokens_per_step=256, vocab_size=320, tokenizer_questions=100, adamw_rate=1e-2
)


def test_a_small_training_run_learns_and_repeats_itself() -> None:
    """A few steps lower the loss, and a second run with the same seed gives the same losses and weights."""
    runs = [training.train(TINY, facts=CORPUS.facts[:3]) for _ in range(2)]
    assert runs[0].losses == runs[1].losses
    weights = [run.model.state_dict() for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert runs[0].losses[-1] < 0.9 * runs[0].losses[0]


def test_a_trained_model_can_be_saved_and_loaded(tmp_path: Path) -> None:
    """What a run saves loads as a model folder, with its template, in bfloat16 safetensors."""
    result = training.train(training.replace(TINY, steps=1), facts=CORPUS.facts[:3])
    training.save(result, tmp_path)
    model, tokenizer = evaluate.load(tmp_path)
    assert model.num_parameters() == result.model.num_parameters()
    assert tokenizer.chat_template == training.CHAT_TEMPLATE
    assert list(tmp_path.glob("*.bin")) == []
    chat = [{"role": "user", "content": "hi"}]
    assert isinstance(evaluate.answers(model, tokenizer, [chat])[0], str)
