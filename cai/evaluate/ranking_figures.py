"""The figures of one axis of a ranking: ratings, pairs of policies, and the part of length."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cai.evaluate.bradley_terry import Duels, Ratings, linked_groups, rate, win_table
from cai.evaluate.length_control import LengthFit, length_control
from cai.evaluate.ranking_records import Axis, AxisName, LengthEffect, PolicyPair, PolicyRating
from cai.evaluate.ranking_sources import Outcome
from cai.feedback.certificate import MIN_PROMPTS
from cai.statistics import clustered_mean, longer_wins


def measure_axis(name: AxisName, outcomes: Iterable[Outcome], baseline: str | None, *, seed: int) -> Axis:
    """Rate the policies of at least one comparison, group by group; `runs` is left empty."""
    duels = duels_of(outcomes)
    lengths = length_control(duels, "difference"), length_control(duels, "ratio")
    rated = [rate(duels, places, seed=seed) for places in linked_groups(win_table(duels))]
    policies: list[PolicyRating] = []
    pairs: list[PolicyPair] = []
    for group, ratings in enumerate(rated):
        policies += _policies(duels, ratings, group, baseline, seed=seed)
        pairs += _pairs(duels, ratings, lengths, seed=seed)
    return Axis(
        name=name,
        runs=(),
        comparisons=len(duels.p),
        prompts=len(np.unique(duels.clusters)),
        policies=tuple(policies),
        pairs=tuple(pairs),
        length=_length(*lengths),
        notes=tuple(_notes(duels, rated, baseline)),
    )


def duels_of(outcomes: Iterable[Outcome]) -> Duels:
    """The comparisons as arrays, in an order that depends on nothing but themselves."""
    rows = sorted(outcomes, key=lambda one: (one.prompt, *one))
    policies = tuple(sorted({name for row in rows for name in (row.first, row.second)}))
    place = {name: number for number, name in enumerate(policies)}
    return Duels(
        policies=policies,
        first=np.array([place[row.first] for row in rows], dtype=np.int64),
        second=np.array([place[row.second] for row in rows], dtype=np.int64),
        p=np.array([row.p for row in rows], dtype=np.float64),
        clusters=np.array([row.prompt for row in rows], dtype=np.str_),
        chars_first=np.array([row.chars_first for row in rows], dtype=np.float64),
        chars_second=np.array([row.chars_second for row in rows], dtype=np.float64),
    )


def _policies(duels: Duels, ratings: Ratings, group: int, baseline: str | None, *, seed: int) -> list[PolicyRating]:
    """The best first."""
    names = [duels.policies[place] for place in ratings.places]
    zero = names.index(baseline) if baseline in names else None
    found = []
    for at, place in enumerate(ratings.places):
        first, second = duels.first == place, duels.second == place
        own = duels.only(first | second)
        values = np.where(own.first == place, own.p, 1 - own.p)
        found.append(
            PolicyRating(
                policy=names[at],
                rating=ratings.rating(at, zero),
                win_rate=clustered_mean(values, own.clusters, seed=seed),
                comparisons=len(own.p),
                prompts=len(np.unique(own.clusters)),
                group=group,
            )
        )
    return sorted(found, key=lambda one: -one.rating.value)


def _pairs(
    duels: Duels, ratings: Ratings, lengths: tuple[LengthFit | str, LengthFit | str], *, seed: int
) -> Iterator[PolicyPair]:
    for at, first in enumerate(ratings.places):
        for other in range(at + 1, len(ratings.places)):
            second = ratings.places[other]
            taken = duels.of(first, second)
            if not taken.any():
                continue
            own = duels.only(taken)
            controlled, corrected = (None if isinstance(fit, str) else fit.win_rates[first, second] for fit in lengths)
            yield PolicyPair(
                first=duels.policies[first],
                second=duels.policies[second],
                comparisons=len(own.p),
                prompts=len(np.unique(own.clusters)),
                win_rate=clustered_mean(own.p, own.clusters, seed=seed),
                expected=ratings.expected(at, other),
                difference=ratings.difference(at, other),
                longer=float(longer_wins(own.chars_first, own.chars_second).mean()),
                length_controlled=controlled,
                length_corrected=corrected,
            )


def _length(by_difference: LengthFit | str, by_ratio: LengthFit | str) -> LengthEffect:
    reasons = dict.fromkeys(fit for fit in (by_difference, by_ratio) if isinstance(fit, str))
    return LengthEffect(
        effect=None if isinstance(by_difference, str) else by_difference.effect,
        scale=None if isinstance(by_difference, str) else by_difference.scale,
        ratio_effect=None if isinstance(by_ratio, str) else by_ratio.effect,
        reason="; ".join(reasons) or None,
    )


def _notes(duels: Duels, rated: Sequence[Ratings], baseline: str | None) -> Iterator[str]:
    groups = [[duels.policies[place] for place in ratings.places] for ratings in rated]
    for names, ratings in zip(groups, rated, strict=True):
        if ratings.unbeaten:
            best = ", ".join(names[at] for at in ratings.unbeaten)
            yield (
                f"No chain of wins leads from the others to {best}, so nothing bounds how much better they are: a weak "
                "prior makes the values finite, and intervals are open on that side."
            )
    if len(groups) > 1:
        listed = "; ".join(map(", ".join, groups))
        yield f"No comparison links these groups, so their ratings cannot be compared: {listed}."
        if baseline is not None:
            yield f"Outside the group of {baseline}, ratings are against the mean of the group."
    prompts = len(np.unique(duels.clusters))
    if prompts < MIN_PROMPTS:
        yield f"So few prompts as {prompts} give intervals that are too narrow, or none."
