"""Who gets which item of the store of ratings, and which response stands first."""

import math
import random
from collections import Counter, defaultdict
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rating_samples import KEYS, Clock, attention_checks, back, comparisons, give, new_rater, new_store, shown, standing

from cai.human.config import RatingConfig
from cai.human.handout import draw, first_side, is_check_due, wanted
from cai.human.records import Answer
from cai.human.store import Shown


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ratings.sqlite"


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- who gets what ------------------------------------------------------------------------------------------------


def test_a_rater_who_loads_the_page_again_keeps_the_item(path: Path) -> None:
    with new_store(path, 5) as store:
        rater = new_rater(store)
        assert len({shown(store, rater).item for _ in range(4)}) == 1


def test_each_comparison_goes_to_one_rater_and_overlapping_ones_to_several(path: Path) -> None:
    with new_store(path, 60, overlap=0.4, overlap_raters=3) as store:
        raters = [new_rater(store, f"r{n}") for n in range(4)]
        had: dict[str, list[str]] = defaultdict(list)
        active = list(raters)
        while active:
            for rater in list(active):
                if store.next(rater) is None:
                    active.remove(rater)
                else:
                    had[give(store, rater).comparison.id].append(rater.name)
        assert all(len(set(names)) == len(names) for names in had.values())
        assert {id: len(names) for id, names in had.items()} == {
            one.id: wanted(one.id, store.config) for one in comparisons(60)
        }
        assert set(Counter(map(len, had.values()))) == {1, 3}


def test_the_share_of_overlap_is_met_and_a_greater_share_takes_further_ones() -> None:
    ids = [f"id {n}" for n in range(4000)]

    def overlapping(share: float, seed: int = 0) -> set[str]:
        config = RatingConfig(overlap=share, overlap_raters=5, seed=seed)
        assert {wanted(id, config) for id in ids} <= {1, 5}
        return {id for id in ids if wanted(id, config) == 5}

    assert overlapping(0.0) == set()
    assert overlapping(1.0) == set(ids)
    tenth, third = overlapping(0.1), overlapping(0.3)
    for found, share in ((tenth, 0.1), (third, 0.3)):  # binomial: five standard deviations
        assert abs(len(found) - 4000 * share) < 5 * math.sqrt(4000 * share * (1 - share))
    assert tenth < third
    assert len(tenth & overlapping(0.1, seed=1)) < 100  # 40 are expected of 400


def test_the_order_of_items_hangs_on_the_seed_alone(tmp_path: Path) -> None:
    def order(name: str, seed: int) -> list[str]:
        with new_store(tmp_path / name, 30, seed=seed) as store:
            rater = new_rater(store, name)
            return [give(store, rater).comparison.id for _ in range(30)]

    first = order("one", 1)
    assert order("other", 1) == first
    assert order("third", 2) != first
    assert first != sorted(first)
    assert sorted(first) == sorted(one.id for one in comparisons(30))


def test_items_that_fewest_have_go_first(path: Path) -> None:
    with new_store(path, 5, overlap=1.0, overlap_raters=2) as store:
        ann, bob, cy = (new_rater(store, name) for name in ("Ann", "Bob", "Cy"))
        held = [shown(store, ann).item, shown(store, bob).item, shown(store, cy).item]
        rest = [give(store, ann).item, give(store, ann).item, give(store, ann).item]
        assert len({*held, *rest[1:]}) == 5  # nobody's second one before everybody's first
        assert shown(store, ann).item in held[1:]


def test_an_item_left_longer_than_the_hold_goes_to_another_and_may_still_be_answered(path: Path, clock: Clock) -> None:
    with new_store(path, 1, hold_minutes=60, now=clock) as store:
        ann, bob, cy = (new_rater(store, name) for name in ("Ann", "Bob", "Cy"))
        one = shown(store, ann)
        clock.pass_(minutes=59, seconds=59.999)
        assert store.next(bob) is None
        clock.pass_(seconds=0.001)
        assert shown(store, bob).item == one.item
        assert store.next(cy) is None  # Bob's hold has begun
        assert shown(store, ann).item == one.item
        give(store, ann, "b")
        give(store, bob, "a")
        clock.pass_(minutes=600)
        assert store.next(cy) is None  # answered ones are never free again
        assert standing(store) == [("Ann", "c0", "b"), ("Bob", "c0", "a")]


def test_an_undo_holds_the_item_anew(path: Path, clock: Clock) -> None:
    with new_store(path, 1, hold_minutes=60, now=clock) as store:
        ann, bob = new_rater(store, "Ann"), new_rater(store, "Bob")
        give(store, ann)
        clock.pass_(minutes=600)
        back(store, ann)
        clock.pass_(minutes=59)
        assert store.next(bob) is None
        clock.pass_(minutes=1)
        assert shown(store, bob).comparison.id == "c0"


def test_a_skipped_comparison_goes_to_another_rater_but_one_with_two_bad_responses_does_not(path: Path) -> None:
    with new_store(path, 2) as store:
        ann, bob, cy = (new_rater(store, name) for name in ("Ann", "Bob", "Cy"))
        skipped = give(store, ann, "skipped")
        give(store, ann, "both_bad")
        assert store.next(ann) is None
        assert shown(store, bob).item == skipped.item
        assert store.next(cy) is None
        give(store, bob, "b")
        assert store.next(cy) is None


def test_number_and_remaining_count_what_is_behind_and_ahead(path: Path) -> None:
    with new_store(path, 5) as store:
        ann, bob = new_rater(store, "Ann"), new_rater(store, "Bob")

        def counts(one: Shown | None) -> tuple[int, int]:
            assert one is not None
            return one.number, one.remaining

        assert counts(store.next(ann)) == (0, 4)
        assert counts(store.next(bob)) == (0, 3)
        assert counts(store.next(ann)) == (0, 3)
        give(store, ann)
        assert counts(store.next(ann)) == (1, 2)
        assert counts(store.undo(ann, key="U")) == (0, 3)  # two free ones, and that which was open
        give(store, ann)
        give(store, ann)
        assert counts(store.next(ann)) == (2, 1)


def test_checks_count_as_answered_but_not_as_remaining(path: Path) -> None:
    with new_store(path, 3, 5, check_every=2, seed=5) as store:
        rater = new_rater(store)
        seen = [give(store, rater) for _ in range(4)]
        assert [one.number for one in seen] == [0, 1, 2, 3]
        left = 3
        for one in seen:
            left -= not one.comparison.id.startswith("check")
            assert one.remaining == left


# --- the order of the responses -----------------------------------------------------------------------------------


def test_each_response_stands_first_once_in_each_two_comparisons_of_a_rater(path: Path) -> None:
    with new_store(path, 80, 9, overlap=1.0, overlap_raters=4, check_every=5) as store:
        rows: dict[str, str] = {}
        for rater in [new_rater(store, f"r{n}") for n in range(4)]:
            given = [give(store, rater) for _ in range(60)]
            for kind in (False, True):
                firsts = [one.first for one in given if one.comparison.id.startswith("check") is kind]
                assert len(firsts) == (9 if kind else 51)
                assert all({one, other} == {"a", "b"} for one, other in zip(firsts[::2], firsts[1::2], strict=False))
                if not kind:
                    rows[rater.name] = "".join(firsts)
    assert len(set(rows.values())) == 4
    assert all("aa" in row and "bb" in row for row in rows.values())  # drawn, not taken in turns
    blocks = Counter(row[place] for row in rows.values() for place in range(0, 50, 2))
    assert 30 <= blocks["a"] <= 70  # of 100


def test_another_seed_draws_another_order() -> None:
    orders = {
        "".join(first_side(RatingConfig(seed=seed), "Ann", "comparison", n) for n in range(40)) for seed in range(3)
    }
    assert len(orders) == 3


# --- attention checks ---------------------------------------------------------------------------------------------


def test_each_block_of_a_raters_items_has_one_check_until_none_is_left(path: Path) -> None:
    with new_store(path, 120, 12, check_every=5, overlap=1.0, overlap_raters=2) as store:
        places: dict[str, list[int]] = {}
        orders: dict[str, list[str]] = {}
        for name in ("Ann", "Bob"):
            rater = new_rater(store, name)
            ids = [give(store, rater).comparison.id for _ in range(100)]
            where = [n for n, id in enumerate(ids) if id.startswith("check")]
            assert [place // 5 for place in where] == list(range(12))
            orders[name] = [ids[place] for place in where]
            assert sorted(orders[name]) == sorted(one.id for one in attention_checks(12))
            places[name] = [place % 5 for place in where]
            assert len(set(places[name])) > 2
        assert places["Ann"] != places["Bob"]


def test_check_every_zero_gives_no_checks(path: Path) -> None:
    with new_store(path, 30, 12, check_every=0) as store:
        rater = new_rater(store)
        given = [give(store, rater).comparison.id for _ in range(30)]
        assert sorted(given) == sorted(one.id for one in comparisons(30))
        assert store.next(rater) is None


def test_a_rater_without_comparisons_gets_no_checks_either(path: Path) -> None:
    with new_store(path, 2, 12, check_every=1) as store:
        ann, bob, cy = (new_rater(store, name) for name in ("Ann", "Bob", "Cy"))
        for rater in (ann, bob):
            for _ in range(12):
                assert give(store, rater).comparison.id.startswith("check")
            assert not give(store, rater).comparison.id.startswith("check")
        assert store.next(cy) is None


def test_raters_begin_with_different_checks(path: Path) -> None:
    with new_store(path, 9, 3, check_every=1) as store:
        raters = [new_rater(store, f"r{n}") for n in range(3)]
        assert len({shown(store, rater).item for rater in raters}) == 3


# --- against the rules written out naively ------------------------------------------------------------------------


class Model:
    """The rules of hand-out by brute force over plain lists, for comparison with what the queries find."""

    def __init__(self, items: int, checks: int, config: RatingConfig) -> None:
        self.config = config
        self.data = [one.id for one in comparisons(items)]
        self.checks = [one.id for one in attention_checks(checks)]
        self.given: dict[str, list[tuple[str, str]]] = defaultdict(list)  # rater: (id, first)
        self.since: dict[tuple[str, str], datetime] = {}
        self.answers: dict[tuple[str, str], str] = {}
        self.done: dict[str, int] = Counter()

    def free(self, rater: str, now: datetime) -> list[str]:
        found = []
        for id in self.data:
            if any(id == other for other, _ in self.given[rater]):
                continue
            having = [name for name, given in self.given.items() if any(id == other for other, _ in given)]
            taken = 0
            for name in having:
                answer = self.answers.get((name, id))
                if answer is None:
                    taken += now - self.since[name, id] < timedelta(minutes=self.config.hold_minutes)
                else:
                    taken += answer != "skipped"
            if taken < wanted(id, self.config):
                found.append((taken, len(having), draw(id, self.config), id))
        return [id for *_, id in sorted(found)]

    def next(self, rater: str, now: datetime) -> tuple[str, str, int, int] | None:
        """Id, side that stands first, number and remaining."""
        given = self.given[rater]
        if self.done[rater] == len(given):
            free = self.free(rater, now)
            if not free:
                return None
            had = [id for id, _ in given]
            left = [id for id in self.checks if id not in had]
            pick = free[0]
            if is_check_due(self.config, rater, len(given)) and left:
                load = Counter(id for rows in self.given.values() for id, _ in rows)
                pick = min(left, key=lambda id: (load[id], draw(id, self.config)))
            same = sum((id in self.checks) == (pick in self.checks) for id in had)
            kind = "check" if pick in self.checks else "comparison"
            given.append((pick, first_side(self.config, rater, kind, same)))  # type: ignore[arg-type]
            self.since[rater, pick] = now
        id, first = given[self.done[rater]]
        ahead = sum(other in self.data for other, _ in given[self.done[rater] + 1 :])
        return id, first, self.done[rater], ahead + len(self.free(rater, now))

    def answer(self, rater: str, answer: str) -> None:
        self.answers[rater, self.given[rater][self.done[rater]][0]] = answer
        self.done[rater] += 1

    def undo(self, rater: str, now: datetime) -> bool:
        if self.done[rater] == 0:
            return False
        self.done[rater] -= 1
        id = self.given[rater][self.done[rater]][0]
        del self.answers[rater, id]
        self.since[rater, id] = now
        return True


@pytest.mark.parametrize("seed", range(6))
def test_hand_out_follows_the_rules_through_any_course_of_events(path: Path, clock: Clock, seed: int) -> None:
    chance = random.Random(seed)
    settings = {"overlap": chance.choice([0.0, 0.4, 1.0]), "overlap_raters": 3, "check_every": 4, "seed": seed}
    with new_store(path, 14, 3, hold_minutes=5, now=clock, **settings) as store:
        model = Model(14, 3, store.config)
        raters = [new_rater(store, f"r{n}") for n in range(4)]
        reached: Counter[str] = Counter()
        for _ in range(260):
            clock.pass_(seconds=chance.choice([1, 30, 200]))
            rater = chance.choice(raters)
            if chance.random() < 0.2:
                found = store.undo(rater, key=f"key {next(KEYS)}")
                undone = model.undo(rater.name, clock.time)
                expected = model.next(rater.name, clock.time) if undone else None
                reached["undo"] += undone
            else:
                found = store.next(rater)
                expected = model.next(rater.name, clock.time)
                reached["nothing"] += expected is None
            seen = None if found is None else (found.comparison.id, found.first, found.number, found.remaining)
            assert seen == expected
            if found is None:
                continue
            if chance.random() < 0.8:
                answer: Answer = chance.choice(["a", "b", "both_bad", "skipped"])
                store.answer(rater, found.item, answer, comment="", seconds=0.0, key=f"key {next(KEYS)}")
                model.answer(rater.name, answer)
        stand = {(name, id): answer for name, id, answer in standing(store, checks=True)}
        assert stand == model.answers
        assert min(reached["undo"], reached["nothing"]) > 5
