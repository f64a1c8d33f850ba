"""Votes by hand: what several answers to one comparison come to, and what is said of each rater."""

from typing import Any

import pytest

from cai.human.records import Answer, Rating
from cai.human.votes import Vote, human_label, rater_facts, rating_votes
from cai.records import Side


def rating(comparison: str, rater: str, answer: Answer, *, check: Side | None = None) -> Rating:
    return Rating(
        comparison_id=comparison,
        rater=rater,
        answer=answer,
        first="b",
        seconds=2.0,
        at="2026-01-02T03:04:05.000+00:00",
        check=check,
    )


def votes(*p_a: float) -> list[Vote]:
    return [Vote(rater=f"r{place}", p_a=p) for place, p in enumerate(p_a)]


@pytest.mark.parametrize(
    ("p_a", "mean", "disputed"),
    [
        ((1.0,), 1.0, False),
        ((1.0, 1.0, 0.0), 2 / 3, True),
        ((0.75, 1.0), 0.875, False),
        ((0.25, 0.0, 0.25), 1 / 6, False),
        ((0.75, 0.25), 0.5, True),
        ((1.0, 0.5), 0.75, False),
        ((0.5, 0.5), 0.5, False),
    ],
)
def test_the_label_is_the_mean_of_the_votes(p_a: tuple[float, ...], mean: float, disputed: bool) -> None:
    label = human_label(votes(*p_a))
    assert label.p_a == pytest.approx(mean, abs=1e-12)
    assert (label.votes, label.disputed) == (len(p_a), disputed)


def test_the_order_of_votes_changes_no_bit_of_their_mean() -> None:
    p_a = (0.1, 0.7, 0.2, 1.0, 0.3)
    assert human_label(votes(*p_a)).p_a == human_label(votes(*reversed(p_a))).p_a


def test_raters_are_named_once_each_in_alphabetical_order() -> None:
    found = [Vote(rater=name, p_a=1.0) for name in ("mo", None, "Ann", "mo", "bea")]
    label = human_label(found)
    assert (label.raters, label.votes) == (("Ann", "bea", "mo"), 5)
    assert label.annotator_id == "Ann,bea,mo"
    assert human_label([Vote(rater=None, p_a=0.0)]).annotator_id is None


def test_a_vote_on_the_swapped_comparison_is_for_the_same_text() -> None:
    assert Vote(rater="mo", p_a=0.75).swap() == Vote(rater="mo", p_a=0.25)


ANSWERS: list[tuple[Answer, float | None]] = [
    ("a", 1.0),
    ("rather_a", 0.6),
    ("rather_b", 0.4),
    ("b", 0.0),
    ("both_bad", None),
    ("skipped", None),
]


def test_answers_count_by_the_scale_and_neither_is_no_vote() -> None:
    ratings = [rating(f"c{place}", "mo", answer) for place, (answer, _) in enumerate(ANSWERS)]
    found = {id_: [vote.p_a for vote in these] for id_, these in rating_votes(ratings, slight=0.6).items()}
    assert found == {f"c{place}": [pytest.approx(p)] for place, (_, p) in enumerate(ANSWERS) if p is not None}


def test_a_slight_preference_counts_three_quarters_unless_told_otherwise() -> None:
    [vote] = rating_votes([rating("c", "mo", "rather_b")])["c"]
    assert vote == Vote(rater="mo", p_a=0.25)


def test_votes_are_grouped_by_comparison_without_checks_and_without_those_left_out() -> None:
    ratings = [
        rating("c", "mo", "a"),
        rating("d", "mo", "b"),
        rating("c", "bea", "b"),
        rating("c", "cy", "b"),
        rating("k", "mo", "a", check="a"),
        rating("e", "cy", "a"),
    ]
    found = rating_votes(ratings, leave_out=("cy",))
    assert {id_: [(vote.rater, vote.p_a) for vote in these] for id_, these in found.items()} == {
        "c": [("mo", 1.0), ("bea", 0.0)],
        "d": [("mo", 0.0)],
    }


def test_what_a_rater_did_is_counted_by_kind() -> None:
    ratings = [
        rating("c1", "mo", "a"),
        rating("c2", "mo", "rather_b"),
        rating("c3", "mo", "both_bad"),
        rating("c4", "mo", "skipped"),
        rating("c5", "mo", "skipped"),
        rating("k1", "mo", "rather_a", check="a"),
        rating("k2", "mo", "b", check="a"),
        rating("k3", "mo", "both_bad", check="b"),
        rating("k4", "mo", "b", check="b"),
        rating("c1", "bea", "b"),
    ]
    bea, idle, mo = rater_facts(ratings, ["mo", "idle"], leave_out=("bea",))
    assert (mo.name, mo.votes, mo.both_bad, mo.skipped, mo.ratings) == ("mo", 2, 1, 2, 5)
    assert (mo.checks, mo.checks_failed, mo.left_out) == (4, 2, False)
    assert (bea.name, bea.votes, bea.left_out) == ("bea", 1, True)
    assert (idle.name, idle.ratings, idle.checks) == ("idle", 0, 0)


@pytest.mark.parametrize(
    ("checks", "failed", "expected"), [(4, 2, False), (4, 3, True), (3, 3, False), (5, 3, True), (5, 2, False)]
)
def test_a_rater_fails_by_more_than_half_of_at_least_four_checks(checks: int, failed: int, expected: bool) -> None:
    answers: list[Any] = ["b"] * failed + ["a"] * (checks - failed)
    [facts] = rater_facts([rating(f"k{n}", "mo", answer, check="a") for n, answer in enumerate(answers)], [])
    assert (facts.checks, facts.checks_failed) == (checks, failed)
    assert facts.fails_checks is expected
