"""`{In[n]}`, `{Out[n]}` and `{Err[n]}` in a real kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.harness import Kernel
    from tests.wire import Wire


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    """One server for all tests of this module."""
    from tests.wire import Wire

    with Wire() as wire:
        yield wire


@pytest.fixture(scope="module")
def shell(server: Wire) -> Iterator[Kernel]:
    """A kernel with nbllm loaded, whose OpenAI is the server."""
    from tests.kernel.harness import Kernel

    with Kernel(env={"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "sk-kernel-0123456789abcdef"}) as kernel:
        kernel.run("%load_ext nbllm").check()
        yield kernel


BIG = """
import gc, weakref

class Big:
    pass

def fail():
    big = Big()
    globals()["ref"] = weakref.ref(big)
    raise ValueError("x" * 10**6)
"""


def number(kernel: Kernel, code: str) -> int:
    """Run a cell; its number."""
    count = kernel.value("get_ipython().execution_count")
    kernel.run(code)
    return int(count)


def sent(kernel: Kernel, server: Wire, prompt: str) -> str:
    """What a cell with this prompt sends."""
    kernel.run(f"%%llm openai:ok --no-history --no-cache\n{prompt}").check()
    return str(server.requests[-1].body["messages"][-1]["content"])


def test_a_cells_source_is_as_it_was_typed_and_its_output_is_text(shell: Kernel, server: Wire) -> None:
    """A magic is no rewritten code, an answer is its exact text, and a number counts from the end too."""
    server.script("told", text="<b>told</b> {name}")
    asked = "%%llm openai:told -o told\nTell me {1}"
    first = number(shell, asked)
    value = number(shell, "told")
    assert sent(shell, server, f"{{In[{first}]}}|{{Out[{value}]}}") == f"{asked}|<b>told</b> {{name}}"
    assert sent(shell, server, "{In[-2]}").endswith(
        "%%llm openai:ok --no-history --no-cache\n" + f"{{In[{first}]}}|{{Out[{value}]}}"
    )


def test_an_error_is_a_short_plain_traceback(shell: Kernel, server: Wire) -> None:
    """Its type, its message and the frames of the user's own cells, without colours and without the libraries'."""
    one = number(shell, "import json\n\ndef f(text):\n    return json.loads(text)")
    two = number(shell, "x = 1\nf('{')")
    found = sent(shell, server, f"{{Err[{two}]}}")
    assert found == (
        "Traceback (most recent call last):\n"
        f"  Cell In[{two}], line 2\n"
        "    f('{')\n"
        f"  Cell In[{one}], line 4, in f\n"
        "    return json.loads(text)\n"
        "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )
    assert sent(shell, server, "{Err[-1]}") == found
    syntax = number(shell, "x = = 1")
    assert "SyntaxError: invalid syntax" in sent(shell, server, f"{{Err[{syntax}]}}")
    awaited = number(shell, "import asyncio\nawait asyncio.sleep(0)\n1/0")
    assert sent(shell, server, f"{{=Err[{awaited}]}}").endswith("    1/0\nZeroDivisionError: division by zero")


def test_a_missing_number_stays_with_a_hint(shell: Kernel, server: Wire) -> None:
    """What is not there is left as it is, and said."""
    result = shell.run("%%llm openai:ok --no-history\n{Out[999]} {Err[999]} {In[999]}").check()
    assert server.requests[-1].body["messages"][-1]["content"] == "{Out[999]} {Err[999]} {In[999]}"
    assert "there is no output 999" in result.stdout
    assert "no error is on record of execution 999" in result.stdout
    assert "there is no input 999" in result.stdout


def test_an_error_keeps_nothing_alive(shell: Kernel) -> None:
    """What a failed cell's frames held is freed as soon as IPython lets go of it."""
    shell.run(BIG).check()
    failed = number(shell, "fail()")
    shell.run(
        "import sys\nsys.last_value = sys.last_traceback = sys.last_exc = None\nsys.last_type = None; gc.collect()"
    )
    number(shell, "1/0")  # IPython's own record of the last one goes
    shell.run("gc.collect()")
    assert shell.value("ref() is None")
    assert shell.value(f"len(__import__('nbllm.magics.executions', fromlist=['x']).errors()[{failed}])") < 3000


def test_the_last_fifty_are_on_record_and_a_name_of_the_users_goes_before(shell: Kernel, server: Wire) -> None:
    """Older ones go; nothing is put into the user's names; a variable `Err` of the user's own is the user's."""
    last = [number(shell, "raise KeyError(1)") for _ in range(55)][-1]
    errors = "__import__('nbllm.magics.executions', fromlist=['x']).errors()"
    assert shell.value(f"list({errors})") == list(range(last - 49, last + 1))
    assert shell.value("'Err' in globals()") is False
    # The numbers begin anew: what was of the time before is not taken for a later cell's.
    shell.run("get_ipython().reset(new_session=True)\n%load_ext nbllm").check()
    again = number(shell, "1/0")
    assert again < 10
    assert shell.value(f"list({errors})") == [again]
    shell.run("Err = {1: 'mine'}").check()
    assert sent(shell, server, "{Err[1]}") == "mine"
    shell.run("del Err").check()
