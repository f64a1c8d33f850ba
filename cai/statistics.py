"""What the probabilities of a judge or a reward model are worth against labels: pure functions of numpy arrays.

Throughout, with n comparisons: `p` (n,) float holds the probability that response a is the better one, `gold_a` (n,)
bool is True where the gold label says a, `clusters` (n,) names the prompt of each comparison. Where `gold_a` may be
float, it is a soft label: the probability of a that is to be met. No array is empty.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from cai.records import TIE, Record

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CHANCE = 0.5
"""Accuracy of a coin."""

BINS = 10
"""Bins of the reliability table, of equal width over confidences from 0.5 to 1."""

RESAMPLES = 5_000
"""Draws of a bootstrap; from seed to seed its ends then differ by about a hundredth of the interval's width."""

Z = 1.959964
"""The normal distribution's 97.5th percentile, for intervals of 95%."""

CLIP = 1e-6
"""Probabilities nearer to 0 or 1 count as this far from them in the log loss and the log-odds."""

SCALE_LEAST, SCALE_LIMIT = 1e-4, 100.0
"""Bounds of the fitted scale; the upper one stands for infinity, the best scale where no answer is wrong."""
_SCALES_AT_ONCE = 101
"""Points of a grid over scales."""
_SAME_LOSS = 1e-12
"""Losses that differ by less are the same up to rounding."""

_DRAWS_AT_ONCE = 2_000_000
"""Numbers that the bootstrap draws at a time, so that its memory does not grow with the data."""


class Mean(Record):
    """A mean and its 95% interval, whose ends are infinite where the data say nothing of them."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    value: float
    low: float
    high: float


class ReliabilityBin(Record):
    """The comparisons whose confidence, max(p, 1 - p), lies in [low, high); the last bin includes 1."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence."""
    accuracy: Mean
    """Mean of `correctness`; Wilson's interval, which takes the comparisons as independent and, with soft labels, is
    wider than it has to be."""


def ties(p: Floats) -> Bools:
    """Which comparisons p does not decide. Shape (n,)."""
    found: Bools = np.abs(p - 0.5) <= TIE
    return found


def correctness(p: Floats, gold_a: Bools | Floats) -> Floats:
    """1 for a right answer, 0 for a wrong one, 0.5 for a tie; their mean is the accuracy. Shape (n,).

    With soft labels it is the expected correctness, the label's probability of the side that p picks: that is how often
    the answer would be right, were hard labels drawn by the soft ones. So p equal to the labels is calibrated.
    """
    return np.where(ties(p), 0.5, np.where(p > 0.5, gold_a, 1 - gold_a))


def longer_wins(length_a: Floats, length_b: Floats) -> Floats:
    """The `p` of a judge that takes the longer response and cannot decide between equal lengths. Shape (n,)."""
    return 0.5 + 0.5 * np.sign(length_a - length_b)


def clustered_mean(
    values: Floats, clusters: NDArray[Any], *, seed: int, bounds: tuple[float, float] = (0.0, 1.0)
) -> Mean:
    """Mean of `values` (n,) with a percentile bootstrap interval that draws whole clusters with replacement.

    Comparisons of one prompt are not independent, so the prompts are what is drawn (Cameron, Gelbach and Miller 2008,
    "Bootstrap-based improvements for inference with clustered errors", on resampling clusters). The mean is over
    comparisons, so a large cluster counts more.

    The bootstrap fails in two cases, which are handled apart. Equal clusters resample to themselves: the interval is
    then Wilson's for the number of clusters. One cluster tells nothing about others: the interval is then all of
    `bounds`, the least and greatest possible value. So it is for equal clusters where a bound is infinite, as Wilson's
    needs both.
    """
    value = float(values.mean())
    _, codes = np.unique(clusters, return_inverse=True)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    low, high = bounds
    equal = np.ptp(sums / sizes) <= 1e-9 * max(1.0, abs(value))  # up to rounding
    if len(sizes) < 2 or (equal and not np.isfinite(high - low)):
        return Mean(value=value, low=low, high=high)
    if equal:
        share = wilson((value - low) / (high - low), len(sizes))
        return Mean(value=value, low=low + share.low * (high - low), high=low + share.high * (high - low))
    means = np.concatenate([sums[drawn].sum(1) / sizes[drawn].sum(1) for drawn in _resamples(len(sizes), seed)])
    ends = np.quantile(means, (0.025, 0.975))
    return Mean(value=value, low=float(ends[0]), high=float(ends[1]))


def resampled_sums(totals: Floats, *, seed: int) -> Iterator[Floats]:
    """Draw whole clusters with replacement, as `clustered_mean` does, for statistics of other sums.

    `totals` (clusters, k) holds the k sums of each cluster. Gives those of `RESAMPLES` bootstrap samples, in pieces of
    shape (some, k).
    """
    clusters, width = totals.shape
    # Tables of counts are nearly empty, so each sum is taken over the clusters that it has something of.
    filled = [np.flatnonzero(column) for column in totals.T]
    for drawn in _resamples(clusters, seed, width):
        rows = len(drawn)
        places = (drawn * rows + np.arange(rows)[:, None]).ravel()
        times_drawn = np.bincount(places, minlength=clusters * rows).reshape(clusters, rows).astype(np.float64)
        yield np.stack([totals[some, place] @ times_drawn[some] for place, some in enumerate(filled)], 1)


def _resamples(clusters: int, seed: int, width: int = 1) -> Iterator[NDArray[np.int64]]:
    """`RESAMPLES` rows of `clusters` cluster numbers each, in pieces; `width` numbers are made of each row."""
    random = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // max(clusters, width))
    for start in range(0, RESAMPLES, rows):
        yield random.integers(clusters, size=(min(rows, RESAMPLES - start), clusters))


def wilson(share: float, n: int) -> Mean:
    """Interval of a share of n independent cases (Wilson 1927); unlike ±1.96 standard errors it has a width at 0 and 1.

    `share` times n need not be whole, since ties count as half.
    """
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * float(np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)))
    return Mean(value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half)))


def percent(mean: Mean) -> str:
    """A share and its interval in words."""
    return f"{mean.value:.1%} ({mean.low:.1%} to {mean.high:.1%})"


def reliability(p: Floats, gold_a: Bools | Floats) -> tuple[ReliabilityBin, ...]:
    """Accuracy by confidence in `BINS` bins of equal width over [0.5, 1]; bins without a comparison are left out."""
    edges = np.arange(BINS, 2 * BINS + 1) / (2 * BINS)
    confidence, right = np.maximum(p, 1 - p), correctness(p, gold_a)
    places = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, BINS - 1)
    found: list[ReliabilityBin] = []
    for place in np.unique(places):
        inside = places == place
        count = int(inside.sum())
        found.append(
            ReliabilityBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                count=count,
                confidence=float(confidence[inside].mean()),
                accuracy=wilson(float(right[inside].mean()), count),
            )
        )
    return tuple(found)


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error (Naeini et al. 2015): the bins' |accuracy - confidence|, weighted by their counts."""
    gaps = (bin_.count * abs(bin_.accuracy.value - bin_.confidence) for bin_ in bins)
    return sum(gaps) / sum(bin_.count for bin_ in bins)


def brier(p: Floats, gold_a: Bools) -> float:
    """Mean squared difference of p and the gold label as 1 or 0 (Brier 1950). Always saying 0.5 gives 0.25."""
    return float(np.mean((p - gold_a) ** 2))


def log_loss(p: Floats, gold_a: Bools) -> float:
    """Mean of -ln(probability of the gold label), p clipped to [`CLIP`, 1 - `CLIP`]. Always saying 0.5 gives ln 2."""
    return float(np.mean(np.logaddexp(0.0, -_margins(p, gold_a))))


def fitted_scale(log_odds: Floats, weights: Floats, places: NDArray[np.int64], gold_a: Bools) -> float | None:
    """The factor s of all log-odds with the least log loss on these labels, where each p is a mean of σ(s · log-odds).

    `log_odds`, `weights` and `places` (m,) are those of single judgements: log-odds of a, what each weighs in the mean
    of its comparison (sums to 1), and the number of that comparison, ascending.

    Below 1 the judge is too sure of itself, above 1 not sure enough. With one judgement each it is temperature scaling
    (Guo et al. 2017) with s = 1/T and without an intercept, so that a and b are treated alike. The loss of a mean need
    not be convex in s, so a grid over ln s is searched, and what lies about its best point again. None where no s does
    better than always saying 0.5.
    """
    margins = np.where(gold_a[places], log_odds, -log_odds)
    log_weights, starts = np.log(weights), np.flatnonzero(np.diff(places, prepend=-1))
    low, high = SCALE_LEAST, SCALE_LIMIT
    for _ in range(3):
        scales = np.geomspace(low, high, _SCALES_AT_ONCE)
        likelihoods = (log_weights - np.logaddexp(0.0, -scale * margins) for scale in scales)
        losses = np.array([-np.logaddexp.reduceat(likelihood, starts).mean() for likelihood in likelihoods])
        best = np.flatnonzero(losses <= losses.min() + _SAME_LOSS)[-1]
        low, high = scales[max(best - 1, 0)], scales[min(best + 1, len(scales) - 1)]
    return float(scales[best]) if losses[best] < np.log(2) - _SAME_LOSS else None


def _margins(p: Floats, gold_a: Bools) -> Floats:
    """Log-odds of the gold label, (n,); exactly 0 for ties."""
    clipped = np.clip(p, CLIP, 1 - CLIP)
    log_odds = np.where(ties(p), 0.0, np.log(clipped) - np.log1p(-clipped))
    return np.where(gold_a, log_odds, -log_odds)


def rank_correlation(x: Floats, y: Floats) -> float | None:
    """Spearman's correlation of x and y (n,), equal values sharing their mean rank; None where either is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks
