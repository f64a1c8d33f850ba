"""Coefficients of agreement: published worked examples, values by hand, and what intervals cover."""

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from cai import statistics
from cai.human.agreement import (
    CONSTANT,
    Codes,
    Coefficient,
    alpha_nominal,
    alpha_ordinal,
    category_counts,
    clustered_coefficient,
    coefficient_of,
    coincidences,
    deviation,
    kappa,
    pair_tables,
    pooled,
    share_of,
    weighted_kappa,
)
from cai.human.rater_statistics import binomial_tail
from cai.human.reading_time import MAX_DEVIATIONS, MIN_FACTOR, oddness, resistant_slope
from cai.statistics import Floats, Mean, resampled_sums, wilson

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D: four observers, twelve units.
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def counted(observers: tuple[str, ...], categories: int) -> Floats:
    rows = [row.split() for row in observers]
    found = [(unit, int(cell) - 1) for row in rows for unit, cell in enumerate(row) if cell != "."]
    units, answers = np.array(found).T
    return category_counts(units, answers, (len(rows[0]), categories))


def alpha_by_definition(counts: Floats, distance: Codes | Floats) -> float:
    """1 - D_o / D_e from every ordered pair of values, within units and over all of them."""
    values = [[c for c, number in enumerate(row) for _ in range(int(number))] for row in counts]
    pairable = [unit for unit in values if len(unit) > 1]
    everything = [value for unit in pairable for value in unit]
    seen = sum(sum(distance[x, y] for x, y in permutations(unit, 2)) / (len(unit) - 1) for unit in pairable) / len(
        everything
    )
    pairs = [distance[x, y] for x, y in permutations(everything, 2)]
    return float(1 - seen / (sum(pairs) / len(pairs)))


def test_alpha_of_the_published_reliability_data() -> None:
    total = coincidences(counted(OBSERVERS, 5)).sum(0)
    # The paper's coincidence matrix: its margins, and the 40 pairable values (unit 12 has one value only).
    assert total.sum(1).tolist() == pytest.approx([9, 13, 10, 5, 3])
    assert total[0, 0] == pytest.approx(7)
    assert total[0, 1] == pytest.approx(4 / 3)
    assert float(alpha_nominal(total).coefficient) == pytest.approx(0.743, abs=5e-4)
    assert float(alpha_ordinal(total).coefficient) == pytest.approx(0.815, abs=5e-4)


def test_alpha_is_what_its_definition_over_all_pairs_gives() -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        counts = random.integers(0, 3, size=(12, 4)).astype(float)
        total = coincidences(counts).sum(0)
        found = alpha_by_definition(counts, 1 - np.eye(4))
        assert float(alpha_nominal(total).coefficient) == pytest.approx(found)
        given = total.sum(0)
        # The sum of the paper: from one category to the other, less half of both.
        ordinal = np.array(
            [
                [(given[min(c, k) : max(c, k) + 1].sum() - (given[c] + given[k]) / 2) ** 2 for k in range(4)]
                for c in range(4)
            ]
        )
        found = alpha_by_definition(counts, ordinal)
        assert float(alpha_ordinal(total).coefficient) == pytest.approx(found)


def test_a_unit_with_three_answers_counts_each_by_the_others() -> None:
    tables = coincidences(np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))
    assert tables.tolist() == [[[1, 1], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]], [[0, 1], [1, 0]]]


def test_kappa_of_the_worked_example_with_fifty_cases() -> None:
    found = kappa(np.array([[20.0, 5.0], [10.0, 15.0]]))
    assert (float(found.observed), float(found.expected)) == pytest.approx((0.7, 0.5))
    assert float(found.coefficient) == pytest.approx(0.40)


def test_weighted_kappa_by_hand() -> None:
    # Credits 1, 1/2, 0. Seen: (7 + 3/2) / 10. By chance: margins 5 4 1 and 5 3 2, (39 + 46/2) / 100.
    found = weighted_kappa(np.array([[4.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 0.0, 1.0]]))
    assert (float(found.observed), float(found.expected)) == pytest.approx((0.85, 0.62))
    assert float(found.coefficient) == pytest.approx(0.23 / 0.38)


def test_pooled_kappa_averages_agreement_and_chance_by_cases() -> None:
    # A 0.7, E 0.5 in 50 cases and A 0.8, E 0.82 in 10; a pair without a case adds nothing.
    tables = np.array([[[20.0, 5.0], [10.0, 15.0]], [[8.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    found = pooled(kappa)(tables)
    assert (float(found.observed), float(found.expected)) == pytest.approx((43 / 60, 33.2 / 60))
    assert not np.isfinite(pooled(kappa)(np.zeros((2, 2, 2))).coefficient)


def test_tables_of_pairs_count_rows_by_the_first_and_columns_by_the_second() -> None:
    tables = pair_tables(np.array([0, 1, 1]), np.array([0, 0, 2]), 3)
    assert tables.sum(0).tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]


# Extremes


def two_raters(x: Codes, y: Codes) -> tuple[Floats, Floats]:
    """Tables for κ, coincidences for α."""
    counts = np.eye(2)[x] + np.eye(2)[y]
    return pair_tables(x, y, 2), coincidences(counts)


def test_full_agreement_is_one_with_an_interval_that_has_a_width() -> None:
    x = np.arange(40) % 2
    for tables, coefficient in zip(two_raters(x, x), (kappa, alpha_nominal), strict=True):
        found = clustered_coefficient(tables, np.arange(40) // 2, coefficient, seed=0)
        assert found is not None
        chance = float(coefficient(tables.sum(0)).expected)
        assert (found.value, found.high) == (pytest.approx(1), pytest.approx(1))
        assert found.low == pytest.approx((wilson(1.0, 20).low - chance) / (1 - chance))  # 20 prompts


def test_raters_who_always_disagree_are_worse_than_chance() -> None:
    x = np.arange(40) % 2
    tables, coincident = two_raters(x, 1 - x)
    found = clustered_coefficient(tables, np.arange(40), kappa, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((-1.0, -1.0, 2 * wilson(0.0, 40).high - 1))
    alpha = clustered_coefficient(coincident, np.arange(40), alpha_nominal, seed=0)
    assert alpha is not None
    assert alpha.value == pytest.approx(-39 / 40)  # D_o 1, D_e 40/79
    assert alpha.high < 0


@pytest.mark.parametrize("constant", [0, 1])
def test_equal_answers_have_no_coefficient_but_a_reason(constant: int) -> None:
    x = np.full(12, constant)
    for tables, coefficient in zip(two_raters(x, x), (kappa, alpha_nominal), strict=True):
        found = coefficient_of(tables, np.arange(12), coefficient, seed=0)
        assert (found.mean, found.cases, found.reason) == (None, 12, CONSTANT)
    steps = coincidences(np.eye(4)[np.full(12, constant)] * 2)
    assert coefficient_of(steps, np.arange(12), alpha_ordinal, seed=0).reason == CONSTANT


def test_without_a_case_there_is_a_reason_and_no_figure() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    found = coefficient_of(pair_tables(nothing, nothing, 2), nothing, kappa, seed=0, nothing="none yet")
    assert (found.mean, found.cases, found.reason) == (None, 0, "none yet")
    assert share_of(np.zeros(0), nothing, seed=0).mean is None
    assert share_of(np.array([True, False]), np.arange(2), seed=0).mean == Mean(value=0.5, low=0.0, high=1.0)


def test_one_prompt_leaves_everything_possible() -> None:
    tables, _ = two_raters(np.array([0, 1, 0, 1]), np.array([0, 1, 1, 1]))
    found = clustered_coefficient(tables, np.zeros(4), kappa, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == (pytest.approx(0.5), -1.0, 1.0)


def test_answers_that_hardly_vary_leave_everything_possible() -> None:
    # One of 20 differs: 36% of the draws lack it and have no coefficient.
    x, y = np.zeros(20, dtype=np.int64), np.arange(20) // 19
    found = clustered_coefficient(pair_tables(x, y, 2), np.arange(20), kappa, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == (pytest.approx(0.0), -1.0, 1.0)


# Intervals


def test_resampled_sums_are_the_draws_of_the_clustered_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    values, clusters = random.uniform(size=60), np.repeat(np.arange(20), 3)
    totals = np.stack([np.bincount(clusters, weights=values), np.bincount(clusters)], 1)
    draws = np.concatenate([sums[:, 0] / sums[:, 1] for sums in resampled_sums(totals, seed=4)])
    found = statistics.clustered_mean(values, clusters, seed=4)
    assert tuple(np.quantile(draws, (0.025, 0.975))) == pytest.approx((found.low, found.high))
    # In pieces, as wide sums are drawn, the numbers are the same.
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 300)
    pieces = list(resampled_sums(totals, seed=4))
    assert len(pieces) > 1
    assert np.concatenate([sums[:, 0] / sums[:, 1] for sums in pieces]) == pytest.approx(draws)
    wide = next(resampled_sums(np.zeros((2, 100)), seed=0))
    assert wide.shape == (3, 100)


@pytest.mark.parametrize("coefficient", [kappa, alpha_nominal])
def test_intervals_of_independent_raters_cover_zero(coefficient: Coefficient, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both raters lean to one side prompt by prompt, each on their own: answers on one prompt depend on one another.
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    random = np.random.default_rng(5)
    clusters = np.repeat(np.arange(60), 4)
    covered = naive = 0
    values = []
    for seed in range(200):
        x, y = (
            (random.uniform(size=240) < np.repeat(random.beta(0.4, 0.4, size=60), 4)).astype(np.int64) for _ in range(2)
        )
        tables, coincident = two_raters(x, y)
        cases = tables if coefficient is kappa else coincident
        found = clustered_coefficient(cases, clusters, coefficient, seed=seed)
        single = clustered_coefficient(cases, np.arange(240), coefficient, seed=seed)
        assert found is not None
        assert single is not None
        values.append(found.value)
        covered += found.low <= 0 <= found.high
        naive += single.low <= 0 <= single.high
    assert np.mean(values) == pytest.approx(0, abs=0.03)
    assert 0.91 <= covered / 200 <= 0.985
    assert naive / 200 < 0.90


def test_the_interval_of_kappa_is_that_of_the_delta_method() -> None:
    # Fleiss, Cohen and Everitt 1969 for independent cases.
    random = np.random.default_rng(6)
    truth = random.integers(2, size=800)
    x, y = (np.where(random.uniform(size=800) < 0.85, truth, 1 - truth) for _ in range(2))
    found = clustered_coefficient(pair_tables(x, y, 2), np.arange(800), kappa, seed=0)
    assert found is not None
    shares = pair_tables(x, y, 2).mean(0)
    rows, columns = shares.sum(1), shares.sum(0)
    chance = float(rows @ columns)
    k = (float(np.trace(shares)) - chance) / (1 - chance)
    diagonal = sum(shares[i, i] * (1 - (rows[i] + columns[i]) * (1 - k)) ** 2 for i in range(2))
    others = (1 - k) ** 2 * sum(shares[i, j] * (columns[i] + rows[j]) ** 2 for i, j in ((0, 1), (1, 0)))
    error = math.sqrt((diagonal + others - (k - chance * (1 - k)) ** 2) / 800) / (1 - chance)
    assert found.value == pytest.approx(k)
    assert (found.low, found.high) == pytest.approx((k - 1.96 * error, k + 1.96 * error), abs=0.1 * error)


# Tests for flags


def test_deviation_by_hand_and_with_clusters() -> None:
    # Single cases: means 0.25 and 0.75, variances 3/16 in 4 and in 8 cases, with the factor 12/11 for few clusters.
    values = np.array([1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0], dtype=float)
    taken = np.arange(12) < 4
    error = math.sqrt((3 / 16 / 4 + 3 / 16 / 8) * 12 / 11)
    assert deviation(values, taken, np.arange(12)) == pytest.approx(-0.5 / error)
    # Each case twice, in clusters of two: no more is known than before.
    doubled = deviation(np.repeat(values, 2), np.repeat(taken, 2), np.repeat(np.arange(12), 2))
    assert doubled == pytest.approx(-0.5 / error)
    sure = deviation(np.array([0.0, 0.0, 1.0]), np.array([True, True, False]), np.arange(3))
    assert sure == -math.inf
    assert deviation(np.ones(3), np.array([True, True, False]), np.arange(3)) == 0


def test_binomial_tail_against_exact_fractions() -> None:
    for cases, successes, share in ((10, 6, Fraction(1, 10)), (7, 0, Fraction(1, 2)), (30, 25, Fraction(3, 5))):
        exact = sum(math.comb(cases, k) * share**k * (1 - share) ** (cases - k) for k in range(successes, cases + 1))
        assert binomial_tail(successes, cases, float(share)) == pytest.approx(float(exact))
    assert binomial_tail(0, 0, 0.1) == 1
    assert binomial_tail(3_000, 3_000, 0.6) == pytest.approx(0, abs=1e-300)


# Times


def test_the_resistant_line_recovers_a_slope_through_outliers() -> None:
    random = np.random.default_rng(8)
    x = random.uniform(4, 8, size=300)
    y = 0.6 * x + random.normal(scale=0.2, size=300)
    y[::10] -= 5
    assert resistant_slope(x, y) == pytest.approx(0.6, abs=0.08)
    assert resistant_slope(x, -y) == 0
    assert resistant_slope(x, 3 * y) == 1
    assert resistant_slope(np.ones(30), y[:30]) == 0


def test_a_time_is_odd_for_its_rater_beyond_a_robust_limit() -> None:
    # Residuals -1, 0, 1 in turn: the median absolute deviation is 1, so the limit is 3.5 × 1.4826.
    limit = MAX_DEVIATIONS * 1.4826
    logs = np.tile([-1.0, 0.0, 1.0], 40)
    logs[[0, 1, 2, 3]] = [-limit - 0.01, limit + 0.01, limit - 0.01, -limit + 0.01]
    assert np.flatnonzero(oddness(logs, np.zeros(120))).tolist() == [0, 1]
    assert oddness(logs, np.zeros(120))[[0, 1]].tolist() == [-1, 1]


def test_a_steady_rater_is_odd_from_a_factor_of_two_on() -> None:
    logs = np.zeros(20)
    logs[[3, 4, 5]] = np.log([MIN_FACTOR * 1.01, MIN_FACTOR * 0.99, 1 / MIN_FACTOR / 1.01])
    assert oddness(logs, np.zeros(20)).nonzero()[0].tolist() == [3, 5]


def test_long_texts_may_take_longer() -> None:
    sizes = np.log(np.geomspace(100, 10_000, 60))
    logs = sizes - 3
    logs[30] -= np.log(4)  # four times as fast as on its neighbours, though as long as on short texts
    assert np.flatnonzero(oddness(logs, sizes)).tolist() == [30]
    assert sum(oddness(logs, np.zeros(60)) != 0) == 0


def test_all_pairs_of_raters_are_what_alpha_is_made_of() -> None:
    """For two raters without gaps, α is Scott's π with a correction for few values."""
    random = np.random.default_rng(9)
    x, y = random.integers(3, size=(2, 50))
    total = coincidences(np.eye(3)[x] + np.eye(3)[y]).sum(0)
    shares = np.bincount(np.concatenate([x, y]), minlength=3) / 100
    seen, chance = float((x == y).mean()), float((shares**2).sum())
    pi = (seen - chance) / (1 - chance)
    assert float(alpha_nominal(total).coefficient) == pytest.approx(1 - (1 - pi) * 99 / 100)
