"""The record of calls: complete, without content unless asked, and never in a call's way."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from nbllm import ProviderManager, errors, keys, session
from nbllm import log as log_module
from nbllm.config import ConfigManager, Secret
from nbllm.log import FIELDS, CallLog, RedactingFilter
from nbllm.magics.commands import run_command
from nbllm.types import Message
from tests.wire import Wire

KEY = "sk-log-9b2e61d7f04c8a35"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\u202egnp.exe\u2028\ud800<img src=x>"

CALL: dict[str, Any] = {
    "time": 1_700_000_000.25, "provider": "openai", "model": "m", "state": "complete", "input_tokens": 3,
    "output_tokens": 5, "cached_tokens": 1, "reasoning_tokens": 2, "cost": 0.5, "cached": False, "latency": 1.5,
    "time_to_first_token": 0.25, "request_id": "req-1", "error": None, "attempts": 2, "fallback_of": ("a:b",),
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the log, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "state" / "nbllm" / "log"
    log_module._detach(logging.getLogger("nbllm"))
    keys._noted.clear()


def configured(**runtime: Any) -> ConfigManager:
    return ConfigManager(user_file=Path("no.toml"), environ=runtime.pop("environ", {}), runtime=runtime)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nbllm.log").read_text().splitlines()]


def put(log: CallLog, **changed: Any) -> None:
    log.record(CALL | changed, prompt=[Message("user", "the prompt")], answer="the answer")


# -- what is recorded


def test_a_call_is_a_line_of_all_that_is_known_of_it_but_its_content(folder: Path) -> None:
    """Times in UTC; the file is its owner's alone, and so is its folder."""
    log = CallLog(configured())
    put(log, secret_field="what else there may be")
    (record,) = lines(folder)
    assert record == {"time": "2023-11-14T22:13:20.250Z"} | {name: CALL[name] for name in FIELDS} | {
        "fallback_of": ["a:b"]
    }
    assert log.path == folder / "nbllm.log"
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    log.path.chmod(0o644)
    put(log)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_calls_of_a_manager_are_on_record_whatever_their_end(folder: Path, wire: Wire) -> None:
    """Complete, refused, cut and stopped, streaming or not; from the cache; with no word of what was said."""
    wire.script("stopped", tokens=1000, pace=0.01)
    openai = {"base_url": f"{wire.url}/v1", "api_key": KEY}
    config = configured(provider="openai", providers={"openai": openai}, max_retries=0, cache="off")

    async def main() -> None:
        async with ProviderManager(config) as manager:
            await (await manager.generate_response("the prompt", "ok"))
            await manager.generate_response("the prompt", "ok", stream=False)
            for model in ("e401", "cut"):
                with pytest.raises(errors.ProviderError):
                    await (await manager.generate_response("the prompt", model))
            stream = await manager.generate_response("the prompt", "stopped")
            await anext(stream)
            await stream.aclose()

    before = datetime.now(UTC)
    asyncio.run(main())
    found = CallLog(config).tail(10)
    assert [(record["model"], record["state"], record["error"]) for record in found] == [
        ("ok", "complete", None), ("ok", "complete", None), ("e401", "failed", "AuthenticationError"),
        ("cut", "incomplete", "IncompleteStreamError"), ("stopped", "interrupted", None),
    ]  # fmt: skip
    for record in found:
        assert record["provider"] == "openai"
        assert record["latency"] > 0
        assert abs((datetime.fromisoformat(record["time"]) - before).total_seconds()) < 60
    assert found[0]["request_id"]
    assert found[0]["output_tokens"]
    assert 0 < found[0]["time_to_first_token"] <= found[0]["latency"]
    assert "prompt" not in (folder / "nbllm.log").read_text()


def test_content_is_recorded_where_the_user_says_so_without_keys(folder: Path) -> None:
    """From the settings or the environment; long texts are cut, and not before the keys are out of them."""
    config = configured(log_content=True, providers={"openai": {"api_key": KEY}})
    edge = "x" * (log_module.LONGEST_CONTENT - 10)
    messages = [Message("system", "be brief"), Message("user", f"my key is {KEY}"), Message("user", f"{edge}{KEY}")]
    CallLog(config).record(CALL, prompt=messages, answer=f"so it is {KEY}")
    (record,) = lines(folder)
    assert record["prompt"][:2] == [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "my key is [openai]"},
    ]  # fmt: skip
    assert record["prompt"][2]["content"] == f"{edge}[openai]"
    assert record["answer"] == "so it is [openai]"
    put(CallLog(configured(environ={"NBLLM_LOG_CONTENT": "true"})))
    assert lines(folder)[-1]["answer"] == "the answer"
    put(CallLog(configured(environ={"NBLLM_LOG_CONTENT": "off"})))
    assert "answer" not in lines(folder)[-1]
    with pytest.raises(errors.ConfigError, match="log_content must be bool"):
        configured(environ={"NBLLM_LOG_CONTENT": "maybe"}).get("log_content")


@pytest.mark.parametrize("trusted", [False, True])
def test_no_project_says_what_is_logged(folder: Path, tmp_path: Path, trusted: bool) -> None:
    """Neither that content is, nor that nothing is: not even one that is trusted."""
    (tmp_path / "nbllm.toml").write_text('log_content = true\nlog = "off"\nsystem = "x"')
    config = ConfigManager(user_file=tmp_path / "config.toml", project_file=tmp_path / "nbllm.toml", environ={})
    if trusted:
        config.trust()
    assert config.get("system") == ("x" if trusted else None)
    put(CallLog(config))
    assert "answer" not in lines(folder)[0]


def test_off_means_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    """By the user's file, the environment or while it runs; and `on` takes it up again."""
    (tmp_path / "config.toml").write_text('log = "off"')
    put(CallLog(ConfigManager(user_file=tmp_path / "config.toml", environ={})))
    put(CallLog(configured(environ={"NBLLM_LOG": "off"})))
    assert not folder.exists()
    config = configured()
    log = CallLog(config)
    put(log)
    config.set("log", "off")
    put(log)
    logging.getLogger("nbllm.test").info("and this")
    assert len(lines(folder)) == 1
    config.set("log", "on")
    put(log)
    assert len(lines(folder)) == 2
    with pytest.raises(errors.ConfigError, match="log must be on or off"):
        config.set("log", "loud")


def test_what_a_server_says_is_one_line_of_ascii_and_not_without_end(folder: Path) -> None:
    """No escape sequence reaches the terminal that the file is shown in, and no key the file."""
    config = configured(providers={"openai": {"api_key": KEY}})
    put(CallLog(config), model=HOSTILE, request_id="r" * 100_000, error=f"Error{KEY}", fallback_of=(HOSTILE,) * 1000)
    content = (folder / "nbllm.log").read_bytes()
    assert content.isascii()
    assert content.count(b"\n") == 1
    assert content.rstrip(b"\n").decode().isprintable()
    assert KEY.encode() not in content
    assert len(content) < 4000
    (record,) = CallLog(config).tail(1)
    assert record["model"] == HOSTILE
    assert record["error"] == "Error[openai]"


# -- reading it back


def test_the_last_records_are_read_back_across_old_files_and_torn_lines(folder: Path) -> None:
    """Oldest first; what is no record of a call is passed over."""
    log = CallLog(configured())
    assert log.tail(5) == []
    put(log, model="m0")
    (folder / "nbllm.log").replace(folder / "nbllm.log.1")
    put(log, model="m1")
    with (folder / "nbllm.log").open("ab") as file:
        file.write(b'\n[]\n"x"\n{"time": 1}\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"provider": "openai", "mod')
    put(log, model="m2")  # the torn line before does not swallow it
    put(log, model="m3")
    assert [record["model"] for record in log.tail(10)] == ["m0", "m1", "m2", "m3"]
    assert [record["model"] for record in log.tail(2)] == ["m2", "m3"]
    assert log.tail(0) == []


WRITE = """
import sys
from pathlib import Path
from nbllm import log
from nbllm.config import ConfigManager
log.LARGEST, log.OLD = 20_000, 50
mine = log.CallLog(ConfigManager(user_file=Path("no.toml")))
print("ready", flush=True)
sys.stdin.read(1)
for number in range(220):
    mine.record({"provider": sys.argv[1], "model": str(number)}, prompt=None, answer=None)
print(mine.problem)
"""


def test_several_kernels_share_the_file_and_rotate_it_without_losing_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes at once, a dozen rotations; every record is there, whole and once."""
    monkeypatch.setattr(log_module, "OLD", 50)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, f"p{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    for process in started:
        assert process.communicate(timeout=60)[0] == "None\n"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert 6 < len(sizes) < 30
    assert max(sizes.values()) < 150_000  # nobody waits while another rotates: what comes meanwhile makes it larger
    found = CallLog(configured()).tail(10_000)
    assert sorted((record["provider"], int(record["model"])) for record in found) == [
        (f"p{n}", number) for n in range(4) for number in range(220)
    ]


def test_the_oldest_file_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log never takes more than the file and three old ones."""
    monkeypatch.setattr(log_module, "LARGEST", 2000)
    log = CallLog(configured())
    for number in range(60):
        put(log, model=str(number))
    assert sorted(path.name for path in folder.iterdir()) == [
        "nbllm.log", "nbllm.log.1", "nbllm.log.2", "nbllm.log.3", "nbllm.log.lock",
    ]  # fmt: skip
    numbers = [int(record["model"]) for record in log.tail(100)]
    assert numbers == list(range(60))[-len(numbers) :]
    assert 10 < len(numbers) < 40


def test_only_one_rotates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process is at it the record is written without waiting; the next one rotates."""
    fcntl = pytest.importorskip("fcntl")
    log = CallLog(configured())
    put(log, model="0")
    monkeypatch.setattr(log_module, "LARGEST", 500)
    with (folder / "nbllm.log.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        put(log, model="1")
        assert not (folder / "nbllm.log.1").exists()
    put(log, model="2")
    assert (folder / "nbllm.log.1").exists()
    assert [record["model"] for record in log.tail(5)] == ["0", "1", "2"]


# -- what goes wrong


def _file_in_place_of_the_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("")


def _folder_in_place_of_the_file(folder: Path) -> None:
    (folder / "nbllm.log").mkdir(parents=True)


def _full_disk(folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    folder.mkdir(parents=True)
    (folder / "nbllm.log").symlink_to("/dev/full")


@pytest.mark.parametrize("prepare", [_file_in_place_of_the_folder, _folder_in_place_of_the_file, _full_disk])
def test_a_log_that_cannot_be_written_is_in_nobodys_way(
    folder: Path, prepare: Any, capsys: pytest.CaptureFixture[str], wire: Wire
) -> None:
    """The call is answered, nothing is printed, and the log says why it is empty."""
    prepare(folder)
    config = configured(
        provider="openai", providers={"openai": {"base_url": f"{wire.url}/v1", "api_key": KEY}}, cache="off"
    )

    async def main() -> str:
        async with ProviderManager(config) as manager:
            return str(await (await manager.generate_response("Hi", "ok")))

    assert asyncio.run(main())
    log = CallLog(config)
    assert log.problem
    assert log.tail(5) == []
    assert capsys.readouterr() == ("", "")


def test_a_record_that_makes_no_sense_raises_nothing(folder: Path) -> None:
    """Times beyond the calendar, values that cannot be shown, a configuration that fails."""

    class Unshowable:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log = CallLog(configured())
    log.record({"time": 1e300}, prompt=None, answer=None)
    log.record({"model": Unshowable()}, prompt=None, answer=None)
    log.record({}, prompt=None, answer=None)
    assert lines(folder) == [{"time": None} | dict.fromkeys(FIELDS)]
    put(CallLog(configured(environ={"NBLLM_LOG": "loud"})))
    assert len(lines(folder)) == 1


# -- other loggers and handlers


def test_loading_nbllm_and_making_a_manager_touch_no_file(folder: Path) -> None:
    """The file is there after the first call, and not before."""
    code = (
        "import logging, nbllm; manager = nbllm.get_manager(); manager.get_current_provider()\n"
        "print(logging.getLogger('nbllm').handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert not folder.exists()


WARN = """
import logging, sys
from pathlib import Path
if sys.argv[1] == "configured":
    logging.basicConfig(format="%(message)s")
from nbllm import log
from nbllm.config import ConfigManager
log.CallLog(ConfigManager(user_file=Path("no.toml"))).record({"provider": "p"}, prompt=None, answer=None)
logging.getLogger("nbllm.test").warning("seen %s", "once")
logging.getLogger("nbllm.test").info("unseen")
"""


@pytest.mark.parametrize("how", ["configured", "plain"])
def test_warnings_are_still_printed_and_are_in_the_file_too(folder: Path, how: str) -> None:
    """By the program's own handlers, or where it has none by Python's last resort: once."""
    done = subprocess.run([sys.executable, "-c", WARN, how], check=True, capture_output=True, text=True)
    assert done.stderr == "seen once\n"
    call, warning = lines(folder)
    assert call["provider"] == "p"
    assert {name: warning[name] for name in ("level", "logger", "message")} == {
        "level": "WARNING", "logger": "nbllm.test", "message": "seen once",
    }  # fmt: skip
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", warning["time"])


def test_a_programs_own_handlers_get_the_record_without_its_content(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At INFO, as fields under `call`; nothing of it where INFO is not asked for."""
    log = CallLog(configured(log_content=True))
    put(log)
    assert caplog.records == []
    with caplog.at_level(logging.INFO, "nbllm"):
        put(log)
    (record,) = caplog.records
    assert record.getMessage() == "openai:m complete"
    assert record.call["latency"] == 1.5  # type: ignore[attr-defined]
    assert "the answer" not in repr(record.__dict__)
    assert [line["answer"] for line in lines(folder)] == ["the answer", "the answer"]


def test_records_are_redacted_in_every_part(folder: Path) -> None:
    """The message, its arguments, the traceback with what caused it, the stack."""
    config = configured(providers={"openai": {"api_key": KEY}})
    put(CallLog(config))
    seen: list[logging.LogRecord] = []

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    handler = Seen()
    handler.addFilter(RedactingFilter(config.redact))
    logger = logging.getLogger("nbllm.test")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        logger.warning("plain %s", "words")
        logger.warning("with %s", KEY)
        logger.warning("cut to %.3s", KEY)
        logger.warning("by name %(key)s", {"key": KEY})
        logger.warning(f"within {KEY}")
        logger.warning("too few %s %s", *[KEY])
        try:
            try:
                int(KEY)
            except ValueError as exc:
                raise RuntimeError("second") from exc
        except RuntimeError:
            logger.exception("failed")
        try:
            int(KEY)
        except ValueError:
            logger.exception("failed at once")
        logger.warning("deep", stack_info=True, extra={})
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    assert [record.getMessage() for record in seen] == [
        "plain words", "with [openai]", "cut to sk-", "by name [openai]", "within [openai]",
        "too few %s %s ('[openai]',)", "failed",
        "failed at once", "deep",
    ]  # fmt: skip
    assert seen[0].args == ("words",)
    text = logging.Formatter().format(seen[6])
    assert "ValueError: invalid literal for int() with base 10: '[openai]'" in text
    assert "RuntimeError: second" in text
    assert all(KEY not in repr(record.__dict__) for record in seen)
    logging.getLogger("nbllm.test").warning("into the file: %s", KEY)
    assert lines(folder)[-1]["message"] == "into the file: [openai]"


# -- the command


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> ProviderManager:
    """The manager of a session for `run_command`."""
    manager = ProviderManager(configured())
    monkeypatch.setattr(session, "_session", session.LLM(manager))
    return manager


def test_the_command_shows_the_last_calls(commands: ProviderManager, folder: Path) -> None:
    """A row for each, newest last, with the file's name below."""
    assert "No call is on record. " in str(run_command("log"))
    for number in range(12):
        put(commands.calls.log, model=f"m{number}")
    put(commands.calls.log, model="bad", state="failed", error="ServerError", cost=None, time_to_first_token=None)
    put(commands.calls.log, model="again", cached=True)
    table = run_command("log")
    assert len(table.rows) == 10
    shown = datetime.fromtimestamp(CALL["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert table.rows[0] == [shown, "openai:m4", "complete", "1.50", "0.25", "3", "5", "$0.50", "req-1"]
    assert table.rows[-2] == [shown, "openai:bad", "failed: ServerError", "1.50", "", "3", "5", "", "req-1"]
    assert table.rows[-1][2] == "from the cache"
    assert str(folder / "nbllm.log") in table.note
    assert "without prompts and answers" in table.note
    assert len(run_command("log 3").rows) == 3


def test_the_command_shows_hostile_records_harmlessly(commands: ProviderManager, folder: Path) -> None:
    """Whatever a server said, or another program wrote into the file."""
    put(commands.calls.log, model=HOSTILE, request_id="<script>$\\href{javascript:1}$")
    with (folder / "nbllm.log").open("a") as file:
        file.write('{"provider": {"a": 1}, "time": [], "cost": "1e9", "latency": true, "input_tokens": 1e999}\n')
    bundle = run_command("log")._repr_mimebundle_()
    for text in bundle.values():
        assert all(character.isprintable() or character == "\n" for character in text)
    assert "<script>" not in bundle["text/html"]
    assert "<img" not in bundle["text/html"]
    assert "$" not in bundle["text/html"]


def test_the_command_turns_it_off_and_on(commands: ProviderManager, capsys: pytest.CaptureFixture[str]) -> None:
    """And says where it is."""
    run_command("log off")
    put(commands.calls.log)
    assert "The log is off" in run_command("log").note
    run_command("log on")
    put(commands.calls.log)
    assert len(run_command("log").rows) == 1
    run_command("log path")
    assert capsys.readouterr().out.splitlines()[-1] == str(commands.calls.log.path)


@pytest.mark.parametrize("what", ["all", "0", "-1", "²", "1.5"])
def test_the_command_refuses_what_it_does_not_know(commands: ProviderManager, what: str) -> None:
    """With the words that it knows."""
    with pytest.raises(errors.UsageError, match="on, off or path"):
        run_command(f"log {what}")


def test_the_command_says_why_there_is_no_log(commands: ProviderManager, folder: Path) -> None:
    """A folder that cannot be made."""
    _file_in_place_of_the_folder(folder)
    put(commands.calls.log)
    assert "It cannot be written: " in run_command("log").note


def test_keys_of_the_session_are_not_logged(commands: ProviderManager, folder: Path) -> None:
    """One that was typed counts as known."""
    commands.config.store_key("openai", Secret(KEY), "session")
    keys.forget_in_session("openai")
    put(commands.calls.log, request_id=KEY)
    assert KEY not in (folder / "nbllm.log").read_text()
