"""Reports of agreement: figures by hand, planted raters, judges beside people, and what cannot be said."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from labels import judgement
from simulated_raters import Habit, Simulation, comparison, rating, simulate

from cai import statistics
from cai.errors import DataError
from cai.human.agreement import CONSTANT
from cai.human.agreement_report import (
    NO_PAIR,
    NO_SLIGHT,
    TOO_FEW_COMMON,
    AgreementReport,
    measure,
)
from cai.human.agreement_sources import ComparisonSource, InputFile, JudgeSource, RatingSource
from cai.human.judge_agreement import NO_TAG, UNKNOWN_PRINCIPLE
from cai.human.rater_statistics import RaterFigures
from cai.human.records import Answer, Rating
from cai.records import Comparison, Judgement, Verdict
from cai.statistics import Mean, clustered_mean, wilson


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def source(ratings: Sequence[Rating], comparisons: Sequence[Comparison] = (), path: str = "ratings") -> RatingSource:
    file = InputFile(path=path, kind="ratings", sha256="0" * 64, items=len(ratings))
    return RatingSource(file, tuple(ratings), tuple(comparisons))


def judge(
    verdicts: Mapping[str, float | Verdict],
    comparisons: Sequence[Comparison] = (),
    tags: Mapping[str, tuple[str, ...]] | None = None,
    **more: object,
) -> JudgeSource:
    """Verdicts by comparison; a bare number is a p_a without judgements."""
    known = {one.id: one for one in comparisons}
    found = {
        id: (known.get(id, comparison(id)), p if isinstance(p, Verdict) else Verdict(p_a=p, judgements=()))
        for id, p in verdicts.items()
    }
    values = {"model": "tiny", "unrated": 0, "set_name": "", "note": None, **more}
    file = InputFile(path="labels", kind="labels", sha256="1" * 64, items=len(verdicts))
    return JudgeSource(file=file, verdicts=found, tags=tags, **values)  # type: ignore[arg-type]


def verdict(*judgements: Judgement) -> Verdict:
    return Verdict(p_a=float(np.mean([one.p_a for one in judgements])), judgements=judgements)


def rated(answers: Mapping[str, str], **more: object) -> list[Rating]:
    """Ratings of c0, c1, … by rater, from letters: A a, a rather_a, b rather_b, B b, 0 both bad, s skipped, . none."""
    letters: dict[str, Answer] = {
        "A": "a",
        "a": "rather_a",
        "b": "rather_b",
        "B": "b",
        "0": "both_bad",
        "s": "skipped",
    }
    return [
        rating(f"c{place}", name, letters[letter], **more)  # type: ignore[arg-type]
        for name, row in answers.items()
        for place, letter in enumerate(row)
        if letter != "."
    ]


def of(report: AgreementReport, name: str) -> RaterFigures:
    return next(one for one in report.raters if one.rater == name)


def value(mean: Mean | None) -> float:
    assert mean is not None
    return mean.value


# Raters with one another


def test_counts_by_hand() -> None:
    ratings = rated({"ann": "Aab0s.A", "bob": "aB..A.0"})
    checks = [
        rating("k0", "ann", "a", check="a"),
        rating("k1", "ann", "b", check="a"),
        rating("k1", "bob", "skipped", check="b"),
    ]
    shared = [comparison("c0", "Same?"), comparison("c1", "Same?"), comparison("c2")]
    counts = measure([source([*ratings, *checks], shared)]).counts
    assert counts.model_dump() == {
        "comparisons": 6,
        "voted": 5,  # c3 is both bad
        "overlap": 4,  # c0, c1, c4, c6
        "compared": 2,  # c0, c1
        "prompts": 5,  # c0 and c1 are of one prompt
        "unknown_prompts": 3,
        "raters": 2,
        "ratings": 10,
        "votes": 7,
        "slight": 3,
        "clear": 4,
        "both_bad": 2,
        "skipped": 1,
        "checks": 3,
        "checks_failed": 2,
        "duplicates": 0,
        "repeated": 0,
    }


def test_sides_and_steps_by_hand() -> None:
    # Side by side: the same side in c0 to c3 of 5, the same step in c0 and c3.
    people = measure([source(rated({"ann": "AAbBA0s", "bob": "AaBBBAA"}))]).people
    assert (value(people.sides.mean), people.sides.cases) == (pytest.approx(0.8), 5)
    assert (value(people.steps.mean), people.steps.cases) == (pytest.approx(0.4), 5)
    # Values: 5 pairs; 5 for a, 5 for b. D_o = 1/5, D_e = 2·5·5/90.
    assert value(people.alpha_sides.mean) == pytest.approx(1 - (1 / 5) / (50 / 90))
    assert people.alpha_sides.cases == 5
    # Steps 4 · 0, 1, 2, 4 · 3 stand at 2, 4.5, 5.5, 8. D_o = 2 (6.25 + 6.25 + 36) / 10, D_e = 2 · 725 / 90.
    assert value(people.alpha_steps.mean) == pytest.approx(1 - 9.7 / (1450 / 90))
    assert people.kappa.mean is None
    assert people.kappa.reason == TOO_FEW_COMMON


def test_kappa_of_a_pair_of_raters_by_hand() -> None:
    # Ten in common, 20/5/10/15 of fifty made small: 4 A-A, 1 A-B, 2 B-A, 3 B-B.
    report = measure([source(rated({"ann": "AAAAABBBBB.", "bob": "AAAAbAaBBBA"}))])
    (pair,) = report.pairs
    assert (pair.first, pair.second, pair.common) == ("ann", "bob", 10)
    assert value(pair.sides.mean) == pytest.approx(0.7)
    assert value(pair.kappa.mean) == pytest.approx(0.4)
    assert report.people.kappa == pair.kappa
    # Steps 0 and 3 against 0, 1, 2, 3 with credits 1, 2/3, 1/3, 0: A = (4 + 1/3 + 0 + 1/3 + 3) / 10.
    # By chance: ann half 0, half 3; bob 5 · 0, 1 · 1, 1 · 2, 3 · 3: (5 + 2/3 + 1/3 + 0 + 0 + 1/3 + 2/3 + 3) / 20.
    seen, chance = (7 + 2 / 3) / 10, 0.5
    assert value(pair.weighted_kappa.mean) == pytest.approx((seen - chance) / (1 - chance))
    assert report.people.weighted_kappa == pair.weighted_kappa


def test_nine_votes_in_common_are_too_few_for_kappa() -> None:
    report = measure([source(rated({"ann": "AAAAABBBB.A", "bob": "AAAABAABBA."}))])
    assert report.pairs == ()
    assert report.people.kappa.reason == TOO_FEW_COMMON


def test_pooled_kappa_is_over_all_pairs_of_raters_with_enough_in_common() -> None:
    rows = {"ann": "A" * 6 + "B" * 6, "bob": "A" * 5 + "BB" + "B" * 5, "cleo": "A" * 4 + "BB" + "AA" + "B" * 4}
    report = measure([source(rated(rows))])
    assert [(pair.first, pair.second) for pair in report.pairs] == [("ann", "bob"), ("ann", "cleo"), ("bob", "cleo")]
    assert [value(pair.sides.mean) for pair in report.pairs] == pytest.approx([11 / 12, 8 / 12, 9 / 12])
    # In each pair one rater's answers are half a, half b, so that chance is a half.
    assert value(report.people.kappa.mean) == pytest.approx((28 / 36 - 0.5) / 0.5)
    assert report.people.kappa.cases == 36


def test_a_scale_of_two_has_no_figures_of_steps() -> None:
    people = measure([source(rated({"ann": "ABABABABABAB", "bob": "ABABABABABBA"}))]).people
    for figure in (people.steps, people.weighted_kappa, people.alpha_steps):
        assert (figure.mean, figure.reason) == (None, NO_SLIGHT)
    assert people.alpha_sides.mean is not None


def test_constant_answers_have_no_kappa_and_no_alpha() -> None:
    report = measure([source(rated({"ann": "a" * 12, "bob": "A" * 12}))])
    for figure in (report.people.kappa, report.people.alpha_sides, report.pairs[0].kappa):
        assert (figure.mean, figure.reason) == (None, CONSTANT)
    assert value(report.people.sides.mean) == 1
    # Of the steps only one rater's are constant each: they never agree, and chance would not let them.
    assert value(report.people.steps.mean) == 0
    assert "nan" not in report.model_dump_json().lower().replace("null", "")


def test_without_overlap_everything_else_is_still_said() -> None:
    report = measure([source(rated({"ann": "AB..", "bob": "..AB"}))])
    assert (report.people.sides.mean, report.people.sides.reason) == (None, NO_PAIR)
    assert report.people.alpha_sides.reason == NO_PAIR
    assert any("No comparison has the votes of two raters" in note for note in report.notes)
    assert of(report, "ann").with_others.mean is None
    assert value(of(report, "ann").first) == 0.5


def test_one_rater_is_said() -> None:
    report = measure([source(rated({"ann": "AB"}))])
    assert any("There is one rater" in note for note in report.notes)
    assert report.pairs == ()


def test_ratings_without_a_vote_are_counted_and_no_more() -> None:
    report = measure([source(rated({"ann": "0s", "bob": "00"}))])
    assert (report.counts.both_bad, report.counts.skipped, report.counts.voted) == (3, 1, 0)
    assert of(report, "ann").first is None
    assert report.people.sides.reason == NO_PAIR


def test_clusters_are_prompts() -> None:
    # 20 prompts of 5 comparisons each, on which two raters agree throughout or not at all.
    shown = [comparison(f"c{place}", f"Question {place // 5}?") for place in range(100)]
    rows = {"ann": "A" * 100, "bob": "".join("A" if place // 5 % 3 else "B" for place in range(100))}
    prompts = np.arange(100) // 5
    found = measure([source(rated(rows), shown)]).people.sides.mean
    expected = clustered_mean((prompts % 3 > 0).astype(float), prompts, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high),
        abs=0.051,  # one prompt: they are drawn in another order
    )
    report = measure([source(rated(rows))])
    unknown = report.people.sides.mean
    assert unknown is not None
    assert found.high - found.low > 1.5 * (unknown.high - unknown.low)
    assert any("100 of 100 comparisons are not known" in note for note in report.notes)


def test_topics_are_told_apart() -> None:
    topics = ["tea"] * 4 + ["milk"] * 4 + [None] * 4
    shown = [comparison(f"c{place}", topic=topic) for place, topic in enumerate(topics)]
    report = measure([source(rated({"ann": "AABB" * 3, "bob": "AABB" + "BBAA" + "ABAB"}), shown)])
    assert [(one.topic, one.comparisons, value(one.sides.mean)) for one in report.topics] == [
        ("milk", 4, 0.0),
        ("tea", 4, 1.0),
    ]
    assert value(report.topics[1].alpha_sides.mean) == pytest.approx(1)
    assert value(report.topics[0].alpha_sides.mean) < 0


# Sources


def test_the_same_rating_in_two_sources_counts_once() -> None:
    first, more = rated({"ann": "AB"}), rated({"ann": "ABA"})
    report = measure([source(first, path="export"), source(more, path="store")])
    assert (report.counts.ratings, report.counts.raters, report.counts.duplicates) == (3, 1, 2)
    assert [one.rater for one in report.raters] == ["ann"]
    assert "Ratings that stand in more than one place and count once: 2." in report.notes
    assert measure([source([*first, first[0]])]).counts.duplicates == 1


def test_raters_of_one_name_in_two_sources_are_two_people() -> None:
    first = rated({"ann": "AB", "bob": "A"})
    second = rated({"ann": "AA", "cleo": "A"}, at="2026-11-22T10:00:00+00:00")
    report = measure([source(first, path="monday"), source(second, path="tuesday")])
    assert [one.rater for one in report.raters] == ["ann (monday)", "ann (tuesday)", "bob", "cleo"]
    assert report.counts.compared == 2
    assert any("ann" in note and "told apart by the source" in note for note in report.notes)


@pytest.mark.parametrize("order", ["early late all", "all early late", "late all early"])
def test_parts_of_one_persons_ratings_are_one_person_in_any_order(order: str) -> None:
    ratings = rated({"ann": "AB" * 10})
    parts = {"early": ratings[:10], "late": ratings[10:], "all": ratings}
    report = measure([source(parts[name], path=name) for name in order.split()])
    assert [one.rater for one in report.raters] == ["ann"]
    assert (report.counts.ratings, report.counts.duplicates, report.counts.compared) == (20, 20, 0)


def test_a_later_rating_replaces_an_earlier_one() -> None:
    early = rating("c0", "ann", "a", at="2026-11-21T10:00:00+00:00")
    late = rating("c0", "ann", "b", at="2026-11-21T11:00:00+00:00")
    for order in ([early, late], [late, early]):
        report = measure([source([*order, rating("c0", "bob", "b")])])
        assert (report.counts.ratings, report.counts.repeated) == (2, 1)
        assert value(report.people.sides.mean) == 1
        assert any("a later one of the same comparison: 1." in note for note in report.notes)


def test_checks_may_come_twice() -> None:
    times = [f"2026-11-21T1{hour}:00:00+00:00" for hour in range(3)]
    checks = [rating("k", "ann", "a", check="a", at=at) for at in times]
    report = measure([source([rating("c0", "ann"), *checks])])
    assert (of(report, "ann").checks, report.counts.repeated) == (3, 0)


def test_other_texts_under_one_id_are_refused() -> None:
    one, other = comparison("c0", a="This."), comparison("c0", a="That.")
    with pytest.raises(DataError, match="c0 of second has other texts than that of first"):
        measure([source(rated({"ann": "A"}), [one], "first"), source(rated({"bob": "A"}), [other], "second")])


def test_comparisons_may_come_from_elsewhere() -> None:
    file = InputFile(path="pairs.jsonl", kind="comparisons", sha256="2" * 64, items=1)
    pairs = ComparisonSource(file, (comparison("c0"),), {"no_gold": 2, "not_json": 1})
    report = measure([source(rated({"ann": "A"}))], comparisons=[pairs])
    assert report.counts.unknown_prompts == 0
    assert report.inputs[1] == file
    assert "Of pairs.jsonl, 3 rows cannot be used (2 no_gold, 1 not_json)." in report.notes


# Each rater


def test_a_rater_against_the_majority_of_others_by_hand() -> None:
    # Of ann's six votes: c0 and c1 with the others' majority, c2 against it, c3 split, c4 alone, c5 with one other.
    rows = {"ann": "AABABA", "bob": "ABAA.A", "cleo": "AAAB..", "dan": "BA...."}
    report = measure([source(rated(rows))])
    ann = of(report, "ann")
    assert (value(ann.with_others.mean), ann.with_others.cases) == (pytest.approx(3 / 4), 4)
    # Her a, a, b, a against a, a, a, a: nothing beyond chance.
    assert value(ann.kappa_with_others.mean) == pytest.approx(0)
    # Pairs: c0 2 of 3, c1 2 of 3, c2 0 of 2, c3 1 of 2, c5 1 of 1.
    assert (value(ann.pair_agreement.mean), ann.pair_agreement.cases) == (pytest.approx(6 / 11), 11)


def test_shares_of_a_rater_by_hand() -> None:
    shown = [
        comparison("c0", a="longer text", b="text"),
        comparison("c1", a="text", b="longer text"),
        comparison("c2", a="text", b="also"),
    ]
    ratings = [
        rating("c0", "ann", "a", first="a", seconds=10),
        rating("c1", "ann", "rather_a", first="b", seconds=30),
        rating("c2", "ann", "b", first="b", seconds=20),
        rating("c3", "ann", "b", first="b", seconds=0),
        rating("c4", "ann", "both_bad", seconds=1000),
        rating("c5", "ann", "skipped", seconds=40),
    ]
    ann = of(measure([source(ratings, shown)]), "ann")
    assert (ann.ratings, ann.slight, ann.clear, ann.both_bad, ann.skipped) == (6, 1, 3, 1, 1)
    assert ann.first == wilson(3 / 4, 4)
    assert (value(ann.longer.mean), ann.longer.cases) == (0.5, 2)  # c2 is even, c3 unknown
    assert (ann.time.timed, ann.time.readable, ann.time.median_seconds) == (5, 3, 30)
    assert ann.checks_failed is None


def test_a_skipped_check_is_a_failed_one() -> None:
    checks = [
        rating(f"k{place}", "ann", answer, check="b") for place, answer in enumerate(("b", "rather_b", "a", "skipped"))
    ]  # type: ignore[arg-type]
    ann = of(measure([source(checks)]), "ann")
    assert (ann.ratings, ann.checks, ann.checks_failed) == (0, 4, wilson(0.5, 4))
    assert "checks" not in ann.flags


def test_flags_need_more_than_chance_and_more_than_is_tolerated() -> None:
    def first_of(chosen: int, of_: int) -> RaterFigures:
        ratings = [rating(f"c{place}", "ann", "a" if place % 2 else "b", first="a") for place in range(of_)]
        ratings = [
            one.model_copy(update={"first": one.preferred if place < chosen else "ab".replace(one.preferred or "", "")})
            for place, one in enumerate(ratings)
        ]
        return of(measure([source(ratings)]), "ann")

    assert first_of(50, 100).notes == ()
    noted = first_of(62, 100)  # the interval leaves out 50%, but 60% is tolerated
    assert noted.flags == ()
    assert "62.0%" in noted.notes[0]
    assert "leaves out 50%" in noted.notes[0]
    assert first_of(74, 100).flags == ()
    assert first_of(76, 100).flags == ("position",)  # P(76 or more of 100 at 60%) is 0.0006
    assert first_of(24, 100).flags == ("position",)
    assert first_of(620, 1000).flags == ()


def test_disagreement_is_flagged_where_it_is_clear_and_there_is_enough_to_compare_with() -> None:
    def flags(with_bob: int, agreed: int, others: int, others_agreed: int) -> dict[str, tuple[str, ...]]:
        ann = [rating(f"x{place}", "ann", "ab"[place % 2]) for place in range(with_bob)]  # type: ignore[arg-type]
        bob = [
            rating(one.comparison_id, "bob", one.answer if place < agreed else "ba"[place % 2])  # type: ignore[arg-type]
            for place, one in enumerate(ann)
        ]
        bob += [rating(f"y{place}", "bob", "ab"[place % 2]) for place in range(others)]  # type: ignore[arg-type]
        cleo = [
            rating(f"y{place}", "cleo", "ab"[(place + (place >= others_agreed)) % 2])  # type: ignore[arg-type]
            for place in range(others)
        ]
        return {one.rater: one.flags for one in measure([source([*ann, *bob, *cleo])]).raters if one.flags}

    assert flags(10, 5, 40, 32) == {}  # 50% against 80%, by 1.8 standard errors
    assert flags(100, 50, 40, 32) == {"ann": ("disagrees",)}
    assert flags(400, 280, 400, 336) == {}  # 70% against 84%: clear, but more than half of what is beyond chance
    assert flags(40, 10, 9, 9) == {}  # nine pairs of others
    assert flags(40, 10, 10, 10) == {"ann": ("disagrees",)}


def test_always_the_same_response_first_is_said() -> None:
    ratings = [rating(f"c{place}", "ann", "a", first="a") for place in range(30)]
    (note,) = of(measure([source(ratings)]), "ann").notes
    assert "always response a" in note


HABITS: dict[Habit, str] = {
    "first": "position",
    "random": "disagrees",
    "contrary": "disagrees",
    "careless": "checks",
    "hasty": "too_fast",
}
GOOD: dict[str, Habit] = {"ann": "good", "bob": "good", "cleo": "good", "dan": "good"}


def measured(simulation: Simulation) -> AgreementReport:
    return measure([source([*simulation.ratings, *simulation.checks], simulation.comparisons)])


@pytest.mark.parametrize("habit", HABITS)
def test_a_planted_rater_is_flagged_and_no_good_one_is(habit: Habit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 10)  # flags do not hang on the bootstrap
    for seed in range(10):
        report = measured(simulate({**GOOD, "planted": habit}, seed, comparisons=300, checks=25))
        flagged = {one.rater: one.flags for one in report.raters if one.flags}
        assert flagged.keys() == {"planted"}
        assert HABITS[habit] in flagged["planted"]
        assert len(of(report, "planted").notes) >= len(flagged["planted"])


def test_good_raters_are_not_flagged_among_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 10)
    for seed in range(10):
        report = measured(simulate(GOOD, 100 + seed, comparisons=300, right=0.75))
        assert [one.flags for one in report.raters] == [()] * 4


def test_times_are_listed_by_their_rule() -> None:
    # 1,000 characters each: 10 seconds and more can be read. One of 9 seconds cannot; a skipped one need not be.
    shown = [comparison(f"c{place}", a="x" * 500, b="y" * 500) for place in range(14)]
    seconds = [40.0] * 10 + [9.0, 11.0, 200.0, 2.0]
    ratings = [rating(f"c{place}", "ann", "a", seconds=time) for place, time in enumerate(seconds)]
    ratings[13] = ratings[13].model_copy(update={"answer": "skipped"})
    time = of(measure([source(ratings, shown)]), "ann").time
    assert time.too_fast == ("c10",)
    assert time.unusually_fast == ("c10", "c11")
    assert time.unusually_slow == ("c12",)
    # Ten answers are needed for that.
    assert of(measure([source(ratings[3:11], shown)]), "ann").time.unusually_fast == ()
    assert of(measure([source(ratings[1:11], shown)]), "ann").time.unusually_fast == ("c10",)
    # Without texts nothing can be read too fast, but a time can still be odd.
    time = of(measure([source(ratings)]), "ann").time
    assert (time.too_fast, time.unusually_fast, time.readable) == ((), ("c10", "c11"), 0)


# Judges


def test_a_judge_against_votes_by_hand() -> None:
    # c0 a a a, judge a. c1 a a b, judge a. c2 b, judge a. c3 a b, split, judge b. c4 a, tie. c5 both bad.
    rows = {"ann": "AaBAA0", "bob": "AA.B..", "cleo": "AB...."}
    found = judge({"c0": 0.9, "c1": 0.7, "c2": 0.6, "c3": 0.2, "c4": 0.5, "c5": 0.9}, unrated=3)
    (report,) = measure([source(rated(rows))], [found]).judges
    assert (report.comparisons, report.unrated, report.unlabelled, report.without_vote) == (5, 3, 0, 1)
    assert (report.ties, report.split, report.other_texts) == (1, 1, 0)
    assert (value(report.accuracy.mean), report.accuracy.cases) == (pytest.approx((1 + 1 + 0 + 0.5) / 4), 4)
    # Votes met: 3 of 3, 2 of 3, 0 of 1, 1 of 2, a half of 1.
    assert (value(report.votes.mean), report.votes.cases) == (pytest.approx(6.5 / 10), 10)
    # On c0, c1, c3: the judge meets 1, 2/3, 1/2 of the votes; pairs agree in 1, 1/3, 0.
    assert value(report.judge_with_people.mean) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert value(report.people_with_people.mean) == pytest.approx((1 + 1 / 3) / 3)
    assert value(report.gap.mean) == pytest.approx((1 + 2 / 3 + 1 / 2 - 4 / 3) / 3)
    # Each vote against the others': c0 3 of 3; c1 ann and bob split from a b, cleo against a a; c3 0 of 2.
    assert (value(report.people_with_majority.mean), report.people_with_majority.cases) == (0.5, 6)
    # Judge a a a, majority a a b.
    assert (value(report.kappa.mean), report.kappa.cases) == (pytest.approx(0), 3)
    # Confidences 0.9, 0.7, 0.6, 0.8, 0.5 against 1, 2/3, 0, 1/2, 1/2.
    assert value(report.ece) == pytest.approx((0.1 + (0.7 - 2 / 3) + 0.6 + 0.3 + 0) / 5)
    assert sum(one.count for one in report.reliability) == 5


def test_votes_on_what_a_judge_has_not_seen_are_in_none_of_its_figures() -> None:
    rows = {"ann": "AAAA", "bob": "AABB", "cleo": "AAAA"}
    (found,) = measure([source(rated(rows))], [judge({"c0": 0.9, "c1": 0.9})]).judges
    assert (found.comparisons, found.unlabelled) == (2, 2)
    assert (found.people_with_people.cases, value(found.people_with_people.mean)) == (2, 1)
    assert (found.people_with_majority.cases, value(found.people_with_majority.mean)) == (6, 1)


def test_a_calibrated_judge_has_no_error_and_its_interval_holds_that() -> None:
    # Of 20 answers at each confidence, as many are right as it says: no error, and some in nearly every draw.
    right = [place % 20 < number for number in (11, 13, 15, 17, 19) for place in range(20)]
    p = {f"c{place}": (0.55, 0.65, 0.75, 0.85, 0.95)[place // 20] for place in range(100)}
    (found,) = measure([source(rated({"ann": "".join("BA"[good] for good in right)}))], [judge(p)]).judges
    assert found.ece is not None
    assert (found.ece.value, found.ece.low) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert found.ece.high > 0.03


def test_a_judge_without_a_vote_in_common_is_all_reasons() -> None:
    (report,) = measure([source(rated({"ann": "AB"}))], [judge({}, unrated=7)]).judges
    assert (report.comparisons, report.unrated, report.unlabelled) == (0, 7, 2)
    assert report.accuracy.mean is None
    assert report.accuracy.reason is not None
    assert report.ece is None
    assert report.gap.reason is not None


def test_a_judge_of_other_texts_is_counted_and_left_out() -> None:
    shown = [comparison("c0"), comparison("c1")]
    labelled = [comparison("c0", a="Something else."), comparison("c1")]
    report = measure([source(rated({"ann": "AA"}), shown)], [judge({"c0": 0.1, "c1": 0.9}, labelled)])
    (found,) = report.judges
    assert (found.other_texts, found.comparisons, found.unlabelled) == (1, 1, 0)
    assert value(found.accuracy.mean) == 1


def test_prompts_and_topics_may_come_from_labels() -> None:
    labelled = [comparison("c0", "Same?", topic="tea"), comparison("c1", "Same?", topic="tea")]
    report = measure([source(rated({"ann": "AA.", "bob": "AB."}))], [judge({"c0": 0.9, "c1": 0.9}, labelled)])
    assert (report.counts.prompts, report.counts.unknown_prompts) == (1, 0)
    assert report.topics[0].topic == "tea"
    (found,) = report.judges
    assert [(one.name, one.comparisons, value(one.accuracy.mean)) for one in found.topics] == [("tea", 2, 1.0)]
    assert value(found.topics[0].people.mean) == 0.5


def test_tags_of_principles_go_by_their_own_judgements() -> None:
    tags = {"kind": ("tone", "harm"), "true": ("facts",), "plain": ()}
    verdicts = {
        # By tone and harm a, in the mean of both orders, by facts b, and over all b.
        "c0": verdict(judgement(0.3, "ab", "kind"), judgement(0.8, "ba", "kind"), judgement(0.1, None, "true")),
        "c1": verdict(judgement(0.2, None, "plain"), judgement(0.6, None, "gone")),
    }
    report = measure([source(rated({"ann": "AA", "bob": "AB"}))], [judge(verdicts, tags=tags)])
    (found,) = report.judges
    parts = {one.name: one for one in found.tags}
    assert {name: (one.comparisons, one.accuracy.mean and one.accuracy.mean.value) for name, one in parts.items()} == {
        "tone": (1, 1.0),
        "harm": (1, 1.0),
        "facts": (1, 0.0),
        NO_TAG: (1, None),  # c1 is split
        UNKNOWN_PRINCIPLE: (1, None),
    }
    assert value(parts["tone"].people.mean) == 1
    assert value(parts[NO_TAG].people.mean) == 0


def test_without_a_constitution_there_are_no_tags_and_that_is_said() -> None:
    report = measure([source(rated({"ann": "A"}))], [judge({"c0": verdict(judgement(0.9))})])
    assert report.judges[0].tags == ()
    assert "No constitution lies beside labels, so its labels cannot be told apart by tag." in report.notes


def test_several_judges_a_note_and_a_ceiling() -> None:
    judges = [judge({"c0": 0.9}, note="It is not finished.", set_name="hh-rlhf-x.jsonl"), judge({"c0": 0.1})]
    report = measure([source(rated({"ann": "A"}))], judges)
    assert [value(one.accuracy.mean) for one in report.judges] == [1, 0]
    assert "73% to 77%" in (report.judges[0].ceiling or "")
    assert report.judges[1].ceiling is None
    assert "It is not finished." in report.notes


def test_a_judge_as_good_as_one_more_person_has_no_gap() -> None:
    simulation = simulate(GOOD, 3, comparisons=800, each=4, right=0.8)
    random = np.random.default_rng(4)
    right = random.uniform(size=800) < 0.8
    p = {
        one.id: 0.8 if good == (simulation.better[one.id] == "a") else 0.2
        for one, good in zip(simulation.comparisons, right, strict=True)
    }
    (found,) = measure([source(simulation.ratings, simulation.comparisons)], [judge(p, simulation.comparisons)]).judges
    assert found.gap.mean is not None
    assert found.gap.mean.low < 0 < found.gap.mean.high
    assert value(found.people_with_people.mean) == pytest.approx(0.68, abs=0.03)  # 0.8² + 0.2²
    assert value(found.votes.mean) == pytest.approx(0.68, abs=0.03)
    assert found.ece is not None
    assert found.ece.low <= found.ece.value <= found.ece.high
    assert found.ece.value == pytest.approx(0.12, abs=0.03)  # it says 0.8 and meets 0.68


def test_a_report_is_read_back_as_it_was() -> None:
    simulation = simulate(GOOD, 0, comparisons=60)
    report = measured(simulation)
    assert AgreementReport.model_validate_json(report.model_dump_json()) == report
    assert measured(simulation) == report
