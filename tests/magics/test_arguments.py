"""The grammar of `%%llm`."""

from __future__ import annotations

import inspect
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm.errors import UsageError
from nbllm.magics.arguments import CONFLICTS, TAKEN, HelpShown, cell_parser, check_models, parse
from nbllm.magics.cells import Selection

DEFAULTS = vars(parse(cell_parser(), ""))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", {}),
        ("openai:gpt-5.4-mini", {"models": ["openai:gpt-5.4-mini"]}),
        ("a:1 b:2 -t 0.5 c:3", {"models": ["a:1", "b:2", "c:3"], "temperature": 0.5}),
        ('-s "Be brief." -n 7', {"system": "Be brief.", "max_tokens": 7}),
        ("-s '-x y' m", {"system": "-x y", "models": ["m"]}),
        ("--system='a b'", {"system": "a b"}),
        ("-t0.5", {"temperature": 0.5}),
        ("-t -1", {"temperature": -1.0}),
        ("-fjson m", {"format": "json", "models": ["m"]}),
        ("-f MD", {"format": "markdown"}),
        ("-o answer", {"output": "answer"}),
        ("""-m '{"seed": 1, "stop": ["a b"]}'""", {"model_options": {"seed": 1, "stop": ["a b"]}}),
        ("--chat plan", {"chat": "plan"}),
        ("--attach fig data.csv -t 1", {"attach": ["fig", "data.csv"], "temperature": 1.0}),
        ("m --attach fig --attach 'a b.png'", {"models": ["m"], "attach": ["fig", "a b.png"]}),
        ("--context 5", {"context": Selection(((5, 5),))}),
        ("--context 1-3,7", {"context": Selection(((1, 3), (7, 7)))}),
        ("--context last:3", {"context": Selection(last=3)}),
        ("--context last", {"context": Selection(last=1)}),
        ("--context ALL", {"context": Selection()}),
        ("--fallback a,b --fallback c", {"fallback": ["a", "b", "c"]}),
        ("--fallback 'a, b,'", {"fallback": ["a", "b"]}),
        ("--raw --fresh --no-stream", {"raw": True, "fresh": True, "no_stream": True}),
        ("--no-cache --no-history --dry-run", {"no_cache": True, "no_history": True, "dry_run": True}),
        ("--bg -f json", {"bg": True, "format": "json"}),
        ("-- m", {"models": ["m"]}),
        ("a:1 b:2 --dry-run -o both", {"models": ["a:1", "b:2"], "dry_run": True, "output": "both"}),
    ],
)
def test_a_line_is_understood(line: str, said: dict[str, object]) -> None:
    """What the line says is what comes out, and all else is the default."""
    assert vars(parse(cell_parser(), line)) == DEFAULTS | said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--tempreature 1", "no option --tempreature. Did you mean --temperature?"),
        ("--no-histroy", "Did you mean --no-history?"),
        ("--dryrun", "Did you mean --dry-run?"),
        ("--atach fig", "Did you mean --attach?"),
        ("--attahc=fig", "no option --attahc. Did you mean --attach?"),
        ("--zzz", "no option --zzz. See %%llm --help."),
        ("--temp 1", "no option --temp."),
        ("-T 1", "no option -T. Did you mean -t?"),
        ("-x", "no option -x. See %%llm --help."),
        ("-temperature 1", "Did you mean --temperature?"),
        ("-no-cache", "Did you mean --no-cache?"),
        ("-f jsn", "no format 'jsn'. Did you mean json? There are: markdown, text, code, json, html, math."),
        ("-f image", "no format 'image'. There are: markdown"),
        ("-t hot", "'hot' is no number"),
        ("-n 1.5", "'1.5' is no number"),
        ("-n", "expected one argument"),
        ("--attach", "expected at least one argument"),
        ("-o 1x", "'1x' is no name of a variable"),
        ("-o class", "'class' is no name of a variable"),
        ("-m [1]", "no JSON object"),
        ("-m {", "is no JSON"),
        ("--context x", "--context 'x' names no cells. Write their execution counts, 5 or 1-3,7; or last:3, or all."),
        ("--context 3-1", "names no cells"),
        ("--context 0", "names no cells"),
        ("--context last:0", "names no cells"),
        ("--context 1,", "names no cells"),
        ("'a", "A quote is not closed in: 'a Close it"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(line: str, message: str) -> None:
    """A mistyped option, long or short, and a wrong value say what is wrong and what to do."""
    with pytest.raises(UsageError) as caught:
        parse(cell_parser(), line)
    assert message in str(caught.value)
    assert caught.value.action


LINES = {
    "bg": "--bg",
    "dry_run": "--dry-run",
    "no_stream": "--no-stream",
    "code": "-f code",
    "fresh": "--fresh",
    "no_cache": "--no-cache",
    "chat": "--chat x",
    "no_history": "--no-history",
    "several": "a:1 b:2",
    "fallback": "--fallback c",
}


@pytest.mark.parametrize(("one", "other", "why"), CONFLICTS)
def test_what_does_not_go_together_is_said(one: str, other: str, why: str) -> None:
    """Each pair is refused with its reason, and each of the two alone is right."""
    for alone in (one, other):
        parse(cell_parser(), LINES[alone])
    with pytest.raises(UsageError, match="do not go together") as caught:
        parse(cell_parser(), f"{LINES[one]} {LINES[other]}")
    assert caught.value.action == why


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_an_option_cannot_stand_for_what_has_a_place_of_its_own(name: str) -> None:
    """`-m` may not say by another way what the line itself says; the error names the place."""
    with pytest.raises(UsageError) as caught:
        parse(cell_parser(), f"-m '{{\"{name}\": 1}}'")
    assert f"{name} has a place of its own, {TAKEN[name]}" in str(caught.value)


def test_all_that_a_call_takes_by_name_is_taken() -> None:
    """No key of `-m` can collide with a parameter of the call."""
    from nbllm import ProviderManager

    for method in (ProviderManager.start, ProviderManager.plan, ProviderManager.generate_response):
        named = {
            name
            for name, parameter in inspect.signature(method).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        assert named == set(TAKEN)


def test_help_names_every_option() -> None:
    """`--help` is shown, whatever else is on the line, and says each option."""
    for line in ("--help", "-h", "openai:m --help -f json"):
        with pytest.raises(HelpShown) as shown:
            parse(cell_parser(), line)
        for option in cell_parser().options():
            assert option in str(shown.value)
        assert str(shown.value).startswith("usage: %%llm [MODEL …] [options]")


@pytest.mark.parametrize(
    ("words", "strange"),
    [
        (["Hello"], ""),
        (["openai:a", "openai:b"], ""),
        (["gpt-5.4-mini", "fast", "Anthropic"], ""),
        (["google/gemma-3-1b-it", "llama3:8b"], ""),
        (["What", "is", "2+2?"], "What, is, 2+2?"),
        (["Compare", "gpt-4", "with", "gpt-5"], "Compare, with"),
        (["openai:a", "b"], "b"),
        (["a", "b", "c", "d"], "a, b, c …"),
    ],
)
def test_a_prompt_on_the_first_line_is_no_comparison(words: list[str], strange: str) -> None:
    """Several words compare models only if each looks like one or is known."""
    known = {"openai", "anthropic", "fast"}
    if not strange:
        check_models(words, known)
        return
    with pytest.raises(UsageError) as caught:
        check_models(words, known)
    assert caught.value.message == f"{strange} cannot be told from a prompt."
    assert "The prompt goes on the lines below" in str(caught.value.action)


@given(st.text())
def test_any_line_is_understood_or_answered(line: str) -> None:
    """Whatever is typed gives arguments, the help, or an error with a next step; never another exception."""
    said: str | None
    try:
        said = parse(cell_parser(), line).format
    except UsageError as exc:
        said = exc.action
    except HelpShown as exc:
        said = str(exc)
    assert said


SAFE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.startswith("-"))


@given(system=SAFE, models=st.lists(SAFE, max_size=1), chat=SAFE, attach=st.lists(SAFE, min_size=1, max_size=3))
def test_a_quoted_value_comes_out_as_it_was(system: str, models: list[str], chat: str, attach: list[str]) -> None:
    """What is quoted by shell rules arrives to the letter: spaces, quotes, backslashes, braces, newlines."""
    words = [*models, "-s", system, "--chat", chat, "--attach", *attach]
    found = parse(cell_parser(), shlex.join(words))
    assert (found.models, found.system, found.chat, found.attach) == (models, system, chat, attach)
