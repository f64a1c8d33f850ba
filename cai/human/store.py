"""The store of ratings: one SQLite file that raters' answers are safe in once `answer` has returned."""

import math
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Self

from pydantic import ValidationError

from cai.errors import CaiError, ConfigError, DataError, RunDirError
from cai.human.config import RatingConfig
from cai.human.database import Database, new_database
from cai.human.handout import add_items, hand_out, open_comparisons
from cai.human.records import ANSWERS, Answer, Rating, preferred_side
from cai.journal import first_problem
from cai.records import Comparison, Record, Side
from cai.visible import whole

NAME_LENGTH = 64
COMMENT_LENGTH = 2_000
KEY_LENGTH = 200

_FRONT = "SELECT item, number, first, since FROM open WHERE rater = ? ORDER BY number LIMIT 1"

_LAST_ANSWERED = """
SELECT item, first FROM handouts JOIN fronts ON fronts.rater = handouts.rater AND number = answered - 1
WHERE handouts.rater = ?
"""

_EVENT_OF_KEY = "SELECT kind, item, answer, comment FROM events WHERE rater = ? AND key = ?"

_ANSWER_BEFORE = """
SELECT answer, comment FROM events WHERE rater = ? AND item = ? AND kind = 'answer' ORDER BY id DESC LIMIT 1
"""

_OPEN_COMPARISONS = "SELECT count(*) FROM open JOIN items ON items.id = item WHERE rater = ? AND expected IS NULL"

_ANSWERED = """
SELECT expected, answer, seconds FROM standing JOIN items ON items.id = item WHERE rater = ?
"""

_RATINGS = """
SELECT comparison_id, name AS rater, answer, first, seconds, comment, at, expected AS "check"
FROM standing JOIN items ON items.id = item JOIN raters ON raters.id = standing.rater
WHERE expected IS NULL OR :checks
ORDER BY standing.id
"""


def _utc() -> datetime:
    return datetime.now(UTC)


class RatingRefused(CaiError):  # noqa: N818 (a rater meets it as an outcome)
    """An answer or undo that does not fit what the rater has in front of them; nothing was recorded."""


class Rater(Record):
    """One who rates."""

    id: int
    name: str


class Shown(Record):
    """An item in front of a rater."""

    item: int
    """The id to post back."""
    comparison: Comparison
    """With its texts. Its sources and gold label must not reach the page."""
    first: Side
    """Which response stands first (on the left, or above)."""
    number: int
    """How many items this rater has answered so far, checks included, undone answers not."""
    remaining: int
    """How many comparisons can still come to this rater after this one, checks not counted."""
    answer: Answer | None = None
    """What the rater had answered, where they came back to the item by undo."""
    comment: str = ""
    """The comment that they had given then."""


class Progress(Record):
    """How far a rater is. Answers that were taken back do not count."""

    rater: str
    answered: int
    """Comparisons that they have answered, skipped ones included, checks not."""
    skipped: int
    """How many of those they skipped."""
    checks: int
    """Attention checks that they have answered."""
    checks_failed: int
    """How many of those do not prefer the better response."""
    median_seconds: float | None
    """Median time of the comparisons answered; None where there is none."""


class RatingStore:
    """Comparisons, raters, and an append-only list of answers and undos.

    One object serves all threads of a process; other processes, forked ones too, open the file themselves.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        """Take an open file; callers use `create` and `open`."""
        self._database = database
        self._now = now
        with database.reading() as connection:
            row = connection.execute("SELECT config, source, source_sha256 FROM store").fetchone()
        try:
            self.config = RatingConfig.model_validate_json(row["config"])
        except ValidationError as error:
            raise RunDirError(f"{database.path} holds a configuration of another cai: {first_problem(error)}") from None
        self.source: str = row["source"]
        self.source_sha256: str = row["source_sha256"]

    @classmethod
    def create(
        cls,
        path: Path,
        comparisons: Iterable[Comparison],
        checks: Iterable[Comparison],
        config: RatingConfig,
        source: str,
        source_sha256: str,
        *,
        now: Callable[[], datetime] = _utc,
    ) -> Self:
        """Make a new store; a file that exists is refused. A failure leaves no file.

        Raises:
            DataError: an id comes twice, a check has no `gold`, or there is no comparison.
            RunDirError: the file exists or cannot be written.
        """
        with new_database(path) as connection:
            connection.execute(
                "INSERT INTO store VALUES (1, ?, ?, ?, ?)",
                (config.model_dump_json(), source, source_sha256, _stamp(now())),
            )
            add_items(connection, comparisons, checks, config)
            if connection.execute("SELECT 1 FROM items WHERE expected IS NULL").fetchone() is None:
                raise DataError(f"{source} holds no comparison to rate")
        return cls.open(path, now=now)

    @classmethod
    def open(cls, path: Path, *, now: Callable[[], datetime] = _utc) -> Self:
        """Open a store; an older schema is brought up to date. What is write-protected can be read.

        Raises:
            RunDirError: it is missing, locked, no store of ratings, of a newer version, or cannot be read. So do all
                methods that find it locked, its disk full or the like; nothing was written then.
        """
        database = Database.open(path)
        try:
            return cls(database, now)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_rater(self, name: str) -> str:
        """Add a rater and return their secret token; a new token for a known name replaces the old one.

        Raises:
            ConfigError: the name has no or more than 64 characters, characters that cannot be printed, or blanks around
                it.
        """
        if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
            raise ConfigError(
                f"{name[:NAME_LENGTH]!a} cannot be a rater's name; give 1 to {NAME_LENGTH} printable characters, "
                "with no blanks around them"
            )
        token = secrets.token_urlsafe(24)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO raters (name, token_sha256) VALUES (?, ?) "
                "ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256",
                (name, _token_sha256(token)),
            )
        return token

    def rater(self, token: str) -> Rater | None:
        """Whose token this is, if anyone's."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT id, name FROM raters WHERE token_sha256 = ?", (_token_sha256(token),)
            ).fetchone()
        return None if row is None else Rater(id=row["id"], name=row["name"])

    def next(self, rater: Rater) -> Shown | None:
        """The item that the rater has open, or a new one; None where nothing is left for them now.

        What others hold may come free later, so None is not for ever.
        """
        with self._database.transaction() as connection:
            now = self._now()
            comparisons = open_comparisons(connection, rater.id, self._held_until(now))
            if _front(connection, rater) is None:
                if not comparisons:
                    return None
                given = hand_out(connection, self.config, rater.id, rater.name, comparisons[0], _stamp(now))
                return _shown(connection, rater, len(comparisons) - (given == comparisons[0]))
            return _shown(connection, rater, len(comparisons))

    def answer(self, rater: Rater, item: int, answer: Answer, *, comment: str, seconds: float, key: str) -> None:
        """Record an answer in terms of responses a and b: what stood left or right is the page's to translate.

        Once this returns, the answer outlives the process and a power cut. `key` is made once for each showing: the
        same answer with the same key again changes nothing (a retry after a lost reply), whatever its seconds.
        `seconds` count at most as the time since the item was handed out or given back, by this machine's clock.

        Raises:
            RatingRefused: the item is not the one that the rater has open, the key was used for something else, the
                answer is not on the scale, or a value is out of bounds.
        """
        _check_key(key)
        if answer not in (*ANSWERS[self.config.scale], "both_bad", "skipped"):
            raise RatingRefused(f"{answer!a:.40} is not an answer of the scale `{self.config.scale}`")
        if len(comment) > COMMENT_LENGTH or not _is_text(comment):
            raise RatingRefused(
                f"a comment has at most {COMMENT_LENGTH:,} characters, and none that no file could take"
            )
        if not (math.isfinite(seconds) and seconds >= 0):
            raise RatingRefused(f"{seconds} cannot be the seconds that an answer took")
        with self._database.transaction() as connection:
            before = connection.execute(_EVENT_OF_KEY, (rater.id, key)).fetchone()
            if before is not None:
                if tuple(before) == ("answer", item, answer, comment):
                    return
                raise RatingRefused("this was answered already, and otherwise; load the page again, undo to change it")
            front = _front(connection, rater)
            if front is None or front["item"] != item:
                raise RatingRefused(f"item {item} is not the one that you have open; load the page again")
            now = self._now()
            passed = max(0.0, (now - datetime.fromisoformat(front["since"])).total_seconds())
            connection.execute(
                "INSERT INTO events (rater, item, kind, answer, first, seconds, at, key, comment) "
                "VALUES (?, ?, 'answer', ?, ?, ?, ?, ?, ?)",
                (rater.id, item, answer, front["first"], min(seconds, passed), _stamp(now), key, comment),
            )

    def undo(self, rater: Rater, *, key: str) -> Shown | None:
        """Take back the rater's last answer that stands and open its item again; None: there is nothing to take back.

        Again and again, it takes back one answer after the other; the items then come in the order they first had. The
        same key again changes nothing, and returns the item that is open.

        Raises:
            RatingRefused: the key was used for an answer.
        """
        _check_key(key)
        with self._database.transaction() as connection:
            now = self._now()
            before = connection.execute(_EVENT_OF_KEY, (rater.id, key)).fetchone()
            if before is None:
                last = connection.execute(_LAST_ANSWERED, (rater.id,)).fetchone()
                if last is None:
                    return None
                connection.execute(
                    "INSERT INTO events (rater, item, kind, first, at, key, comment) "
                    "VALUES (?, ?, 'undo', ?, ?, ?, '')",
                    (rater.id, last["item"], last["first"], _stamp(now), key),
                )
            elif before["kind"] != "undo":
                raise RatingRefused("the key of this undo was used for an answer; load the page again")
            comparisons = open_comparisons(connection, rater.id, self._held_until(now))
            return _shown(connection, rater, len(comparisons))

    def ratings(self, *, checks: bool = False) -> Iterator[Rating]:
        """The answers that stand now, in order of time; with `checks`, those to attention checks among them.

        What is answered while they are read is not among them.
        """
        with self._database.snapshot() as connection:
            for row in connection.execute(_RATINGS, {"checks": checks}):
                yield Rating.model_validate(dict(row))

    def comparisons(self) -> Iterator[Comparison]:
        """The comparisons in the order they were given, attention checks not among them."""
        return self._items("expected IS NULL")

    def check_comparisons(self) -> Iterator[Comparison]:
        """The attention checks in the order they were given."""
        return self._items("expected IS NOT NULL")

    def progress(self) -> list[Progress]:
        """How far each rater is, in the order they were added."""
        with self._database.snapshot() as connection:
            raters = connection.execute("SELECT id, name FROM raters ORDER BY id").fetchall()
            return [_progress(row["name"], connection.execute(_ANSWERED, (row["id"],)).fetchall()) for row in raters]

    def _items(self, condition: str) -> Iterator[Comparison]:
        with self._database.snapshot() as connection:
            for row in connection.execute(f"SELECT comparison FROM items WHERE {condition} ORDER BY id"):
                yield Comparison.model_validate_json(row["comparison"])

    def _held_until(self, now: datetime) -> str:
        return _stamp(now - timedelta(minutes=self.config.hold_minutes))


def _front(connection: sqlite3.Connection, rater: Rater) -> sqlite3.Row | None:
    """The hand-out that the rater has open: the first without an answer that stands."""
    row: sqlite3.Row | None = connection.execute(_FRONT, (rater.id,)).fetchone()
    return row


def _shown(connection: sqlite3.Connection, rater: Rater, comparisons: int) -> Shown | None:
    """What the rater has open, where so many further comparisons can be given to them."""
    front = _front(connection, rater)
    if front is None:
        return None
    item = connection.execute("SELECT comparison, expected FROM items WHERE id = ?", (front["item"],)).fetchone()
    still_open: int = connection.execute(_OPEN_COMPARISONS, (rater.id,)).fetchone()[0]
    before = connection.execute(_ANSWER_BEFORE, (rater.id, front["item"])).fetchone()
    return Shown(
        item=front["item"],
        comparison=Comparison.model_validate_json(item["comparison"]),
        first=front["first"],
        number=front["number"],
        remaining=comparisons + still_open - (item["expected"] is None),
        answer=None if before is None else before["answer"],
        comment="" if before is None else before["comment"],
    )


def _progress(name: str, answered: list[sqlite3.Row]) -> Progress:
    data = [row for row in answered if row["expected"] is None]
    checks = [row for row in answered if row["expected"] is not None]
    return Progress(
        rater=name,
        answered=len(data),
        skipped=sum(row["answer"] == "skipped" for row in data),
        checks=len(checks),
        checks_failed=sum(preferred_side(row["answer"]) != row["expected"] for row in checks),
        median_seconds=median(row["seconds"] for row in data) if data else None,
    )


def _check_key(key: str) -> None:
    if not 1 <= len(key) <= KEY_LENGTH or not _is_text(key):
        raise RatingRefused(f"a key has 1 to {KEY_LENGTH} characters")


def _is_text(text: str) -> bool:
    """Whether a text file can hold it: no NUL and no half of a surrogate pair."""
    return "\0" not in text and whole(text) == text


def _token_sha256(token: str) -> str:
    return sha256(token.encode(errors="surrogatepass")).hexdigest()


def _stamp(time: datetime) -> str:
    """ISO 8601 in UTC with milliseconds: stamps compare as their times do."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds")
