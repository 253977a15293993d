"""Write the model card: a README.md beside the weights, made from the facts and from what was measured."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from nbllm.local.bundled.corpus import Fact, load_facts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbllm.local.bundled.evaluate import Scores, Speed
    from nbllm.local.bundled.train import Recipe, Result

ROWS: Final = {
    "card": "questions of this card",
    "held-out": "held-out questions, alone",
    "after a turn": "held-out questions, after an unrelated turn",
    "after six turns": "a fifth of the held-out questions, after six unrelated turns",
    "last look": "questions whose answers nobody looked at before the training text was final",
    "outside": "held-out questions outside its knowledge, answered with “I do not know that”",
    "small talk": "held-out greetings and thanks",
    "names": "names never seen in training, repeated in a greeting or a turn later",
}
"""The rows of the card's table of scores, by the kinds of `evaluate.cases`."""

TEXT: Final = Template("""\
---
license: bsd-3-clause
language: en
library_name: transformers
pipeline_tag: text-generation
---

# nbllm's bundled demonstration model

**This is a demonstration model, not a capable one.** It lets nbllm stream, quantize and fine-tune a real
model on a fresh machine with no key, no network and no download. It answers the ${questions} questions
below and many other phrasings of them. It knows nothing else, cannot calculate, program or translate, and
can be wrong even about nbllm. A capable model is one line away: `%llm use openai:MODEL`, or
`%llm use huggingface:MODEL` for a model from the Hub.

| | |
|---|---|
| Architecture | Llama: ${layers} layers, hidden size ${hidden_size}, ${heads} attention heads on ${kv_heads} key-value heads, tied embeddings |
| Parameters | ${parameters} |
| Weights | bfloat16 safetensors, ${weights} MB; the whole folder ${folder} MB |
| Tokenizer | byte-level BPE of its own, ${vocab_size} tokens; encodes any text |
| Context window | ${context} tokens; trained on conversations of up to eight turns |
| Chat template | roles system, user, assistant; generation marks; ends its turn with `<|end|>` |
| Language | English |
| Licence | BSD-3-Clause, as nbllm |

## Scores

An answer counts as right when it contains every key string that `facts.toml` names for it, to the letter.
Decoding is greedy. Held-out questions are never produced in training, not even by the templates, and differ
from the training questions by more than politeness, case or punctuation.
Their authors also wrote the training questions, and widened those after a look at what earlier models got
wrong. The row of questions whose answers nobody looked at says best what a stranger's wording can expect.

| Questions | Right |
|---|---|
${scores}

System prompts are accepted and mostly ignored.

## Speed

Measured on one thread of ${machine}, in float32: **${rate} tokens a second** by greedy `generate()`
(median of five runs of 200 tokens), and **${load} s** to load tokenizer and model in a fresh process that has
imported torch and transformers (median of three).

## How it was made

`python -m nbllm.local.bundled.train` makes it again, from scratch: ${steps} steps of about ${tokens_per_step}
tokens, seed ${seed}, cross-entropy on the answers only, Muon and AdamW. It took ${minutes} minutes on
${threads} CPU threads of that machine, which other work shared, and ended at ${loss} nats a token (mean of the
last 50 steps).

The text is nbllm's own: `facts.toml` holds the facts with their questions, `small_talk.toml` the rest, and
`corpus.py` makes endless variants of them. No other text and no other model took part. The same seed gives
the same weights on the same machine with the same number of threads; elsewhere the last bits of a sum may
differ, and with them the weights.

## Limitations

- It recognises questions by their words. Another wording can bring the answer to another question, said with
  the same confidence.
- Outside its facts it says so, most of the time; it may also answer with a fact that was not asked for.
- It describes nbllm as of its training. The documentation has the last word.
- It was trained on conversations of up to eight turns, few of them that long. After about ten turns, some 500
  tokens, it begins to mix up answers, though its context window would hold 2,048.

## The questions it answers

${list}
""")  # noqa: E501 - a row of a table is one line


def questions(facts: Sequence[Fact] | None = None) -> list[str]:
    """The questions that the card lists: the first one of each fact."""
    return [fact.question for fact in (load_facts() if facts is None else facts)]


def listed_questions(card: str) -> list[str]:
    """The questions that a written card lists."""
    return re.findall(r"^\d+\. (.+)$", card.split("## The questions it answers")[1], flags=re.MULTILINE)


def stated_scores(card: str) -> dict[str, float]:
    """The shares that a written card states, from 0 to 1, by the kinds of `evaluate.cases`."""
    found = {}
    for kind, row in ROWS.items():
        if match := re.search(rf"^\| {re.escape(row)} \| ([\d.]+)%", card, flags=re.MULTILINE):
            found[kind] = float(match[1]) / 100
    return found


def _processor() -> str:
    """The processor's name where the system tells it, without anything that identifies the machine."""
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        info = ""
    match = re.search(r"^model name\s*:\s*(.+)$", info, flags=re.MULTILINE)
    return match[1] if match else platform.machine()


def write(folder: Path, recipe: Recipe, result: Result, scores: Scores, speed: Speed) -> None:
    """Write ``README.md`` into `folder`."""
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md")
    text = TEXT.substitute(
        questions=len(questions()),
        layers=recipe.layers,
        hidden_size=recipe.hidden_size,
        heads=recipe.heads,
        kv_heads=recipe.kv_heads,
        vocab_size=f"{recipe.vocab_size:,}",
        context=f"{recipe.context:,}",
        parameters=f"{result.model.num_parameters():,}",
        weights=f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}",
        folder=f"{size / 1e6:.1f}",
        scores="\n".join(f"| {row} | {scores[kind]} |" for kind, row in ROWS.items()),
        machine=f"an {_processor()}",
        rate=f"{speed.tokens_per_second:.0f}",
        load=f"{speed.load_seconds:.2f}",
        steps=recipe.steps,
        tokens_per_step=f"{recipe.tokens_per_step:,}",
        seed=recipe.seed,
        threads=result.threads,
        minutes=max(1, round(result.seconds / 60)),
        loss=f"{sum(result.losses[-50:]) / len(result.losses[-50:]):.4f}",
        list="\n".join(f"{number}. {question}" for number, question in enumerate(questions(), 1)),
    )
    (folder / "README.md").write_text(text, "utf-8")
