"""What the store of ratings outlives, and what it says of files it cannot use."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

import pytest
import rating_worker
from rating_samples import comparison, new_rater, new_store

from cai.errors import RunDirError
from cai.human import database, schema
from cai.human.records import ANSWERS
from cai.human.store import Rater, RatingStore

pytestmark = pytest.mark.enable_socket  # processes are forked through a Unix socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ratings.sqlite"


def answer_one(store: RatingStore, rater: Rater, key: str) -> int:
    shown = store.next(rater)
    assert shown is not None
    store.answer(rater, shown.item, "a", comment="said", seconds=0.0, key=key)
    return shown.item


def filled(path: Path) -> None:
    """A store with an answer, an answer that was taken back, and an item that is open."""
    with new_store(path) as store:
        rater = new_rater(store)
        answer_one(store, rater, "k0")
        answer_one(store, rater, "k1")
        store.undo(rater, key="k2")


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def everything(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in names}


def says(path: Path, words: str) -> None:
    """Opening fails with one sentence, which names the file."""
    with pytest.raises(RunDirError) as raised:
        RatingStore.open(path)
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


# --- events are for ever ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET answer = 'b' WHERE id = 1",
        "UPDATE events SET comment = comment WHERE id = 3",
        "DELETE FROM events WHERE id = 3",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events SELECT * FROM events WHERE id = 2",
        "REPLACE INTO events SELECT 2, rater, item, kind, 'b', first, seconds, at, 'new', comment FROM events LIMIT 1",
        "REPLACE INTO events SELECT 99, rater, item, kind, 'b', first, seconds, at, key, comment FROM events LIMIT 1",
        "INSERT INTO events SELECT * FROM events WHERE id = 1 ON CONFLICT DO UPDATE SET answer = 'b'",
    ],
)
def test_events_can_be_neither_changed_nor_removed(path: Path, statement: str) -> None:
    filled(path)
    before = everything(path)
    assert len(before["events"]) == 3
    with pytest.raises(sqlite3.IntegrityError, match="events are append-only"):
        change(path, statement)
    assert everything(path) == before


@pytest.mark.parametrize(
    "values",
    [
        "1, 3, 'answer', NULL, 'a', 1.0, 'now', 'new', ''",  # an answer without one
        "1, 3, 'undo', 'a', 'a', 1.0, 'now', 'new', ''",
        "1, 3, 'answer', 'c', 'a', 1.0, 'now', 'new', ''",
        "1, 3, 'answer', 'a', 'a', -1.0, 'now', 'new', ''",
        "1, 3, 'answer', 'a', 'a', NULL, 'now', 'new', ''",
        "1, 3, 'answer', 'a', 'x', 1.0, 'now', 'new', ''",
        "1, 3, 'change', NULL, 'a', NULL, 'now', 'new', ''",
        "9, 3, 'answer', 'a', 'a', 1.0, 'now', 'new', ''",  # of an item that was not handed out
    ],
)
def test_events_that_make_no_sense_are_refused_by_the_tables_themselves(path: Path, values: str) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        for key in ("k0", "k1", "k2", "k3"):
            answer_one(store, rater, key)
        columns = "rater, item, kind, answer, first, seconds, at, key, comment"
        with store._database.transaction() as connection, pytest.raises(sqlite3.IntegrityError):
            connection.execute(f"INSERT INTO events ({columns}) VALUES ({values})")
        with store._database.transaction() as connection:
            connection.execute(
                f"INSERT INTO events ({columns}) VALUES (1, 3, 'answer', 'b', 'a', 1.0, 'now', 'new', '')"
            )


def test_what_is_committed_is_on_disk_before_it_is_confirmed(path: Path) -> None:
    with new_store(path) as store, store._database.reading() as connection:
        pragmas = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in (
            "journal_mode", "synchronous", "foreign_keys", "busy_timeout", "application_id", "user_version",
        )}  # fmt: skip
    assert pragmas == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000,
        "application_id": int.from_bytes(b"cair", "big"), "user_version": 1,
    }  # fmt: skip


# --- schema versions ----------------------------------------------------------------------------------------------

NEWER = """
CREATE TABLE notes (
    id INTEGER PRIMARY KEY, text TEXT NOT NULL
);
-- A statement; with a semicolon in its comment.
CREATE TRIGGER notes_stay BEFORE DELETE ON notes BEGIN
    SELECT RAISE(ABORT, 'stay;');
END;
INSERT INTO notes (text) SELECT 'rater ' || name FROM raters;
"""


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_an_older_store_is_brought_up_to_date_and_keeps_what_it_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    before = everything(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEWER, "CREATE INDEX by_text ON notes (text);"))
    for _ in range(2):  # the second time there is nothing to do
        with RatingStore.open(path) as store:
            assert len(list(store.ratings())) == 1
        assert version(path) == 3
        assert everything(path) == {**before, "notes": [(1, "rater Ann")]}


def test_a_new_store_has_the_newest_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEWER))
    filled(path)
    assert version(path) == 2
    assert everything(path)["notes"] == []


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    before = everything(path)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEWER + "INSERT INTO nowhere VALUES (1);"))
        with pytest.raises(sqlite3.OperationalError, match="no such table: nowhere"):
            RatingStore.open(path)
    assert (version(path), everything(path)) == (1, before)
    RatingStore.open(path).close()


def test_a_statement_without_an_end_is_not_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (id INTEGER)"))
    with pytest.raises(ValueError, match="has no end: CREATE TABLE more"):
        RatingStore.open(path)
    assert version(path) == 1


def test_a_store_of_a_newer_cai_is_refused_and_left_as_it_is(path: Path) -> None:
    filled(path)
    change(path, "PRAGMA user_version = 2")
    before = path.read_bytes()
    says(path, "was written by a newer cai (its schema is version 2, this cai knows 1); update cai")
    assert path.read_bytes() == before


def test_a_configuration_that_is_not_ours_is_explained(path: Path) -> None:
    filled(path)
    change(path, 'UPDATE store SET config = \'{"scale": "six"}\'')
    says(path, "holds a configuration of another cai: scale: Input should be 'four' or 'two'")


# --- files that are no store --------------------------------------------------------------------------------------


def test_another_programs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    change(path, "CREATE TABLE events (id)", "PRAGMA user_version = 1")
    before = path.read_bytes()
    says(path, "is no store of ratings; name another file, or move it away")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no store of ratings"),
        (b"prompt,response_a,response_b\n" * 100, "it is no database"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "it is no database"),
    ],
)
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    says(path, words)
    assert path.read_bytes() == content


def test_a_damaged_store_is_refused(path: Path) -> None:
    filled(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xee" * (len(content) - 4096))
    says(path, "it is damaged; restore it from a copy")


def test_a_missing_file_is_not_made(path: Path) -> None:
    says(path, "cannot be opened: No such file or directory")
    assert list(path.parent.iterdir()) == []


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    says(tmp_path, "is not a file")
    os.mkfifo(tmp_path / "pipe")  # which would be waited for without end
    says(tmp_path / "pipe", "is not a file")


def test_a_disk_that_cannot_hold_the_journal_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network's file system, SQLite finds no shared memory there."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, **more: connect(f"{name}&vfs=unix-dotfile", **more))
    with pytest.raises(RunDirError, match=r"is on a file system without shared memory, .*; put it on a local disk"):
        new_store(path)


# --- disks and locks ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_explained_and_loses_nothing(small_disk: Path) -> None:
    path = small_disk / "ratings.sqlite"
    with new_store(path, 200) as store:
        rater = new_rater(store)
        confirmed: list[str] = []
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"x" * 4096)

        def answer_all() -> None:
            for n in range(200):
                answer_one(store, rater, f"k{n}")
                confirmed.append(f"k{n}")

        with pytest.raises(RunDirError, match="the disk is full; what was answered is kept: free some space"):
            answer_all()
        (small_disk / "ballast").unlink()
        after = [answer_one(store, rater, f"after {n}") for n in range(3)]
        assert len(after) == 3
    with RatingStore.open(path) as store:
        assert len(list(store.ratings())) == len(confirmed) + 3


def test_a_full_disk_leaves_no_half_of_a_new_store(small_disk: Path) -> None:
    path = small_disk / "ratings.sqlite"
    with pytest.raises(RunDirError, match=r"ratings\.sqlite cannot be used: the disk is full"):
        new_store(path, [comparison(n, a="x" * 100_000) for n in range(20)])
    assert {file.name for file in small_disk.iterdir()} <= {".ratings.sqlite.lock"}
    new_store(path).close()


def test_a_write_protected_store_is_explained(small_disk: Path) -> None:
    path = small_disk / "ratings.sqlite"
    filled(path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    says(path, "must be")


def test_a_write_protected_file_can_be_read_and_says_so_when_it_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite falls back to reading, which is enough for an export."""
    filled(path)
    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda name, **more: connect(name.replace("=rw", "=ro"), **more))
        with RatingStore.open(path) as store:
            assert len(list(store.ratings())) == 1
            with pytest.raises(RunDirError, match="it is write-protected; its file and its directory must be writable"):
                store.add_rater("Bob")
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, NEWER))
        says(path, "it is write-protected")
    assert version(path) == 1


def test_a_locked_store_is_explained_and_goes_on_afterwards(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.0)
    with new_store(path) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        rater = new_rater(store)
        answer_one(store, rater, "k0")
        other.execute("BEGIN IMMEDIATE")
        says(path, "another process holds it; wait for that or stop it, and try again")
        with pytest.raises(RunDirError, match="another process holds it"):
            answer_one(store, rater, "k1")
        assert store.rater("wrong") is None  # reading waits for nobody
        assert len(list(store.ratings())) == 1
        other.execute("ROLLBACK")
        answer_one(store, rater, "k1")
        assert len(list(store.ratings())) == 2


def test_a_fault_within_a_transaction_leaves_nothing_of_it(path: Path) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        before = store.progress()
        with suppress(ZeroDivisionError), store._database.transaction() as connection:
            connection.execute("INSERT INTO raters (name, token_sha256) VALUES ('Bob', 'x')")
            raise ZeroDivisionError
        assert store.progress() == before
        answer_one(store, rater, "k0")


# --- kill -9 ------------------------------------------------------------------------------------------------------


class Heard:
    """What a worker printed until it was killed."""

    def __init__(self) -> None:
        self.asked: dict[int, str] = {}
        self.done: list[int] = []

    def hear(self, line: str) -> None:
        match line.split():
            case ["asked", item, answer, _]:
                self.asked[int(item)] = answer
            case ["done", item]:
                self.done.append(int(item))
            case other:
                raise AssertionError(other)


def work(path: Path, token: str, heard: Heard, *, death: str = "", kill_after: int | None = None) -> int:
    """Run a worker and listen; kill it after so many answers."""
    words = [sys.executable, rating_worker.__file__, str(path), token, death]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    already = len(heard.done)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):
                break  # killed amid the line
            heard.hear(line)
            if kill_after is not None and len(heard.done) - already == kill_after:
                process.send_signal(signal.SIGKILL)
    return process.returncode


def kept(path: Path) -> dict[int, str]:
    """Answers by item, each once."""
    with RatingStore.open(path) as store:
        items = chain(store.comparisons(), store.check_comparisons())
        ids = {one.id: place for place, one in enumerate(items, start=1)}
        found = [(ids[one.comparison_id], one.answer) for one in store.ratings(checks=True)]
    assert len(dict(found)) == len(found)
    return dict(found)


def check_kept(path: Path, token: str, heard: Heard) -> None:
    """All confirmed answers are there, no other than the one that was under way; its page sends it again."""
    found = kept(path)
    confirmed = {item: heard.asked[item] for item in heard.done}
    assert confirmed.items() <= found.items() <= heard.asked.items()
    pending = heard.asked.keys() - set(heard.done)
    assert len(pending) <= 1
    with RatingStore.open(path) as store:
        rater = store.rater(token)
        assert rater is not None
        for item in pending:
            answer = next(one for one in ANSWERS["four"] if one == heard.asked[item])
            store.answer(rater, item, answer, comment="", seconds=0.0, key=f"key {item}")
            heard.done.append(item)
    assert kept(path) == heard.asked


def test_a_killed_process_loses_nothing_that_was_confirmed(path: Path) -> None:
    with new_store(path, 60, 4) as store:
        token = store.add_rater("Ann")
    heard = Heard()
    for answers in (1, 9, 17):
        assert work(path, token, heard, kill_after=answers) == -signal.SIGKILL
        check_kept(path, token, heard)
    assert work(path, token, heard) == 0
    check_kept(path, token, heard)
    with RatingStore.open(path) as store:
        assert len(list(store.ratings(checks=True))) == len(heard.done) >= 60


@pytest.mark.parametrize(("death", "recorded"), [("before", 2), ("amid", 2), ("after", 3)])
def test_a_process_that_dies_within_an_answer_leaves_all_or_nothing_of_it(
    path: Path, death: str, recorded: int
) -> None:
    with new_store(path, 5) as store:
        token = store.add_rater("Ann")
    heard = Heard()
    assert work(path, token, heard, death=death) == -signal.SIGKILL
    assert (len(heard.asked), len(heard.done)) == (3, 2)
    assert len(kept(path)) == recorded
    check_kept(path, token, heard)
    assert work(path, token, heard) == 0
    assert len(kept(path)) == 5


def test_a_process_that_dies_while_it_makes_a_store_leaves_none_and_does_not_stand_in_the_way(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path[:0] = sys.argv[2:];"
        "from rating_samples import comparisons, new_store\n"
        "def some():\n"
        "    yield from comparisons(500)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "new_store(Path(sys.argv[1]), some())\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(path), *sys.path])
    assert died.returncode == -signal.SIGKILL
    assert any(file.name.startswith(".ratings.sqlite.partial") for file in path.parent.iterdir())
    assert not path.exists()
    with new_store(path, 7) as store:
        assert len(list(store.comparisons())) == 7
    assert {file.name for file in path.parent.iterdir()} == {path.name, ".ratings.sqlite.lock"}


def test_what_is_left_of_an_earlier_try_does_not_stand_in_the_way(path: Path) -> None:
    with new_store(path):
        shutil.copy(path, path.with_name(".ratings.sqlite.partial"))  # killed before it took its name
    path.unlink()
    with new_store(path, 7) as store:
        assert len(list(store.comparisons())) == 7
    assert {file.name for file in path.parent.iterdir()} == {path.name, ".ratings.sqlite.lock"}


def test_two_processes_cannot_make_one_store(path: Path) -> None:
    def made_twice() -> Iterator[object]:
        with pytest.raises(RunDirError, match=r"another process is making .*ratings\.sqlite; wait for it"):
            new_store(path)
        yield comparison("x")

    with new_store(path, made_twice()) as store:  # type: ignore[arg-type]
        assert [one.id for one in store.comparisons()] == ["x"]
