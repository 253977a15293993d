"""Score a trained model on held-out questions: ``python -m nbllm.local.bundled.evaluate [FOLDER]``."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbllm.local.bundled import MODEL_DIR
from nbllm.local.bundled.corpus import Conversation, Corpus, Fact, Message, SmallTalk, load_last_look

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_NEW_TOKENS: Final = 160
"""More than the longest answer has."""


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation that waits for its last answer, and the strings that the answer must contain."""

    messages: tuple[Message, ...]
    keys: tuple[str, ...]

    def passed(self, answer: str) -> bool:
        """Whether `answer` holds every key."""
        return all(key in answer for key in self.keys)


@dataclass(frozen=True, slots=True)
class Score:
    """How many cases of one kind were answered well, and the answers to those that were not."""

    right: int
    total: int
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.right / self.total

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.right} of {self.total})"


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one model by kind of question; the kinds are those of `cases`."""

    by_kind: dict[str, Score]

    def __getitem__(self, kind: str) -> Score:
        return self.by_kind[kind]

    def as_text(self, *, failures: bool = True) -> str:
        """A line for each kind, and the failed questions with their answers below it."""
        lines = []
        for kind, score in self.by_kind.items():
            lines.append(f"{kind}: {score}")
            lines += [f"    {q!r} -> {a!r}" for q, a in score.failures if failures]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds to load after the imports, and greedy tokens per second: one thread, float32, medians."""

    load_seconds: float
    tokens_per_second: float


def load(folder: Path = MODEL_DIR) -> tuple[Any, Any]:
    """Model (float32) and tokenizer of `folder`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def answers(model: Any, tokenizer: Any, conversations: Sequence[Sequence[Message]], batch_size: int = 64) -> list[str]:
    """The greedy answer to each conversation, in the same order.

    Conversations of similar length are batched together and padded on the left.
    """
    ids = [tokenizer.apply_chat_template(list(c), add_generation_prompt=True, return_dict=False) for c in conversations]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found.update(zip(chosen, texts, strict=True))
    return [found[i] for i in range(len(ids))]


def ask(model: Any, tokenizer: Any, question: str) -> str:
    """The greedy answer to one question without a history."""
    return answers(model, tokenizer, [[_user(question)]])[0]


# -- cases -----------------------------------------------------------------------------------------------


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _turn(question: str, answer: str) -> Conversation:
    return [_user(question), {"role": "assistant", "content": answer}]


def cases(corpus: Corpus | None = None) -> dict[str, list[Case]]:
    """What the model is scored on, by kind.

    - ``card``: the questions of the model card.
    - ``held-out``: questions that training never produced, alone.
    - ``after a turn``, ``after six turns``: the same after unrelated turns; after six, a fifth of them.
    - ``last look``: questions whose answers changed nothing in the training text.
    - ``outside``: held-out questions that the model must say it cannot answer.
    - ``small talk``: held-out greetings and thanks.
    - ``names``: names that training never held, to be repeated at once or a turn later.
    """
    corpus = corpus or Corpus()
    talk, facts = corpus.talk, corpus.facts
    by_id = {fact.id: fact for fact in facts}
    held_out = [(fact, question) for fact in facts for question in fact.held_out]

    def before(index: int, turns: int) -> Conversation:
        """Unrelated turns, chosen by `index` alone, so that every run asks the same."""
        chosen: list[Fact] = [facts[(index * 7 + 13 * (k + 1)) % len(facts)] for k in range(turns)]
        return [message for fact in chosen for message in _turn(fact.question, fact.answer)]

    return {
        "card": [Case((_user(fact.question),), fact.keys) for fact in facts],
        "held-out": [Case((_user(q),), fact.keys) for fact, q in held_out],
        "after a turn": [Case((*before(i, 1), _user(q)), fact.keys) for i, (fact, q) in enumerate(held_out)],
        "after six turns": [Case((*before(i, 6), _user(q)), fact.keys) for i, (fact, q) in enumerate(held_out)][::5],
        "last look": [Case((_user(q),), by_id[i].keys) for i, q in load_last_look().items() if i in by_id],
        "outside": [Case((_user(q),), talk.outside.keys) for q in talk.outside.held_out],
        "small talk": [Case((_user(q),), fact.keys) for fact in talk.facts for q in fact.held_out],
        "names": _name_cases(talk),
    }


def _name_cases(talk: SmallTalk) -> list[Case]:
    found: list[Case] = []
    for index, name in enumerate(talk.held_out_names):
        greet = talk.greet.held_out[index % len(talk.greet.held_out)].format(name=name)
        found.append(Case((_user(greet),), (name,)))
        told = _turn(talk.introduce.held_out[0].format(name=name), talk.introduce.answer.format(name=name))
        found.append(Case((*told, _user(talk.recall.held_out[0])), (name,)))
    return found


def score(model: Any, tokenizer: Any, group: Sequence[Case]) -> Score:
    """Answer every case of `group` greedily and count those whose answer holds all its keys."""
    texts = answers(model, tokenizer, [case.messages for case in group])
    wrong = [(case.messages[-1]["content"], t) for case, t in zip(group, texts, strict=True) if not case.passed(t)]
    return Score(len(group) - len(wrong), len(group), tuple(wrong))


def evaluate(folder: Path = MODEL_DIR, kinds: Sequence[str] | None = None) -> Scores:
    """The scores of the model in `folder`, of all kinds or of those named."""
    model, tokenizer = load(folder)
    return Scores({k: score(model, tokenizer, c) for k, c in cases().items() if kinds is None or k in kinds})


# transformers imports much of itself at the first load, so only a fresh process tells what a user waits for.
_LOAD = """
import sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
started = time.perf_counter()
AutoTokenizer.from_pretrained(sys.argv[1])
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
print(time.perf_counter() - started)
"""


def _load_seconds(folder: Path) -> float:
    command = [sys.executable, "-c", _LOAD, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own
    return float(done.stdout)


def measure_speed(folder: Path = MODEL_DIR) -> Speed:
    """Load `folder` in three fresh processes, and write answers for a while; all on one thread."""
    loads = [_load_seconds(folder) for _ in range(3)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, tokenizer = load(folder)
        prompt = tokenizer.apply_chat_template(
            [_user("What is nbllm?")], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        rates = []
        for _ in range(5):
            started = time.perf_counter()
            with torch.inference_mode():
                # The end is held off, so that each run writes as many tokens.
                model.generate(**prompt, max_new_tokens=200, min_new_tokens=200, do_sample=False)
            rates.append(200 / (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return Speed(statistics.median(loads), statistics.median(rates))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the scores and the failures of a model."""
    parser = argparse.ArgumentParser(prog="python -m nbllm.local.bundled.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_DIR)
    args = parser.parse_args(arguments)
    print(evaluate(args.folder).as_text())
    print(measure_speed(args.folder))


if __name__ == "__main__":
    main()
