"""Ratings of several sources as one set of votes: who is who, what counts once, what is compared with what."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

from cai.data.formats import conversation_id
from cai.errors import DataError
from cai.human.agreement import Codes, category_counts
from cai.human.records import ANSWERS, Rating
from cai.records import Comparison
from cai.statistics import Bools, Floats

STEPS = len(ANSWERS["four"])
SIDES = 2
_STEP = {answer: step for step, answer in enumerate(ANSWERS["four"])}


@dataclass(frozen=True)
class RatingSet:
    """All ratings, each rater with one name and each comparison with one text."""

    ratings: tuple[Rating, ...]
    """One for each rater and comparison; those of attention checks are not among them."""
    checks: tuple[Rating, ...]
    comparisons: Mapping[str, Comparison]
    """Comparisons whose text is known, by id."""
    duplicates: int
    """Ratings that stood in more than one place and count once."""
    repeated: int
    """Ratings that the same rater replaced by a later one of the same comparison."""
    renamed: tuple[str, ...]
    """Names that stand for different raters in different sources."""

    def cluster(self, comparison_id: str) -> str:
        """The prompt of a comparison; the comparison itself where its text is not known."""
        known = self.comparisons.get(comparison_id)
        return f"comparison {comparison_id}" if known is None else conversation_id(known.prompt.messages)


@dataclass(frozen=True)
class Votes:
    """The n answers that prefer a response, as arrays (n,)."""

    ids: tuple[str, ...]
    """The comparisons that have a vote; `units` are places in it."""
    names: tuple[str, ...]
    """The raters; `raters` are places in it."""
    clusters: NDArray[np.str_]
    """Prompt of each comparison. Shape (units,)."""
    units: Codes
    raters: Codes
    steps: Codes
    """0 (a is clearly better) to 3 (b is)."""

    @property
    def sides(self) -> Codes:
        """0 for a, 1 for b."""
        return self.steps // 2

    @property
    def side_counts(self) -> Floats:
        """Votes of each comparison for a and for b. Shape (units, 2)."""
        return category_counts(self.units, self.sides, (len(self.ids), SIDES))

    @property
    def chance(self) -> float:
        """Probability that two votes, drawn from all (there are some), are for the same side."""
        shares = np.bincount(self.sides, minlength=SIDES) / len(self.sides)
        return float((shares**2).sum())

    def majority(self) -> Codes:
        """The side with more votes, 0 or 1; -1 where they are split. Shape (units,)."""
        return _majority(self.side_counts)

    def against_others(self, rater: int) -> tuple[Codes, Codes, Codes]:
        """The rater's comparisons on which the others have a majority: their units, the rater's side and theirs."""
        own = self.raters == rater
        units, sides = self.units[own], self.sides[own]
        theirs = _majority(self.side_counts[units] - np.eye(SIDES)[sides])
        decided = theirs >= 0
        return units[decided], sides[decided], theirs[decided]


@dataclass(frozen=True)
class VotePairs:
    """All pairs of raters with votes on one comparison, as arrays (pairs,)."""

    units: Codes
    first: Codes
    """The rater whose name comes first."""
    second: Codes
    first_steps: Codes
    second_steps: Codes

    @property
    def same_side(self) -> Bools:
        """Whether both prefer the same response, slightly or clearly."""
        same: Bools = self.first_steps // 2 == self.second_steps // 2
        return same

    @property
    def same_step(self) -> Bools:
        """Whether both gave the same answer."""
        same: Bools = self.first_steps == self.second_steps
        return same


def join(sources: Sequence[tuple[str, Iterable[Rating]]], comparisons: Iterable[tuple[str, Comparison]]) -> RatingSet:
    """Join the ratings of named sources, and name the raters.

    The same rating in two places (a rating directory and its export) counts once. Raters of the same name in two
    sources are one where they have such a rating in common; otherwise they are two, and the source is added to the
    name. Where a rater has rated a comparison twice, the later rating counts.

    Raises:
        DataError: two comparisons of the same id are not the same.
    """
    known = _same_comparisons(comparisons)
    people: dict[str, list[tuple[str, dict[Rating, None]]]] = defaultdict(list)
    duplicates = 0
    for source, ratings in sources:
        by_name: dict[str, dict[Rating, None]] = defaultdict(dict)
        for rating in ratings:
            duplicates += rating in by_name[rating.rater]
            by_name[rating.rater][rating] = None
        for name, theirs in by_name.items():
            same = [person for person in people[name] if not person[1].keys().isdisjoint(theirs)]
            apart = [person for person in people[name] if person[1].keys().isdisjoint(theirs)]
            duplicates += sum(len(found.keys() & theirs.keys()) for _, found in same)
            known_from = same[0][0] if same else source
            people[name] = [*apart, (known_from, dict.fromkeys(chain(*(found for _, found in same), theirs)))]
    standing: list[Rating] = []
    checks: list[Rating] = []
    repeated = 0
    for name, found in people.items():
        for source, theirs in found:
            shown = name if len(found) == 1 else f"{name} ({source})"
            last: dict[str, Rating] = {}
            for rating in sorted(theirs, key=lambda rating: rating.at):
                named = rating.model_copy(update={"rater": shown})
                if rating.check is not None:
                    checks.append(named)
                    continue
                repeated += rating.comparison_id in last
                last[rating.comparison_id] = named
            standing += last.values()
    return RatingSet(
        ratings=tuple(standing),
        checks=tuple(checks),
        comparisons=known,
        duplicates=duplicates,
        repeated=repeated,
        renamed=tuple(sorted(name for name, found in people.items() if len(found) > 1)),
    )


def votes_of(ratings: RatingSet) -> Votes:
    """The ratings that prefer a response."""
    found = [rating for rating in ratings.ratings if rating.answer in _STEP]
    ids = tuple(sorted({rating.comparison_id for rating in found}))
    names = tuple(sorted({rating.rater for rating in ratings.ratings} | {rating.rater for rating in ratings.checks}))
    unit = {id: place for place, id in enumerate(ids)}
    rater = {name: place for place, name in enumerate(names)}
    return Votes(
        ids=ids,
        names=names,
        clusters=np.array([ratings.cluster(id) for id in ids], dtype=np.str_),
        units=np.array([unit[rating.comparison_id] for rating in found], dtype=np.int64),
        raters=np.array([rater[rating.rater] for rating in found], dtype=np.int64),
        steps=np.array([_STEP[rating.answer] for rating in found], dtype=np.int64),
    )


def pairs_of(votes: Votes) -> VotePairs:
    """Each pair of votes on the same comparison once."""
    by_unit: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for unit, rater, step in zip(votes.units, votes.raters, votes.steps, strict=True):
        by_unit[int(unit)].append((int(rater), int(step)))
    rows = [
        (unit, first[0], second[0], first[1], second[1])
        for unit, found in sorted(by_unit.items())
        for first, second in combinations(sorted(found), 2)
    ]
    return VotePairs(*np.array(rows, dtype=np.int64).reshape(-1, 5).T)


def same_texts(one: Comparison, other: Comparison) -> bool:
    """Whether two comparisons show the same prompt and responses, in the same places."""
    return (one.prompt.messages, one.a.text, one.b.text) == (other.prompt.messages, other.a.text, other.b.text)


def _majority(counts: Floats) -> Codes:
    return np.where(counts[:, 0] == counts[:, 1], -1, counts.argmax(1))


def _same_comparisons(comparisons: Iterable[tuple[str, Comparison]]) -> dict[str, Comparison]:
    known: dict[str, tuple[str, Comparison]] = {}
    for source, comparison in comparisons:
        earlier, other = known.setdefault(comparison.id, (source, comparison))
        if not same_texts(comparison, other):
            raise DataError(
                f"the comparison {comparison.id} of {source} has other texts than that of {earlier}, so their ratings "
                "cannot be put together; measure the sources one by one"
            )
    return {id: comparison for id, (_, comparison) in known.items()}
