"""Ratings against hand-solved cases, an independent method, planted strengths and simulated coverage."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from duel_samples import duels, planted, share, won

from cai import statistics
from cai.evaluate.bradley_terry import ELO, Duels, fit, linked_groups, rate, reachable, win_table

LN3, LN2 = math.log(3), math.log(2)


def table(*rows: Sequence[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def minorise(wins: np.ndarray, rounds: int = 4_000) -> np.ndarray:
    """Zermelo's iteration on the strengths themselves; shares nothing with Newton's method."""
    games, strength = wins + wins.T, np.ones(len(wins))
    for _ in range(rounds):
        strength = wins.sum(1) / (games / (strength[:, None] + strength[None, :])).sum(1)
        strength /= np.exp(np.log(strength).mean())
    return np.log(strength)


def test_a_policy_that_wins_three_of_four_is_ln_3_ahead() -> None:
    assert fit(table([0, 3], [1, 0])) == pytest.approx([LN3 / 2, -LN3 / 2])
    assert abs(ELO * LN3 - 190.8485) < 1e-4  # 400 log10 3


def test_three_policies_in_a_line_are_solved_pair_by_pair() -> None:
    """Without a loop each pair's odds are met exactly: a over b 3 to 1, b over c 2 to 1."""
    found = fit(table([0, 3, 0], [1, 0, 2], [0, 1, 0]))
    assert [found[0] - found[1], found[1] - found[2]] == pytest.approx([LN3, LN2])
    assert found.sum() == pytest.approx(0, abs=1e-12)


def test_a_loop_of_equal_wins_has_equal_ratings_and_one_more_win_breaks_it() -> None:
    assert fit(table([0, 2, 1], [1, 0, 2], [2, 1, 0])) == pytest.approx([0, 0, 0], abs=1e-12)
    # By symmetry b and c stay equal: a has 4 wins of 6 against either, so its odds are 2.
    found = fit(table([0, 2, 2], [1, 0, 1], [1, 1, 0]))
    assert found == pytest.approx([2 * LN2 / 3, -LN2 / 3, -LN2 / 3])


@pytest.mark.parametrize("seed", range(4))
def test_any_table_is_solved_as_by_an_independent_method(seed: int) -> None:
    random = np.random.default_rng(seed)
    wins = random.gamma(0.3, 10, size=(5, 5)) * (1 - np.eye(5))
    assert fit(wins) == pytest.approx(minorise(wins), abs=1e-6)


def test_many_tables_at_once_have_the_ratings_of_each_alone() -> None:
    random = np.random.default_rng(1)
    tables = random.gamma(0.2, 10, size=(7, 4, 4)) * (1 - np.eye(4))
    assert fit(tables) == pytest.approx(np.array([fit(one) for one in tables]), abs=1e-9)


def test_nearly_all_wins_on_one_side_are_no_obstacle() -> None:
    """Ann's losses, 2e-4 in all, are to cy alone in effect, as bob is far behind cy."""
    found = fit(table([0, 1e5, 1e5], [1e-4, 0, 1], [1e-4, 1e5, 0]))
    assert found[0] - found[2] == pytest.approx(math.log(1e5 / 2e-4), abs=1e-3)
    assert found[2] - found[1] == pytest.approx(math.log(1e5), abs=1e-3)
    assert fit(table([0, 1e5], [1e-4, 0]))[0] == pytest.approx(math.log(1e9) / 2)


def test_weights_of_any_size_are_no_obstacle() -> None:
    """At the maximum each policy is expected to win as often as it did."""
    wins = table(
        [0, 1e3, 0, 0, 1e-5],
        [1, 0, 0, 1e-4, 0],
        [1e5, 1e2, 0, 0.1, 1e2],
        [1e-6, 0, 1e-6, 0, 0],
        [1e4, 1e-6, 1e4, 1e3, 0],
    )
    found = fit(wins)
    expected = (wins + wins.T) * share(found[:, None] - found[None, :])
    assert expected.sum(1) == pytest.approx(wins.sum(1), rel=1e-4)


@pytest.mark.parametrize(
    "wins",
    [
        table([0, 5], [0, 0]),
        table([0, 1, 3], [1, 0, 3], [0, 0, 0]),
        table([0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]),
    ],
)
def test_wins_without_a_maximum_are_refused(wins: np.ndarray) -> None:
    with pytest.raises(ArithmeticError):
        fit(wins)


def test_chains_of_wins_and_of_comparisons() -> None:
    wins = np.zeros((6, 6))
    for winner in range(4):
        wins[winner, winner + 1] = 1
    assert (reachable(wins)[:5, :5] == np.triu(np.ones((5, 5), dtype=bool))).all()
    assert linked_groups(wins) == [[0, 1, 2, 3, 4], [5]]
    assert linked_groups(table([0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0])) == [[0, 2], [1, 3]]


def test_soft_labels_are_fractional_wins() -> None:
    soft = duels([(0, 1, 0.75, n) for n in range(4)])
    assert win_table(soft) == pytest.approx(table([0, 3], [1, 0]))
    assert rate(soft, [0, 1], seed=0).difference(0, 1).value == pytest.approx(ELO * LN3)


def test_planted_strengths_come_out_in_order_with_intervals_that_exclude_the_wrong_one() -> None:
    strengths = [0.9, 0.3, -0.3, -0.9]
    found = rate(planted(strengths, 150, seed=3), range(4), seed=0)
    for first in range(4):
        against_first = found.rating(first, 0)
        assert against_first.low <= ELO * (strengths[first] - strengths[0]) <= against_first.high
        for second in range(first + 1, 4):
            difference = found.difference(first, second)
            assert difference.low > 0
            assert difference.low < ELO * (strengths[first] - strengths[second]) < difference.high
            turned = found.difference(second, first)
            assert (turned.value, turned.low, turned.high) == pytest.approx(
                (-difference.value, -difference.high, -difference.low)
            )
    means = [found.rating(place, None) for place in range(4)]
    assert sum(mean.value for mean in means) == pytest.approx(0, abs=1e-9)
    assert means[1].low < means[1].value < means[1].high
    base = found.rating(2, 2)
    assert (base.value, base.low, base.high) == (0, 0, 0)


def test_ties_alone_give_equal_ratings_whose_interval_is_wilsons() -> None:
    found = rate(duels([(i, j, 0.5, n) for n in range(40) for i, j in ((0, 1), (0, 2), (1, 2))]), range(3), seed=0)
    assert found.values == pytest.approx([0, 0, 0], abs=1e-12)
    two = rate(duels([(0, 1, 0.5, n) for n in range(40)]), range(2), seed=0).difference(0, 1)
    wilson = statistics.wilson(0.5, 40)
    assert two.low == pytest.approx(ELO * math.log(wilson.low / (1 - wilson.low)), rel=0.15)
    assert two.high == pytest.approx(-two.low, rel=0.1)


def test_one_that_never_loses_is_bounded_from_below_alone() -> None:
    """Of 20 prompts won, Jeffreys' interval for the share ends at 0.883 (the 2.5% point of Beta(20.5, 0.5))."""
    found = rate(duels(won(0, 1, 20, 0)), range(2), seed=0)
    ahead, behind = found.difference(0, 1), found.difference(1, 0)
    assert math.isfinite(ahead.value)
    assert ahead.value > ahead.low
    assert ahead.high == math.inf
    assert behind.low == -math.inf
    lower = np.quantile(np.random.default_rng(9).beta(20.5, 0.5, size=100_000), 0.025)
    assert ahead.low == pytest.approx(ELO * math.log(lower / (1 - lower)), rel=0.05)
    assert found.unbeaten == [0]


def test_only_what_is_not_bounded_is_open() -> None:
    """Ann beats both others always, and they win and lose against one another."""
    rows = [*won(0, 1, 15, 0), *won(0, 2, 15, 0), *won(1, 2, 10, 5)]
    found = rate(duels(rows), range(3), seed=0)
    assert found.unbeaten == [0]
    assert found.difference(0, 2).high == math.inf
    assert math.isfinite(found.difference(0, 2).low)
    between = found.difference(1, 2)
    assert math.isfinite(between.low)
    assert math.isfinite(between.high)
    against_bob = [found.rating(place, 1) for place in range(3)]
    assert [math.isinf(mean.high) for mean in against_bob] == [True, False, False]
    assert not any(math.isinf(mean.low) for mean in against_bob)
    against_mean = [found.rating(place, None) for place in range(3)]
    assert [(math.isinf(mean.low), math.isinf(mean.high)) for mean in against_mean] == [
        (False, True),
        (True, False),
        (True, False),
    ]


def test_a_prior_is_not_felt_where_it_is_not_needed() -> None:
    """Every sample of these has wins on both sides, so values and interval follow from the share of wins alone."""
    found = rate(planted([0.2, -0.2], 400, seed=2), range(2), seed=5)
    odds = share(found.draws[:, 0] - found.draws[:, 1]) * 400
    assert odds == pytest.approx(np.rint(odds), abs=1e-6)


def test_one_prompt_tells_nothing_of_others() -> None:
    one = rate(duels([(0, 1, 1.0, "same"), (0, 1, 0.0, "same"), (0, 1, 1.0, "same")]), range(2), seed=0)
    assert one.difference(0, 1).value == pytest.approx(ELO * LN2)
    assert (one.difference(0, 1).low, one.difference(0, 1).high) == (-math.inf, math.inf)
    rows = [*won(0, 1, 12, 8), (1, 2, 0.5, "alone"), (1, 2, 0.75, "alone")]
    found = rate(duels(rows), range(3), seed=0)
    assert math.isfinite(found.difference(0, 1).high)
    assert (found.difference(1, 2).low, found.difference(1, 2).high) == (-math.inf, math.inf)
    assert math.isinf(found.rating(2, None).high)


def test_the_same_seed_gives_the_same_intervals_and_another_one_nearly() -> None:
    known = planted([0.4, 0, -0.4], 60, seed=1)
    one, same, other = (rate(known, range(3), seed=seed).rating(0, None) for seed in (1, 1, 2))
    assert one == same
    assert one.low != other.low
    assert one.low == pytest.approx(other.low, abs=0.05 * (one.high - one.low))


def covered(prompts_known: bool, trials: int) -> float:
    """Share of simulations of 40 prompts, each with 6 comparisons that depend on one another, whose interval holds the
    truth: the log-odds of the mean share of wins over all prompts."""
    normal = np.random.default_rng(0).standard_normal((200_000, 2)) * 1.2
    wins = float(share(0.5 + normal[:, 0] - normal[:, 1]).mean())
    truth = ELO * math.log(wins / (1 - wins))
    hits = 0
    for seed in range(trials):
        known: Duels = planted([0.5, 0], 40, seed, each=6, taste=1.2, each_own_prompt=not prompts_known)
        found = rate(known, range(2), seed=seed).difference(0, 1)
        hits += found.low <= truth <= found.high
    return hits / trials


def test_intervals_over_prompts_hold_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 intervals of 95%, three binomial standard errors are 3.8 points; percentile bootstraps lose a little."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    error = math.sqrt(0.95 * 0.05 / 300)
    assert 0.95 - 3 * error <= covered(prompts_known=True, trials=300) <= 0.95 + 3 * error
    assert covered(prompts_known=False, trials=300) < 0.95 - 3 * error
