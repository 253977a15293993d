"""The response cache and the identity of requests."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import os
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbllm import __version__, cache_file
from nbllm.cache import Cached, ResponseCache, cache_path, prompt_hash, request_identity
from nbllm.cached import decoded, encoded
from nbllm.config import Secret
from nbllm.errors import ConfigError
from nbllm.response import Record
from nbllm.types import (
    Attachment,
    Finish,
    Message,
    ProviderEvent,
    ReasoningDelta,
    Request,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageUpdate,
)

ANSWER = Cached(
    provider="openai",
    model="gpt-5.4-mini",
    events=(
        ReasoningDelta("hm"),
        TextDelta("Grüße, 😀"),
        ToolCallDelta(0, "c0", "look", '{"a"'),
        ToolCall("c1", "look", "{}"),
        ProviderEvent("logprobs", {"a": [1, 2.5, None, True]}),
        UsageUpdate(Usage(10, 20, 5, 3, 2)),
        Finish("stop", "stop"),
    ),
    cost=0.0123,
    request_id="req_1",
)


def answer(text: str) -> Cached:
    return Cached("p", "m", (TextDelta(text), UsageUpdate(Usage(1, 2)), Finish("stop")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "responses.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[ResponseCache]:
    found = ResponseCache(path)
    yield found
    found.close()


# -- what is kept


def test_an_answer_comes_back_as_the_same_events(cache: ResponseCache, path: Path) -> None:
    """Every kind of event and all that is known of the call survive, in another instance too."""
    assert cache.get("k") is None
    assert cache.put("k", ANSWER)
    assert cache.get("k") == ANSWER
    other = ResponseCache(path)
    found = other.get("k")
    other.close()
    assert found == ANSWER
    assert found.usage == Usage(10, 20, 5, 3, 2)
    assert (found.version, found.cost, found.request_id) == (__version__, 0.0123, "req_1")


def test_the_answer_of_a_record_is_kept_whole(cache: ResponseCache) -> None:
    """A finished record's text, reasoning, tool calls, usage and cost make a record just like it when replayed."""
    record = Record(provider="openai", model="m", cost=0.5, request_id="r")
    record.add([ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("1"), TextDelta("2")])
    record.add([ToolCallDelta(0, "id", "f", "{"), ToolCallDelta(0, arguments="}"), UsageUpdate(Usage(1, 2))])
    record.add([Finish("tool_calls", "tool_use")])
    assert cache.put("k", Cached.of(record))
    found = cache.get("k")
    assert found is not None
    again = Record(provider=found.provider, model=found.model, cost=found.cost, request_id=found.request_id)
    again.add(list(found.events))
    for name in ("text", "reasoning", "tool_calls", "usage", "cost", "finish", "request_id"):
        assert getattr(again, name) == getattr(record, name), name


def test_pieces_of_text_are_joined(cache: ResponseCache) -> None:
    """What streamed in pieces is stored as one, and in its order."""
    pieces = (TextDelta("a"), TextDelta("b"), ReasoningDelta("x"), ReasoningDelta("y"), TextDelta("c"), Finish("stop"))
    assert cache.put("k", Cached("p", "m", pieces))
    found = cache.get("k")
    assert found is not None
    assert found.events == (TextDelta("ab"), ReasoningDelta("xy"), TextDelta("c"), Finish("stop"))


def test_only_whole_answers_are_kept(cache: ResponseCache, path: Path) -> None:
    """An answer without the provider's terminal event, or that is no JSON, is not stored; not even a file is made."""
    assert not cache.put("k", Cached("p", "m", (TextDelta("cut o"),)))
    assert not cache.put("k", dataclasses.replace(ANSWER, cost=float("nan")))
    assert not path.exists()


def test_what_is_no_json_is_left_out(cache: ResponseCache) -> None:
    """A provider's own event that is no JSON does not keep the answer out of the cache."""
    events = (ProviderEvent("x", object()), ProviderEvent("y", float("nan")), TextDelta("a"), Finish("stop"))
    assert cache.put("k", Cached("p", "m", events))
    found = cache.get("k")
    assert found is not None
    assert found.events == events[2:]


def test_halves_of_characters_are_replaced(cache: ResponseCache) -> None:
    """A lone surrogate cannot be stored in UTF-8, and the rest of the answer is."""
    assert cache.put("k", answer("a\ud83d b \ud83d\ude00"))
    found = cache.get("k")
    assert found is not None
    assert found.events[0] == TextDelta("a\ufffd b 😀")


def test_a_second_answer_replaces_the_first(cache: ResponseCache) -> None:
    """One key, one answer; delete and clear remove them and say how many there were."""
    for number in range(3):
        assert cache.put("k", answer(str(number)))
    cache.put("other", answer("x"))
    assert cache.get("k") == dataclasses.replace(answer("2"), created=cache.get("k").created)  # type: ignore[union-attr]
    assert cache.info().entries == 2
    assert cache.delete("k")
    assert not cache.delete("k")
    assert cache.get("k") is None
    assert cache.clear() == 1
    assert (cache.info().entries, cache.info().problem) == (0, None)


def test_nothing_is_made_before_something_is_stored(tmp_path: Path) -> None:
    """Looking, clearing and asking touch no disk; storing makes the folders too."""
    cache = ResponseCache(tmp_path / "a" / "b" / "responses.sqlite")
    assert cache.get("k") is None
    assert (cache.clear(), cache.info().entries, cache.info().bytes) == (0, 0, 0)
    assert list(tmp_path.iterdir()) == []
    assert cache.put("k", ANSWER)
    assert cache.info().bytes > 0
    cache.close()
    assert [path.name for path in cache.path.parent.iterdir()] == ["responses.sqlite"]  # no journal stays


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_the_file_is_its_owners_alone(cache: ResponseCache, path: Path) -> None:
    """Answers are private, whatever the umask."""
    before = os.umask(0)
    try:
        assert cache.put("k", ANSWER)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_deleted_answers_are_not_to_be_found_in_the_file(cache: ResponseCache, path: Path) -> None:
    """What was deleted or cleared is overwritten, and the space is given back."""
    cache.put("a", answer("a-secret-answer " * 500))
    cache.put("b", answer("another-one " * 5000))
    assert b"a-secret-answer" in path.read_bytes()
    cache.delete("a")
    assert b"a-secret-answer" not in path.read_bytes()
    size = path.stat().st_size
    cache.clear()
    assert b"another-one" not in path.read_bytes()
    assert path.stat().st_size < size


def test_the_oldest_answers_make_room(path: Path) -> None:
    """The file stays within its bound, the newest answers stay, and one too large for it is not stored."""
    cache = ResponseCache(path, max_bytes=400_000)
    for number in range(120):
        assert cache.put(f"k{number}", answer(f"{number} " * 3000))
    assert path.stat().st_size < 500_000
    assert cache.get("k119") is not None
    assert cache.get("k0") is None
    assert cache.info().entries > 20
    assert not cache.put("large", answer("x" * 200_000))
    assert cache.get("k119") is not None
    cache.close()


def test_a_cached_answer_is_there_at_once(cache: ResponseCache) -> None:
    """An answer of 2,000 tokens is read in much less than the 5 ms that a replay may take."""
    cache.put("k", answer("token " * 2000))
    took = []
    for _ in range(20):
        started = time.perf_counter()
        assert cache.get("k") is not None
        took.append(time.perf_counter() - started)
    assert sorted(took)[10] < 0.005


# -- several at once


WRITER = """
import sys
from nbllm import cache_file
cache_file.WAIT = 30  # on a busy machine the lock may be somebody else's for longer than a cell should wait
from nbllm.cache import Cached, ResponseCache
from nbllm.types import Finish, TextDelta
me, path = sys.argv[1:]
cache = ResponseCache(path)
stored = sum(cache.put(f"{me}-{i % 20}", Cached("p", me, (TextDelta(f"{me} {i} " * 200), Finish("stop"))))
             for i in range(60))
found = sum(cache.get(f"{who}-{i}") is not None for who in "abc" for i in range(20))
print(stored, found, cache.info().problem)
"""


def test_several_kernels_share_one_file(path: Path, cache: ResponseCache) -> None:
    """Three processes that write and read at once lose nothing and damage nothing."""
    started = [
        subprocess.Popen([sys.executable, "-c", WRITER, who, str(path)], stdout=subprocess.PIPE, text=True)
        for who in "abc"
    ]
    for process in started:
        stored, found, problem = process.communicate(timeout=60)[0].split()
        assert (stored, problem) == ("60", "None")
        assert int(found) >= 20
    assert all(cache.get(f"{who}-{number}") is not None for who in "abc" for number in range(20))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_threads_share_one_cache(cache: ResponseCache) -> None:
    """Threads may use the same instance at once."""
    lost: list[str] = []

    def work(me: int) -> None:
        for number in range(30):
            key = f"{me}-{number % 5}"
            if not cache.put(key, answer(key)) or cache.get(key) is None:
                lost.append(key)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert lost == []
    assert cache.info().entries == 30


FORK = """
import os, sys, threading, time
from nbllm import cache_file
cache_file.WAIT = 30
from nbllm.cache import Cached, ResponseCache
from nbllm.types import Finish, TextDelta
cache = ResponseCache(sys.argv[1])
def put(key): return cache.put(key, Cached("p", "m", (TextDelta(key * 1000), Finish("stop"))))
assert put("before")
busy = threading.Event()
def write():
    while not busy.is_set():
        put("busy")
        time.sleep(0.001)  # SQLite's waiting for a lock is not fair
thread = threading.Thread(target=write, daemon=True)
thread.start()
for number in range(10):
    child = os.fork()
    if child == 0:
        fine = cache.get("before") is not None and put(f"child{number}")
        cache.close()
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
busy.set()
thread.join()
assert put("after")
keys = ("before", "busy", "after", *(f"child{number}" for number in range(10)))
print(sum(cache.get(key) is not None for key in keys))
cache.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_uses_a_connection_of_its_own(path: Path) -> None:
    """Forked while another thread writes, the child neither hangs nor harms, and both go on."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("13", 0), done.stderr
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_locked_file_is_a_miss(
    cache: ResponseCache, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While another program holds the file, nothing is read or stored, nothing is raised, and one warning is logged."""
    monkeypatch.setattr(cache_file, "WAIT", 0.05)
    assert cache.put("k", ANSWER)
    cache.close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.WARNING, "nbllm.cache"):
        assert cache.get("k") is None
        assert not cache.put("k2", ANSWER)
        assert "locked" in (cache.info().problem or "")
    assert len(caplog.records) == 1
    other.execute("ROLLBACK")
    other.close()
    assert cache.get("k") == ANSWER
    assert cache.put("k2", ANSWER)
    assert cache.info().problem is None


# -- what can be wrong with the file


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "nbllm.cache")
    return caplog


def filled(path: Path, answers: int = 60) -> None:
    cache = ResponseCache(path)
    for number in range(answers):
        cache.put(f"k{number}", answer(f"{number} " * 1000))
    cache.close()


def used(path: Path) -> None:
    """Look for everything that `filled` put there, then store and read: nothing is raised, and the cache works."""
    cache = ResponseCache(path)
    for number in range(60):
        cache.get(f"k{number}")
    assert cache.put("new", ANSWER)
    assert cache.get("new") == ANSWER
    cache.close()


def test_a_torn_file_is_set_aside(path: Path, warnings: pytest.LogCaptureFixture) -> None:
    """A file cut in the middle is kept under another name, and a new cache takes its place."""
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    used(path)
    (aside,) = path.parent.glob("responses.sqlite.broken-*")
    assert aside.read_bytes() == whole[: len(whole) // 2]
    assert len(warnings.records) == 1
    assert aside.name in warnings.text


@pytest.mark.parametrize("content", [b"no database at all", b"\0" * 5000, os.urandom(9000), b"SQLite format 3\0"])
def test_what_is_no_database_under_our_name_is_set_aside(path: Path, content: bytes) -> None:
    """Random bytes, zeros, a header alone: kept under another name, and a new cache takes their place."""
    path.write_bytes(content)
    used(path)
    (aside,) = path.parent.glob("responses.sqlite.broken-*")
    assert aside.read_bytes() == content


def test_an_empty_file_becomes_a_cache(path: Path) -> None:
    """An empty file is nobody's."""
    path.touch()
    assert ResponseCache(path).get("k") is None
    used(path)
    assert len(list(path.parent.iterdir())) == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_survived(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes are overwritten or cut off, nothing is raised: an answer or a miss, and the cache works on."""
    path = tmp_path_factory.mktemp("damaged") / ".nbllm-cache.sqlite"
    filled(path, 12)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(content) - 1)))
        junk = data.draw(st.binary(min_size=1, max_size=64))
        content[at : at + len(junk)] = junk
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))])
    cache = ResponseCache(path)
    for number in range(12):
        found = cache.get(f"k{number}")
        assert found is None or isinstance(found, Cached)
    stored = cache.put("new", ANSWER)
    marked = path.read_bytes()[68:72] == b"nblm"
    assert stored == (cache.get("new") == ANSWER)
    assert stored or not marked or cache.info().problem is not None
    cache.close()


@pytest.mark.parametrize("name", ["responses.sqlite", "theirs.db"])
def test_another_programs_database_is_left_alone(tmp_path: Path, name: str, warnings: pytest.LogCaptureFixture) -> None:
    """A database that does not bear nbllm's mark is not written or renamed, even under nbllm's own name."""
    path = tmp_path / name
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE answers (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, record BLOB NOT NULL)")
    other.commit()
    other.close()
    before = path.read_bytes()
    cache = ResponseCache(path)
    for _ in range(3):
        assert cache.get("k") is None
        assert not cache.put("k", ANSWER)
    assert (cache.clear(), cache.delete("k")) == (0, False)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert len(warnings.records) == 1
    assert "another program" in warnings.text
    assert "cache_place" in warnings.text
    assert "another program" in (cache.info().problem or "")


def test_another_file_at_a_place_of_the_users_is_left_alone(tmp_path: Path) -> None:
    """A document that `cache_place` names by mistake is not renamed."""
    path = tmp_path / "thesis.docx"
    path.write_bytes(b"years of work")
    cache = ResponseCache(path)
    assert not cache.put("k", ANSWER)
    assert path.read_bytes() == b"years of work"
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_of_a_newer_nbllm_is_left_alone(path: Path) -> None:
    """Two versions that run side by side do not take turns in setting the file aside."""
    filled(path, 1)
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 99")
    other.close()
    before = path.read_bytes()
    cache = ResponseCache(path)
    assert cache.get("k0") is None
    assert not cache.put("k", ANSWER)
    assert "newer" in (cache.info().problem or "")
    cache.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE answers",
        "CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END",
        "CREATE VIEW v AS SELECT 1",
        "ALTER TABLE answers ADD COLUMN more",
        "PRAGMA user_version = 0",
        "PRAGMA journal_mode = WAL",
    ],
)
def test_a_cache_with_other_tables_is_set_aside(path: Path, statement: str) -> None:
    """Triggers and views of somebody else's never run: only the very schema that nbllm makes is used."""
    filled(path, 1)
    other = sqlite3.connect(path)
    other.execute(statement)
    other.commit()
    other.close()
    used(path)
    assert len(list(path.parent.glob("responses.sqlite.broken-*"))) == 1


def test_a_file_that_is_deleted_or_replaced_under_our_hands(cache: ResponseCache, path: Path, tmp_path: Path) -> None:
    """The file that lies at the path counts, not the one that was opened once."""
    assert cache.put("k", ANSWER)
    path.unlink()
    assert cache.get("k") is None
    assert cache.put("k2", ANSWER)
    assert path.exists()
    filled(tmp_path / "other.sqlite", 3)
    (tmp_path / "other.sqlite").replace(path)
    assert cache.get("k1") is not None
    path.write_bytes(b"")
    assert cache.get("k1") is None
    assert cache.put("k", ANSWER)
    assert cache.get("k") == ANSWER


def test_a_document_written_over_an_open_cache_is_not_renamed(tmp_path: Path) -> None:
    """What was the cache and is now somebody else's database is left alone, though it is open."""
    path, theirs = tmp_path / "mine.sqlite", tmp_path / "theirs.sqlite"
    cache = ResponseCache(path)
    assert cache.put("k", ANSWER)
    other = sqlite3.connect(theirs)
    other.execute("CREATE TABLE precious (x)")
    other.close()
    path.write_bytes(theirs.read_bytes())  # in place: the same inode
    assert cache.get("k") is None
    assert not cache.put("k", ANSWER)
    assert path.read_bytes() == theirs.read_bytes()
    assert {found.name for found in tmp_path.iterdir()} == {"mine.sqlite", "theirs.sqlite"}
    cache.close()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    """Where nothing can be written, calls go on without a cache, and one warning is logged."""
    (tmp_path / "file").touch()
    cache = ResponseCache(tmp_path / "file" / "responses.sqlite")
    for _ in range(3):
        assert cache.get("k") is None
        assert not cache.put("k", ANSWER)
    assert (cache.info().entries, cache.info().problem is not None) == (0, True)
    assert 1 <= len(warnings.records) <= 2  # one for each thing that was tried


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "\ud800"])
def test_a_path_that_is_none_is_no_error(path: str) -> None:
    """Whatever the path, there is only no cache."""
    cache = ResponseCache(Path("/tmp") / path)
    assert cache.get("k") is None
    assert not cache.put("k", ANSWER)
    assert cache.info().problem


READ_ONLY = """
import os, sys
from nbllm.cache import Cached, ResponseCache
from nbllm.types import Finish, TextDelta
if os.geteuid() == 0:
    os.seteuid(65534)  # permissions do not stop root
cache = ResponseCache(sys.argv[1])
print(cache.get("k0") is not None, cache.put("k", Cached("p", "m", (Finish("stop"),))), cache.get("k0") is not None)
"""


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions of POSIX")
def test_a_read_only_cache_is_read(tmp_path: Path) -> None:
    """A notebook in a read-only folder runs from the cache beside it; new answers are not stored."""
    path = tmp_path / ".nbllm-cache.sqlite"
    filled(path, 1)
    path.chmod(0o444)
    opened = [tmp_path, *(folder for folder in tmp_path.parents if folder.stat().st_uid == os.geteuid())]
    modes = {folder: folder.stat().st_mode for folder in opened}
    try:
        for folder, mode in modes.items():
            folder.chmod(mode | 0o055 if folder != tmp_path else 0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(path)], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert done.stdout.split() == ["True", "False", "True"], done.stderr


FULL = """
import resource, signal, sys
from nbllm.cache import Cached, ResponseCache
from nbllm.types import Finish, TextDelta
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
cache = ResponseCache(sys.argv[1])
stored = [cache.put(f"k{i}", Cached("p", "m", (TextDelta(f"{i} " * 5000), Finish("stop")))) for i in range(40)]
print(stored[0], all(stored), cache.info().problem is not None)
print(all(cache.get(f"k{i}") is not None for i, there in enumerate(stored) if there))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_no_error(path: Path, cache: ResponseCache) -> None:
    """Where the file cannot grow, answers are not stored, and those that were can be read."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["True", "False", "True", "True"], done.stderr
    assert cache.get("k0") is not None
    assert cache.put("k", ANSWER)


# -- a file of somebody else's


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link in a cloned repository makes nbllm neither write nor rename what it points to."""
    target = tmp_path / "elsewhere" / "precious.sqlite"
    target.parent.mkdir()
    link = tmp_path / ".nbllm-cache.sqlite"
    link.symlink_to(target)
    cache = ResponseCache(link)
    assert not cache.put("k", ANSWER)
    assert not target.exists()
    filled(target, 2)
    assert cache.get("k0") is None
    assert link.is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    """What is no plain file is not opened: a pipe would wait for ever."""
    os.mkfifo(tmp_path / ".nbllm-cache.sqlite")
    cache = ResponseCache(tmp_path / ".nbllm-cache.sqlite")
    assert cache.get("k") is None
    assert not cache.put("k", ANSWER)


def foreign_journal(database: Path, victim: Path) -> bytes:
    """A journal that names a super-journal: SQLite removes the file named there when it has rolled back."""
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(victim).encode()
    head = magic + struct.pack(">IIIII", 0, 0, database.stat().st_size // 4096, 512, 4096)
    named = struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name))
    return head.ljust(512, b"\0") + named + magic


def test_a_foreign_journal_deletes_nothing(tmp_path: Path) -> None:
    """SQLite lets a journal beside the database name a file to delete; nbllm renames such a journal first."""
    path, victim = tmp_path / ".nbllm-cache.sqlite", tmp_path / "victim.txt"
    journal = tmp_path / ".nbllm-cache.sqlite-journal"
    filled(path, 1)

    victim.write_text("precious")
    journal.write_bytes(foreign_journal(path, victim))
    plain = sqlite3.connect(path)
    plain.execute("SELECT count(*) FROM answers").fetchone()
    plain.close()
    assert not victim.exists()  # the attack works on SQLite itself, else this test shows nothing

    victim.write_text("precious")
    journal.write_bytes(foreign_journal(path, victim))
    cache = ResponseCache(path)
    assert cache.get("k0") is not None
    assert cache.put("k", ANSWER)
    cache.close()
    assert victim.read_text() == "precious"
    assert not journal.exists()

    journal.symlink_to(victim)
    assert cache.put("k", ANSWER)
    cache.close()
    assert victim.read_text() == "precious"


CRASH = """
import os, sys
from nbllm.cache import ResponseCache
cache = ResponseCache(sys.argv[1])
assert cache.get("k0")
connection = cache._connection
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE answers SET record = zeroblob(300000)")
os._exit(9)
"""


def test_a_crash_in_the_middle_of_a_write_is_rolled_back(path: Path) -> None:
    """A journal that nbllm left in a crash is SQLite's to roll back: no answer is lost."""
    filled(path, 20)
    subprocess.run([sys.executable, "-c", CRASH, str(path)], timeout=60, check=False)
    assert path.with_name("responses.sqlite-journal").exists()
    cache = ResponseCache(path)
    assert all(cache.get(f"k{number}") is not None for number in range(20))
    cache.close()
    assert list(path.parent.glob("*.broken-*")) == []


GOOD: dict[str, Any] = json.loads(encoded(ANSWER))


def test_the_stored_form_is_plain_json(cache: ResponseCache, path: Path) -> None:
    """What is stored is JSON, and an answer in it is read back."""
    cache.put("k", ANSWER)
    connection = sqlite3.connect(path)
    ((record,),) = connection.execute("SELECT record FROM answers").fetchall()
    connection.close()
    assert json.loads(record) == GOOD
    assert decoded(json.dumps(GOOD).encode()) == ANSWER


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"cost": NaN}',
        b"1" * 10_000,
        "text, not bytes",
        17,
        b"x" * (cache_file.LARGEST + 5000),
        *(
            json.dumps({**GOOD, **change}).encode()
            for change in (
                {"more": 1},
                {"cost": -1},
                {"cost": True},
                {"cost": "1"},
                {"created": "yesterday"},
                {"created": None},
                {"provider": None},
                {"request_id": 5},
                {"events": None},
                {"events": []},
                {"events": [["text", {"text": "no end"}]]},
                {"events": [["text", {"text": 1}], ["finish", {"reason": "stop"}]]},
                {"events": [["text", {"text": "a", "more": 1}], ["finish", {"reason": "stop"}]]},
                {"events": [["shell", {"text": "a"}], ["finish", {"reason": "stop"}]]},
                {"events": [[["text"], {"text": "a"}], ["finish", {"reason": "stop"}]]},
                {"events": [["finish", {"reason": "because"}]]},
                {"events": [["finish", {}]]},
                {"events": [["finish"]]},
                {"events": [["usage", {"usage": {"input_tokens": -5}}], ["finish", {"reason": "stop"}]]},
                {"events": [["usage", {"usage": {"input_tokens": 1.5}}], ["finish", {"reason": "stop"}]]},
                {"events": [["usage", {"usage": {"input_tokens": 10**400}}], ["finish", {"reason": "stop"}]]},
                {"events": [["usage", {"usage": {"dollars": 5}}], ["finish", {"reason": "stop"}]]},
                {"events": [["provider", {"kind": "x", "data": "\ud800"}], ["finish", {"reason": "stop"}]]},
            )
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_record_that_is_not_an_answer_is_a_miss(cache: ResponseCache, path: Path, record: object) -> None:
    """A row whose JSON is wrong in any way is a miss, is deleted, and harms no other."""
    cache.put("k", ANSWER)
    cache.put("other", ANSWER)
    cache.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE answers SET record = ? WHERE key = 'k'", (record,))
    connection.commit()
    connection.close()
    assert cache.get("k") is None
    assert cache.get("other") == ANSWER
    assert cache.info().entries == 1


# -- where it lies


def test_the_cache_lies_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's folder, beside the notebook, or at a path."""
    monkeypatch.chdir(tmp_path)
    place = Path(platformdirs.user_cache_dir("nbllm", appauthor=False)) / "responses.sqlite"
    assert cache_path("user", notebook=None, environ={}) == place
    assert cache_path("~/x.sqlite", notebook=None, environ={}) == Path("~/x.sqlite").expanduser()
    assert cache_path("x.sqlite", notebook=None, environ={}) == tmp_path / "x.sqlite"
    assert cache_path(str(tmp_path), notebook=None, environ={}) == tmp_path / "responses.sqlite"
    for wrong in ("", " ", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(ConfigError, match="cache_place"):
            cache_path(wrong, notebook=None, environ={})


def test_the_notebooks_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the front end says, by Jupyter's variable where it names what is there, else the working folder."""
    here, sub = tmp_path / "here", tmp_path / "here" / "sub"
    sub.mkdir(parents=True)
    (sub / "a.ipynb").touch()
    monkeypatch.chdir(here)

    def found(notebook: Path | None = None, session: str | None = None) -> Path:
        path = cache_path("notebook", notebook=notebook, environ={"JPY_SESSION_NAME": session} if session else {})
        assert path.name == ".nbllm-cache.sqlite"
        return path.parent

    assert found() == here
    assert found(sub / "a.ipynb", "elsewhere/b.ipynb") == sub
    assert found(Path("sub/a.ipynb")) == sub
    assert found(session=str(sub / "a.ipynb")) == sub
    assert found(session=str(sub / "renamed-since.ipynb")) == sub
    assert found(session="sub/a.ipynb") == sub
    assert found(session="work/a.ipynb") == here  # relative to the server's folder, unknown here
    assert found(session=str(tmp_path / "gone" / "a.ipynb")) == here
    assert found(session="Console 1") == here
    assert found(session="a\0.ipynb") == here
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert cache_path("notebook", notebook=None, environ={}) == cache_path("user", notebook=None, environ={})
    os.chdir(tmp_path)


# -- the identity of requests


class Colour(enum.Enum):
    RED = "red"


class Answer(pydantic.BaseModel):
    name: str
    size: int = 3


@dataclasses.dataclass
class Thinking:
    budget: int


IMAGE = Attachment("image/png", b"png", "a.png")
REQUEST = Request(
    provider="openai",
    model="m",
    messages=(Message("system", "s"), Message("user", "u", (IMAGE,)), Message("tool", "t", tool_call_id="c")),
    options={"seed": 1, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
)


def identity(request: Request = REQUEST, base_url: str | None = None, **extra: Any) -> str | None:
    return request_identity(request, base_url=base_url, extra=extra)


CHANGES: dict[str, Any] = {
    "provider": "mistral",
    "model": "M",
    "messages": REQUEST.messages[:2],
    "max_tokens": 3999,
    "temperature": 0.1,
    "options": {**REQUEST.options, "seed": 2},
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Request)])
def test_each_field_that_is_asked_makes_another_identity(name: str) -> None:
    """Every field counts but the two that say how a request is sent; a new field must be decided here."""
    if name in ("explicit", "dropped"):
        other = dataclasses.replace(REQUEST, **{name: frozenset({"temperature"})})
        assert identity(other) == identity()
    else:
        assert identity(dataclasses.replace(REQUEST, **{name: CHANGES[name]})) != identity()


@pytest.mark.parametrize(
    "message",
    [
        Message("assistant", "u", (IMAGE,)),
        Message("user", "U", (IMAGE,)),
        Message("user", "u"),
        Message("user", "u", (dataclasses.replace(IMAGE, data=b"PNG"),)),
        Message("user", "u", (dataclasses.replace(IMAGE, media_type="image/gif"),)),
        Message("user", "u", (dataclasses.replace(IMAGE, name="b.png"),)),
        Message("user", "u", (IMAGE, IMAGE)),
        Message("user", "u", (IMAGE,), (ToolCall("c", "f", "{}"),)),
        Message("user", "u", (IMAGE,), tool_call_id="c"),
    ],
)
def test_each_part_of_a_message_makes_another_identity(message: Message) -> None:
    """Whatever of a message the model may see counts, in the identity and in the prompt's hash."""
    first, _, last = REQUEST.messages
    other = dataclasses.replace(REQUEST, messages=(first, message, last))
    assert identity(other) != identity()
    assert prompt_hash(other) != prompt_hash(REQUEST)


def test_the_prompts_hash_is_of_the_messages_alone() -> None:
    """The same prompt to another model, in another mood, has the same hash, of 64 hexadecimal digits."""
    other = dataclasses.replace(REQUEST, model="x", provider="y", temperature=1.0, options={})
    assert prompt_hash(other) == prompt_hash(REQUEST)
    assert len(bytes.fromhex(prompt_hash(REQUEST))) == 32
    assert len(bytes.fromhex(identity() or "")) == 32


def test_the_identity_stays_the_same_from_version_to_version() -> None:
    """A cache is of use only as long as its keys are: a change to the form must be meant, and `FORM` raised."""
    simple = Request("openai", "gpt-5.4-mini", (Message("user", "Hello"),))
    assert request_identity(simple, base_url=None) == IDENTITY
    assert prompt_hash(simple) == PROMPT_HASH


IDENTITY = "b7e84d96c7a071d6cb756a7788eb274d5cbe2b3e3a5c0a44f82fc0efe9c9bc9d"
PROMPT_HASH = "b2cb4cd98d62dc73cb1725769a28a23cb54080d95f81f57ba07fc98be98dcee6"


def test_where_it_is_sent_and_what_else_is_known_count() -> None:
    """The base URL, and a local model's revision, adapter and quantization; a URL may be written in many ways."""
    assert identity(base_url="http://a/v1") != identity()
    assert identity(base_url="http://a/v1") != identity(base_url="http://b/v1")
    same = ["http://a/v1", "http://A:80/v1/", "HTTP://a/v1"]
    assert len({identity(base_url=url) for url in same}) == 1
    assert identity(base_url="http://a/V1") != identity(base_url="http://a/v1")
    assert identity(base_url="https://[::1]:8000/v1/") == identity(base_url="https://[::1]:8000/v1")
    assert identity(base_url="http://a:99999999/") is not None
    assert identity(revision="1") != identity(revision="2")
    assert identity(quantization="nf4") != identity(adapter="nf4")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any, order: Any) -> Any:
    """The same content: dicts in another order, tuples for lists, floats for whole numbers."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], order) for key in order.sample(list(value), len(value))}
    if isinstance(value, list):
        return tuple(shuffled(item, order) for item in value)
    if type(value) is int and abs(value) < 2**53:
        return float(value)
    return value


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_dicts_and_the_kind_of_sequence_and_number_do_not_matter(
    options: dict[str, Any], order: Any
) -> None:
    """Equal content has one identity, however it was written down."""
    given_ = dataclasses.replace(REQUEST, options=options)
    other = dataclasses.replace(REQUEST, options=shuffled(options, order), temperature=0)
    assert identity(given_) is not None
    assert identity(given_) == identity(other)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_other_content_has_another_identity(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two options have the same identity only where they are equal; True is not 1."""

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: told(item) for key, item in value.items()}
        if isinstance(value, list):
            return [told(item) for item in value]
        return (isinstance(value, bool), value)

    equal = told(one) == told(other)
    same = identity(dataclasses.replace(REQUEST, options=one)) == identity(dataclasses.replace(REQUEST, options=other))
    assert same == equal


def test_what_is_no_json_counts_by_its_content() -> None:
    """Models of pydantic and their classes, dataclasses, enums, bytes, sets and whole-number keys can be told apart."""

    def of(value: Any) -> str | None:
        return identity(dataclasses.replace(REQUEST, options={"x": value}))

    for one, same, other in (
        (Answer(name="a"), Answer(name="a"), Answer(name="b")),
        (Thinking(1), Thinking(1), Thinking(2)),
        (b"a", bytearray(b"a"), b"b"),
        ({"a", "b", "c"}, frozenset(("c", "b", "a")), {"a"}),
        (Colour.RED, "red", "blue"),
        ({50256: -100}, {"50256": -100}, {50257: -100}),
        (Answer, Answer, Thinking(1)),
        ([1, 2], (1, 2.0), [1, 3]),
    ):
        assert of(one) is not None, one
        assert of(one) == of(same)
        assert of(one) != of(other)


def test_what_cannot_be_told_has_no_identity() -> None:
    """A request with a function, a key, a number that is none, or what holds itself is not cached."""
    endless: list[Any] = []
    endless.append(endless)

    class Broken(Answer):
        def model_dump(self, **how: Any) -> dict[str, Any]:
            raise RuntimeError

    unknown = (print, object(), Secret("k"), float("nan"), endless, {1: 2, "1": 3}, {(1,): 2}, Broken(name="x"))
    for value in (*unknown, Thinking, 10**5000):
        assert identity(dataclasses.replace(REQUEST, options={"x": value})) is None, repr(type(value))
        assert prompt_hash(dataclasses.replace(REQUEST, options={"x": value})) == prompt_hash(REQUEST)


def test_half_a_character_in_an_option_is_no_error() -> None:
    """A lone surrogate can be hashed as well."""
    assert identity(dataclasses.replace(REQUEST, options={"stop": "\ud800"})) is not None
