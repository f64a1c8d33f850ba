"""The law of over-optimisation: planted curves are found again, and what a fit cannot say is not said."""

import math

import numpy as np
import pytest

from cai.train.monitor.overoptimisation import fit_law, gold_rl, peak_rl
from cai.train.monitor.records import Fit

D = np.linspace(0.5, 9.0, 12)


def fitted(d: object, gold: object) -> Fit:
    found = fit_law(d, gold)  # type: ignore[arg-type]
    assert isinstance(found, Fit)
    return found


def test_the_curve_by_hand() -> None:
    assert gold_rl(np.array([0.0, 1.0, math.e]), 0.7, 0.2).tolist() == pytest.approx([0, 0.7, math.e * 0.5])


def test_the_peak_is_where_the_curve_is_highest() -> None:
    d = np.linspace(0, 20, 200_001)
    for alpha, beta in ((0.9, 0.4), (1.5, 0.9), (-0.1, 0.2)):
        assert peak_rl(alpha, beta) == pytest.approx(d[gold_rl(d, alpha, beta).argmax()], abs=2e-4)
    assert peak_rl(1.0, 0.0) is None
    assert peak_rl(1.0, -0.1) is None
    assert peak_rl(1.0, 1e-5) is None  # e^99999


def test_a_planted_law_is_recovered() -> None:
    found = fitted([0.0, *D], [123.0, *gold_rl(D, 0.9, 0.45)])  # what stands at d = 0 does not count
    assert (found.alpha, found.beta, found.points) == (pytest.approx(0.9, abs=1e-6), pytest.approx(0.45, abs=1e-6), 12)
    assert found.peak == pytest.approx(math.e, abs=1e-6)  # e^(2 - 1)
    assert found.residual < 1e-6
    assert "has been passed: the looks reach √KL 9" in found.note


def test_errors_are_those_of_least_squares_by_hand() -> None:
    d, gold = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1.4, 1.2, 0.7])
    found = fitted(d, gold)
    # The normal equations of gold = α d − β d ln d, by Cramer's rule.
    bent = d * np.log(d)
    s11, s12, s22 = (d**2).sum(), -(d * bent).sum(), (bent**2).sum()
    b1, b2 = (d * gold).sum(), -(bent * gold).sum()
    det = s11 * s22 - s12**2
    alpha, beta = (s22 * b1 - s12 * b2) / det, (s11 * b2 - s12 * b1) / det
    variance = ((gold - alpha * d + beta * bent) ** 2).sum() / 2
    assert (found.alpha, found.beta, found.residual) == pytest.approx((alpha, beta, variance**0.5))
    assert found.alpha_error == pytest.approx((variance * s22 / det) ** 0.5)
    assert found.beta_error == pytest.approx((variance * s11 / det) ** 0.5)


def test_under_noise_the_errors_hold_what_they_promise() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (400, len(D)))
    found = [fitted(D, gold_rl(D, 0.9, 0.45) + one) for one in noise]
    # t with 10 degrees of freedom is within 2.228 in 95% of cases; of 400, the standard deviation is 1.1%.
    for name, true in (("alpha", 0.9), ("beta", 0.45)):
        off = [abs(getattr(fit, name) - true) / getattr(fit, f"{name}_error") for fit in found]
        assert np.mean(np.array(off) < 2.228) == pytest.approx(0.95, abs=0.035)


def test_too_few_points_and_points_at_one_distance_are_said() -> None:
    found = fit_law([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 1.0, 1.0])
    assert found == "there are 3 looks with a gold score and a KL above 0, and a fit takes 4"
    assert "hardly differs" in str(fit_law([2.0] * 6, [1.0] * 6))


def test_no_peak_is_claimed_where_the_curve_does_not_bend_beyond_its_error() -> None:
    straight = fitted(D, 0.5 * D)
    assert straight.peak is None
    assert straight.note.startswith("the points show no peak")
    rough = 0.5 * D + np.random.default_rng(1).normal(0, 1.0, len(D))
    noisy = fitted(D, rough - 0.01 * D * np.log(D))
    assert noisy.peak is None


def test_a_peak_outside_the_looks_is_said_to_be_so() -> None:
    ahead = fitted(D / 10, gold_rl(D / 10, 0.9, 0.45))
    assert ahead.peak == pytest.approx(math.e)
    assert ahead.note == "the predicted peak, √KL 2.72, lies beyond the looks, which reach √KL 0.9"
    behind = fitted(D + 5, gold_rl(D + 5, 0.9, 0.45))
    assert behind.note == "the predicted peak, √KL 2.72, lies before the first look at √KL 5.5; none has shown it"
