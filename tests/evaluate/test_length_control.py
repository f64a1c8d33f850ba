"""Length control on judges whose taste for length is planted."""

import dataclasses
import math

import numpy as np
import pytest
from duel_samples import duels, share

from cai.evaluate.bradley_terry import Duels
from cai.evaluate.length_control import (
    EQUAL_LENGTHS,
    NO_SPREAD,
    ONE_PROMPT,
    LengthFit,
    Measure,
    length_control,
)
from cai.statistics import clustered_mean

MEASURES: tuple[Measure, ...] = ("difference", "ratio")


def judged(
    strength: float, taste: float, seed: int, *, prompts: int = 400, longer: float = 120.0, hard: bool = True
) -> Duels:
    """A policy whose replies are longer by about `longer` characters, judged with a taste for length and of merit."""
    random = np.random.default_rng(seed)
    first = np.maximum(20, 300 + longer + 90 * random.standard_normal(prompts))
    second = np.maximum(20, 300 + 90 * random.standard_normal(prompts))
    difference = first - second
    spread = math.sqrt(float(np.mean(difference**2)))
    p = share(strength + taste * np.tanh(difference / spread))
    won = (random.random(prompts) < p).astype(float) if hard else p
    rows = [(0, 1, float(one), number) for number, one in enumerate(won)]
    return duels(rows, list(zip(first, second, strict=True)))


def fitted(known: Duels, measure: Measure = "difference") -> LengthFit:
    found = length_control(known, measure)
    assert isinstance(found, LengthFit)
    return found


def test_a_judge_that_likes_length_alone_is_near_a_coin_at_equal_length() -> None:
    known = judged(0.0, 2.0, seed=1)
    raw = clustered_mean(known.p, known.clusters, seed=0)
    assert raw.low > 0.6
    found = fitted(known)
    controlled = found.win_rates[0, 1]
    assert controlled.low < 0.5 < controlled.high
    assert controlled.high - controlled.low < 0.2
    assert found.effect.low < 2.0 < found.effect.high
    assert found.effect.low > 1
    corrected = fitted(known, "ratio").win_rates[0, 1]
    assert corrected.low < 0.5 < corrected.high


def test_merit_is_left_where_length_is_taken_off() -> None:
    found = fitted(judged(0.8, 1.5, seed=2, prompts=2_000)).win_rates[0, 1]
    assert found.low < share(0.8) < found.high
    assert found.high - found.low < 0.08


@pytest.mark.parametrize("measure", MEASURES)
def test_a_judge_without_a_taste_for_length_keeps_its_win_rate(measure: Measure) -> None:
    known = judged(0.8, 0.0, seed=3, prompts=2_000)
    found = fitted(known, measure)
    assert found.effect.low < 0 < found.effect.high
    assert found.win_rates[0, 1].value == pytest.approx(known.p.mean(), abs=0.03)
    soft = judged(0.8, 0.0, seed=3, hard=False)
    assert fitted(soft, measure).win_rates[0, 1].value == pytest.approx(share(0.8), abs=2e-3)
    assert fitted(soft, measure).effect.value == pytest.approx(0, abs=0.01)


def test_the_model_is_solved_as_by_slow_steps_uphill() -> None:
    """Gradient ascent on the likelihood with the prior written out row by row."""
    known = judged(0.5, 1.0, seed=4, prompts=60)
    t = np.tanh((known.chars_first - known.chars_second) / math.sqrt(
        float(np.mean((known.chars_first - known.chars_second) ** 2))
    ))  # fmt: skip
    x = np.column_stack([np.ones(62), [*t, 1, -1]])
    p, weight = np.array([*known.p, 0.5, 0.5]), np.array([1.0] * 60 + [0.5] * 2)
    at = np.zeros(2)
    for _ in range(4_000):
        at += 0.05 * x.T @ (weight * (p - share(x @ at)))
    found = fitted(known)
    assert found.win_rates[0, 1].value == pytest.approx(share(at[0]), abs=1e-6)
    assert found.effect.value == pytest.approx(at[1], abs=1e-6)
    assert found.scale == pytest.approx(float(np.sqrt(np.mean((known.chars_first - known.chars_second) ** 2))))


def test_each_pair_has_its_own_win_rate_and_all_share_the_taste() -> None:
    """Bob against cy is the padder against a short one; ann and bob are alike in length, and ann is better."""
    random = np.random.default_rng(5)
    rows, lengths = [], []
    for prompt in range(900):
        for first, second, strength, longer in ((0, 1, 1.0, 0.0), (1, 2, 0.0, 200.0)):
            chars = (300 + longer + 80 * random.standard_normal(), 300 + 80 * random.standard_normal())
            p = share(strength + 1.5 * math.tanh((chars[0] - chars[1]) / 150))
            rows.append((first, second, float(random.random() < p), prompt))
            lengths.append(chars)
    found = fitted(duels(rows, lengths))
    assert found.win_rates.keys() == {(0, 1), (1, 2)}
    assert found.win_rates[0, 1].low < share(1.0) < found.win_rates[0, 1].high
    assert found.win_rates[1, 2].low < 0.5 < found.win_rates[1, 2].high
    assert np.mean([p for first, _, p, _ in rows if first == 1]) > 0.7


@pytest.mark.parametrize("measure", MEASURES)
def test_turning_all_comparisons_around_turns_the_win_rate_around(measure: Measure) -> None:
    known = judged(0.4, 1.0, seed=6)
    turned = dataclasses.replace(known, p=1 - known.p, chars_first=known.chars_second, chars_second=known.chars_first)
    one, other = fitted(known, measure), fitted(turned, measure)
    assert other.win_rates[0, 1].value == pytest.approx(1 - one.win_rates[0, 1].value)
    assert other.win_rates[0, 1].low == pytest.approx(1 - one.win_rates[0, 1].high)
    assert other.effect.value == pytest.approx(one.effect.value)


def test_a_judge_that_takes_the_longer_one_always_has_a_finite_figure() -> None:
    known = judged(0.0, 500.0, seed=7, prompts=200)
    found = fitted(known)
    assert 3 < found.effect.value < 100
    assert found.win_rates[0, 1].low < 0.5 < found.win_rates[0, 1].high


def test_wins_on_all_prompts_leave_room_below() -> None:
    known = dataclasses.replace(judged(0.0, 0.0, seed=8, prompts=30), p=np.ones(30))
    found = fitted(known).win_rates[0, 1]
    assert 0.7 < found.low < 0.95
    assert found.value > 0.95


def test_prompts_and_not_comparisons_are_what_intervals_rest_on() -> None:
    known = judged(0.3, 1.0, seed=9, prompts=100)
    again = duels(
        [(0, 1, float(p), prompt) for prompt, p in enumerate(known.p) for _ in range(4)],
        [(a, b) for a, b in zip(known.chars_first, known.chars_second, strict=True) for _ in range(4)],
    )
    once, four_times = fitted(known).win_rates[0, 1], fitted(again).win_rates[0, 1]
    assert four_times.low == pytest.approx(once.low, abs=0.005)
    assert four_times.high == pytest.approx(once.high, abs=0.005)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300, three binomial standard errors are 3.8 points."""
    hits = 0
    for seed in range(300):
        found = fitted(judged(0.6, 1.0, seed=100 + seed, prompts=150)).win_rates[0, 1]
        hits += found.low <= share(0.6) <= found.high
    assert hits / 300 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 300))


@pytest.mark.parametrize("measure", MEASURES)
def test_what_cannot_be_told_apart_is_said(measure: Measure) -> None:
    rows = [(0, 1, float(n % 2), n) for n in range(20)]
    assert length_control(duels(rows), measure) == EQUAL_LENGTHS
    assert length_control(duels(rows, [(200, 100)] * 20), measure) == NO_SPREAD
    same_prompt = [(0, 1, float(n % 2), 0) for n in range(20)]
    assert length_control(duels(same_prompt, [(100 + n, 100) for n in range(20)]), measure) == ONE_PROMPT
