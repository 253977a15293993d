"""The training text: facts read from TOML, and endless varied conversations made of them.

The model knows no English before it is trained, so variety has to come from here: each fact's hand-written
questions are joined by templates, words are exchanged for others of the same meaning, and case, punctuation
and spelling are disturbed, as people do. Questions that the tests hold out are never produced, however they
come about. Only the standard library is used.
"""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE: Final = Path(__file__).parent
FACTS_FILE: Final = HERE / "facts.toml"
SMALL_TALK_FILE: Final = HERE / "small_talk.toml"
LAST_LOOK_FILE: Final = HERE / "last_look.toml"

Message = dict[str, str]
"""One chat message: ``{"role": ..., "content": ...}``."""

Conversation = list[Message]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that the model can say, and the ways to ask for it.

    Attributes:
        id: A unique name.
        answer: What the model is to say, as Markdown.
        keys: Strings that each correct answer contains, to the letter.
        ask: Whole questions. The first one is shown in the model card.
        held_out: Questions that training never produces.
        do: Verb phrases for the templates "How do I {x}?" and their like.
        about: Noun phrases for the templates "What is {x}?" and their like.
    """

    id: str
    answer: str
    keys: tuple[str, ...]
    ask: tuple[str, ...]
    held_out: tuple[str, ...]
    do: tuple[str, ...] = ()
    about: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The question that the model card lists."""
        return self.ask[0]

    def answered_by(self, text: str) -> bool:
        """Whether `text` holds every key of this fact."""
        return all(key in text for key in self.keys)


@dataclass(frozen=True, slots=True)
class NameTurn:
    """A question with a name in it, or about one, and the answer that repeats the name."""

    answer: str
    ask: tuple[str, ...]
    held_out: tuple[str, ...]
    unknown: str = ""


def generator(seed: int) -> random.Random:
    """A generator of its own for text that is to come out the same each time."""
    return random.Random(seed)  # noqa: S311 - it varies wording and keeps no secret


def _fact(table: dict[str, Any]) -> Fact:
    lists = {key: tuple(table.get(key, ())) for key in ("keys", "ask", "held_out", "do", "about")}
    return Fact(id=table["id"], answer=table["answer"].strip(), **lists)


def load_last_look(path: Path = LAST_LOOK_FILE) -> dict[str, str]:
    """One more question by fact id, whose answers were not looked at while the training text was written."""
    questions: dict[str, str] = tomllib.loads(path.read_text("utf-8"))["questions"]
    return questions


def load_facts(path: Path = FACTS_FILE) -> tuple[Fact, ...]:
    """The facts of `path`, in its order."""
    return tuple(_fact(table) for table in tomllib.loads(path.read_text("utf-8"))["fact"])


class SmallTalk:
    """What is said beside the facts, and the words for varying a question (``small_talk.toml``)."""

    def __init__(self, path: Path = SMALL_TALK_FILE) -> None:
        data = tomllib.loads(path.read_text("utf-8"))
        self.facts: tuple[Fact, ...] = tuple(_fact(table) for table in data["small_talk"])
        self.greet, self.introduce, self.recall = (
            NameTurn(t["answer"], tuple(t["ask"]), tuple(t["held_out"]), t.get("unknown", ""))
            for t in (data["greet"], data["introduce"], data["recall"])
        )
        self.names: list[str] = data["names"]["real"]
        self.syllables: list[str] = data["names"]["syllables"]
        self.held_out_names: list[str] = data["names"]["held_out"]
        outside = data["outside"]
        self.outside: Fact = _fact({**outside, "id": "outside"})
        self.outside_templates: list[str] = outside["templates"]
        self.things: list[str] = outside["things"]
        self.verbs: list[str] = outside["verbs"]
        self.qualities: list[str] = outside["qualities"]
        self.systems: list[str] = data["systems"]["ask"]
        self.templates: dict[str, list[str]] = data["templates"]
        self.synonyms: dict[str, list[str]] = _synonyms(data["words"]["groups"])


def _synonyms(groups: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for group in groups:
        for word in group:
            table.setdefault(word.lower(), []).extend(other for other in group if other != word)
    return table


_POLITE = re.compile(
    r"^(please|hi|hello|hey|ok|so|and|also|now|well|then|sorry|thanks|good|excuse me|tell me|"
    r"can you tell me|could you tell me|in nbllm|about nbllm|quick question|question|i wonder)\b"
)
_POLITE_END = re.compile(r"\b(please|thanks|thank you|in nbllm|here|again|then|exactly|i wonder)$")


def normalize(question: str) -> str:
    """`question` without case, punctuation and politeness; two that agree in this count as one."""
    text = " ".join(re.sub(r"[^\w%{}=.\-]+", " ", question.lower()).split()).strip(" .")
    while (shorter := _POLITE_END.sub("", _POLITE.sub("", text)).strip(" .")) != text and shorter:
        text = shorter
    return text


class Corpus:
    """Makes conversations for training, each different, from facts and small talk.

    Args:
        facts: What the model is to know.
        small_talk: What is said beside it.
    """

    def __init__(self, facts: Sequence[Fact] | None = None, small_talk: SmallTalk | None = None) -> None:
        self.facts = tuple(facts) if facts is not None else load_facts()
        self.talk = small_talk if small_talk is not None else SmallTalk()

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Every question that training must not produce, normalized."""
        facts = (*self.facts, *self.talk.facts, self.talk.outside)
        questions = [question for fact in facts for question in fact.held_out]
        return frozenset(normalize(question) for question in (*questions, *load_last_look().values()))

    # -- one question -------------------------------------------------------------------------------------

    def question(self, fact: Fact, rng: random.Random) -> str:
        """A question for `fact` that is not held out."""
        return self._not_held_out(lambda: self.vary(self._phrase(fact, rng), rng))

    def outside_question(self, rng: random.Random) -> str:
        """A question that the model is not to answer, and that is not held out."""
        return self._not_held_out(lambda: self.vary(self._outside_phrase(rng), rng, synonyms=False))

    def _not_held_out(self, make: Callable[[], str]) -> str:
        while normalize(question := make()) in self.held_out:
            pass
        return question

    def _phrase(self, fact: Fact, rng: random.Random) -> str:
        phrase = self._one_phrase(fact, rng)
        # Two phrasings at once, as people explain themselves: more of the fact's words stand together.
        return f"{phrase} {self._one_phrase(fact, rng)}" if rng.random() < 0.06 else phrase

    def _one_phrase(self, fact: Fact, rng: random.Random) -> str:
        if rng.random() < 0.08:  # What the card promises must hold.
            return fact.question
        # Whole questions are the most natural, so they come most often; phrases bring the variety.
        kinds = [("ask", 4.0)] + [(k, w) for k, w in (("do", 4.0), ("about", 2.0)) if getattr(fact, k)]
        kind = rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        phrase: str = rng.choice(getattr(fact, kind))
        if kind == "ask":
            return phrase
        if kind == "do":
            kind, form = rng.choice((("do", str), ("do", str), ("doing", _doing), ("does", _does)))
            phrase = form(phrase)
        text = rng.choice(self.talk.templates[kind]).format(x="\0").replace("\0", phrase)
        return text[0].upper() + text[1:] if text[0].isalpha() and rng.random() < 0.8 else text

    def _outside_phrase(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.3:
            return rng.choice(self.talk.outside.ask)
        if kind < 0.85:
            template = rng.choice(self.talk.outside_templates)
            verb, quality = rng.choice(self.talk.verbs), rng.choice(self.talk.qualities)
            return template.format(x=self._thing(rng), y=self._thing(rng), v=verb, q=quality)
        if kind < 0.93:
            return _arithmetic(rng)
        return _scrap(rng, [self.made_up_word(rng) for _ in range(rng.randint(2, 8))])

    def _thing(self, rng: random.Random) -> str:
        return rng.choice(self.talk.things) if rng.random() < 0.75 else self.made_up_word(rng)

    def made_up_word(self, rng: random.Random) -> str:
        """A word that is in no dictionary, or rarely: out of syllables, or with English-looking letters."""
        if rng.random() < 0.5:
            word = "^^"
            while not word.endswith("$") and len(word) < 16:
                word += rng.choice(self._chain[word[-2:]])
            return word.strip("^$")
        return "".join(rng.choice(self.talk.syllables) for _ in range(rng.randint(2, 4)))

    def name(self, rng: random.Random) -> str:
        """A person's name, real or made up, and not held out."""
        while True:
            made_up = rng.random() < 0.7
            name = self.made_up_word(rng).capitalize() if made_up else rng.choice(self.talk.names)
            if name not in self.talk.held_out_names:
                return name

    # -- variants -----------------------------------------------------------------------------------------

    def vary(self, question: str, rng: random.Random, *, synonyms: bool = True) -> str:
        """`question` as somebody else might type it: other words, another case, fewer marks, a slip."""
        if synonyms and rng.random() < 0.5:
            question = self._exchange_words(question, rng)
        for share in (0.5, 0.3):
            if rng.random() < share:
                question = self._disturb(question, rng)
        if rng.random() < 0.1:
            aside = rng.choice(self.talk.templates["aside"])
            aside = aside.format(x=self._thing(rng), q=rng.choice(self.talk.qualities))
            question = f"{aside} {question}" if rng.random() < 0.7 else f"{question} {aside}"
        if rng.random() < 0.12:
            question = rng.choice(self.talk.templates["before"]) + question[0].lower() + question[1:]
        elif rng.random() < 0.06:
            question = question.rstrip(".") + rng.choice(self.talk.templates["after"])
        if rng.random() < 0.12:
            question = _mistype(question, rng)
        if rng.random() < 0.25:
            question = question.rstrip("?.!")
        if rng.random() < 0.2:
            question = question.lower()
        elif rng.random() < 0.05 and "%" not in question:
            question = question.upper()
        return question

    def _disturb(self, question: str, rng: random.Random) -> str:
        """`question` with words left out, in another order, or strange to the model.

        Without this a small model learns each question as a whole; with it, which words tell the facts apart.
        """
        words = question.split(" ")
        kind = rng.random()
        if kind < 0.6:
            share = rng.choice((0.15, 0.3, 0.45))
            left = [word for word in words if rng.random() > share]
            words = left if 2 * len(left) >= len(words) else words
        elif kind < 0.8:
            at = rng.randrange(len(words))
            words = words[at:] + words[:at] if rng.random() < 0.5 else rng.sample(words, len(words))
        else:
            for _ in range(rng.randint(1, 2)):
                at = rng.randrange(len(words) + 1)
                end = at + rng.randint(0, 1)
                words[at:end] = [self.made_up_word(rng) if rng.random() < 0.5 else rng.choice(self.fillers)]
        return " ".join(words)

    @cached_property
    def fillers(self) -> list[str]:
        """Words without a meaning of their own here: those of the templates."""
        texts = [text for templates in self.talk.templates.values() for text in templates]
        return sorted({word for text in texts for word in re.findall(r"[A-Za-z']+", text) if word != "x"})

    @cached_property
    def _chain(self) -> dict[str, list[str]]:
        """Which letters follow which two in the words that the model is not to know."""
        chain: dict[str, list[str]] = {}
        for word in sorted({w for text in (*self.talk.things, *self.talk.names) for w in text.lower().split()}):
            padded = f"^^{word}$"
            for at in range(len(padded) - 2):
                chain.setdefault(padded[at : at + 2], []).append(padded[at + 2])
        return chain

    def _exchange_words(self, question: str, rng: random.Random) -> str:
        words = question.split(" ")
        for index, word in enumerate(words):
            core = word.strip(".,?!:;")
            after_magic = index > 0 and words[index - 1].startswith(("%", "nbllm"))
            others = self.talk.synonyms.get(core.lower())
            if others and not after_magic and rng.random() < 0.35:
                words[index] = word.replace(core, rng.choice(others))
        return " ".join(words)

    # -- conversations ------------------------------------------------------------------------------------

    def conversation(self, rng: random.Random, turns: int | None = None) -> Conversation:
        """Messages of one conversation: perhaps a system prompt, then `turns` questions with their answers.

        Without `turns` it is one question as often as not, and eight at most: a notebook sends the earlier
        cells along, and the model has to answer the last one in spite of them.
        """
        if turns is None:
            turns = rng.choices(range(1, 9), (42, 22, 12, 9, 5, 4, 3, 3))[0]
        messages: Conversation = []
        if rng.random() < 0.25:
            messages.append({"role": "system", "content": rng.choice(self.talk.systems)})
        name: str | None = None
        for _ in range(turns):
            question, answer, name = self._turn(rng, name)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    def _turn(self, rng: random.Random, name: str | None) -> tuple[str, str, str | None]:
        """A question, its answer, and the user's name as far as it is known after them."""
        kind = rng.choices(
            ("fact", "outside", "talk", "greet", "introduce", "recall"),
            (64, 17, 3, 10, 6, 1.0 if name is None else 20.0),
        )[0]
        if kind == "fact":
            fact = rng.choice(self.facts)
            return self.question(fact, rng), fact.answer, name
        if kind == "outside":
            return self.outside_question(rng), self.talk.outside.answer, name
        if kind == "talk":
            fact = rng.choice(self.talk.facts)
            return self._not_held_out(lambda: self.vary(rng.choice(fact.ask), rng)), fact.answer, name
        if kind == "greet":
            other = self.name(rng)
            greet = self.talk.greet
            return rng.choice(greet.ask).format(name=other), greet.answer.format(name=other), name
        if kind == "introduce":
            name = self.name(rng)
            while not name[0].isupper():
                name = self.name(rng)
            turn = self.talk.introduce
            return rng.choice(turn.ask).format(name=name), turn.answer.format(name=name), name
        recall = self.talk.recall
        answer = recall.unknown if name is None else recall.answer.format(name=name)
        return rng.choice(recall.ask), answer, name


_DOUBLED: Final = frozenset(
    {"cancel", "cap", "chat", "control", "cut", "debug", "drop", "forget", "get", "let", "plot", "put"}
    | {"refer", "reset", "run", "set", "skip", "stop", "swap"}
)


def _doing(phrase: str) -> str:
    """`phrase` with its verb as a gerund: "set a budget" becomes "setting a budget"."""
    verb, _, rest = phrase.partition(" ")
    stem = verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else verb
    return f"{stem}{verb[-1] if verb in _DOUBLED else ''}ing {rest}".rstrip()


def _does(phrase: str) -> str:
    """`phrase` with its verb in the third person: "fetch a model" becomes "fetches a model"."""
    verb, _, rest = phrase.partition(" ")
    if verb.endswith("y") and verb[-2] not in "aeo":
        verb = verb[:-1] + "ie"
    elif verb.endswith(("s", "sh", "ch", "x", "o")):
        verb += "e"
    return f"{verb}s {rest}".rstrip()


def _mistype(question: str, rng: random.Random) -> str:
    """`question` with one letter of one longer plain word dropped, doubled or exchanged with the next."""
    words = question.split(" ")
    places = [index for index, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not places:
        return question
    index = rng.choice(places)
    word, at = words[index], rng.randrange(1, len(words[index]) - 1)
    words[index] = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )
    return " ".join(words)


def _arithmetic(rng: random.Random) -> str:
    a, b = (rng.randint(0, 10 ** rng.randint(1, 4)) for _ in range(2))
    sign = rng.choice("+-*/^")
    form = rng.choice(
        ("What is {}?", "{}", "{} =", "Compute {}.", "Calculate {}", "How much is {}?", "Solve {}.", "{}?")
    )
    text = rng.choice((f"{a} {sign} {b}", f"{a}{sign}{b}", f"{a} times {b}", f"{a} plus {b}", f"{a} minus {b}"))
    return form.format(text)


def _scrap(rng: random.Random, words: list[str]) -> str:
    """Something pasted that is no question about nbllm: code, a table, a sentence of unknown words."""
    number = rng.randint(0, 999)
    return rng.choice(
        (
            " ".join(words) + "?",
            "What is " + " ".join(words[:3]) + "?",
            "How do I " + " ".join(words[:2]) + " the " + words[-1] + "?",
            "Can you " + " ".join(words[:2]) + "?",
            f"Summarise this text: {' '.join(words)}.",
            f"Explain this code:\n\n```python\n{words[0]} = {words[1]}({number})\nprint({words[0]})\n```",
            f"Describe this table:\n\n| {words[0]} | {words[1]} |\n|---|---|\n| {number} | {words[-1]} |",
            f"{words[0]} = {number}",
            f"Translate into {words[0].capitalize()}: {' '.join(words[1:])}.",
            f"Who is {words[0].capitalize()} {words[1].capitalize()}?",
        )
    )
