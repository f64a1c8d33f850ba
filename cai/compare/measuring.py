"""What the reward models of both sides are worth on the same held-out pairs: pure functions of numpy arrays.

Throughout, with n pairs and S seeds, `delta` (S, n) is the reward of response a minus that of b, so that σ(delta) is a
model's probability of a; a label p (n,) is a probability of a. A pair that S models score is still one pair: figures
are means over the pairs' means over the seeds, with intervals over prompts, and the spread of the seeds stands apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cai.ceilings import human_ceiling
from cai.compare.config import SIDES, LabelSide
from cai.compare.matching import ComparedPair
from cai.compare.records import Cell, Costs, Figure, HeldOutLabels, LabelAgreement, SizePoint, Spread
from cai.statistics import (
    Bools,
    Floats,
    Mean,
    calibration_error,
    clustered_mean,
    correctness,
    longer_wins,
    reliability,
    ties,
)

Deltas = Mapping[tuple[LabelSide, int], Floats]
"""By the side and the number of labels that were learned from: (S, n) for all held-out pairs, in their order."""


@dataclass(frozen=True)
class _Labels:
    """The n of all held-out pairs that have a label of one side."""

    p: Floats
    p_longer: Floats
    """The `p` of taking the longer response. Shape (n,)."""
    clusters: NDArray[np.str_]
    """Ids of the prompts. Shape (n,)."""
    places: NDArray[np.int64]
    """Where they stand among all. Shape (n,)."""

    @property
    def decided(self) -> Bools:
        """Which labels are no ties. Shape (n,)."""
        return ~ties(self.p)

    @property
    def prompts(self) -> int:
        """Different prompts."""
        return len(np.unique(self.clusters))


def agreement(matched: Sequence[ComparedPair], seed: int) -> LabelAgreement:
    """How far the sides' labels agree; `seed` is the bootstrap's."""
    ai, human = (_labels(matched, side) for side in SIDES)

    def share(values: Floats, where: Bools) -> Mean | None:
        return clustered_mean(values[where], human.clusters[where], seed=seed) if where.any() else None

    return LabelAgreement(
        comparisons=len(matched),
        prompts=human.prompts,
        human_ties=int((~human.decided).sum()),
        ai_ties=int((~ai.decided).sum()),
        agreement=share(correctness(ai.p, human.p > 0.5), human.decided),
        ai_longer=share(correctness(ai.p_longer, ai.p > 0.5), ai.decided),
        human_longer=share(correctness(human.p_longer, human.p > 0.5), human.decided),
    )


def held_out_labels(
    pairs: Sequence[ComparedPair], deltas: Deltas, size: int, *, name: str, seed: int
) -> list[HeldOutLabels]:
    """The held-out labels of each side that has some; models of `size` labels make the gap.

    `name` is that of the human labels' source.
    """
    found = []
    for side in _tested(pairs):
        labels = _labels(pairs, side)
        right = {trained_on: _right(deltas[trained_on, size], labels) for trained_on in SIDES}
        found.append(
            HeldOutLabels(
                tested_on=side,
                pairs=len(labels.p),
                prompts=labels.prompts,
                ties=int((~labels.decided).sum()),
                longer_wins=_decided_mean(correctness(labels.p_longer, labels.p > 0.5), labels, seed),
                gap=_decided_mean((right["human"] - right["ai"]).mean(axis=0), labels, seed, (-1.0, 1.0)),
                label_entropy=float(np.mean(_surprise(labels.p) + _surprise(1 - labels.p))),
                human_ceiling=human_ceiling(name) if side == "human" else None,
            )
        )
    return found


def cross_table(pairs: Sequence[ComparedPair], deltas: Deltas, size: int, seed: int) -> list[Cell]:
    """Models of `size` labels of each side, on the held-out labels of each side that has some."""
    return [
        _cell(trained_on, tested_on, deltas[trained_on, size], _labels(pairs, tested_on), size, seed)
        for trained_on in SIDES
        for tested_on in _tested(pairs)
    ]


def label_efficiency(pairs: Sequence[ComparedPair], deltas: Deltas, costs: Costs, seed: int) -> list[SizePoint]:
    """Accuracy on the human held-out labels, of which some are no ties, by the number of labels."""
    labels = _labels(pairs, "human")
    found = []
    for side, size in sorted(deltas):
        accuracy, cost = _accuracy(deltas[side, size], labels, seed), costs.of(side)
        assert accuracy is not None, "some of the human held-out labels are no ties"
        total = None if cost is None else cost * size
        found.append(SizePoint(trained_on=side, labels=size, accuracy=accuracy, cost=total))
    return found


def _tested(pairs: Sequence[ComparedPair]) -> list[LabelSide]:
    """The sides with held-out labels, the human one first."""
    return ["human", "ai"] if any(pair.ai is not None for pair in pairs) else ["human"]


def _labels(pairs: Sequence[ComparedPair], side: LabelSide) -> _Labels:
    known = [(place, pair, p) for place, pair in enumerate(pairs) if (p := pair.label(side)) is not None]
    lengths = np.array([(float(len(pair.a)), float(len(pair.b))) for _, pair, _ in known])
    return _Labels(
        p=np.array([p for _, _, p in known]),
        p_longer=longer_wins(lengths[:, 0], lengths[:, 1]),
        clusters=np.array([pair.prompt_id for _, pair, _ in known]),
        places=np.array([place for place, _, _ in known]),
    )


def _cell(trained_on: LabelSide, tested_on: LabelSide, delta: Floats, labels: _Labels, size: int, seed: int) -> Cell:
    of_labels = delta[:, labels.places]
    losses = labels.p * np.logaddexp(0.0, -of_labels) + (1 - labels.p) * np.logaddexp(0.0, of_labels)
    everywhere = np.full(len(labels.p), True)
    return Cell(
        trained_on=trained_on,
        tested_on=tested_on,
        labels=size,
        accuracy=_accuracy(delta, labels, seed),
        log_loss=_figure(losses, labels, everywhere, seed, (0.0, math.inf)),
        ece=_spread([calibration_error(reliability(_sigmoid(row), labels.p)) for row in of_labels]),
    )


def _accuracy(delta: Floats, labels: _Labels, seed: int) -> Figure | None:
    """None where every label is a tie."""
    if not labels.decided.any():
        return None
    return _figure(_right(delta, labels), labels, labels.decided, seed, (0.0, 1.0))


def _right(delta: Floats, labels: _Labels) -> Floats:
    """Whether each model is right about each label: 1, 0, or 0.5 for equal rewards. Shape (S, n)."""
    return correctness(_sigmoid(delta[:, labels.places]), labels.p > 0.5)


def _figure(values: Floats, labels: _Labels, where: Bools, seed: int, bounds: tuple[float, float]) -> Figure:
    """The mean of values (S, n) over the pairs `where` (n,)."""
    kept = values[:, where]
    return Figure(
        mean=clustered_mean(kept.mean(axis=0), labels.clusters[where], seed=seed, bounds=bounds),
        seeds=_spread([float(mean) for mean in kept.mean(axis=1)]),
    )


def _decided_mean(values: Floats, labels: _Labels, seed: int, bounds: tuple[float, float] = (0.0, 1.0)) -> Mean | None:
    """Mean of values (n,) over the labels that are no ties; None where all are."""
    decided = labels.decided
    if not decided.any():
        return None
    return clustered_mean(values[decided], labels.clusters[decided], seed=seed, bounds=bounds)


def _spread(values: Sequence[float]) -> Spread:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(values=tuple(values), mean=float(np.mean(values)), deviation=deviation)


def _sigmoid(delta: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -delta))


def _surprise(p: Floats) -> Floats:
    """−p ln p, which goes to 0 with p. Shape (n,)."""
    return -p * np.log(np.where(p > 0, p, 1.0))
