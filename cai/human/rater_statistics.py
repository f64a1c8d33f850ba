"""What is known of each rater, and what makes one stand out.

A flag says that a rater does more than is tolerated (`TOLERATED`), and that chance hardly explains it (`FLAG_LEVEL`).
Flags are questions to ask, and no verdict; nothing is left out because of them.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from cai.human.agreement import Agreement, Clusters, coefficient_of, deviation, kappa, pair_tables, share_of
from cai.human.agreement_votes import SIDES, RatingSet, VotePairs, Votes
from cai.human.reading_time import MAX_RATE, TimeFigures, time_figures
from cai.human.records import Rating
from cai.records import Comparison, Record
from cai.statistics import CHANCE, Bools, Mean, percent, wilson

Flag = Literal["position", "disagrees", "checks", "too_fast"]

TOLERATED = 0.1
"""So much may the share of first responses be off a half; so large may the share of failed checks be, and that of
answers faster than anyone reads."""
TOLERATED_LOSS = 0.5
"""Of the agreement beyond chance that others have with one another, a rater may lack so much."""
FLAG_LEVEL = 0.001
"""Largest probability with which a rater who is just tolerable (who agrees as the others do) does what is flagged."""
_FLAG_Z = 3.090232
"""The normal distribution's quantile for it."""
MIN_COMMON = 10
"""Fewer comparisons in common give no κ of two raters; fewer pairs of votes, no flag for disagreement."""

_NO_OTHERS = "no comparison of this rater has a majority of others' votes"


class RaterFigures(Record):
    """One rater. Intervals of shares with `Mean` alone are Wilson's; those with `Agreement` are clustered by prompt."""

    rater: str
    ratings: int
    """Comparisons rated, skipped ones included."""
    slight: int
    """Slight preferences."""
    clear: int
    """Clear preferences; on a scale of two answers every one is."""
    both_bad: int
    skipped: int
    first: Mean | None
    """Share of preferences that went to the response that stood first; None without a preference."""
    with_others: Agreement
    """Share of preferences that meet the side of most others; where the others are split, a comparison is left out."""
    kappa_with_others: Agreement
    """Cohen's κ with the side of most others, over the same comparisons."""
    pair_agreement: Agreement
    """Share of pairs with another rater's vote that agree on the side."""
    longer: Agreement
    """Share of preferences that went to the longer response, where both texts are known and differ in length."""
    checks: int
    """Attention checks seen."""
    checks_failed: Mean | None
    """Share of them in which the better response was not preferred; None where there was none."""
    time: TimeFigures
    flags: tuple[Flag, ...]
    notes: tuple[str, ...]
    """What stands out, one sentence each. Not all of it is flagged."""


class _Odd(NamedTuple):
    """Something that stands out."""

    flag: Flag | None
    """None: it is told, and no more."""
    sentence: str


def rater_figures(ratings: RatingSet, votes: Votes, pairs: VotePairs, *, seed: int) -> tuple[RaterFigures, ...]:
    """The figures of every rater, in the order of their names."""
    mine, checks = _by_rater(ratings.ratings), _by_rater(ratings.checks)
    return tuple(
        _figures(place, mine.get(name, []), checks.get(name, []), ratings.comparisons, votes, pairs, seed)
        for place, name in enumerate(votes.names)
    )


def binomial_tail(successes: int, cases: int, share: float) -> float:
    """Probability of so many successes or more in independent cases with probability `share`, which is not 0 or 1."""
    logs = (
        math.lgamma(cases + 1)
        - math.lgamma(k + 1)
        - math.lgamma(cases - k + 1)
        + k * math.log(share)
        + (cases - k) * math.log1p(-share)
        for k in range(successes, cases + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _by_rater(ratings: Sequence[Rating]) -> Mapping[str, list[Rating]]:
    found: defaultdict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        found[rating.rater].append(rating)
    return found


def _figures(
    place: int,
    mine: Sequence[Rating],
    checks: Sequence[Rating],
    comparisons: Mapping[str, Comparison],
    votes: Votes,
    pairs: VotePairs,
    seed: int,
) -> RaterFigures:
    preferring = [rating for rating in mine if rating.preferred is not None]
    firsts = sum(rating.preferred == rating.first for rating in preferring)
    slight = sum(rating.answer.startswith("rather") for rating in preferring)
    failed = sum(rating.fails_check for rating in checks)
    units, own, others = votes.against_others(place)
    clusters, pair_clusters = votes.clusters[units], votes.clusters[pairs.units]
    taken = (pairs.first == place) | (pairs.second == place)
    time = time_figures(mine, comparisons)
    odd = [
        _position(firsts, preferring),
        _disagreement(votes, pairs.same_side, taken, pair_clusters),
        _failures(failed, len(checks)),
        _haste(time),
    ]
    return RaterFigures(
        rater=votes.names[place],
        ratings=len(mine),
        slight=slight,
        clear=len(preferring) - slight,
        both_bad=sum(rating.answer == "both_bad" for rating in mine),
        skipped=sum(rating.answer == "skipped" for rating in mine),
        first=_share(firsts, len(preferring)),
        with_others=share_of(own == others, clusters, seed=seed, nothing=_NO_OTHERS),
        kappa_with_others=coefficient_of(
            pair_tables(own, others, SIDES), clusters, kappa, seed=seed, nothing=_NO_OTHERS
        ),
        pair_agreement=share_of(
            pairs.same_side[taken], pair_clusters[taken], seed=seed, nothing="no other vote is on the same comparisons"
        ),
        longer=_longer(preferring, comparisons, votes, seed),
        checks=len(checks),
        checks_failed=_share(failed, len(checks)),
        time=time,
        flags=tuple(one.flag for one in odd if one is not None and one.flag is not None),
        notes=tuple(one.sentence for one in odd if one is not None),
    )


def _share(part: int, whole: int) -> Mean | None:
    return wilson(part / whole, whole) if whole else None


def _longer(preferring: Sequence[Rating], comparisons: Mapping[str, Comparison], votes: Votes, seed: int) -> Agreement:
    prompts = dict(zip(votes.ids, votes.clusters, strict=True))
    values: list[bool] = []
    clusters: list[str] = []
    for rating in preferring:
        shown = comparisons.get(rating.comparison_id)
        if shown is not None and len(shown.a.text) != len(shown.b.text):
            values.append((rating.preferred == "a") == (len(shown.a.text) > len(shown.b.text)))
            clusters.append(prompts[rating.comparison_id])
    reason = "no preference is about known texts of different lengths"
    return share_of(np.array(values, dtype=np.bool_), np.array(clusters), seed=seed, nothing=reason)


def _position(firsts: int, preferring: Sequence[Rating]) -> _Odd | None:
    cases = len(preferring)
    share = _share(firsts, cases)
    if share is None or share.low <= CHANCE <= share.high:
        return None
    tail = binomial_tail(max(firsts, cases - firsts), cases, CHANCE + TOLERATED)
    sentence = f"Took the response that stood first in {percent(share)} of {cases} preferences"
    if len({rating.first for rating in preferring}) == 1:
        sentence += f"; it was always response {preferring[0].first}, so place and response cannot be told apart"
    if tail < FLAG_LEVEL:
        return _Odd("position", f"{sentence}: answers follow the place.")
    return _Odd(None, f"{sentence}: the interval leaves out 50%, as by chance that of one rater in twenty does.")


def _disagreement(votes: Votes, agree: Bools, taken: Bools, clusters: Clusters) -> _Odd | None:
    if min(taken.sum(), (~taken).sum()) < MIN_COMMON or deviation(agree, taken, clusters) > -_FLAG_Z:
        return None
    own, others, chance = float(agree[taken].mean()), float(agree[~taken].mean()), votes.chance
    if own - chance >= (1 - TOLERATED_LOSS) * (others - chance):
        return None
    return _Odd(
        "disagrees",
        f"Agrees with others in {own:.1%} of {taken.sum()} pairs of votes; they agree with one another in "
        f"{others:.1%} of {(~taken).sum()}, and chance alone would give {chance:.1%}.",
    )


def _failures(failed: int, checks: int) -> _Odd | None:
    if binomial_tail(failed, checks, TOLERATED) >= FLAG_LEVEL:
        return None
    return _Odd("checks", f"Failed {failed} of {checks} attention checks.")


def _haste(time: TimeFigures) -> _Odd | None:
    if binomial_tail(len(time.too_fast), time.readable, TOLERATED) >= FLAG_LEVEL:
        return None
    return _Odd(
        "too_fast",
        f"Gave {len(time.too_fast)} of {time.readable} answers faster than {MAX_RATE:g} characters a second, which "
        "nobody reads.",
    )
