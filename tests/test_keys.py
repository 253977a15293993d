"""Where keys are kept, who may read them, and that they are taken out of any text."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllm import ProviderManager, keys, session
from nbllm.config import ConfigManager, Secret
from nbllm.errors import ConfigError, MissingKeyError, NbllmError, UsageError
from nbllm.magics.commands import run_command
from tests import file_keyring
from tests.wire import Wire

KEY = "sk-keys-4f1c9a7e2b0d8635"
OTHER = "sk-other-77aa31c05e9b4d2f"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What a test keeps in the session ends with it."""
    yield
    keys._session.clear()
    keys._looked_up.clear()
    keys._noted.clear()


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A keyring that works; its file."""
    path = tmp_path / "ring.json"
    monkeypatch.setenv(file_keyring.VARIABLE, str(path))
    before = keyring.get_keyring()
    keyring.set_keyring(file_keyring.FileKeyring())
    yield path
    keyring.set_keyring(before)


def configured(folder: Path, user: str = "", **environ: str) -> ConfigManager:
    (folder / "config.toml").write_text(user)
    (folder / "config.toml").chmod(0o600)
    return ConfigManager(user_file=folder / "config.toml", environ=environ)


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


# -- the file


def test_the_file_is_its_owners_alone_at_every_moment(tmp_path: Path) -> None:
    """Whatever the umask: the folder is 0700, the file 0600, and so is what it is made of."""
    folder = tmp_path / "new" / "nbllm"
    config = ConfigManager(user_file=folder / "config.toml", environ={})
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for entry in os.scandir(folder) if folder.exists() else ():
                try:
                    seen.add(stat.S_IMODE(entry.stat().st_mode))
                except FileNotFoundError:
                    continue

    before = os.umask(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(50):
            config.store_key("openai", Secret(f"{KEY}-{number}"), "file")
    finally:
        done.set()
        watcher.join()
        os.umask(before)
    assert seen == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == ["keys.toml"]


def test_a_stored_key_is_seen_by_another_kernel_at_once(tmp_path: Path) -> None:
    """The file is read again when it has changed; each name keeps its own key, whatever characters it has."""
    odd = "sk-\"quoted\\back'slash{}#=0123"
    config, other = configured(tmp_path), configured(tmp_path)
    assert other.key("openai") is None
    config.store_key("openai", Secret(odd), "file")
    config.store_key("my.endpoint", Secret(OTHER), "file")
    keys.forget_in_session("openai")
    keys.forget_in_session("my.endpoint")
    assert other.key("openai") == Secret(odd)
    assert other.key("my.endpoint") == Secret(OTHER)
    config.forget_key("openai")
    assert other.key("openai") is None
    assert other.key("my.endpoint") == Secret(OTHER)


def test_a_file_that_others_may_read_is_not_used_and_stands_in_no_others_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the provider whose key is needed from it says so, with the command that mends it, which needs no restart."""
    path = key_file(tmp_path, f'[keys]\nMistral = "{KEY}"', 0o640)
    config = configured(tmp_path, ANTHROPIC_API_KEY=OTHER)
    manager = ProviderManager(config)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        config.key("mistral")
    assert f"chmod 600 {path}" in str(caught.value)
    assert KEY not in repr(caught.value) + caplog.text
    assert config.key("openai") is None
    assert config.key("anthropic", ("ANTHROPIC_API_KEY",)) == Secret(OTHER)
    assert manager.get_current_provider() == "anthropic"
    assert KEY not in config.redact(f"it is {KEY}")
    with pytest.raises(ConfigError, match="chmod 600"):
        config.store_key("openai", Secret(OTHER), "file")
    assert config.key("openai") is None
    path.chmod(0o600)
    assert config.key("mistral") == Secret(KEY)


def test_another_source_goes_before_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    """The key in the environment is taken, and nobody asks what the file holds."""
    key_file(tmp_path, f'[keys]\nmistral = "{KEY}"', 0o644)
    assert configured(tmp_path, MISTRAL_API_KEY=OTHER).key("mistral", ("MISTRAL_API_KEY",)) == Secret(OTHER)


def test_a_loose_key_of_the_default_provider_is_said_when_it_is_asked(tmp_path: Path) -> None:
    """The provider counts as one with a key: another model does not answer in its place without a word."""
    key_file(tmp_path, f'[keys]\nopenai = "{KEY}"', 0o644)
    manager = ProviderManager(configured(tmp_path))
    assert manager.get_current_provider() == "openai"
    with pytest.raises(ConfigError, match="chmod 600"):
        asyncio.run(manager.switch_llm_provider("openai"))


@pytest.mark.parametrize("text", ["[keys\nopenai = 1", f'openai = "{KEY}" {KEY}', 'keys = "x"', "[keys]\na = '\udcff'"])
def test_a_torn_file_is_warned_of_once_and_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """It may be about another provider, so it is no error; what it holds is neither said nor overwritten."""
    path = tmp_path / "keys.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    config = configured(tmp_path)
    assert config.key("openai") is None
    assert config.key("openai") is None
    (record,) = caplog.records
    assert "keys.toml is not used" in record.getMessage()
    assert KEY not in caplog.text
    with pytest.raises(ConfigError, match="left alone"):
        config.store_key("openai", Secret(OTHER), "file")
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")
    assert keys.in_session("openai") is None


@pytest.mark.parametrize(
    "text", ["[keys]\nopenai = 5", '[keys]\nopenai = "sk-with space"', '[keys]\nopenai = "sk-“x”"']
)
def test_a_key_in_the_file_that_is_none_is_named_by_its_place(tmp_path: Path, text: str) -> None:
    """The error says which line, and does not show it; the other keys are used."""
    key_file(tmp_path, f'{text}\nmistral = "{KEY}"')
    config = configured(tmp_path)
    with pytest.raises(ConfigError, match=r"keys\.toml: \[keys\] openai") as caught:
        config.key("openai")
    assert "with space" not in repr(caught.value)
    assert config.key("mistral") == Secret(KEY)


def test_a_file_that_holds_more_is_not_rewritten(tmp_path: Path) -> None:
    """What nbllm would not write again is not lost."""
    path = key_file(tmp_path, f'[keys]\nopenai = "{KEY}"\n[notes]\na = 1')
    config = configured(tmp_path)
    assert config.key("openai") == Secret(KEY)
    for act in (lambda: config.store_key("mistral", Secret(OTHER), "file"), lambda: config.forget_key("openai")):
        with pytest.raises(ConfigError, match=r"more than \[keys\]: notes"):
            act()
    assert "[notes]" in path.read_text()


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    """Who keeps such files elsewhere goes on doing so."""
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "k.toml"
    (tmp_path / "keys.toml").symlink_to(real)
    config = configured(tmp_path)
    config.store_key("openai", Secret(KEY), "file")
    assert (tmp_path / "keys.toml").is_symlink()
    assert KEY in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A file where the folder should be; the key is not kept in the session either."""
    (tmp_path / "file").write_text("")
    config = configured(tmp_path)
    config.key_file = type(config.key_file)(tmp_path / "file" / "keys.toml")
    with pytest.raises(ConfigError, match="cannot be written"):
        config.store_key("openai", Secret(KEY), "file")
    assert config.key("openai") is None


def test_no_project_says_where_keys_are(tmp_path: Path) -> None:
    """A `keys.toml` beside a project's file is not read, and `[keys]` in that is refused."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "nbllm.toml").write_text("max_tokens = 5")
    key_file(project, f'[keys]\nopenai = "{KEY}"')
    config = ConfigManager(user_file=tmp_path / "config.toml", project_file=project / "nbllm.toml", environ={})
    assert config.get("max_tokens") == 5
    assert config.key("openai") is None
    (project / "nbllm.toml").write_text(f'[keys]\nopenai = "{KEY}"')
    with pytest.raises(ConfigError, match="no setting 'keys'"):
        config.reload()


def test_a_configuration_with_a_key_that_others_may_read_works_and_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The user wrote it before nbllm had a file of its own."""
    path = tmp_path / "config.toml"
    path.write_text(f'[providers.openai]\napi_key = "{KEY}"')
    path.chmod(0o644)
    for _ in range(2):
        assert ConfigManager(user_file=path, environ={}).key("openai") == Secret(KEY)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"chmod 600 {path}" in record.getMessage()
    assert KEY not in caplog.text


# -- the order, the session and the keyring


def test_the_order_of_the_sources(tmp_path: Path, ring: Path) -> None:
    """Runtime, session, environment, keyring, a trusted project, keys.toml, config.toml; `key_place` says which."""
    (tmp_path / "config.toml").write_text('[providers.openai]\napi_key = "sk-of-user"')
    (tmp_path / "config.toml").chmod(0o600)
    key_file(tmp_path, '[keys]\nopenai = "sk-of-file"')
    (tmp_path / "nbllm.toml").write_text('[providers.openai]\napi_key = "sk-of-project"')
    config = ConfigManager(
        user_file=tmp_path / "config.toml",
        project_file=tmp_path / "nbllm.toml",
        environ={"OPENAI_API_KEY": "sk-of-environment"},
        runtime={"providers": {"openai": {"api_key": "sk-of-runtime"}}},
    )
    config.trust()
    keyring.set_password("nbllm", "openai", "sk-of-ring")
    keys.keep_in_session("openai", Secret("sk-of-session"))
    found = list(config._keys("openai", ("OPENAI_API_KEY",)))
    assert [key.reveal().removeprefix("sk-of-") for _, key in found] == [
        "runtime", "session", "environment", "ring", "project", "file", "user",
    ]  # fmt: skip
    assert config.key("openai", ("OPENAI_API_KEY",)) == Secret("sk-of-runtime")
    assert config.key_place("openai", ("OPENAI_API_KEY",)) == "the program's own settings"
    assert config.key_place("openai", ("OPENAI_API_KEY",), lasting=True) == "OPENAI_API_KEY"
    assert config.key_place("openai", lasting=True) == "the keyring"


def test_a_key_of_the_session_is_every_configurations(tmp_path: Path) -> None:
    """What is typed once serves the program's own managers too, and is used even where the settings had another."""
    given = ConfigManager(
        user_file=tmp_path / "no.toml", environ={}, runtime={"providers": {"openai": {"api_key": OTHER}}}
    )
    given.store_key("openai", Secret(KEY), "session")
    assert given.key("openai") == Secret(KEY)
    assert configured(tmp_path).key("openai") == Secret(KEY)
    assert not (tmp_path / "keys.toml").exists()
    assert configured(tmp_path).forget_key("openai") == ("this session",)
    assert configured(tmp_path).key("openai") is None


def test_a_key_on_the_keyring_is_seen_and_forgotten_at_once(tmp_path: Path, ring: Path) -> None:
    """By every configuration of the process, although the keyring is asked only once for each name."""
    config, other = configured(tmp_path), configured(tmp_path)
    assert other.key("openai") is None
    config.store_key("openai", Secret(KEY), "keyring")
    keys.forget_in_session("openai")
    assert KEY in ring.read_text()
    assert other.key("openai") == Secret(KEY)
    ring.write_text("{}")  # nobody asks again
    assert other.key("openai") == Secret(KEY)
    config.store_key("openai", Secret(OTHER), "keyring")
    keys.forget_in_session("openai")
    assert other.key("openai") == Secret(OTHER)
    assert config.forget_key("openai") == ("the keyring",)
    assert other.key("openai") is None
    assert OTHER not in ring.read_text()
    keyring.set_password("nbllm", "openai", KEY)
    assert other.key("openai") is None
    other.reload()
    assert other.key("openai") == Secret(KEY)


def test_forgetting_takes_a_key_out_of_all_places(tmp_path: Path, ring: Path) -> None:
    """And says of which; a second time there is nothing left."""
    config = configured(tmp_path)
    config.store_key("openai", Secret(KEY), "file")
    config.store_key("openai", Secret(KEY), "keyring")
    config.store_key("mistral", Secret(OTHER), "file")
    assert config.forget_key("openai") == ("this session", str(tmp_path / "keys.toml"), "the keyring")
    assert config.forget_key("openai") == ()
    assert config.key("openai") is None
    assert KEY not in ring.read_text() + (tmp_path / "keys.toml").read_text()
    assert config.key("mistral") == Secret(OTHER)


def test_a_keyring_that_fails_is_as_good_as_none(tmp_path: Path, ring: Path) -> None:
    """Looking a key up goes on to the next source; storing is an error without the key; the rest is forgotten."""
    ring.write_text("torn")
    config = configured(tmp_path, f'[providers.openai]\napi_key = "{OTHER}"')
    assert config.key("openai") == Secret(OTHER)
    with pytest.raises(ConfigError, match="did not store the key") as caught:
        config.store_key("openai", Secret(KEY), "keyring")
    assert KEY not in repr(caught.value) + str(caught.value)
    assert caught.value.__suppress_context__
    assert keys.in_session("openai") is None
    config.store_key("openai", Secret(KEY), "file")
    with pytest.raises(ConfigError, match="did not delete the key"):
        config.forget_key("openai")
    assert keys.in_session("openai") is None
    assert KEY not in (tmp_path / "keys.toml").read_text()


def test_without_a_usable_keyring_none_is_claimed(tmp_path: Path) -> None:
    """The tests' own keyring is `null`, which takes every key and keeps none."""
    assert keys.keyring_name() is None
    with pytest.raises(ConfigError, match="no keyring"):
        configured(tmp_path).store_key("openai", Secret(KEY), "keyring")
    assert keys.in_session("openai") is None


def test_the_next_call_uses_the_key(tmp_path: Path, wire: Wire) -> None:
    """A built provider is built anew when its key changes."""
    config = configured(tmp_path, NBLLM_OPENAI_BASE_URL=f"{wire.url}/v1", NBLLM_CACHE="off")

    async def main() -> None:
        async with ProviderManager(config) as manager:
            for key in (KEY, OTHER):
                config.store_key("openai", Secret(key), "session")
                await (await manager.generate_response("Hi", "openai:ok"))

    asyncio.run(main())
    sent = [request.headers["authorization"] for request in wire.requests]
    assert sent == [f"Bearer {KEY}", f"Bearer {OTHER}"]


def test_after_forgetting_there_is_no_key(tmp_path: Path) -> None:
    """At the provider's own address a call without one ends before it is sent, and says how to set one."""
    config = configured(tmp_path)

    async def main() -> None:
        async with ProviderManager(config) as manager:
            config.store_key("openai", Secret(KEY), "session")
            await manager.switch_llm_provider("openai")
            config.forget_key("openai")
            with pytest.raises(MissingKeyError, match="%llm key openai"):
                await manager.generate_response("Hi")

    asyncio.run(main())


# -- taking them out of a text


def test_keys_of_every_source_are_taken_out(tmp_path: Path, ring: Path) -> None:
    """The environment by its names, variables that a file names, files, the keyring, the session, and the forgotten."""
    keyring.set_password("nbllm", "mistral", "sk-ring-0123456789")
    key_file(tmp_path, '[keys]\ngoogle = "sk-file-0123456789"')
    user = (
        '[providers.anthropic]\napi_key = "sk-user-0123456789"\n[providers.openai]\napi_key_env = "PLAIN_NAME"\n'
        '[endpoints.lab]\nbase_url = "http://lab/v1"\napi_key_env = "LAB"'
    )
    config = configured(
        tmp_path, user, PLAIN_NAME="sk-named-0123456789", LAB="sk-lab-0123456789", A_TOKEN=" sk-token-0123456789\n",
        B_PASSWORD="short",
    )  # fmt: skip
    assert config.key("mistral") == Secret("sk-ring-0123456789")
    config.store_key("openai", Secret("sk-session-0123456789"), "session")
    config.store_key("openai", Secret("sk-later-0123456789"), "session")
    config.forget_key("openai")
    expected = {
        "ring": "mistral", "file": "google", "user": "anthropic", "named": "PLAIN_NAME", "lab": "LAB",
        "token": "A_TOKEN", "session": "openai", "later": "openai",
    }  # fmt: skip
    text = " ".join(f"sk-{name}-0123456789" for name in expected)
    assert config.redact(text) == " ".join(f"[{label}]" for label in expected.values())
    assert config.redact("a short word") == "a short word"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("nothing here", "nothing here"),
        ("abcdefgh1234ijklmnop", "[A]"),  # two that overlap: neither's end is left
        ("abcdefgh1234xx1234ijklmnop", "[A]xx[B]"),
        ("abcdefgh12341234ijklmnop", "[A][B]"),  # two that touch
        ("abcdefgh", "[C]"),  # the beginning of the other, alone
        ("zabcdefghz abcdefgh1234", "z[C]z [A]"),
        ("zzzzzzzzzzz", "[D]"),  # one that overlaps itself
        ("NAME_OF_KEY abcdefgh", "[E] [C]"),  # what is put in is not looked at again
        ("tiny", "tiny"),
        ("", ""),
    ],
)
def test_overlapping_keys_leave_nothing(text: str, clean: str) -> None:
    """All occurrences are found first and replaced together where they overlap."""
    known = {
        "abcdefgh1234": "A", "1234ijklmnop": "B", "abcdefgh": "C", "zzzzzzzz": "D", "NAME_OF_KEY": "E", "tiny": "F",
        "": "G",
    }  # fmt: skip
    assert keys.redacted(text, known) == clean


@given(st.text("ab", max_size=60), st.lists(st.text("ab", min_size=8, max_size=12), max_size=4))
def test_every_character_of_every_key_goes_and_no_other(text: str, found: list[str]) -> None:
    """Whatever the keys have in common."""
    covered = [False] * len(text)
    for key in found:
        for at in range(len(text)):
            if text.startswith(key, at):
                covered[at : at + len(key)] = [True] * len(key)
    left = "".join(character for character, gone in zip(text, covered, strict=True) if not gone)
    assert keys.redacted(text, dict.fromkeys(found, "K")).replace("[K]", "") == left


def test_redacting_is_cheap(tmp_path: Path) -> None:
    """A prompt of 100,000 characters, a hundred variables, twenty keys: a millisecond or so of CPU."""
    environ = {f"SOME_{n}": "x" * 40 for n in range(100)} | {f"P{n}_KEY": f"sk-{n}-0123456789abcd" for n in range(20)}
    config, text = configured(tmp_path, **environ), "lorem ipsum " * 8_000
    config.redact(text)
    before = time.process_time()
    for _ in range(20):
        assert config.redact(text) == text
    assert (time.process_time() - before) / 20 < 0.01


def test_no_repr_shows_a_key_that_is_kept(tmp_path: Path, ring: Path) -> None:
    """Not of the configuration, its file, or what the module remembers."""
    config = configured(tmp_path)
    config.store_key("openai", Secret(KEY), "file")
    config.store_key("mistral", Secret(OTHER), "keyring")
    assert config.key("openai")
    assert config.key("mistral")
    file: Any = config.key_file
    shown = repr([vars(config), vars(file), file._content(), keys._session, keys._looked_up, keys._noted])
    assert KEY not in shown
    assert OTHER not in shown


# -- the command


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigManager:
    """The configuration of a session for `run_command`."""
    config = configured(tmp_path, '[endpoints.ollama]\nmodel = "m"')
    monkeypatch.setattr(session, "_session", session.LLM(ProviderManager(config)))
    return config


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("key opnai", "Did you mean openai"),
        ("key huggingface", "needs no key"),
        ("key openai cloud", "no place for a key"),
        ("key", "takes PROVIDER"),
    ],
)
def test_a_mistaken_command_says_what_was_meant(commands: ConfigManager, line: str, said: str) -> None:
    """Before anything is asked."""
    with pytest.raises(NbllmError, match=said):
        run_command(line)


@pytest.mark.parametrize("line", [f"key {KEY}", f"key openai {KEY}", f"key {KEY} openai", f"key openai keyring {KEY}"])
def test_a_key_that_was_written_into_the_cell_is_not_said_again(commands: ConfigManager, line: str) -> None:
    """The cell is saved, so the advice is to revoke it."""
    with pytest.raises(UsageError) as caught:
        run_command(line)
    assert KEY not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(("place", "said"), [("keyring", "no keyring"), ("file", "chmod 600")])
def test_what_cannot_be_kept_is_not_asked_for(commands: ConfigManager, place: str, said: str) -> None:
    """Nobody types a key in vain."""
    key_file(commands.user_file.parent, "[keys]\n", 0o644)
    with pytest.raises(ConfigError, match=said):
        run_command(f"key openai {place}")


def test_forget_says_what_is_left(commands: ConfigManager, capsys: pytest.CaptureFixture[str]) -> None:
    """In any case of the name; an endpoint's too."""
    commands.store_key("openai", Secret(KEY), "file")
    run_command("key OpenAI forget")
    said = capsys.readouterr().out
    assert "Forgotten: this session, " in said
    assert "keys.toml." in said
    run_command("key ollama forget")
    assert "keeps no key of Ollama" in capsys.readouterr().out
    commands._environ = {"OPENAI_API_KEY": KEY}
    run_command("key openai forget")
    said = capsys.readouterr().out
    assert "still in OPENAI_API_KEY" in said
    assert KEY not in said


def test_without_a_terminal_nothing_is_typed_in_the_open(tmp_path: Path) -> None:
    """Python's getpass would read a pipe or echo what is typed: nbllm names the variable instead."""
    code = "from nbllm.magics.commands import run_command; run_command('key openai')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        input=f"{KEY}\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "UsageError: There is nobody here to ask" in done.stderr
    assert "Set OPENAI_API_KEY" in done.stderr
    assert KEY not in done.stdout + done.stderr
