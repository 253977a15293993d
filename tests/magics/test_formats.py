"""What `-f` asks for, and what is done with the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from nbllm.errors import UsageError
from nbllm.magics.arguments import FORMATS
from nbllm.magics.formats import INSTRUCTIONS, checked_json, code_of, instructed, proposed
from nbllm.response import Response


def test_each_format_has_its_instruction_behind_the_system_prompt() -> None:
    """Markdown is what models write anyway; every other format is asked for in a sentence."""
    assert set(INSTRUCTIONS) == set(FORMATS)
    assert instructed(None, "markdown") is None
    assert instructed("Be brief.", "markdown") == "Be brief."
    assert instructed("Be brief.", "json") == f"Be brief.\n\n{INSTRUCTIONS['json']}"
    assert all(instructed("", form) == INSTRUCTIONS[form] for form in FORMATS if form != "markdown")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1\n", "x = 1"),
        ("So:\n```python\nx = 1\n```\nthat is it.", "x = 1"),
        ("```py\nx = 1\n```\nand\n```\ny = 2\n```", "x = 1\n\ny = 2"),
        ("```bash\npip install x\n```\n```python\nimport x\n```", "import x"),
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("```{python}\nx = 1\n```", "x = 1"),
        ("```python\nx = '''\n    a\n'''\n```", "x = '''\n    a\n'''"),
        ("", ""),
    ],
)
def test_the_code_of_an_answer(answer: str, code: str) -> None:
    """Its blocks of Python; without any all its blocks; without a fence the whole of it."""
    assert code_of(Response(answer)) == code


def run_by_ipython(cell: str) -> str:
    """The cell as IPython would execute it."""
    return TransformerManager().transform_cell(cell)


@pytest.mark.parametrize(
    "code",
    [
        "%%llm\n{secret}",
        "%%llm openai:m -o x\n{secret}",
        "\n\n   %%llm\n   {secret}",
        ">>> %%llm\n... {secret}",
        "In [1]: %%llm\n   ...: {secret}",
        "%%time\n%%llm\n{secret}",
        "%%capture out\n\n  %%llm\n  {secret}",
        "\ufeff%%llm\n{secret}",
        "\x1b[0m%%llm\n{secret}",
        "\r\n%%llm\r\n{secret}",
        "\x0c%%llm\n{secret}",
    ],
)
def test_a_question_in_model_code_asks_nothing_unseen(code: str) -> None:
    """A `%%llm` that a model wrote fills nothing in, and at the top is no question before a person makes it one."""
    cell = proposed(code, "openai:m")
    for run in (cell, cell.split("\n", 1)[1]):  # as it was inserted, and without its first line
        ran = run_by_ipython(run)
        assert "run_cell_magic('llm', ''" not in ran
        assert "%%llm\\n" not in ran
        if "run_cell_magic('llm'" in ran:
            assert "run_cell_magic('llm', '--raw" in ran
    assert "run_cell_magic('llm'" not in run_by_ipython(cell)


def test_a_cell_that_nbllm_put_below_says_who_wrote_it() -> None:
    """The first line is a comment, but where the code begins with another magic, which has to be the first line."""
    assert proposed("x = 1", "openai:m") == "# Written by openai:m; nothing of it has run.\nx = 1"
    assert proposed("%%bash\nls", "openai:m") == "%%bash\nls"
    assert proposed("%%llm --raw\nHi", "a:b").endswith("Take this line away to use the magic.\n%%llm --raw\nHi")
    assert proposed("x", "a:b\nimport os").splitlines()[0] == "# Written by a:b import os; nothing of it has run."
    hidden = proposed("if admin: \u202e# no\u2066 really\x1b[8m\n    pass", "a:b")
    assert not set(hidden) & {"\u202e", "\u2066", "\x1b"}


@given(st.text(st.sampled_from("%l m\n{}x>.-r\r\x0c\t#")))
def test_whatever_a_model_writes_no_question_is_asked_by_the_cell(text: str) -> None:
    """However the magic is dressed up, the inserted cell does not begin with it."""
    assert "run_cell_magic('llm'" not in run_by_ipython(proposed(f"%%llm{text}", "openai:m"))


def test_an_answer_that_is_no_json_says_where_it_is() -> None:
    """JSON in any of the forms that models give is taken; else the error says where the text is and what to do."""
    for text in ('{"a": 1}', "```json\n[1]\n```", "null"):
        checked_json(Response(text), None)
    with pytest.raises(UsageError) as caught:
        checked_json(Response("Here you are: {"), "answer")
    assert "The answer is not JSON." in str(caught.value)
    assert "Its text is in answer." in str(caught.value)
