"""Variables in prompts: what is filled in, what is left alone, and that nothing is called unasked."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm.errors import InterpolationError, NbllmError
from nbllm.magics.interpolate import Interpolated, interpolate
from nbllm.response import Record, Response


class Trap:
    """An object that knows whether it, or a method of it, was called."""

    called = False

    def __call__(self, *_args: object) -> str:
        Trap.called = True
        return "called"

    method = __call__

    @property
    def broken(self) -> str:
        raise RuntimeError("no value")

    def __str__(self) -> str:
        return "trap"


@pytest.fixture(autouse=True)
def _reset():
    Trap.called = False


NAMESPACE = {
    "name": "Ada",
    "x": 3.14159,
    "n": 1234567,
    "rows": [["a", "b"], ["c"]],
    "d": {"k": "v", "deep": {"er": 1}, "it's": 2},
    "point": SimpleNamespace(x=1, nested=SimpleNamespace(y=2), _hidden=3),
    "trap": Trap(),
    "In": ["", "first input"],
    "Out": {1: "first output"},
    "Err": {2: "ValueError: no"},
    "braces": "{name} {=1/0}",
    "été": "summer",
}


def fill(template: str, **more: object) -> str:
    return interpolate(template, {**NAMESPACE, **more}).text


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Hi {name}.", "Hi Ada."),
        ("{x:.2f} {n:,} {name:>5}|", "3.14 1,234,567   Ada|"),
        ("{name!r} {name!s} {name!r:>7}", "'Ada' Ada   'Ada'"),
        ("{rows[0]} {rows[-1][0]} {rows[0][1]!r}", "['a', 'b'] c 'b'"),
        ('{d["k"]} {d[\'k\']} {d[\'deep\']["er"]} {d["it\'s"]}', "v v 1 2"),
        ("{point.x} {point.nested.y}", "1 2"),
        ("{In[1]}, {Out[1]}, {Err[2]}", "first input, first output, ValueError: no"),
        ("{In[-1]} {In[-2]}", "first input "),
        ("{été}", "summer"),
        ("`{name}` and **{name}**", "`Ada` and **Ada**"),
        ("{name}{name}", "AdaAda"),
        ("{ {name} }", "{ Ada }"),
        ('{"who": "{name}", "spec": {name:{n}}}', '{"who": "Ada", "spec": {name:1234567}}'),
    ],
)
def test_plain_braces_are_filled(template, expected):
    """Names, attributes, literal subscripts, conversions and format specs are filled in."""
    assert fill(template) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{", "}", "{}", "{ }", "{0}", '{"a": 1}', "{'a': {'b': 2}}", "{a, b}", "{name, x}", "{name + 'x'}",
        "{ name }",
        "{{name}}", "{{{name}}}", "{{ name }}", "{% if name %}", "\\frac{1}{2}", "{nobody}", "{name", "name}",
        "{name.upper()}", "{trap()}", "{trap.method()}", "{rows[n]}", "{rows[0:1]}", "{rows[1+1]}", "{d[k]}",
        "{[r for r in rows]}", "{lambda: 1}", "{name!x}", "{name: Ada Lovelace}",
        "{name\n}", "{class}", "{None}", "{print}", "{rows[0}", "{point.x.}", "function f() { return name; }",
    ],
)  # fmt: skip
def test_other_braces_stay(template):
    """Braces that are no expression over existing names stay to the letter, and nothing raises."""
    assert fill(template) == template
    assert not Trap.called


@pytest.mark.parametrize(
    "template",
    [
        "{point._hidden}",
        "{name.__class__}",
        "{trap.__class__.__mro__}",
        "{point.nested.__dict__}",
        "{rows[0].__len__}",
    ],
)
def test_underscores_are_out_of_reach(template):
    """Plain braces take no attribute with a leading underscore; the hint says how it would be had."""
    result = interpolate(template, NAMESPACE)
    assert result.text == template
    assert f"{{={template[1:-1]}}}" in result.hints[0]


def test_plain_braces_call_nothing():
    """A method or a callable is shown, not called."""
    assert fill("{trap}") == "trap"
    assert "method" in fill("{trap.method}")
    assert not Trap.called


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{=name.upper()}", "ADA"),
        ("{=len(rows)}", "2"),
        ("{={'a': 1}['a']}", "1"),
        ("{=[r[0] for r in rows]}", "['a', 'c']"),
        ("{= n + 1 }", "1234568"),
        ("{=x * 2:.1f}", "6.3"),
        ("{=name!r}", "'Ada'"),
        ("{='}' + name}", "}Ada"),
        ("{=f'{name}!'}", "Ada!"),
        ("{=(lambda a: a * 2)(3)}", "6"),
        ("{=rows[0][:1]}", "['a']"),
        ("{=sum(\n  [1, 2]\n)}", "3"),
        ("{={k: v for k, v in [(1, 2)]}}", "{1: 2}"),
        ("{=name != 'x'}", "True"),
    ],
)
def test_an_expression_is_evaluated_when_asked_for(template, expected):
    """`{=…}` takes any expression, with a conversion or a format spec behind it."""
    assert fill(template) == expected


@pytest.mark.parametrize("template", ["{=1/0}", "{=nobody}", "{=x = 1}", "{=import os}", "{=", "{=}", "{=name", "{=(}"])
def test_a_failing_expression_says_what_to_do(template):
    """A failing `{=…}` raises, names the expression, and says what to do next."""
    with pytest.raises(InterpolationError) as caught:
        fill(f"a {template}")
    assert isinstance(caught.value, NbllmError)
    assert template.rstrip("}") in str(caught.value)
    assert caught.value.action


def test_an_expression_changes_no_name():
    """Evaluating puts nothing into the notebook's namespace, `__builtins__` included."""
    namespace: dict[str, object] = {"a": 1}
    assert interpolate("{=(b := a + 1)}", namespace).text == "2"
    assert namespace == {"a": 1}


@pytest.mark.parametrize(
    "template",
    [
        "```\n{name}\n```",
        "```python\nf'{name}'\n```\n",
        "~~~\n{name}\n```\n{=1/0}\n~~~",
        "````\n```\n{name}\n```\n````",
        "- item\n  ```\n  {name}\n  ```",
        "1. ```\n   {name}\n   ```",
        "> ```\n> {name}\n> ```",
        "```\n{name}",
        "```\r\n{name}\r\n```\r\n",
        "```\r{name}\r```\r",
        "```\n\x0c```\x0b```\u2028```\x85{name}",
    ],
)
def test_code_fences_are_left_alone(template):
    """Nothing is filled in inside a code fence."""
    assert fill(template) == template


def test_around_code_fences_is_filled():
    """Before, between and behind fences braces are filled in; a line of inline code is no fence."""
    text = "{name}\n```\n{name}\n```\n{name}\n~~~\n{name}\n~~~\n{name} ```{name}```\n```{name}```"
    assert fill(text) == "Ada\n```\n{name}\n```\nAda\n~~~\n{name}\n~~~\nAda ```Ada```\n```Ada```"


def test_filled_in_text_is_not_scanned_again():
    """Braces in a value stay braces, so that no value can reach for another."""
    result = interpolate("{braces} {=braces}", NAMESPACE)
    assert result.text == "{name} {=1/0} {name} {=1/0}"
    assert fill("{a}{b}", a="{", b="name}") == "{name}"


def test_filled_lists_what_was_filled_in():
    """The footer gets the expressions as they were written, in order."""
    result = interpolate("{name} {x:.1f} {nobody} {=1 + 1}", NAMESPACE)
    assert result.filled == ("name", "x:.1f", "=1 + 1")
    assert interpolate("no braces", NAMESPACE) == Interpolated("no braces")


def test_a_near_miss_is_pointed_out():
    """A name that almost exists gets a hint; a word that is like none does not."""
    assert interpolate("{nmae}", NAMESPACE).hints == ("{nmae} was left as it is: did you mean {name}?",)
    assert interpolate("{zebra} {nmae} {nmae}", NAMESPACE).hints == ("{nmae} was left as it is: did you mean {name}?",)


@pytest.mark.parametrize(
    "template", ["{point.nobody}", "{trap.broken}", "{rows[9]}", "{d['z']}", "{Out[7]}", "{name:.2f}"]
)
def test_what_raises_stays_with_a_hint(template):
    """A plain expression whose evaluation raises stays as it is, and the hint says why."""
    result = interpolate(f"a {template} b {{name}}", NAMESPACE)
    assert result.text == f"a {template} b Ada"
    assert len(result.hints) == 1
    assert template in result.hints[0]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{In[7]}", "there is no input 7."),
        ("{Out[3]}", "there is no output 3."),
        ("{Out[-1]}", "there is no output -1."),
        ("{Err[9]}", "no error is on record of execution 9."),
    ],
)
def test_a_number_that_is_missing_is_said_in_words(template, why):
    """What names an execution that is not there stays as it is, and the hint says it as a person would."""
    result = interpolate(template, NAMESPACE)
    assert result == Interpolated(template, (), (f"{template} was left as it is: {why}",))


def test_a_response_is_its_exact_text():
    """A model's answer is filled in to the letter, whatever it would look like displayed."""
    text = "<script>x</script> {name}\n```py\n"
    answer = Response(text, Record(provider="p", model="m"))
    assert fill("{Out[4]}", Out={4: answer}) == text


def test_hints_are_not_endless():
    """Beyond a screenful, hints are counted."""
    many = interpolate(" ".join(f"{{rows[{number}]}}" for number in range(10, 60)), NAMESPACE)
    assert len(many.hints) == 21
    assert many.hints[-1] == "So were 30 more braces."
    assert len(interpolate("{rows[9]} " * 100, NAMESPACE).hints) == 1


def test_a_format_cannot_fill_the_memory():
    """A width of millions, as pasted text may have it, is left alone."""
    for template in ("{name:>999999999}", "{x:.999999f}", "{n:099999d}"):
        result = interpolate(template, NAMESPACE)
        assert result.text == template
        assert template in result.hints[0]
    assert len(fill("{name:>9999}")) == 9999


def test_values_are_redacted():
    """Each value passes through `redact` before it is filled in, and so does what failed."""

    def redact(text: str) -> str:
        return text.replace("sk-secret", "[key]")

    values = {"key": "sk-secret", "fail": lambda: int("sk-secret")}
    result = interpolate("sk-secret {key} {=key * 2}", values, redact=redact)
    assert result.text == "sk-secret [key] [key][key]"
    with pytest.raises(InterpolationError) as caught:
        interpolate("{=fail()}", values, redact=redact)
    assert "sk-secret" not in str(caught.value)


def test_a_data_frame_is_a_table():
    """A DataFrame becomes a markdown table; the rows that are not shown are counted aloud."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a|b": range(1000), "c": ["x\ny|z"] * 1000})
    result = interpolate("{df}", {"df": frame}, max_rows=2).text
    assert result == ("| a\\|b | c |\n| --- | --- |\n| 0 | x y\\|z |\n| 1 | x y\\|z |\n\n… 998 more rows not shown")
    assert fill("{df.head}", df=frame).startswith("<bound method")
    indexed = pd.DataFrame({"a": [0.1234567891, None]}, index=pd.Index(["p", "q"], name="key"))
    assert fill("{df}", df=indexed) == "| key | a |\n| --- | --- |\n| p | 0.123457 |\n| q | nan |"
    assert fill("{=df.head(1)}", df=frame) == "| a\\|b | c |\n| --- | --- |\n| 0 | x y\\|z |"
    assert fill("{df!r}", df=indexed) == repr(indexed)
    wide = fill("{Out[5]}", Out={5: pd.DataFrame({f"c{n}": [n] * 12 for n in range(50)})})
    assert wide.splitlines()[0].endswith("| c39 |")
    assert wide.endswith("\n\n… 2 more rows and 10 more columns not shown")


def test_a_series_is_a_table():
    """A Series becomes a table with its name."""
    pd = pytest.importorskip("pandas")
    assert fill("{s}", s=pd.Series([1, 2], name="v")) == "| v |\n| --- |\n| 1 |\n| 2 |"
    assert fill("{s}", s=pd.Series([1], index=["i"])) == "|  | value |\n| --- | --- |\n| i | 1 |"
    assert fill("{df['v'][0]}", df=pd.DataFrame({"v": [7]})) == "7"


def test_a_polars_frame_is_a_table():
    """A polars frame or series becomes a table too."""
    pl = pytest.importorskip("polars")
    assert fill("{df}", df=pl.DataFrame({"a": [1, 2]})) == "| a |\n| --- |\n| 1 |\n| 2 |"
    assert fill("{s}", s=pl.Series("v", [1])) == "| v |\n| --- |\n| 1 |"
    frame = pl.DataFrame({f"c{n}": range(12) for n in range(41)})
    assert fill("{df}", df=frame).endswith("\n\n… 2 more rows and 1 more column not shown")


def test_no_library_is_imported():
    """Interpolating imports neither pandas nor numpy nor polars nor IPython."""
    code = (
        "import sys; from nbllm.magics.interpolate import interpolate; "
        "interpolate('{a} {=b}', {'a': 1, 'b': [2]}); "
        "print(*{'pandas', 'numpy', 'polars'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@given(st.text(alphabet=st.characters(exclude_characters="{")))
def test_text_without_braces_is_unchanged(text):
    """Text without an opening brace comes back as it is."""
    assert interpolate(text, NAMESPACE) == Interpolated(text)


PIECES = [
    "{", "}", "{{", "}}", "name", "trap", "trap()", ".method", ".broken", "._x", ".__class__", "[0]",
    "['k']", "[", "]",
    "(", ")", "!r", ":", ".2f", "{name}", "{trap}", "{trap.method}", "\n", "```", "~~~", "> ", " ", "'",
    '"', "\\", "é",
    "{nobody}", "{rows[0]}", "{x:", "{d[",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=25).map("".join))
def test_nothing_raises_and_nothing_is_called(text):
    """Whatever the prompt, as long as it does not ask by `{=`, nothing raises and nothing is called."""
    text = text.replace("{=", "{")
    result = interpolate(text, NAMESPACE)
    assert not Trap.called
    if not result.filled:
        assert result.text == text


LITERAL = st.text(st.characters(exclude_characters="{}`~", codec="utf-8"), max_size=8)
"""Text that is no brace and no fence."""

VALUE = st.one_of(
    st.text(max_size=12), st.sampled_from(["{a}", "{=1/0}", "{", "}", "{{", "```", "{a", "{b}{a}", "~~~\n", "{Out[1]}"])
)
"""Values, some of which read like templates."""


@given(
    st.lists(st.one_of(LITERAL, st.sampled_from(["{a}", "{b}", "{a!s}", "{rows[0]}", "{d['k']}", "{o.a}"]))),
    VALUE,
    VALUE,
)
def test_what_is_filled_in_is_the_values_and_nothing_else(pieces, a, b):
    """The text is that of the template's pieces with each value in its place, whatever braces the values have."""
    namespace = {"a": a, "b": b, "rows": [a], "d": {"k": b}, "o": SimpleNamespace(a=b)}
    known = {"{a}": a, "{b}": b, "{a!s}": a, "{rows[0]}": a, "{d['k']}": b, "{o.a}": b}
    result = interpolate("".join(pieces), namespace)
    assert result.text == "".join(known.get(piece, piece) for piece in pieces)
    assert result.filled == tuple(piece[1:-1] for piece in pieces if piece in known)
    assert not result.hints


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from([*PIECES, "nam", "Name", "{{name}}", "a.name"]), st.text(max_size=6))).map(
        "".join
    )
)
def test_text_without_a_known_name_is_byte_identical(text):
    """Whatever else stands in braces, text that uses no name of the notebook comes back to the byte."""
    text = text.replace("{=", "{")
    result = interpolate(text, {"neverwritten": "x", "_neither": "y"})
    assert result.text == text
    assert not result.filled


class Counting(dict[str, object]):
    """A namespace that counts how often it is asked."""

    asked = 0
    walked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)

    def __iter__(self):
        self.walked += 1
        return super().__iter__()


@pytest.mark.parametrize("unit", ["{nobody}", "{nmae}", "{{name}}", "{name", "{", "{nmae{number}}"])
def test_a_megabyte_of_braces_asks_for_each_name_once(unit):
    """Each pair of braces is looked up at most once, and only the first few misses are compared with every name."""
    count = 1_000_000 // len(unit)
    text = unit * count if "number" not in unit else "".join(f"{{nmae{n}}}" for n in range(count))
    namespace = Counting(NAMESPACE)
    interpolate(text, namespace)
    assert namespace.asked <= count
    assert namespace.walked <= 20


@pytest.mark.parametrize(
    "unit",
    [
        "{",
        "{{",
        "{name",
        "{name.",
        "{nobody}",
        "{name[",
        "{x:",
        "{{a",
        "}",
        "{=1}",
        "`",
        "```\n",
        "{\n",
        "{a.b}",
        "{name}",
        "{d['z']}",
        "{rows[9]}",
        "{name['",
        "{name" + ".a" * 32,
        "{" + "a" * 200,
        "{x:" + " " * 99,
        "> ```\n",
        "~~~~",
        "{name\r",
    ],
)
def test_time_is_linear(unit):
    """Four times the text, up to a megabyte, takes about four times as long, not sixteen."""

    def cost(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.process_time()
        interpolate(text, NAMESPACE)
        return time.process_time() - start

    small = min(cost(250_000) for _ in range(2))
    large = min(cost(1_000_000) for _ in range(2))
    assert large < 10 * max(small, 0.01)
