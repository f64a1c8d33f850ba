"""The statistics of certificates and evaluations against values by hand, simulation and independent routes."""

from itertools import product

import numpy as np
import pytest

from cai import statistics
from cai.statistics import (
    SCALE_LIMIT,
    Bools,
    Floats,
    Mean,
    brier,
    calibration_error,
    clustered_mean,
    correctness,
    fitted_scale,
    log_loss,
    longer_wins,
    rank_correlation,
    reliability,
    ties,
    wilson,
)

# Four comparisons by hand: right (0.9), wrong (0.8), tie, right for b (0.3).
P = np.array([0.9, 0.8, 0.5, 0.3])
GOLD_A = np.array([True, False, True, False])


def test_a_right_answer_counts_one_and_a_tie_half() -> None:
    assert correctness(P, GOLD_A).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert ties(P).tolist() == [False, False, True, False]


def test_a_soft_label_counts_as_its_probability_of_the_side_that_is_picked() -> None:
    assert correctness(P, np.array([0.7, 0.7, 0.7, 0.4])).tolist() == pytest.approx([0.7, 0.7, 0.5, 0.6])
    assert correctness(P, GOLD_A.astype(float)).tolist() == correctness(P, GOLD_A).tolist()


def test_orders_that_cancel_out_are_a_tie_whatever_the_rounding() -> None:
    weights = np.full(14, 1 / 14)
    first = np.random.default_rng(0).uniform(size=(500, 7))
    p = np.hstack([first, 1 - first]) @ weights
    assert (p != 0.5).any()
    assert ties(p).all()
    assert not ties(np.array([0.5 + 1e-7, 0.5 - 1e-7])).any()


def test_longer_wins_cannot_decide_between_equal_lengths() -> None:
    assert longer_wins(np.array([9.0, 2.0, 5.0]), np.array([3.0, 8.0, 5.0])).tolist() == [1.0, 0.0, 0.5]


def test_brier_and_log_loss_by_hand() -> None:
    assert brier(P, GOLD_A) == pytest.approx((0.1**2 + 0.8**2 + 0.5**2 + 0.3**2) / 4)
    assert log_loss(P, GOLD_A) == pytest.approx(-(np.log(0.9) + np.log(0.2) + np.log(0.5) + np.log(0.7)) / 4)


def test_log_loss_of_a_certain_and_wrong_answer_is_finite() -> None:
    assert log_loss(np.array([0.0, 1.0]), np.array([True, True])) == pytest.approx((np.log(1e6) + 1e-6) / 2)


# Calibration


def test_reliability_by_hand() -> None:
    # Confidences 0.9, 0.8, 0.5, 0.7: four bins of one, [0.9, 0.95), [0.8, 0.85), [0.5, 0.55), [0.7, 0.75).
    bins = reliability(P, GOLD_A)
    assert [(bin_.low, bin_.high, bin_.count, bin_.confidence, bin_.accuracy.value) for bin_ in bins] == [
        (0.5, 0.55, 1, 0.5, 0.5),
        (0.7, 0.75, 1, 0.7, 1.0),
        (0.8, 0.85, 1, 0.8, 0.0),
        (0.9, 0.95, 1, 0.9, 1.0),
    ]
    assert calibration_error(bins) == pytest.approx((0.0 + 0.3 + 0.8 + 0.1) / 4)


def test_calibration_error_weighs_bins_by_their_counts() -> None:
    # Three in [0.6, 0.65) at 0.6, one right; one at 1.0, right: (3 × |1/3 - 0.6| + 1 × 0) / 4.
    p, gold_a = np.array([0.6, 0.4, 0.6, 1.0]), np.array([True, True, False, True])
    bins = reliability(p, gold_a)
    assert [bin_.count for bin_ in bins] == [3, 1]
    assert calibration_error(bins) == pytest.approx(0.2)


def test_a_confidence_at_the_edge_belongs_to_the_bin_above_and_certainty_to_the_last() -> None:
    edges = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    bins = reliability(np.array([*edges, 1.0]), np.full(11, True))
    assert [bin_.low for bin_ in bins] == edges
    assert [bin_.count for bin_ in bins] == [1] * 9 + [2]


def test_a_judge_that_means_what_it_says_has_a_small_calibration_error() -> None:
    random = np.random.default_rng(3)
    p = random.uniform(size=20_000)
    gold_a = random.uniform(size=20_000) < p
    assert calibration_error(reliability(p, gold_a)) < 0.02
    assert calibration_error(reliability(np.where(p > 0.5, 0.99, 0.01), gold_a)) == pytest.approx(0.24, abs=0.02)


def test_wilson_is_the_set_of_shares_that_a_score_test_does_not_reject() -> None:
    for share, n in ((0.7, 40), (0.05, 60), (0.5, 10)):
        interval = wilson(share, n)
        for end in (interval.low, interval.high):
            assert abs(share - end) / np.sqrt(end * (1 - end) / n) == pytest.approx(1.959964, rel=1e-6)
    assert wilson(1.0, 64).low == pytest.approx(64 / (64 + 1.959964**2))
    assert wilson(1.0, 64).high == 1.0
    assert wilson(0.0, 64).low == 0.0


# The bootstrap


def test_bootstrap_agrees_with_all_resamples_of_a_small_sample() -> None:
    # Three clusters: all 27 ordered draws, each a mean over the comparisons drawn.
    values, clusters = np.array([1.0, 1.0, 0.0, 0.0, 0.5]), np.array(["x", "x", "y", "y", "z"])
    groups = [np.array([1.0, 1.0]), np.array([0.0, 0.0]), np.array([0.5])]
    exact = [np.concatenate(drawn).mean() for drawn in product(groups, repeat=3)]
    found = clustered_mean(values, clusters, seed=5)
    assert found.value == pytest.approx(0.5)
    # 1/27 of the draws are all-x and 1/27 all-y: both more than 2.5%, so the ends are the extremes.
    assert (found.low, found.high) == (min(exact), max(exact)) == (0.0, 1.0)


def test_bootstrap_averages_over_comparisons_where_clusters_differ_in_size() -> None:
    # Large prompts are right and small ones wrong: by prompt half is right, by comparison nine tenths.
    sizes, right = np.tile([9, 1], 20), np.tile([1.0, 0.0], 20)
    found = clustered_mean(np.repeat(right, sizes), np.repeat(np.arange(40), sizes), seed=0)
    random = np.random.default_rng(99)
    means = []
    for _ in range(2_000):
        drawn = random.integers(40, size=40)
        means.append(np.repeat(right[drawn], sizes[drawn]).mean())
    assert found.value == pytest.approx(0.9)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.01)


def test_bootstrap_of_independent_values_is_the_normal_interval() -> None:
    values = (np.random.default_rng(1).uniform(size=400) < 0.7).astype(float)
    found = clustered_mean(values, np.arange(400), seed=0)
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error + 1 / 400)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error + 1 / 400)


def test_correlated_comparisons_widen_the_interval_by_the_root_of_the_cluster_size() -> None:
    # 60 prompts with 9 comparisons each that are all right or all wrong: the information of 60 comparisons.
    answers = (np.random.default_rng(2).uniform(size=60) < 0.6).astype(float)
    values = np.repeat(answers, 9)
    clustered = clustered_mean(values, np.repeat(np.arange(60), 9), seed=0)
    independent = clustered_mean(values, np.arange(540), seed=0)
    ratio = (clustered.high - clustered.low) / (independent.high - independent.low)
    assert ratio == pytest.approx(3.0, rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    random = np.random.default_rng(7)
    clusters = np.repeat(np.arange(50), 4)
    covered, naive = 0, 0
    for seed in range(400):
        ease = random.beta(2, 1, size=50)  # mean 2/3: some prompts are easy, some hard
        values = (random.uniform(size=200) < np.repeat(ease, 4)).astype(float)
        found = clustered_mean(values, clusters, seed=seed)
        covered += found.low <= 2 / 3 <= found.high
        found = clustered_mean(values, np.arange(200), seed=seed)
        naive += found.low <= 2 / 3 <= found.high
    assert 0.90 <= covered / 400 <= 0.98
    assert naive < covered


def test_bootstrap_depends_on_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = np.random.default_rng(4).uniform(size=50), np.arange(50) % 20
    whole = clustered_mean(values, clusters, seed=1)
    assert clustered_mean(values, clusters, seed=1) == whole
    assert clustered_mean(values, clusters, seed=2) != whole
    # Drawing in pieces, as with many clusters, gives the same numbers.
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 700)
    assert clustered_mean(values, clusters, seed=1) == whole


def test_one_cluster_tells_nothing_about_others() -> None:
    values, clusters = np.array([1.0, 1.0, 0.0, 1.0]), np.zeros(4)
    assert clustered_mean(values, clusters, seed=0) == Mean(value=0.75, low=0.0, high=1.0)
    assert clustered_mean(values, clusters, seed=0, bounds=(-1, 1)) == Mean(value=0.75, low=-1.0, high=1.0)


def test_equal_values_get_an_interval_with_a_width() -> None:
    all_right = clustered_mean(np.ones(60), np.arange(60) // 2, seed=0)
    assert all_right == wilson(1.0, 30)  # 30 prompts, not 60 comparisons
    no_gain = clustered_mean(np.zeros(60), np.arange(60), seed=0, bounds=(-1.0, 1.0))
    half = wilson(0.5, 60)
    assert no_gain.value == 0.0
    assert (no_gain.low, no_gain.high) == pytest.approx((2 * half.low - 1, 2 * half.high - 1))
    # Clusters of 1 to 4 comparisons, whose means differ in their last bit.
    unlike = clustered_mean(np.full(10, 0.4), np.repeat(np.arange(4), [1, 2, 3, 4]), seed=0)
    share = wilson(0.4, 4)
    assert (unlike.value, unlike.low, unlike.high) == pytest.approx((0.4, share.low, share.high))


def test_without_bounds_nothing_is_known_where_clusters_do_not_differ() -> None:
    for values, clusters in ((np.array([1.0, 3.0]), np.zeros(2)), (np.full(2, 2.0), np.arange(2))):
        found = clustered_mean(values, clusters, seed=0, bounds=(0.0, np.inf))
        assert found == Mean(value=2.0, low=0.0, high=np.inf)
        assert found.model_dump_json() == '{"value":2.0,"low":0.0,"high":"Infinity"}'
        assert Mean.model_validate_json(found.model_dump_json()) == found


# Scale


def each_alone(log_odds: Floats, gold_a: Bools) -> float | None:
    """The fitted scale of comparisons with one judgement each."""
    return fitted_scale(log_odds, np.ones(len(log_odds)), np.arange(len(log_odds)), gold_a)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_fitted_scale_recovers_a_planted_one(scale: float) -> None:
    random = np.random.default_rng(11)
    log_odds = random.normal(scale=1.5, size=50_000)
    gold_a = random.uniform(size=50_000) < 1 / (1 + np.exp(-scale * log_odds))
    assert each_alone(log_odds, gold_a) == pytest.approx(scale, rel=0.05)


def test_fitted_scale_by_hand() -> None:
    # Always p = σ(1), right in 3 of 4: the best constant log-odds is ln 3, so the factor is ln 3.
    assert each_alone(np.ones(4), np.array([True, True, True, False])) == pytest.approx(np.log(3), rel=1e-4)


@pytest.mark.parametrize("bias", [0.0, 4.0])
def test_fitted_scale_is_that_of_each_judgement_and_not_of_their_mean(bias: float) -> None:
    # Two orders with a liking for the first place: a larger scale drowns what the judge knows.
    random = np.random.default_rng(13)
    gold_a = random.uniform(size=400) < 0.5
    knows = np.where(gold_a, 0.3, -0.3) + random.normal(scale=0.5, size=400)
    places, weights = np.repeat(np.arange(400), 2), np.tile([0.25, 0.75], 400)
    log_odds = np.stack([knows + bias, knows - bias], 1).ravel()

    def loss(scale: float) -> float:
        p = 1 / (1 + np.exp(-scale * log_odds)).reshape(-1, 2)
        return log_loss(p @ np.array([0.25, 0.75]), gold_a)

    losses = {scale: loss(scale) for scale in np.geomspace(0.01, 50, 4000)}
    found = fitted_scale(log_odds, weights, places, gold_a)
    assert found == pytest.approx(min(losses, key=lambda scale: losses[scale]), rel=0.005)


def test_fitted_scale_where_there_is_none() -> None:
    right, wrong = np.full(3, True), np.full(3, False)
    assert each_alone(np.zeros(3), right) is None
    assert each_alone(np.array([14.0, 2.2, 0.0]), right) == SCALE_LIMIT
    assert each_alone(np.array([14.0, 2.2, 0.0]), wrong) is None
    # Two orders that cancel out at any scale.
    places = np.repeat(np.arange(3), 2)
    assert fitted_scale(np.tile([3.0, -3.0], 3), np.full(6, 0.5), places, right) is None


# Correlation


def test_rank_correlation_by_hand() -> None:
    # Without equal values: 1 - 6 Σd² / (n (n² - 1)) with rank differences 0, 1, 1, 0.
    assert rank_correlation(np.array([1.0, 2.0, 3.0, 40.0]), np.array([10.0, 30.0, 20.0, 41.0])) == pytest.approx(0.8)
    # Ranks 1.5, 1.5, 3 against 1, 2, 3: covariance 0.75, variances 0.75 and 1 (each over n - 1).
    assert rank_correlation(np.array([5.0, 5.0, 9.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(0.75 / 0.75**0.5)
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None
