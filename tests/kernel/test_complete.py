"""Tab in `%llm` and `%%llm`, by `complete_request` to a real kernel."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.harness import Kernel
    from tests.wire import Wire

KEY = "sk-kernel-0123456789abcdef"

CONFIG = """
model = "openai:chosen-1"
[aliases]
fast = "openai:gpt-5.4-mini"
local-one = "lab:llama3:8b"
[endpoints.lab]
base_url = "{url}/v1"
model = "llama3:8b"
"""

SETUP = """
%load_ext nbllm
import math

class Sensor:
    calls = 0
    limit = 5

    def __init__(self):
        self.name = "a"
        self._secret = 1
        self.inner = Inner()

    @property
    def reading(self):
        Sensor.calls += 1
        return Inner()

    def measure(self):
        Sensor.calls += 1

    def __getattr__(self, name):
        Sensor.calls += 1
        raise AttributeError(name)

    def __dir__(self):
        Sensor.calls += 1
        return []

class Inner:
    __slots__ = ("depth",)
    def __init__(self):
        self.depth = 1

class Proxy:
    @property
    def __class__(self):
        Sensor.calls += 1
        return Sensor
    @property
    def __dict__(self):
        Sensor.calls += 1
        return {"wrong": 1}

sensor, proxy = Sensor(), Proxy()
settings = {"first key": 1, "fine": {}, "it's": 2, 3: 4}
alphabet, _private = "abc", 1
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    """One server for all tests of this module."""
    from tests.wire import Wire

    with Wire() as wire:
        yield wire


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel's working folder, with files in it."""
    found = tmp_path_factory.mktemp("complete")
    for name in ("plot.png", "plain.txt", "my figure.png", ".hidden"):
        (found / name).touch()
    (found / "pictures").mkdir()
    (found / "pictures" / "a-b_1.png").touch()
    return found


@pytest.fixture(scope="module")
def shell(server: Wire, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel with nbllm loaded, whose OpenAI and whose endpoint are the server."""
    from tests.kernel.harness import Kernel

    config = tmp_path_factory.mktemp("config")
    (config / "nbllm").mkdir()
    (config / "nbllm" / "config.toml").write_text(CONFIG.format(url=server.url))
    env = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY, "XDG_CONFIG_HOME": str(config)}
    server.models = ["gpt-5.4-mini", "gpt-5.4", "o9-pro"]
    with Kernel(env=env, cwd=folder) as kernel:
        kernel.run(SETUP).check()
        yield kernel


def matches(kernel: Kernel, marked: str) -> list[str]:
    """The completions where `|` stands in the text, as what stands around the cursor would then be."""
    return [done for done, _ in completed(kernel, marked)]


def completed(kernel: Kernel, marked: str) -> list[tuple[str, str]]:
    """Each completion as the word that it puts there, and as the whole text."""
    before, _, behind = marked.partition("|")
    reply = kernel.complete(before + behind, len(before))
    start, end = reply["cursor_start"], reply["cursor_end"]
    text = before + behind
    return [(match, text[:start] + match + text[end:]) for match in reply["matches"]]


def only(kernel: Kernel, marked: str) -> str:
    """The whole text after the one completion that there is."""
    ((_, text),) = completed(kernel, marked)
    return text


def lists(server: Wire) -> int:
    """How often the server was asked for its models."""
    return sum(exchange.path.endswith("/models") for exchange in server.requests)


def wait_for_models(kernel: Kernel, marked: str, wanted: str) -> list[str]:
    """Ask again, as a user presses Tab again, until a live list has come."""
    end = time.monotonic() + 20
    while wanted not in (found := matches(kernel, marked)):
        assert time.monotonic() < end, found
    return found


def test_commands_and_what_stands_behind_them(shell: Kernel) -> None:
    """`%llm` completes its commands, and behind a command what belongs there."""
    from nbllm.magics.commands import COMMANDS

    assert matches(shell, "%llm |") == list(COMMANDS)
    assert matches(shell, "%llm us|") == ["use", "usage"]
    assert only(shell, "x = 1\n%llm prov|\ny = 2") == "x = 1\n%llm providers\ny = 2"
    assert only(shell, "found = %llm prov|") == "found = %llm providers"
    assert matches(shell, "%llm cache |") == ["info", "clear", "on", "off", "auto"]
    assert matches(shell, "%llm key openai key|") == ["keyring"]
    assert "huggingface-hosted" in matches(shell, "%llm models |")
    assert only(shell, "%llm models huggingface-|") == "%llm models huggingface-hosted"
    assert matches(shell, "%llm dealias |") == ["fast", "local-one"]
    assert matches(shell, "%llm delete f|") == ["fast"]  # jupyter-ai's name of it
    assert matches(shell, "%llm chat ex|") == ["export"]
    assert matches(shell, "%llm chat use |") == ["main"]
    assert only(shell, "%llm chat export pla|") == "%llm chat export plain.txt"
    assert shell.run("1/0").error is not None
    assert matches(shell, "%llm fix |") == [str(shell.value("get_ipython().execution_count") - 1)]
    assert matches(shell, "%llm version mat|") == []  # it takes nothing: and jedi is kept out


def test_every_argument_of_a_command_is_known() -> None:
    """Each argument in the table of commands has its completions, or is one of which nothing can be said."""
    from nbllm.magics.candidates import ARGUMENTS, FREE
    from nbllm.magics.commands import COMMANDS

    for name, command in COMMANDS.items():
        for argument in command.arguments:
            bare = argument.rstrip("?…")
            assert {f"{name} {bare}", bare} & {*ARGUMENTS, *FREE}, f"%llm {name} {argument}"


def test_models_are_those_known_then_those_the_provider_has(shell: Kernel, server: Wire) -> None:
    """At once there are aliases and configured models; the provider's own list is fetched behind, and then is there."""
    found = wait_for_models(shell, "%%llm |\nHi", "openai:o9-pro")
    assert found[:3] == ["openai:chosen-1", "fast", "local-one"]
    assert {"openai:gpt-5.4", "lab:llama3:8b", "huggingface:bundled", "openai", "--system"} <= set(found)
    asked = lists(server)
    assert asked
    for _ in range(5):
        matches(shell, "%%llm openai:|")
    assert lists(server) == asked  # a list is kept


@pytest.mark.parametrize(
    ("marked", "whole"),
    [
        ("%%llm openai:o9|\nHi", "%%llm openai:o9-pro\nHi"),
        ("%%llm openai:o9-|\nHi", "%%llm openai:o9-pro\nHi"),
        ("%%llm chos|", "%%llm openai:chosen-1"),
        ("%%llm lab:lla|", "%%llm lab:llama3:8b"),
        ("%%llm lab:llama3:8|", "%%llm lab:llama3:8b"),
        ("%%llm huggingface-hosted:openai/g|", "%%llm huggingface-hosted:openai/gpt-oss-20b"),
        ("%%llm OpenAI:o9|", "%%llm openai:o9-pro"),
        ("%%llm 'openai:o9|", "%%llm 'openai:o9-pro'"),
        ('%%llm "openai:o9|', '%%llm "openai:o9-pro"'),
        ("%llm use openai:o9|", "%llm use openai:o9-pro"),
        ("%%llm fast openai:o9|", "%%llm fast openai:o9-pro"),
        ("%%llm -t 0 openai:o9| -n 5\nHi", "%%llm -t 0 openai:o9-pro -n 5\nHi"),
        ("%%llm -s 'be brief' openai:o9|", "%%llm -s 'be brief' openai:o9-pro"),
        ("%%llm --fallback openai:o9|", "%%llm --fallback openai:o9-pro"),
        ("%%llm --fallback fast,openai:o9|", "%%llm --fallback fast,openai:o9-pro"),
        ("%%llm --fallback=fast,openai:o9|", "%%llm --fallback=fast,openai:o9-pro"),
        ("%llm alias big openai:o9|", "%llm alias big openai:o9-pro"),
    ],
)
def test_names_with_colons_hyphens_and_slashes_complete_as_a_whole(shell: Kernel, marked: str, whole: str) -> None:
    """What is replaced is the whole word as the shell's rules see it, in quotes too, and with more text behind."""
    provider = "lab" if "lab:" in marked else "openai"
    wait_for_models(shell, "%%llm |", f"{provider}:o9-pro")
    assert only(shell, marked) == whole


def test_a_list_that_comes_slowly_or_not_at_all_holds_nobody_up(wire: Wire) -> None:
    """While the provider is silent completions are answered, and its failure is said nowhere."""
    from tests.kernel.harness import Kernel

    script = wire.script("/models", status=500, gates=[-1])
    with Kernel(env={"OPENAI_BASE_URL": f"{wire.url}/v1", "OPENAI_API_KEY": KEY}) as kernel:
        kernel.run("%load_ext nbllm").check()
        assert matches(kernel, "%%llm openai:|") == ["openai:gpt-5.4-mini"]
        (asked,) = wire.wait_requests(1)
        assert matches(kernel, "%%llm openai:|") == ["openai:gpt-5.4-mini"]
        assert asked.outcome == "open"
        script.release()
        wire.wait_done(1)
        result = kernel.run("1").check()
        assert not result.stdout
        assert not result.stderr
        assert matches(kernel, "%%llm openai:|") == ["openai:gpt-5.4-mini"]
        assert lists(wire) == 1  # after a failure the provider is left alone for a while


def test_options_and_their_values(shell: Kernel, folder: Path) -> None:
    """Options that are not there yet, their choices, files and chats."""
    assert only(shell, "%%llm --max-|") == "%%llm --max-tokens"
    assert {"-s", "--system", "--attach", "--fallback"} <= set(matches(shell, "%%llm -|"))
    left = matches(shell, "%%llm -s x --raw -|")
    assert not {"-s", "--system", "--raw"} & set(left)
    assert matches(shell, "%%llm -f |\nHi") == ["markdown", "text", "code", "json", "html", "math"]
    assert only(shell, "%%llm --format=j|") == "%%llm --format=json"
    assert only(shell, "%%llm fast -f j| --raw\nHi") == "%%llm fast -f json --raw\nHi"
    assert matches(shell, "%%llm -s alph|") == []
    assert matches(shell, "%%llm -s 'alph be|") == []
    assert matches(shell, "%%llm --chat |") == ["main"]
    assert matches(shell, "%%llm --attach pl|") == ["plain.txt", "plot.png"]
    assert only(shell, "%%llm --attach plot.png pictures/|") == "%%llm --attach plot.png pictures/a-b_1.png"
    assert only(shell, "%%llm --attach my|") == "%%llm --attach 'my figure.png'"
    assert only(shell, "%%llm --attach 'my f|") == "%%llm --attach 'my figure.png'"
    assert only(shell, '%%llm --attach "my f|') == '%%llm --attach "my figure.png"'
    assert only(shell, "%%llm --attach my\\ f|") == "%%llm --attach my\\ figure.png"
    assert only(shell, "%%llm --attach .hi|") == "%%llm --attach .hidden"
    assert ".hidden" not in matches(shell, "%%llm --attach |")
    assert only(shell, f"%%llm --attach {folder}/plo|") == f"%%llm --attach {folder}/plot.png"


@pytest.mark.parametrize(
    ("marked", "wanted"),
    [
        ("%%llm\nSay {alph|", ["alphabet"]),
        ("%%llm fast -t 0\n\nOne\nSay {alph|} and\nmore", ["alphabet"]),
        ("%%llm\n{sensor.li|", ["limit"]),
        ("%%llm\n{sensor.na|", ["name"]),
        ("%%llm\n{sensor.inner.|", ["depth"]),
        ("%%llm\n{math.pi|", ["pi"]),
        ("%%llm\n{=len(alph|", ["alphabet"]),
        ("%%llm\n{=alphabet.upp|", ["upper"]),
        ("%%llm\n{alphabet} {alph|", ["alphabet"]),
        ('%%llm\n{settings["fi|', ['first key"]', 'fine"]']),
        ("%%llm\n{settings['first|']}", ["first key"]),
        ("%%llm\n{settings['first|]}", ["first key'"]),
        ("%%llm\n{Er|", ["Err"]),
        ("%%llm\n{_pri|", ["_private"]),
    ],
)
def test_braces_complete_the_notebooks_names(shell: Kernel, marked: str, wanted: list[str]) -> None:
    """Names, attributes and keys stand in braces of a prompt, wherever the cell's line is."""
    assert matches(shell, marked) == wanted


def test_completion_runs_no_code_of_the_users(shell: Kernel) -> None:
    """Neither properties nor `__getattr__`, `__dir__`, `__class__` and `__dict__` of a class are called."""
    found = matches(shell, "%%llm\n{sensor.|")
    assert found[:5] == ["calls", "inner", "limit", "name", "reading"]
    assert "measure" in found
    assert not any(name.startswith("_") for name in found)
    assert matches(shell, "%%llm\n{sensor.reading.|") == []
    assert matches(shell, "%%llm\n{proxy.|") == []
    assert "proxy" in matches(shell, "%%llm\n{|")
    assert "plot.png" in matches(shell, "%%llm --attach |")
    assert shell.value("Sensor.calls") == 0


@pytest.mark.parametrize(
    "marked",
    [
        "%%llm\nimport os; os.pa|",
        "%%llm\nWhat is alph|",
        "%%llm\nalphabet.|",
        "%%llm\n%ti|",
        "%%llm\nWrite {{alph|",
        "%%llm\n```python\nf'{alph|",
        "%%llm --raw\n{alph|",
        "%%llm\n{alphabet} alph|",
        "%%llm\n{nobody.|",
        "%%llm\n{f(alph|",
        "%%llm\n\\alph|",
        "%%llm\n/|",
        "%%llm\nWhat is |",
        "%%llm\n|",
    ],
)
def test_prose_is_not_completed(shell: Kernel, marked: str) -> None:
    """In prose, code fences and braces that are not filled in nothing is completed: not by jedi either."""
    assert matches(shell, marked) == []


PYTHON = [
    "alph|", "alphabet.upp|", "import mat|", "%ti|", "%%ti|", "%%ll|", "%%bash\nech|", "settings['f|",
    "x = '%llm'; alph|", "# %llm \nalph|", "%%time\nalph|", "open('pl|", "def f():\n    return alph|\n",
]  # fmt: skip


def replies(kernel: Kernel) -> list[dict[str, Any]]:
    """The whole replies for Python that is not nbllm's."""
    return [kernel.complete(marked.replace("|", ""), marked.index("|")) for marked in PYTHON]


def test_other_completion_is_untouched_and_nothing_is_left_behind(folder: Path, server: Wire) -> None:
    """Replies elsewhere are those of a kernel without nbllm, byte for byte; after `%unload_ext` all are."""
    from tests.kernel.harness import Kernel

    state = (
        "[len(get_ipython().Completer.custom_matchers), len(get_ipython().events.callbacks['post_run_cell']), "
        "len(get_ipython().Completer.matchers)]"
    )
    names = "alphabet, settings = 'abc', {'first key': 1, 'fine': 2}"
    env = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": KEY}
    with Kernel(env=env, cwd=folder) as kernel:
        kernel.run(names).check()
        before, counted = replies(kernel), kernel.value(state)
        kernel.run("%load_ext nbllm\n%reload_ext nbllm").check()
        assert kernel.value(state) == [count + 1 for count in counted]
        for marked, old, new in zip(PYTHON, before, replies(kernel), strict=True):
            if marked != "%%ll|":  # the magic itself is there now
                assert new == old, marked
        assert "%%llm" in matches(kernel, "%%ll|")
        assert matches(kernel, "%llm us|") == ["use", "usage"]
        kernel.run("%unload_ext nbllm").check()
        assert kernel.value(state) == counted
        assert replies(kernel) == before
        assert matches(kernel, "%llm us|") != ["use", "usage"]


def test_front_ends_that_send_one_line_alone_are_served(shell: Kernel) -> None:
    """IPython's older interface, and the terminal's, give the same for a line."""
    shell.run("import warnings; from IPython.core.completer import provisionalcompleter").check()
    assert shell.value("get_ipython().complete('', '%llm use huggingface-h', 22)[1]") == [
        "huggingface-hosted:openai/gpt-oss-20b",
        "huggingface-hosted",
    ]
    code = """
    from IPython.terminal.ptutils import IPythonPTCompleter
    from prompt_toolkit.document import Document
    text = "%%llm huggingface-h"
    found = [(c.text, c.start_position) for c in
             IPythonPTCompleter(get_ipython().Completer).get_completions(Document(text, len(text)), None)]
    """
    import textwrap

    shell.run(textwrap.dedent(code)).check()
    assert shell.value("found") == [["huggingface-hosted:openai/gpt-oss-20b", -13], ["huggingface-hosted", -13]]
