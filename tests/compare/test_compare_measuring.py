"""Figures of a comparison against values by hand."""

import math
from typing import Any

import numpy as np
import pytest

from cai.compare.matching import ComparedPair
from cai.compare.measuring import agreement, cross_table, held_out_labels, label_efficiency
from cai.compare.records import Costs
from cai.records import Message


def pair(number: int, human: float, ai: float | None, a: str = "aaaa", b: str = "bb", prompt: int | None = None) -> Any:
    return ComparedPair(
        id=f"c{number}",
        prompt_id=f"p{number if prompt is None else prompt}",
        prompt=(Message(role="user", content="Q"),),
        a=a,
        b=b,
        ai=ai,
        human=human,
    )


def logit(p: float) -> float:
    return math.log(p / (1 - p))


PAIRS = [
    pair(0, 1.0, 0.9),
    pair(1, 0.0, 0.2),
    pair(2, 0.8, 0.3, a="a", b="bbb"),
    pair(3, 0.5, 0.6),
    pair(4, 0.0, None, a="aaa", b="bbb"),
]
"""The longer response is a, a, b, a and neither."""

DELTAS: Any = {
    ("ai", 10): np.array([[1.0, -1.0, -1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0, -1.0]]),
    ("human", 10): np.array([[2.0, -2.0, 2.0, 0.0, 0.0], [2.0, -2.0, -2.0, 1.0, -1.0]]),
}
"""Two seeds each."""

NO_COSTS = Costs(ai=None, human=None, currency=None, ai_label=None, human_label=None)


def test_agreement_by_hand() -> None:
    found = agreement([*PAIRS[:4], pair(5, 1.0, 0.5)], seed=1)
    assert (found.comparisons, found.prompts, found.human_ties, found.ai_ties) == (5, 5, 1, 1)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found.agreement.low < found.agreement.value < found.agreement.high
    assert found.ai_longer is not None
    assert found.ai_longer.value == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert found.human_longer is not None
    assert found.human_longer.value == pytest.approx((1 + 0 + 0 + 1) / 4)


def test_agreement_of_ties_alone_is_not_known() -> None:
    found = agreement([pair(0, 0.5, 0.5)], seed=1)
    assert (found.agreement, found.ai_longer, found.human_longer) == (None, None, None)


def test_the_cross_table_by_hand() -> None:
    cells = {(one.trained_on, one.tested_on): one for one in cross_table(PAIRS, DELTAS, 10, seed=1)}
    assert cells.keys() == {("ai", "human"), ("ai", "ai"), ("human", "human"), ("human", "ai")}
    # Human labels decide pairs 0, 1, 2 and 4 (the tie, pair 3, is left out): a, b, a, b.
    accuracies = {key: cell.accuracy for key, cell in cells.items()}
    by_seed = {
        ("ai", "human"): (2 / 4, 2 / 4),
        ("human", "human"): (3.5 / 4, 3 / 4),  # equal rewards count half
        ("ai", "ai"): (4 / 4, 3 / 4),
        ("human", "ai"): (2.5 / 4, 4 / 4),
    }
    for key, values in by_seed.items():
        accuracy = accuracies[key]
        assert accuracy is not None
        assert accuracy.seeds.values == pytest.approx(values)
        assert accuracy.mean.value == pytest.approx(sum(values) / 2)
        assert accuracy.seeds.mean == pytest.approx(sum(values) / 2)
        assert accuracy.seeds.deviation == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
        assert (accuracy.seeds.low, accuracy.seeds.high) == pytest.approx((min(values), max(values)))
    # Log loss of the first seed trained on human labels, on the AI's four labels, ties of labels included.
    losses = [
        -p * math.log(q) - (1 - p) * math.log(1 - q)
        for p, q in zip((0.9, 0.2, 0.3, 0.6), (1 / (1 + math.exp(-d)) for d in (2, -2, 2, 0)), strict=True)
    ]
    assert cells["human", "ai"].log_loss.seeds.values[0] == pytest.approx(sum(losses) / 4)
    assert all(cell.labels == 10 for cell in cells.values())


def test_calibration_by_hand() -> None:
    # A model that says 0.9 for a of ten pairs, of which 7 prefer a: it is off by 0.2; and one that says 0.7 by 0.
    pairs = [pair(n, float(n < 7), None) for n in range(10)]
    deltas = np.array([[logit(0.9)] * 10, [logit(0.7)] * 10])
    cells = cross_table(pairs, {("ai", 4): deltas, ("human", 4): deltas[1:]}, 4, seed=1)
    assert [(one.trained_on, one.tested_on) for one in cells] == [("ai", "human"), ("human", "human")]
    assert cells[0].ece.values == pytest.approx((0.2, 0.0), abs=1e-12)
    assert cells[0].ece.mean == pytest.approx(0.1)
    assert cells[1].ece.deviation is None


def test_held_out_labels_by_hand() -> None:
    human, ai = held_out_labels(PAIRS, DELTAS, 10, name="hh-rlhf-harmless", seed=1)
    assert (human.tested_on, human.pairs, human.prompts, human.ties) == ("human", 5, 5, 1)
    assert (ai.tested_on, ai.pairs, ai.ties) == ("ai", 4, 0)
    assert human.longer_wins is not None
    assert human.longer_wins.value == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert ai.longer_wins is not None
    assert ai.longer_wins.value == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert human.gap is not None
    assert human.gap.value == pytest.approx((3.5 + 3) / 8 - 4 / 8)
    assert ai.gap is not None
    assert ai.gap.value == pytest.approx((2.5 + 4) / 8 - 7 / 8)
    entropy = sum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.8, 0.5)) / 5
    assert human.label_entropy == pytest.approx(entropy)
    assert human.human_ceiling is not None
    assert "73% to 77%" in human.human_ceiling
    assert ai.human_ceiling is None
    assert held_out_labels(PAIRS, DELTAS, 10, name="mine", seed=1)[0].human_ceiling is None


def test_ai_labels_that_are_all_ties_have_no_accuracy() -> None:
    pairs = [pair(0, 1.0, 0.5), pair(1, 0.0, 0.5)]
    deltas: Any = {(side, 1): np.array([[1.0, 1.0]]) for side in ("ai", "human")}
    cells = cross_table(pairs, deltas, 1, seed=1)
    assert [one.accuracy is None for one in cells] == [False, True, False, True]
    _, ai = held_out_labels(pairs, deltas, 1, name="x", seed=1)
    assert (ai.gap, ai.longer_wins, ai.ties) == (None, None, 2)


def test_intervals_are_over_prompts_and_not_over_pairs_or_seeds() -> None:
    # Twenty pairs of two prompts; of the one prompt all are right, of the other none.
    pairs = [pair(n, 1.0, None, prompt=n % 2) for n in range(20)]
    right = np.where(np.arange(20) % 2 == 0, 1.0, -1.0)
    clustered = cross_table(pairs, {("ai", 1): right[None], ("human", 1): right[None]}, 1, seed=1)[0].accuracy
    assert clustered is not None
    assert (clustered.mean.low, clustered.mean.high) == (0.0, 1.0)
    # Ten times the same model is no more evidence than one.
    single = [pair(n, 1.0, None) for n in range(20)]
    one, ten = (
        cross_table(single, {("ai", 1): rows, ("human", 1): rows}, 1, seed=1)[0].accuracy
        for rows in (right[None], np.repeat(right[None], 10, axis=0))
    )
    assert one is not None
    assert ten is not None
    assert (one.mean.low, one.mean.high) == (ten.mean.low, ten.mean.high)
    assert ten.mean.high - ten.mean.low > 0.3


def test_efficiency_is_on_human_labels_by_side_and_size_with_costs() -> None:
    deltas = {**DELTAS, ("human", 5): -DELTAS["human", 10], ("ai", 5): DELTAS["ai", 10]}
    costs = Costs(ai=None, human=None, currency="USD", ai_label=0.25, human_label=None)
    points = label_efficiency(PAIRS, deltas, costs, seed=1)
    assert [(one.trained_on, one.labels, one.cost) for one in points] == [
        ("ai", 5, 1.25),
        ("ai", 10, 2.5),
        ("human", 5, None),
        ("human", 10, None),
    ]
    assert [one.accuracy.mean.value for one in points] == pytest.approx([0.5, 0.5, 1 - 6.5 / 8, 6.5 / 8])
    assert all(one.cost is None for one in label_efficiency(PAIRS, deltas, NO_COSTS, seed=1))
