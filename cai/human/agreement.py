"""How well raters agree, beyond chance: pure functions of numpy arrays.

An answer is a category 0, 1, … k - 1. The coefficients have one form, (A - E) / (1 - E), with the agreement A that was
seen and E that chance would give, both from 0 to 1. Where all answers are the same, E is 1 and there is no figure: it
is neither 0 nor 1, since nothing shows whether raters would agree on what differs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cai.records import Record
from cai.statistics import Bools, Floats, Mean, clustered_mean, resampled_sums, wilson

Codes = NDArray[np.int64]
Clusters = NDArray[Any]

MAX_UNDEFINED = 0.05
"""Where more of the bootstrap's draws than this have no coefficient, since all answers in them are equal, the interval
is all that is possible."""

BOUNDS = (-1.0, 1.0)
"""Least and greatest value of a coefficient."""

CONSTANT = "all answers are the same, so chance alone would give full agreement"
NO_CASES = "there is no case"


class Agreement(Record):
    """A figure of agreement, or the reason why there is none."""

    mean: Mean | None
    """The figure with its 95% interval, by a bootstrap over prompts."""
    cases: int
    """What it is taken over: comparisons, pairs of answers or single answers, as its field says."""
    reason: str | None = None
    """Why there is no figure."""


class Corrected(NamedTuple):
    """Agreement and that of chance, shapes (…,) alike."""

    observed: Floats
    expected: Floats

    @property
    def coefficient(self) -> Floats:
        """(A - E) / (1 - E); nan where chance alone gives full agreement, or where there is nothing."""
        room = 1 - self.expected
        defined = room > 1e-12
        return np.where(defined, (self.observed - self.expected) / np.where(defined, room, 1.0), np.nan)


Coefficient = Callable[[Floats], Corrected]
"""What makes a coefficient of tables (…, k, k)."""


def pair_tables(x: Codes, y: Codes, categories: int) -> Floats:
    """For each case a table with a 1 at the answers of x (n,) and y (n,), which are all given. Shape (n, k, k)."""
    eye = np.eye(categories)
    return eye[x][:, :, None] * eye[y][:, None, :]


def kappa(tables: Floats, *, linear: bool = False) -> Corrected:
    """Cohen's κ (1960) of tables (…, k, k) that count one rater's answers by the other's.

    `linear` gives partial credit to near categories, 1 - |i - j| / (k - 1) (Cohen 1968).
    """
    categories = tables.shape[-1]
    place = np.arange(categories)
    credit = 1 - np.abs(place[:, None] - place) / (categories - 1) if linear else np.eye(categories)
    cases = tables.sum((-2, -1))
    shares = tables / np.where(cases > 0, cases, np.nan)[..., None, None]
    rows, columns = shares.sum(-1), shares.sum(-2)
    observed = (shares * credit).sum((-2, -1))
    expected = (rows[..., :, None] * columns[..., None, :] * credit).sum((-2, -1))
    return Corrected(observed, expected)


def weighted_kappa(tables: Floats) -> Corrected:
    """`kappa` with linear weights."""
    return kappa(tables, linear=True)


def pooled(coefficient: Coefficient) -> Coefficient:
    """One coefficient of several tables (…, pairs, k, k): A and E are each averaged by the pairs' numbers of cases.

    After De Vries et al. 2008, "Using pooled kappa to summarize interrater agreement across many items", who average
    with equal weights.
    """

    def found(tables: Floats) -> Corrected:
        cases = tables.sum((-2, -1))
        one = coefficient(tables)
        weights = cases / np.where(cases.sum(-1) > 0, cases.sum(-1), np.nan)[..., None]
        # Where a pair has no case in a draw, its part is 0 and not nan.
        return Corrected(*(np.where(weights > 0, weights * part, 0.0 * weights).sum(-1) for part in one))

    return found


def category_counts(units: Codes, answers: Codes, shape: tuple[int, int]) -> Floats:
    """How often each unit got each answer, from n single answers and the units they are of. Shape (units, k)."""
    counts = np.zeros(shape)
    np.add.at(counts, (units, answers), 1)
    return counts


def coincidences(counts: Floats) -> Floats:
    """Krippendorff's coincidence matrix of each unit, from `category_counts` (units, k). Shape (units, k, k).

    A unit with m answers adds each ordered pair of them with the weight 1 / (m - 1); one with fewer than two adds
    nothing, so answers may be missing anywhere.
    """
    others = counts.sum(1) - 1
    pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(counts.shape[1]))
    return np.where(others > 0, 1 / np.maximum(others, 1), 0.0)[:, None, None] * pairs


def alpha_nominal(tables: Floats) -> Corrected:
    """Krippendorff's α of coincidences (…, k, k), in which any two different answers disagree alike."""
    return _alpha(tables, np.broadcast_to(1 - np.eye(tables.shape[-1]), tables.shape))


def alpha_ordinal(tables: Floats) -> Corrected:
    """Krippendorff's α of coincidences (…, k, k) for answers in order.

    Two answers disagree by the square of the number of answers given from the one to the other, of which those of the
    two categories themselves count half (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").
    """
    given = tables.sum(-1)
    # The middle of each category in the ranking of all answers; the distance of two is what the sum in his text is.
    middle = np.cumsum(given, -1) - given / 2
    return _alpha(tables, (middle[..., :, None] - middle[..., None, :]) ** 2)


def _alpha(tables: Floats, distances: Floats) -> Corrected:
    """1 - D_o / D_e in the form of `Corrected`: both disagreements as shares of the greatest distance."""
    given = tables.sum(-1)
    total = given.sum(-1)
    used = given > 0
    greatest = np.where(used[..., :, None] & used[..., None, :], distances, 0.0).max((-2, -1))
    usable = (total > 1) & (greatest > 0)
    by_chance = given[..., :, None] * given[..., None, :] / np.where(usable, total - 1, np.nan)[..., None, None]
    scale = np.where(usable, total * greatest, np.nan)
    seen, expected = ((part * distances).sum((-2, -1)) / scale for part in (tables, by_chance))
    return Corrected(1 - seen, 1 - expected)


def clustered_coefficient(tables: Floats, clusters: Clusters, coefficient: Coefficient, *, seed: int) -> Mean | None:
    """A coefficient of the sum of `tables` (n, …, k, k) with a percentile bootstrap that draws whole clusters.

    None where it is undefined. As in `statistics.clustered_mean`, two cases are handled apart: where all cases agree,
    or none does, draws repeat that, and the interval is made of Wilson's for the share of clusters, with chance as it
    is; one cluster tells nothing about others, so that everything is possible. So it is where too many draws have no
    coefficient; see `MAX_UNDEFINED`.
    """
    _, codes = np.unique(clusters, return_inverse=True)
    totals = np.zeros((int(codes.max(initial=-1)) + 1, *tables.shape[1:]))
    np.add.at(totals, codes, tables)
    found = coefficient(totals.sum(0))
    value = float(found.coefficient)
    if not np.isfinite(value):
        return None
    if len(totals) < 2:
        return Mean(value=value, low=BOUNDS[0], high=BOUNDS[1])
    observed, expected = float(found.observed), float(found.expected)
    if min(abs(observed), abs(1 - observed)) < 1e-12:
        share = wilson(round(observed), len(totals))
        low, high = ((end - expected) / (1 - expected) for end in (share.low, share.high))
        return Mean(value=value, low=max(BOUNDS[0], low), high=min(BOUNDS[1], high))
    flat = totals.reshape(len(totals), -1)
    draws = np.concatenate(
        [coefficient(sums.reshape(-1, *tables.shape[1:])).coefficient for sums in resampled_sums(flat, seed=seed)]
    )
    undefined = ~np.isfinite(draws)
    if undefined.mean() > MAX_UNDEFINED:
        return Mean(value=value, low=BOUNDS[0], high=BOUNDS[1])
    low, high = np.quantile(draws[~undefined], (0.025, 0.975))
    return Mean(value=value, low=float(low), high=float(high))


def coefficient_of(
    tables: Floats,
    clusters: Clusters,
    coefficient: Coefficient,
    *,
    seed: int,
    cases: int | None = None,
    nothing: str = NO_CASES,
) -> Agreement:
    """`clustered_coefficient`, or why there is none; `nothing` is the reason where there is no case at all."""
    number = len(tables) if cases is None else cases
    if not number:
        return Agreement(mean=None, cases=0, reason=nothing)
    mean = clustered_coefficient(tables, clusters, coefficient, seed=seed)
    return Agreement(mean=mean, cases=number, reason=CONSTANT if mean is None else None)


def share_of(values: Floats | Bools, clusters: Clusters, *, seed: int, nothing: str = NO_CASES) -> Agreement:
    """The mean of `values` (n,) in [0, 1] over cases, or why there is none."""
    if not len(values):
        return Agreement(mean=None, cases=0, reason=nothing)
    return Agreement(mean=clustered_mean(values.astype(np.float64), clusters, seed=seed), cases=len(values))


def deviation(values: Floats | Bools, taken: Bools, clusters: Clusters) -> float:
    """By how many standard errors the mean of the `taken` values differs from that of the others.

    Negative where it is lower; all arrays are (n,), and both parts have a value. The error is that of a difference of
    two ratios of sums over clusters, linearised: cases of one cluster may depend on one another.
    """
    _, codes = np.unique(clusters, return_inverse=True)
    means = [float(values[part].mean()) for part in (taken, ~taken)]
    parts = np.where(taken, (values - means[0]) / taken.sum(), -(values - means[1]) / (~taken).sum())
    sums = np.bincount(codes, weights=parts)
    difference = means[0] - means[1]
    error = float(np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1)))
    if error == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error
