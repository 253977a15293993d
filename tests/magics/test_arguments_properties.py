"""Splitting of the line by shell rules, for whatever words there are."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm.errors import UsageError
from nbllm.magics.arguments import FORMATS, HelpShown, cell_parser, parse, split

WORD = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=20)
"""Any text that stands in one line, quotes, backslashes and braces included."""

VALUE = WORD.filter(lambda word: not word.startswith("-"))
"""A value that no option's name can be taken for."""

MODEL = VALUE.filter(lambda word: word != "")
PARSER = cell_parser()


@given(st.lists(WORD, max_size=8))
def test_joined_words_come_back(words: list[str]) -> None:
    """What `shlex.join` writes is split into the same words."""
    assert split(shlex.join(words)) == words


@settings(max_examples=200)
@given(
    models=st.lists(MODEL, max_size=3),
    system=st.none() | VALUE,
    temperature=st.none() | st.floats(0, 2),
    most=st.none() | st.integers(1, 10**6),
    form=st.none() | st.sampled_from(FORMATS),
    options=st.none() | st.dictionaries(st.sampled_from(["seed", "top_p", "stop"]), st.integers() | WORD, max_size=2),
    raw=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_arguments_come_back_in_any_order(models, system, temperature, most, form, options, raw, order) -> None:
    """Options and their values are read back as they were written, in whatever order, and models in their own."""
    if len(models) > 1 and form == "code":
        form = None  # they do not go together
    given_ = [["-s", system], ["-t", temperature], ["-n", most], ["-f", form]]
    groups = [[name, str(value)] for name, value in given_ if value is not None]
    groups += [["-m", json.dumps(options)]] if options is not None else []
    groups += [["--raw"]] if raw else []
    order.shuffle(groups)
    at = order.randint(0, len(groups))
    words = [word for group in [*groups[:at], models, *groups[at:]] for word in group]
    found = parse(PARSER, shlex.join(words))
    assert found.models == models
    assert found.system == system
    assert found.temperature == temperature
    assert found.max_tokens == most
    assert found.format == (form or "markdown")
    assert found.model_options == (options or {})
    assert found.raw is raw


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            ["-s", "--system", "-t", "0", "--attach", "--raw", "'", '"', "\\", "=", "-", "--", "--sytem", "openai:m"]
        )
        | st.text(max_size=5),
        max_size=8,
    ).map(" ".join)
)
def test_any_line_is_read_or_refused_in_words(line: str) -> None:
    """Whatever is typed, it is understood, help is shown, or an error says what to do: nothing else escapes."""
    refused = None
    try:
        parse(PARSER, line)
    except HelpShown:
        pass
    except UsageError as error:
        refused = error
    assert refused is None or refused.action


@given(WORD)
def test_an_open_quote_is_said(word: str) -> None:
    """A quote that is not closed is no crash, and no half word."""
    quoted = "'" + word.replace("'", "")
    with pytest.raises(UsageError, match="quote"):
        split(quoted)
