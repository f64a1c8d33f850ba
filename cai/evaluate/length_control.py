"""Win rates without the part that length has in them, by a logistic model: pure functions of numpy arrays.

The log-odds of a win are α + φ·t, with an α for each pair of policies and one φ for the judge, which makes of a longer
reply the same for all of them. t says how much longer the first reply is, and the win rate is read at t = 0:

- `difference`: t = tanh(Δ/σ) of the difference Δ in characters, as in AlpacaEval 2 (Dubois et al. 2024), without its
  term for the difficulty of a prompt. Departure: σ is the root mean square of Δ and not its standard deviation, so that
  nothing depends on which policy is named first;
- `ratio`: t is the logarithm of the ratio of the lengths. Lee et al. 2023 take the ratio itself and read at ratio 1,
  which is the same point; the logarithm makes longer and shorter alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cai.evaluate.bradley_terry import LONGEST_STEP, MAX_ROUNDS, Codes, Duels, sigmoid
from cai.statistics import Floats, Mean, Z

Measure = Literal["difference", "ratio"]

EQUAL_LENGTHS = "all replies that are compared are equally long"
NO_SPREAD = "how much longer the replies of one policy are hardly varies, so length and policy cannot be told apart"
ONE_PROMPT = "all comparisons are of one prompt"

_LEAST_SPREAD = 1e-3
"""Of t within the pairs, by its spread in all: with less, φ would follow from the prior alone."""
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class LengthFit:
    """The fitted model. Intervals are of 95%."""

    effect: Mean
    """φ: the change in log-odds by one of t."""
    scale: float | None
    """σ in characters; None where t is of the ratio."""
    win_rates: Mapping[tuple[int, int], Mean]
    """How often the first policy would win were the replies equally long, by places in `Duels.policies`."""


def length_control(duels: Duels, measure: Measure) -> LengthFit | str:
    """Fit the model, or say why it cannot be.

    Intervals come from the sandwich estimate of the variance with prompts as clusters (Liang and Zeger 1986). A weak
    prior keeps all finite: for each pair of policies one prompt that is undecided, half of it with t = 1 and half with
    t = -1. A pair with the same outcome on all prompts shows no variance; prompts are then taken as won or lost with
    that probability, as in `statistics.clustered_mean`.
    """
    keys = duels.first * len(duels.policies) + duels.second
    pairs, pair = np.unique(keys, return_inverse=True)
    names, cluster = np.unique(duels.clusters, return_inverse=True)
    if len(names) < 2:
        return ONE_PROMPT
    t, scale = _longer(duels, measure)
    if not t.any():
        return EQUAL_LENGTHS
    means = np.bincount(pair, weights=t) / np.bincount(pair)
    if np.mean((t - means[pair]) ** 2) < _LEAST_SPREAD * np.mean(t**2):
        return NO_SPREAD
    a_prompt = np.array([_comparisons_a_prompt(cluster[pair == number]) for number in range(len(pairs))])
    rows = np.column_stack([np.eye(len(pairs))[pair], t])
    ones = np.ones((len(pairs), 1))
    prior = np.vstack([np.hstack([np.eye(len(pairs)), ones]), np.hstack([np.eye(len(pairs)), -ones])])
    design = np.vstack([rows, prior])
    wins = np.concatenate([duels.p, np.full(len(prior), 0.5)])
    weights = np.concatenate([np.ones(len(rows)), np.tile(a_prompt / 2, 2)])
    found = _fit(design, wins, weights)
    expected = sigmoid(design @ found)
    bread = np.linalg.inv((design * (weights * expected * (1 - expected))[:, None]).T @ design)
    scores = np.zeros((len(names), design.shape[1]))
    np.add.at(scores, cluster, rows * (duels.p - expected[: len(rows)])[:, None])
    variance = np.diag(bread @ (scores.T @ scores) @ bread) * len(names) / (len(names) - 1)
    rates: dict[tuple[int, int], Mean] = {}
    for number, key in enumerate(pairs.tolist()):
        of_pair = variance[number]
        if np.ptp(duels.p[pair == number]) < 1e-12:
            of_pair = max(of_pair, bread[number, number] * a_prompt[number])
        centre, half = float(found[number]), Z * float(np.sqrt(of_pair))
        value, low, high = sigmoid(np.array([centre, centre - half, centre + half])).tolist()
        rates[divmod(key, len(duels.policies))] = Mean(value=value, low=low, high=high)
    effect, half = float(found[-1]), Z * float(np.sqrt(variance[-1]))
    return LengthFit(Mean(value=effect, low=effect - half, high=effect + half), scale, rates)


def _longer(duels: Duels, measure: Measure) -> tuple[Floats, float | None]:
    """t (n,), and σ."""
    first, second = np.maximum(duels.chars_first, 1), np.maximum(duels.chars_second, 1)
    if measure == "ratio":
        return np.log(first / second), None
    difference = first - second
    scale = float(np.sqrt(np.mean(difference**2)))
    return np.tanh(difference / scale) if scale else difference, scale


def _comparisons_a_prompt(clusters: Codes) -> float:
    return len(clusters) / len(np.unique(clusters))


def _fit(design: Floats, wins: Floats, weights: Floats) -> Floats:
    """Coefficients of greatest likelihood, by Newton's method.

    Raises:
        ArithmeticError: it does not settle; with the prior there is always a maximum.
    """
    found = np.zeros(design.shape[1])
    for _ in range(MAX_ROUNDS):
        expected = sigmoid(design @ found)
        slope = design.T @ (weights * (wins - expected))
        if np.abs(slope).max() <= _TOLERANCE * weights.sum():
            return found
        step = np.linalg.solve((design * (weights * expected * (1 - expected))[:, None]).T @ design, slope)
        found += step * (LONGEST_STEP / max(LONGEST_STEP, float(np.abs(step).max())))
    raise ArithmeticError(f"the length model did not settle within {MAX_ROUNDS} rounds")
