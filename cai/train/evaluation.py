"""What a reward model is worth on held-out pairs, by the source of their labels: pure functions of numpy arrays.

A reward model says σ(Δ) for the probability that the chosen response is the better one, with Δ its reward minus the
rejected one's (Bai et al. 2022, section 4.1). The label p says the same, from 0 to 1; below 0.5 it prefers `rejected`.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cai.ceilings import human_ceiling
from cai.errors import StageError
from cai.records import Record
from cai.statistics import (
    CHANCE,
    Bools,
    Floats,
    Mean,
    ReliabilityBin,
    calibration_error,
    clustered_mean,
    correctness,
    longer_wins,
    rank_correlation,
    reliability,
    ties,
)

ALL = "all"
"""Stands for all sources together."""


@dataclass(frozen=True)
class ScoredPairs:
    """n pairs with their labels and what a reward model gives them; every array has shape (n,).

    Raises:
        ValueError: the shapes differ, or a label is no probability.
    """

    chosen: Floats
    """Rewards."""
    rejected: Floats
    """Rewards."""
    p_chosen: Floats
    """The labels: probability that `chosen` is the better one."""
    chosen_length: Floats
    """Characters of the response."""
    rejected_length: Floats
    """Characters of the response."""
    clusters: NDArray[Any]
    """Ids of the prompts."""
    sources: NDArray[np.str_]
    """Who gave the label: `ai`, `human`, `revision` or `contrast`."""

    def __post_init__(self) -> None:
        """Check shapes and labels."""
        shapes = {getattr(self, field.name).shape for field in fields(self)}
        if shapes != {(len(self.p_chosen),)}:
            raise ValueError(f"the arrays of scored pairs have the shapes {sorted(shapes)}, not one shape (n,)")
        if not ((self.p_chosen >= 0) & (self.p_chosen <= 1)).all():
            raise ValueError("a label of the scored pairs is not in [0, 1]")

    def __len__(self) -> int:
        return len(self.p_chosen)

    def where(self, kept: Bools) -> "ScoredPairs":
        """The pairs for which `kept` (n,) is True."""
        return ScoredPairs(*(getattr(self, field.name)[kept] for field in fields(self)))


class SourceEvaluation(Record):
    """How well rewards meet the labels of one source. Intervals are of 95%, by a bootstrap over prompts.

    The figures that need to know which response the label prefers are None where every label is a tie.
    """

    source: str
    """Who gave the labels; `all` for all of them."""
    pairs: int
    prompts: int
    """Different prompts among them; these are the clusters."""
    label_ties: int
    """Pairs with p = 0.5: they are left out of `accuracy`, `margin`, `longer_wins`, `gain` and `longer_agreement`."""
    reward_ties: int
    """Pairs whose two rewards are equal: half right in `accuracy`."""
    accuracy: Mean | None
    """Share of pairs whose higher reward goes to the response that the label prefers."""
    beats_chance: bool
    """Whether the interval of `accuracy` lies above 0.5."""
    margin: Mean | None
    """Reward of the response that the label prefers minus the other's; 1 is odds of e, or 174 Elo points."""
    longer_wins: Mean | None
    """Accuracy of taking the response with more characters; equal lengths count half."""
    gain: Mean | None
    """`accuracy` minus `longer_wins`, paired by pair."""
    beats_length: bool
    """Whether the interval of `gain` lies above 0."""
    longer_agreement: Mean | None
    """Share of pairs whose higher reward goes to the longer response; equal rewards or lengths count half."""
    length_correlation: float | None
    """Spearman's correlation, within pairs, of reward and length: of the rewards' difference with the lengths', each
    pair taken in both orders, so that it does not matter which response is called chosen. None where either never
    differs."""
    log_loss: Mean
    """−p ln σ(Δ) − (1 − p) ln σ(−Δ): what training makes small. Ties of the labels are included."""
    label_entropy: float
    """Log loss of a model that says each label exactly: the least that is possible on these labels."""
    ece: float
    """Expected calibration error of the confidence, over `reliability`."""
    reliability: tuple[ReliabilityBin, ...]
    """Expected correctness (`statistics.correctness`) by confidence, max(σ(Δ), σ(−Δ)); ties of the labels are included.

    With hard labels it is the share of right answers. A soft label p would be a hard one for the model's side with
    probability p or 1 − p, so this is what the answer is worth on average, and a model with σ(Δ) = p has no error.
    """


class RewardEvaluation(Record):
    """How well a reward model does on held-out pairs."""

    name: str
    """Name of the pairs: a file, a run or a shipped set."""
    sources: tuple[SourceEvaluation, ...]
    """Each source by itself, in alphabetical order; before them `all` of them, where there are several."""
    chance: float = CHANCE
    """Accuracy of a coin."""
    chance_log_loss: float = math.log(2)
    """Log loss of equal rewards, whatever the labels."""
    human_ceiling: str | None
    """What people reach on such pairs, where it is known; None too where no label is a person's."""


def evaluate_rewards(pairs: ScoredPairs, *, seed: int, name: str) -> RewardEvaluation:
    """Measure rewards against labels, by source; `seed` is the bootstrap's, `name` the name of the pairs.

    Raises:
        StageError: there is no pair, a reward is not finite, or a source has the name that stands for all.
    """
    if not len(pairs):
        raise StageError(f"{name} has no pair to measure the reward model on; hold some out, with a test share")
    if broken := int((~np.isfinite(pairs.chosen) | ~np.isfinite(pairs.rejected)).sum()):
        raise StageError(
            f"{broken} of {len(pairs)} pairs of {name} have a reward that is not a finite number, so the model is "
            "broken; train it anew with a lower learning rate"
        )
    names = [str(source) for source in np.unique(pairs.sources)]
    if ALL in names:
        raise StageError(f"{name} has labels whose source is called `{ALL}`, which stands for all sources; rename it")
    parts = [(source, pairs.where(pairs.sources == source)) for source in names]
    if len(parts) > 1:
        parts.insert(0, (ALL, pairs))
    return RewardEvaluation(
        name=name,
        sources=tuple(_evaluate_source(source, part, seed) for source, part in parts),
        human_ceiling=human_ceiling(name) if "human" in names else None,
    )


def _evaluate_source(source: str, pairs: ScoredPairs, seed: int) -> SourceEvaluation:
    labels, clusters = pairs.p_chosen, pairs.clusters
    delta, longer = pairs.chosen - pairs.rejected, pairs.chosen_length - pairs.rejected_length
    p = np.exp(-np.logaddexp(0.0, -delta))
    p_longer = longer_wins(pairs.chosen_length, pairs.rejected_length)
    decided = ~ties(labels)

    def decided_mean(values: Floats, bounds: tuple[float, float] = (0.0, 1.0)) -> Mean | None:
        if not decided.any():
            return None
        return clustered_mean(values[decided], clusters[decided], seed=seed, bounds=bounds)

    right, longer_right = correctness(p, labels > 0.5), correctness(p_longer, labels > 0.5)
    accuracy, gain = decided_mean(right), decided_mean(right - longer_right, (-1.0, 1.0))
    losses = labels * np.logaddexp(0.0, -delta) + (1 - labels) * np.logaddexp(0.0, delta)
    bins = reliability(p, labels)
    return SourceEvaluation(
        source=source,
        pairs=len(pairs),
        prompts=len(np.unique(clusters)),
        label_ties=int((~decided).sum()),
        reward_ties=int(ties(p).sum()),
        accuracy=accuracy,
        beats_chance=accuracy is not None and accuracy.low > CHANCE,
        margin=decided_mean(np.where(labels > 0.5, delta, -delta), (-math.inf, math.inf)),
        longer_wins=decided_mean(longer_right),
        gain=gain,
        beats_length=gain is not None and gain.low > 0,
        longer_agreement=decided_mean(correctness(p, p_longer)),
        length_correlation=rank_correlation(np.append(delta, -delta), np.append(longer, -longer)),
        log_loss=clustered_mean(losses, clusters, seed=seed, bounds=(0.0, math.inf)),
        label_entropy=float(np.mean(_surprise(labels) + _surprise(1 - labels))),
        ece=calibration_error(bins),
        reliability=bins,
    )


def _surprise(p: Floats) -> Floats:
    """−p ln p, which goes to 0 with p. Shape (n,)."""
    return -p * np.log(np.where(p > 0, p, 1.0))
