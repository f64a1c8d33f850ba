"""What the records of critique and labelling runs add up to, read once and one at a time."""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from cai.prompting import found_nothing
from cai.records import TIE, ContrastSample, Label, RevisionChain
from cai.statistics import BINS

EDGES = tuple(edge / (2 * BINS) for edge in range(BINS, 2 * BINS + 1))
"""Of the bins of confidences, which are those of `statistics.reliability`."""


@dataclass
class PrincipleTally:
    """What a principle was drawn for."""

    rounds: int = 0
    """Rounds of critique and revision."""
    critiques: int = 0
    clean: int = 0
    """Critiques that found nothing to change."""
    contrasts: int = 0
    """Pairs of replies that were asked to keep to it and to oppose it."""
    judgements: int = 0
    p_a: float = 0.0
    """Sum over the judgements."""
    confidence: float = 0.0
    """Sum of max(p_a, 1 − p_a) over the judgements."""


@dataclass
class LabelTally:
    """What the labels of one run add up to."""

    labels: int = 0
    ties: int = 0
    prefer_a: int = 0
    """Labels with p_a above 0.5; ties are not among them."""
    both_orders: int = 0
    """Labels for which the judge saw both orders."""
    flips: float = 0.0
    """Sum of their shares of flipped principles."""
    gold: int = 0
    """Labels of comparisons whose better response is known."""
    right: float = 0.0
    """Those of them that prefer it; ties count half."""
    confidence: Counter[int] = field(default_factory=Counter)
    """Labels by bin of max(p_a, 1 − p_a)."""

    def add(self, label: Label) -> None:
        """Count one more label."""
        p = label.verdict.p_a
        tie = abs(p - 0.5) <= TIE
        self.labels += 1
        self.ties += tie
        self.prefer_a += not tie and p > 0.5
        flip = label.verdict.position_flip
        self.both_orders += flip is not None
        self.flips += flip or 0.0
        if label.comparison.gold is not None:
            self.gold += 1
            self.right += 0.5 if tie else float((p > 0.5) == (label.comparison.gold == "a"))
        self.confidence[bin_of(max(p, 1 - p))] += 1


PrincipleTallies = dict[str, PrincipleTally]


def new_tallies() -> PrincipleTallies:
    """Tallies by principle, made as they are asked for."""
    return defaultdict(PrincipleTally)


def add_chains(tallies: PrincipleTallies, chains: Iterable[RevisionChain]) -> None:
    """Count the rounds of chains."""
    for chain in chains:
        for round_ in chain.rounds:
            tally = tallies[round_.principle_id]
            tally.rounds += 1
            if round_.critique is not None:
                tally.critiques += 1
                tally.clean += round_.revision is None or found_nothing(round_.critique.text)


def add_contrasts(tallies: PrincipleTallies, samples: Iterable[ContrastSample]) -> None:
    """Count the pairs of contrasting replies."""
    for sample in samples:
        tallies[sample.principle_id].contrasts += 1


def add_labels(tallies: PrincipleTallies, labels: Iterable[Label]) -> LabelTally:
    """Count the judgements of labels by principle, and sum the labels up."""
    found = LabelTally()
    for label in labels:
        found.add(label)
        for one in label.verdict.judgements:
            tally = tallies[one.principle_id]
            tally.judgements += 1
            tally.p_a += one.p_a
            tally.confidence += max(one.p_a, 1 - one.p_a)
    return found


def bin_of(confidence: float) -> int:
    """Which bin between `EDGES` a confidence lies in; the last one includes 1."""
    return min(bisect_right(EDGES, confidence) - 1, BINS - 1)
