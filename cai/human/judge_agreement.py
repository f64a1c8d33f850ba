"""An AI judge against people: how often it takes their side, and how often they take one another's."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from cai.ceilings import human_ceiling
from cai.human.agreement import Agreement, Clusters, coefficient_of, kappa, pair_tables, share_of
from cai.human.agreement_sources import JudgeSource
from cai.human.agreement_votes import SIDES, RatingSet, Votes, same_texts
from cai.records import Record, Verdict
from cai.statistics import (
    BINS,
    Floats,
    Mean,
    ReliabilityBin,
    clustered_mean,
    correctness,
    reliability,
    resampled_sums,
    ties,
)

NO_TAG = "(no tag)"
"""Stands for principles without tags."""
UNKNOWN_PRINCIPLE = "(not in the constitution)"
"""Stands for principles that the constitution beside the labels does not have."""

_NO_MAJORITY = "no comparison has a label and a majority of votes"
_NO_VOTE = "no comparison has a label and a vote"
_NO_SECOND = "no comparison has a label and two votes"


class JudgePart(Record):
    """A judge on some of the comparisons: those of a topic, or those it was asked about by principles of a tag."""

    name: str
    comparisons: int
    """With a label and a vote."""
    accuracy: Agreement
    """As `JudgeAgreement.accuracy`; of a tag, by the judgements of its principles alone."""
    people: Agreement
    """As `JudgeAgreement.people_with_people`."""


class JudgeAgreement(Record):
    """A judge and people on the same comparisons."""

    judge: str
    """File or run of the labels."""
    model: str
    comparisons: int
    """With a label and a vote; figures are of these."""
    unrated: int
    """Labels of comparisons that nobody has rated."""
    unlabelled: int
    """Comparisons with votes that the judge has no label for."""
    without_vote: int
    """Labels of comparisons that raters found both bad or skipped."""
    other_texts: int
    """Comparisons of the same id that are not the same; they are left out."""
    ties: int
    """Labels with p = 0.5: half right, and left out of `kappa`."""
    split: int
    """Comparisons whose votes are split; they have no majority."""
    accuracy: Agreement
    """Share of comparisons on which the judge prefers the response that most people prefer."""
    votes: Agreement
    """Share of single votes that the judge's preference meets."""
    kappa: Agreement
    """Cohen's κ of the judge with the majority."""
    ece: Mean | None
    """Expected calibration error of p_a against the share of votes, over `reliability`. Where it is small, resampling
    adds to it: its interval then lies above the figure more than below."""
    reliability: tuple[ReliabilityBin, ...]
    """Expected correctness against the shares of votes by confidence; see `statistics.correctness`."""
    judge_with_people: Agreement
    """On comparisons with two votes or more: share of the votes that the judge meets, as the mean over comparisons."""
    people_with_people: Agreement
    """On the same ones: share of the pairs of votes that agree. What a judge as good as one more person would reach."""
    gap: Agreement
    """The judge's share minus that of people, paired by comparison."""
    people_with_majority: Agreement
    """Share of single votes that meet the majority of the others; beside `accuracy`."""
    ceiling: str | None
    """What people reach on such comparisons elsewhere, where that is known."""
    topics: tuple[JudgePart, ...]
    """By topic of the prompt, where prompts have one."""
    tags: tuple[JudgePart, ...]
    """By tag of the principles that the judge was asked by; a principle with two tags is in both."""


def judge_agreement(
    source: JudgeSource, ratings: RatingSet, votes: Votes, *, set_names: Iterable[str], seed: int
) -> JudgeAgreement:
    """Measure a judge against the votes; `set_names` are the names of the sets that were rated."""
    other = {
        id
        for id, (comparison, _) in source.verdicts.items()
        if id in ratings.comparisons and not same_texts(comparison, ratings.comparisons[id])
    }
    places = [place for place, id in enumerate(votes.ids) if id in source.verdicts and id not in other]
    labelled = np.array(places, dtype=np.int64)
    found = _OnUnits(votes, labelled, seed)
    verdicts = [source.verdicts[votes.ids[place]] for place in places]
    p = np.array([verdict.p_a for _, verdict in verdicts])
    decided, decisive = found.majority >= 0, ~ties(p)
    bins = reliability(p, found.share_a) if len(p) else ()
    topics: dict[str, list[int]] = defaultdict(list)
    for row, (comparison, _) in enumerate(verdicts):
        if comparison.prompt.topic is not None:
            topics[comparison.prompt.topic].append(row)
    both = decided & decisive
    names = (source.set_name, *set_names)
    return JudgeAgreement(
        judge=source.file.path,
        model=source.model,
        comparisons=len(places),
        unrated=source.unrated,
        unlabelled=len(votes.ids) - len(places) - sum(id in other for id in votes.ids),
        without_vote=len(source.verdicts.keys() - other - set(votes.ids)),
        other_texts=len(other),
        ties=int((~decisive).sum()),
        split=int((~decided).sum()),
        accuracy=found.accuracy(p),
        votes=found.votes(p),
        kappa=coefficient_of(
            pair_tables(np.where(p > 0.5, 0, 1)[both], found.majority[both], SIDES),
            found.clusters[both],
            kappa,
            seed=seed,
            nothing=_NO_MAJORITY,
        ),
        ece=_calibration(p, found.share_a, found.clusters, seed) if len(p) else None,
        reliability=bins,
        judge_with_people=found.judge_with_people(p),
        people_with_people=found.people_with_people(),
        gap=found.gap(p),
        people_with_majority=found.people_with_majority(),
        ceiling=next((ceiling for name in names if (ceiling := human_ceiling(name)) is not None), None),
        topics=tuple(found.part(name, np.array(rows), p[rows]) for name, rows in sorted(topics.items())),
        tags=_tags(found, [verdict for _, verdict in verdicts], source.tags),
    )


class _OnUnits:
    """The votes on some units, and the figures of any p (units,) there."""

    def __init__(self, votes: Votes, units: NDArray[np.int64], seed: int) -> None:
        counts = votes.side_counts[units]
        self._votes, self._units, self._seed = votes, units, seed
        self._counts = counts
        self.clusters: Clusters = votes.clusters[units]
        self.majority = votes.majority()[units]
        self.share_a: Floats = counts[:, 0] / counts.sum(1)

    def accuracy(self, p: Floats) -> Agreement:
        decided = self.majority >= 0
        right = correctness(p[decided], self.majority[decided] == 0)
        return share_of(right, self.clusters[decided], seed=self._seed, nothing=_NO_MAJORITY)

    def votes(self, p: Floats) -> Agreement:
        number = self._counts.sum(1).astype(np.int64)
        # Each comparison stands for its votes: as often as it has some, with the share of them that is met.
        met = np.repeat(correctness(p, self.share_a), number)
        return share_of(met, np.repeat(self.clusters, number), seed=self._seed, nothing=_NO_VOTE)

    def judge_with_people(self, p: Floats) -> Agreement:
        several = self._several
        met = correctness(p, self.share_a)[several]
        return share_of(met, self.clusters[several], seed=self._seed, nothing=_NO_SECOND)

    def people_with_people(self) -> Agreement:
        several = self._several
        return share_of(self._agreeing[several], self.clusters[several], seed=self._seed, nothing=_NO_SECOND)

    def gap(self, p: Floats) -> Agreement:
        several = self._several
        if not several.any():
            return Agreement(mean=None, cases=0, reason=_NO_SECOND)
        gaps = (correctness(p, self.share_a) - self._agreeing)[several]
        mean = clustered_mean(gaps, self.clusters[several], seed=self._seed, bounds=(-1.0, 1.0))
        return Agreement(mean=mean, cases=int(several.sum()))

    def people_with_majority(self) -> Agreement:
        own: list[bool] = []
        clusters: list[str] = []
        inside = np.isin(np.arange(len(self._votes.ids)), self._units)
        for rater in range(len(self._votes.names)):
            units, sides, others = self._votes.against_others(rater)
            own += (sides == others)[inside[units]].tolist()
            clusters += self._votes.clusters[units[inside[units]]].tolist()
        return share_of(np.array(own, dtype=np.bool_), np.array(clusters), seed=self._seed, nothing=_NO_SECOND)

    def part(self, name: str, rows: NDArray[np.int64], p: Floats) -> JudgePart:
        inside = _OnUnits(self._votes, self._units[rows], self._seed)
        people = inside.people_with_people()
        return JudgePart(name=name, comparisons=len(rows), accuracy=inside.accuracy(p), people=people)

    @property
    def _several(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self._counts.sum(1) > 1
        return found

    @property
    def _agreeing(self) -> Floats:
        """Share of the pairs of votes that agree; 0 where there is no pair."""
        number = self._counts.sum(1)
        same = (self._counts * (self._counts - 1)).sum(1)
        share: Floats = same / np.maximum(number * (number - 1), 1)
        return share


def _calibration(p: Floats, share_a: Floats, clusters: Clusters, seed: int) -> Mean:
    """Expected calibration error, in the bins of `statistics.reliability`, and its interval."""
    edges = np.arange(BINS, 2 * BINS + 1) / (2 * BINS)
    confidence = np.maximum(p, 1 - p)
    bins = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, BINS - 1)
    _, codes = np.unique(clusters, return_inverse=True)
    totals = np.zeros((int(codes.max()) + 1, BINS + 1))
    np.add.at(totals, (codes, bins), correctness(p, share_a) - confidence)
    totals[:, BINS] = np.bincount(codes)
    value = float(_error(totals.sum(0)))
    if len(totals) < 2:
        return Mean(value=value, low=0.0, high=1.0)
    draws = np.concatenate([_error(sums) for sums in resampled_sums(totals, seed=seed)])
    low, high = np.quantile(draws, (0.025, 0.975))
    return Mean(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _error(sums: Floats) -> Floats:
    error: Floats = np.abs(sums[..., :BINS]).sum(-1) / sums[..., BINS]
    return error


def _tags(
    found: _OnUnits, verdicts: list[Verdict], tags: Mapping[str, tuple[str, ...]] | None
) -> tuple[JudgePart, ...]:
    if tags is None:
        return ()
    answers: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row, verdict in enumerate(verdicts):
        for judgement in verdict.judgements:
            for tag in tags.get(judgement.principle_id, (UNKNOWN_PRINCIPLE,)) or (NO_TAG,):
                answers[tag][row].append(judgement.p_a)
    return tuple(
        found.part(tag, np.array(list(rows)), np.array([np.mean(p) for p in rows.values()]))
        for tag, rows in sorted(answers.items())
    )
