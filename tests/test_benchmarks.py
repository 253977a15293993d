"""The harness of the benchmarks and of the soak itself; what they measure is run by hand."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import measure
from tests.benchmarks.figure import Figure, count
from tests.benchmarks.programs.readers import PATHS
from tests.soak import __main__ as soak
from tests.soak.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELD = Figure("tokens", 1.204, "x raw", bar=1.5, detail="a 1, b 2")
SHORT = Figure("first token", 4.0, "ms more", bar=3)
BARE = Figure("a paced stream", 2.0, "x raw")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make `cell` a group with these figures."""

    def register(*figures: Figure) -> None:
        monkeypatch.setattr(benchmarks, "existing", lambda: ["core", "cell"])
        monkeypatch.setattr(benchmarks, "load", lambda name: lambda: iter(figures if name == "cell" else ()))

    return register


@pytest.mark.parametrize(
    ("value", "bar", "at_least", "verdict"),
    [
        (1.5, 1.5, False, "held"),
        (1.51, 1.5, False, "short"),
        (100, 100, True, "held"),
        (99, 100, True, "short"),
        (-3, 0, False, "held"),
        (math.nan, 1, False, "short"),
        (math.nan, 1, True, "short"),
        (99, None, False, "no bar"),
    ],
)
def test_a_figure_is_held_up_to_its_bar(value: float, bar: float | None, at_least: bool, verdict: str) -> None:
    """A bar is a most, or a least where that is said; what could not be measured is short of any."""
    assert Figure("f", value, bar=bar, at_least=at_least).verdict == verdict


def test_a_row_says_name_value_bar_and_verdict() -> None:
    """One line a figure, and one that counts them."""
    assert HELD.row.split() == ["tokens", "1.20", "x", "raw", "<=", "1.5", "held", "(a", "1,", "b", "2)"]
    assert SHORT.row.split() == ["first", "token", "4.00", "ms", "more", "<=", "3", "short"]
    assert BARE.row.split()[-2:] == ["no", "bar"]
    assert ">= 9" in Figure("f", 1, bar=9, at_least=True).row
    assert count([HELD, SHORT, BARE]) == "3 figures: 1 held, 1 short, 1 without a bar"


@pytest.mark.parametrize(("figures", "status"), [([HELD, BARE], 0), ([HELD, SHORT, BARE], 1)])
def test_the_exit_status_is_1_where_one_is_short(
    group: Callable[..., None], capsys: pytest.CaptureFixture[str], figures: list[Figure], status: int
) -> None:
    """A figure without a bar cannot fail; rows come first and the count last."""
    group(*figures)
    assert benchmarks.main(["cell"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"{'cell':<10} {figure.row}" for figure in figures), count(figures)]


def test_json_is_one_object(group: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` nothing but JSON is printed, with all of each figure; all groups are run where none is named."""
    group(HELD, SHORT)
    assert benchmarks.main(["--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["held"] is False
    assert printed["groups"]["core"] == []
    assert [figure["verdict"] for figure in printed["groups"]["cell"]] == ["held", "short"]
    assert printed["groups"]["cell"][0]["value"] == HELD.value


@pytest.mark.parametrize(
    ("main", "name", "said"),
    [
        (benchmarks.main, "cell", "cell has no figures yet; there are: core"),
        (benchmarks.main, "nonsense", "nonsense is no group; there are: core"),
        (soak.main, "nonsense", "no such part: nonsense; there are: interrupts"),
    ],
)
def test_an_unknown_name_is_refused(
    main: Callable[[list[str]], int],
    name: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names those that exist, before anything is measured."""
    monkeypatch.setattr(benchmarks, "existing", lambda: ["core"])
    with pytest.raises(SystemExit) as exit_:
        main([name])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_every_group_and_part_can_be_loaded() -> None:
    """What the two commands offer is there."""
    assert "core" in benchmarks.existing()
    assert all(callable(benchmarks.load(name)) for name in benchmarks.existing())


def test_contenders_run_by_turns_and_are_compared_round_by_round() -> None:
    """What slows a whole round down falls out of the ratio; the first round is discarded."""
    called: list[str] = []
    ours: Iterator[float] = iter([99, 2, 20, 6])
    theirs: Iterator[float] = iter([1, 1, 10, 2])

    def contender(name: str, values: Iterator[float]) -> Callable[[], float]:
        def run() -> float:
            called.append(name)
            return next(values)

        return run

    runs = measure.interleaved({"a": contender("a", ours), "b": contender("b", theirs)}, rounds=3)
    assert called == ["a", "b"] * 4
    assert runs == {"a": [2, 20, 6], "b": [1, 10, 2]}
    assert measure.ratio(runs, "a", "b") == 2
    assert measure.difference(runs, "a", "b") == 4
    assert measure.medians(runs, "ms") == "a 6.0, b 2.0 ms"


def test_a_program_that_fails_says_why() -> None:
    """Its stderr is in the error, so that a broken benchmark is not a riddle."""
    with pytest.raises(RuntimeError, match="unexpected keyword argument 'nonsense'"):
        measure.program("stream", nonsense=1)


@pytest.mark.parametrize("provider", PATHS)
def test_all_readers_read_the_same(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each contender of the token benchmark reads the whole answer, over a server in a process of its own."""
    with measure.wire() as url:
        for contender in ("nbllm", "sdk", "httpx2"):
            told = {"contender": contender, "provider": provider, "url": url, "model": "ok-5", "tokens": 5}
            assert measure.program("stream", **told, requests=1)["us"] > 0
        assert {request["model"] for request in measure.requests_of(url)} == {"ok-5"}
    monkeypatch.setenv("OPENAI_API_KEY", "set")  # the server's own variables are gone
    assert "NBLLM_OPENAI_BASE_URL" not in measure.environment()


def test_the_report_of_a_soak_counts_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures are printed, checks too, and those that do not hold are kept."""
    report = Report()
    report.figure("seen", 3)
    report.all_of("closed", 20, 20)
    report.seconds("idle", [0.1] * 19 + [9.0], at_most=0.2)  # the 95th percentile of 20 is the 19th
    assert report.failures == []
    report.all_of("kept", 19, 20)
    report.seconds("late", [0.1, 0.3], at_most=0.2)
    report.seconds("never", [])
    assert [failure.partition(":")[0] for failure in report.failures] == ["kept", "late", "never"]
    printed = capsys.readouterr().out
    assert "median 0.100, p95 0.100, max 9.000 s of 20 (p95 <= 0.2)  ok" in printed
    assert printed.count("FAILED") == 3


def test_a_soak_runs_every_part_and_exits_1_where_one_raised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that raises does not keep the others from running."""
    ran: list[str] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name.rpartition(".")[2]

        def run(self, report: Report) -> None:
            ran.append(self.name)
            assert report.times == 7
            if self.name == "kills":
                raise OSError("no more")

    monkeypatch.setattr(soak.importlib, "import_module", Part)
    assert soak.main(["kills", "browser", "--times", "7"]) == 1
    assert ran == ["kills", "browser"]
    captured = capsys.readouterr()
    assert captured.out.endswith("FAILED kills: OSError: no more\n1 failed\n")
    assert "Traceback" in captured.err
    assert soak.main(["browser", "--times", "7"]) == 0
