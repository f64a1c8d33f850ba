"""The store of ratings: what it keeps, what an answer and an undo leave, and what is refused."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from rating_samples import Clock, attention_checks, back, comparison, give, new_rater, new_store, shown, standing

from cai.errors import CaiError, ConfigError, DataError, RunDirError
from cai.human.config import RatingConfig
from cai.human.records import Answer, Rating
from cai.human.store import Progress, RatingRefused, RatingStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ratings.sqlite"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def events(store: RatingStore) -> int:
    with store._database.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])


# --- what is kept -------------------------------------------------------------------------------------------------


def test_ratings_are_what_raters_prefer_whatever_stood_first(path: Path, clock: Clock) -> None:
    """Each rater looks for a word in the texts and presses left or right; a page translates that by `first`."""
    pairs = [comparison(f"c{n}", a=f"{'good' if n % 3 else 'bad'} {n}", b="plain") for n in range(40)]
    truth: dict[tuple[str, str], Answer] = {}
    firsts: dict[tuple[str, str], str] = {}
    times: dict[tuple[str, str], str] = {}
    with new_store(path, pairs, overlap=1.0, overlap_raters=2, now=clock) as store:
        raters = [new_rater(store, name) for name in ("Ann", "Bob")]
        for step in range(80):
            rater = raters[step % 2]
            one = shown(store, rater)
            by_side = {"a": one.comparison.a.text, "b": one.comparison.b.text}
            left, right = (by_side[side] for side in (one.first, "b" if one.first == "a" else "a"))
            prefers_left = "good" in left or "bad" in right
            place = (rater.name, one.comparison.id)
            pressed: tuple[Answer, Answer] = ("a", "b") if one.first == "a" else ("b", "a")
            clock.pass_(seconds=1.5)
            store.answer(rater, one.item, pressed[not prefers_left], comment=f"why {step}", seconds=1.25, key=f"{step}")
            truth[place] = "a" if int(one.comparison.id[1:]) % 3 else "b"
            firsts[place] = one.first
            times[place] = clock.time.isoformat(timespec="milliseconds")
    with RatingStore.open(path) as store:
        found = list(store.ratings())
    assert {(one.rater, one.comparison_id): one.answer for one in found} == truth
    assert {(one.rater, one.comparison_id): one.first for one in found} == firsts
    assert {(one.rater, one.comparison_id): one.at for one in found} == times
    assert set(firsts.values()) == {"a", "b"}
    assert [one.comment for one in found] == [f"why {step}" for step in range(80)]
    assert {one.seconds for one in found} == {1.25}
    assert found[0].at == "2026-01-02T03:04:06.500+00:00"


def test_comparisons_checks_and_settings_come_back_as_they_were_given(path: Path) -> None:
    pairs = [
        comparison("z", "a", prompt=("Hi", "Hello\u2028", "שלום <b>?"), a="\N{GRINNING FACE}", b="x" * 50_000),
        comparison("a'; DROP TABLE events; --", "b"),
        comparison("m"),
    ]
    config = RatingConfig(scale="two", overlap=0.25, overlap_raters=3, check_every=7, hold_minutes=5, seed=9)
    with RatingStore.create(path, iter(pairs), iter(attention_checks(3)), config, "pairs ☃.jsonl", "6" * 64):
        pass
    with RatingStore.open(path) as store:
        assert list(store.comparisons()) == pairs
        assert list(store.check_comparisons()) == attention_checks(3)
        assert (store.config, store.source, store.source_sha256) == (config, "pairs ☃.jsonl", "6" * 64)


def test_a_path_with_signs_of_an_address_is_a_path(tmp_path: Path) -> None:
    odd = tmp_path / "a b?mode=memory#c%20.sqlite"
    new_store(odd).close()
    with RatingStore.open(odd) as store:
        assert len(list(store.comparisons())) == 4
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [odd.name]


def test_answers_given_while_ratings_are_read_are_not_among_them(path: Path) -> None:
    with new_store(path, 300) as store:
        rater = new_rater(store)
        for _ in range(200):
            give(store, rater)
        reading = store.ratings()
        first = next(reading)
        back(store, rater)
        give(store, rater, "b")
        give(store, rater)
        assert [one.answer for one in (first, *reading)] == ["a"] * 200
        assert [one.answer for one in store.ratings()] == ["a"] * 199 + ["b", "a"]


def test_what_is_read_together_is_of_one_moment(path: Path) -> None:
    with new_store(path, 9) as store:
        rater = new_rater(store)
        give(store, rater)
        with store._database.snapshot() as connection:
            counts = [connection.execute("SELECT count(*) FROM standing").fetchone()[0]]
            give(store, rater)
            counts.append(connection.execute("SELECT count(*) FROM standing").fetchone()[0])
        assert (counts, len(standing(store))) == ([1, 1], 2)


def test_attention_checks_are_among_the_ratings_only_on_request(path: Path) -> None:
    with new_store(path, 4, 2, check_every=2) as store:
        rater = new_rater(store)
        given = [give(store, rater).comparison.id for _ in range(4)]
        data = [id for id in given if not id.startswith("check")]
        assert len(data) == 2
        assert [one.comparison_id for one in store.ratings()] == data
        everything = list(store.ratings(checks=True))
        assert [one.comparison_id for one in everything] == given
        expected = {"check0": "a", "check1": "b"}
        assert [one.check for one in everything] == [expected.get(id) for id in given]


# --- answers ------------------------------------------------------------------------------------------------------


def refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(RatingRefused, match=words):
        call()


@pytest.mark.parametrize(
    ("scale", "taken"),
    [
        ("four", ["a", "rather_a", "rather_b", "b", "both_bad", "skipped"]),
        ("two", ["a", "b", "both_bad", "skipped"]),
    ],
)
def test_only_answers_of_the_scale_are_taken(path: Path, scale: str, taken: list[Answer]) -> None:
    offered: list[Any] = ["a", "rather_a", "rather_b", "b", "both_bad", "skipped", "", "A", "c", None, "undo"]
    with new_store(path, 20, scale=scale) as store:
        rater = new_rater(store)
        for answer in offered:
            if answer in taken:
                give(store, rater, answer)
            else:
                refused(lambda answer=answer: give(store, rater, answer), f"not an answer of the scale `{scale}`")
        assert [one.answer for one in store.ratings()] == taken


def test_an_answer_sent_again_with_its_key_changes_nothing(path: Path, clock: Clock) -> None:
    with new_store(path, now=clock) as store:
        ann, bob = new_rater(store, "Ann"), new_rater(store, "Bob")
        clock.pass_(seconds=9)
        one = give(store, ann, "a", key="K", comment="so")
        before = list(store.ratings())
        clock.pass_(seconds=9)
        for _ in range(3):
            store.answer(ann, one.item, "a", comment="so", seconds=8.0, key="K")
        shown(store, ann)
        store.answer(ann, one.item, "a", comment="so", seconds=8.0, key="K")
        assert (list(store.ratings()), events(store)) == (before, 1)
        give(store, bob, "b", key="K")  # keys are a rater's own
        assert [answer for *_, answer in standing(store)] == ["a", "b"]


def test_a_late_repetition_does_not_undo_an_undo(path: Path) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        one = give(store, rater, "a", key="K")
        back(store, rater)
        store.answer(rater, one.item, "a", comment="", seconds=0.0, key="K")
        assert standing(store) == []


def test_a_key_that_was_used_for_something_else_is_refused_not_ignored(path: Path) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        one = give(store, rater, "a", key="K", comment="so")
        second = shown(store, rater)
        for item, answer, comment in ((one.item, "b", "so"), (one.item, "a", ""), (second.item, "a", "so")):
            refused(
                lambda i=item, a=answer, c=comment: store.answer(rater, i, a, comment=c, seconds=0.0, key="K"),
                "answered already, and otherwise",
            )
        refused(lambda: store.undo(rater, key="K"), "was used for an answer")
        store.undo(rater, key="U")
        refused(
            lambda: store.answer(rater, one.item, "a", comment="so", seconds=0.0, key="U"), "already, and otherwise"
        )
        assert events(store) == 2


def test_only_the_item_that_the_rater_has_open_is_taken(path: Path) -> None:
    with new_store(path, 6) as store:
        ann, bob = new_rater(store, "Ann"), new_rater(store, "Bob")
        first = give(store, ann)
        second, other = shown(store, ann), shown(store, bob)
        for item in (other.item, first.item, 6, 0, -1, 10**9):  # another's, answered, not handed out, unknown
            refused(
                lambda item=item: store.answer(ann, item, "b", comment="", seconds=0.0, key="N"),
                f"item {item} is not the one that you have open",
            )
        back(store, ann)
        refused(  # open as well, but not in front
            lambda: store.answer(ann, second.item, "b", comment="", seconds=0.0, key="N"), "not the one that you have"
        )
        assert standing(store) == []


@pytest.mark.parametrize("seconds", [-0.001, -1.0, math.nan, math.inf, -math.inf])
def test_impossible_seconds_are_refused(path: Path, seconds: float) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        refused(lambda: give(store, rater, seconds=seconds), "cannot be the seconds")
        assert events(store) == 0


def test_seconds_are_bounded_by_the_time_since_the_item_was_given(path: Path, clock: Clock) -> None:
    with new_store(path, now=clock) as store:
        rater = new_rater(store)
        for claimed in (3.0, 12.0, 0.0):
            shown(store, rater)
            clock.pass_(seconds=10)
            give(store, rater, seconds=claimed)
        back(store, rater)
        clock.pass_(seconds=2)
        give(store, rater, seconds=11.0)  # since it was given back
        shown(store, rater)
        clock.pass_(seconds=-100)  # a clock that was set back
        give(store, rater, seconds=11.0)
        assert [one.seconds for one in store.ratings()] == [3.0, 10.0, 2.0, 0.0]


@pytest.mark.parametrize("comment", ["x" * 2001, "half a pair \ud83d", "NUL \0"])
def test_comments_that_cannot_be_kept_are_refused(path: Path, comment: str) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        refused(lambda: give(store, rater, comment=comment), "a comment has at most 2,000 characters")
        longest = "\N{SNOWMAN}" * 2000
        give(store, rater, comment=longest)
        assert [one.comment for one in store.ratings()] == [longest]


@pytest.mark.parametrize("key", ["", "k" * 201, "\0", "\udc00"])
def test_odd_keys_are_refused(path: Path, key: str) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        refused(lambda: give(store, rater, key=key), "a key has 1 to 200 characters")
        refused(lambda: store.undo(rater, key=key), "a key has 1 to 200 characters")
        give(store, rater, key="k" * 200)


# --- undo ---------------------------------------------------------------------------------------------------------


def test_an_undone_answer_comes_back_with_what_was_answered(path: Path) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        one = give(store, rater, "rather_b", comment="hm")
        assert (one.answer, one.comment, one.number) == (None, "", 0)
        ahead = shown(store, rater)
        undone = back(store, rater)
        assert undone == one.model_copy(update={"answer": "rather_b", "comment": "hm"})
        assert shown(store, rater) == undone  # after a reload
        assert standing(store) == []
        give(store, rater, "a", comment="now")
        assert shown(store, rater) == ahead  # what was open before is not lost
        assert [(one.answer, one.comment) for one in store.ratings()] == [("a", "now")]
        assert back(store, rater).comment == "now"


def test_undo_again_and_again_goes_back_one_by_one_and_forward_in_the_same_order(path: Path) -> None:
    with new_store(path, 6) as store:
        ann, bob = new_rater(store, "Ann"), new_rater(store, "Bob")
        given = [give(store, ann, answer) for answer in ("a", "b", "rather_a")]
        other = give(store, bob)
        ahead = shown(store, ann)
        assert [back(store, ann).item for _ in range(3)] == [one.item for one in reversed(given)]
        assert store.undo(ann, key="nothing left") is None
        assert standing(store) == [("Bob", other.comparison.id, "a")]
        redone = [give(store, ann, answer) for answer in ("b", "b")]
        assert [(one.item, one.answer, one.number) for one in redone] == [
            (given[0].item, "a", 0),
            (given[1].item, "b", 1),
        ]
        assert back(store, ann).item == given[1].item  # of an answer that was given anew
        assert [give(store, ann, "skipped").item for _ in range(3)] == [given[1].item, given[2].item, ahead.item]
        assert [answer for name, _, answer in standing(store) if name == "Ann"] == ["b", *["skipped"] * 3]
        assert events(store) == 4 + 3 + 2 + 1 + 3


def test_an_undo_sent_again_with_its_key_takes_back_one_answer(path: Path) -> None:
    with new_store(path) as store:
        rater = new_rater(store)
        give(store, rater)
        give(store, rater)
        once = store.undo(rater, key="U")
        assert once is not None
        assert store.undo(rater, key="U") == once
        assert len(standing(store)) == 1
        give(store, rater)
        ahead = shown(store, rater)
        assert store.undo(rater, key="U") == ahead
        assert len(standing(store)) == 2


def test_an_undo_survives_a_new_start(path: Path) -> None:
    with new_store(path) as store:
        token = store.add_rater("Ann")
        rater = store.rater(token)
        assert rater is not None
        give(store, rater, "b", comment="c")
        undone = back(store, rater)
    with RatingStore.open(path) as store:
        rater = store.rater(token)
        assert rater is not None
        assert shown(store, rater) == undone
        assert list(store.ratings()) == []


# --- raters -------------------------------------------------------------------------------------------------------


def test_a_token_tells_its_rater_and_only_its_hash_is_kept(path: Path) -> None:
    with new_store(path) as store:
        tokens = {name: store.add_rater(name) for name in ("Ann", "بوب", "'; DROP TABLE raters; --")}
        for name, token in tokens.items():
            rater = store.rater(token)
            assert rater is not None
            assert rater.name == name
            assert len(token) == 32
        for wrong in ("", "x", tokens["Ann"][:-1], tokens["Ann"] + "=", tokens["Ann"].upper(), "\ud800", "\0"):
            assert store.rater(wrong) is None
        kept = b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert all(token.encode() not in kept for token in tokens.values())


def test_a_new_token_for_a_known_name_replaces_the_old_one(path: Path) -> None:
    with new_store(path) as store:
        old = store.add_rater("Ann")
        before = store.rater(old)
        store.add_rater("Bob")
        assert before is not None
        give(store, before)
        new = store.add_rater("Ann")
        assert (store.rater(old), store.rater(new)) == (None, before)
        assert [one.rater for one in store.progress()] == ["Ann", "Bob"]
        assert [one.rater for one in store.ratings()] == ["Ann"]


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb", "a\0", "\x7f", "\x9b31m", " Ann", "Ann ", "\ud800", "‮x"])
def test_names_that_cannot_be_told_apart_on_a_screen_are_refused(path: Path, name: str) -> None:
    with new_store(path) as store:
        with pytest.raises(ConfigError, match=r"cannot be a rater's name; give 1 to 64 printable characters"):
            store.add_rater(name)
        store.add_rater("x" * 64)
        assert [one.rater for one in store.progress()] == ["x" * 64]


def test_progress_counts_answers_that_stand(path: Path, clock: Clock) -> None:
    with new_store(path, 8, 4, check_every=2, now=clock) as store:
        ann, _ = new_rater(store, "Ann"), new_rater(store, "Bob")
        times = iter([1.0, 5.0, 2.0, 100.0, 30.0])
        for answer in ("a", "skipped", "b", "rather_b", "a"):
            given = shown(store, ann)
            while given.comparison.id.startswith("check"):
                clock.pass_(seconds=500)
                answers: dict[str, Answer] = {"check0": "rather_a", "check1": "a", "check2": "skipped", "check3": "b"}
                give(store, ann, answers[given.comparison.id], seconds=400.0)
                given = shown(store, ann)
            clock.pass_(seconds=500)
            give(store, ann, answer, seconds=next(times))  # type: ignore[arg-type]
        checks = [one.comparison_id for one in store.ratings(checks=True) if one.check]
        failed = len({"check1", "check2"} & set(checks))
        assert (len(checks), failed) == (4, 2)
        assert store.progress() == [
            Progress(rater="Ann", answered=5, skipped=1, checks=4, checks_failed=2, median_seconds=5.0),
            Progress(rater="Bob", answered=0, skipped=0, checks=0, checks_failed=0, median_seconds=None),
        ]
        back(store, ann)
        assert store.progress()[0].answered == 4
        assert store.progress()[0].median_seconds == 3.5


# --- making a store -----------------------------------------------------------------------------------------------


def making_fails(path: Path, error: type[CaiError], words: str, items: Any, checks: Any = ()) -> None:
    with pytest.raises(error, match=words):
        new_store(path, items, checks)
    assert {file.name for file in path.parent.iterdir()} <= {".ratings.sqlite.lock"}


def test_what_cannot_be_rated_is_refused_and_leaves_no_file(path: Path) -> None:
    twice = [comparison("x"), comparison("y"), comparison("x")]
    making_fails(path, DataError, "two of the comparisons and attention checks have the id 'x'", twice)
    making_fails(path, DataError, "have the id 'x'", [comparison("x")], [comparison("x", "a")])
    making_fails(path, DataError, "attention check 'k' does not say which response is better", 3, [comparison("k")])
    making_fails(path, DataError, r"comparisons\.jsonl holds no comparison to rate", 0, attention_checks(2))


def test_an_existing_file_is_left_as_it_is(path: Path) -> None:
    with new_store(path) as store:
        give(store, new_rater(store))
    before = path.read_bytes()
    with pytest.raises(RunDirError, match=r"ratings\.sqlite exists; it is not made anew"):
        new_store(path, 9)
    assert path.read_bytes() == before


def test_the_directory_of_a_store_is_made(tmp_path: Path) -> None:
    new_store(tmp_path / "a" / "b" / "ratings.sqlite").close()
    with pytest.raises(RunDirError, match=r"cannot be made: (Not a directory|File exists)"):
        new_store(tmp_path / "a" / "b" / "ratings.sqlite" / "ratings.sqlite")


def test_times_are_in_order_and_in_utc_whatever_the_clock_says(path: Path) -> None:
    start = datetime.fromisoformat("2026-05-01T23:59:58+05:30")
    seconds = count()
    with new_store(path, 5, now=lambda: start + timedelta(seconds=next(seconds))) as store:
        rater = new_rater(store)
        for _ in range(3):
            give(store, rater)
        found: list[Rating] = list(store.ratings())
    assert all(one.at.startswith("2026-05-01T18:") and one.at.endswith("+00:00") for one in found)
    assert all(one.at < other.at for one, other in pairwise(found))
