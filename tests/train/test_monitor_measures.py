"""What the monitor measures on the responses of a probe: every measure by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from cai.statistics import wilson
from cai.train.monitor.length import length_control, length_correlation
from cai.train.monitor.measures import MEASURES, Probe, change, figure, nats_under_reference
from cai.train.monitor.records import ProbeSample


def sample(prompt: str, response: str = "yes", step: int = 0, **values: Any) -> ProbeSample:
    return ProbeSample(step=step, prompt_id=prompt, response=response, **values)


def probe(*samples: ProbeSample, unit: Any = "tokens") -> Probe:
    return Probe(samples[0].step, samples, unit)


def values(name: str, *samples: ProbeSample) -> dict[str, list[float]]:
    return {prompt: list(found) for prompt, found in probe(*samples).values[name].items()}


def scores(*found: tuple[str, float | None], step: int = 0) -> Probe:
    return probe(*(sample(prompt, score=score, step=step) for prompt, score in found))


def test_a_figure_is_the_mean_over_responses_and_its_change_is_paired_by_prompt() -> None:
    start = scores(("p", 1.0), ("p", 3.0), ("q", 10.0), ("only then", 100.0))
    now = scores(("p", 3.0), ("q", 12.0), ("q", 14.0), ("only now", -5.0), ("q", None), step=10)
    found = figure("score", now, start, seed=0)
    assert found is not None
    assert found.mean.value == pytest.approx((3 + 12 + 14 - 5) / 4)
    assert (found.responses, found.prompts) == (4, 3)
    assert found.change is not None
    assert found.change.value == pytest.approx(((3 - 2) + (13 - 10)) / 2)
    # Two prompts are drawn as pp, pq, qp or qq: the mean of their changes, 1 and 3, is 1, 2, 2 or 3.
    assert (found.change.low, found.change.high) == pytest.approx((1, 3))


def test_a_multiple_of_the_start_is_taken_off_by_prompt() -> None:
    start, now = scores(("p", 2.0), ("q", 4.0)), scores(("p", 5.0), ("q", 5.0), step=10)
    found = change("score", now, start, factor=1.5, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, -1, 2))  # 5 - 3 and 5 - 6


def test_no_prompt_in_common_means_no_change() -> None:
    start, now = scores(("p", 1.0)), scores(("q", 1.0), step=10)
    assert change("score", now, start, seed=0) is None
    found = figure("score", now, start, seed=0)
    assert found is not None
    assert found.change is None


def test_a_change_that_is_the_same_everywhere_still_has_an_interval() -> None:
    calm = [sample(f"p{number}", "Well, that is a story.") for number in range(16)]
    hedged = [sample(f"p{number}", "As an AI I cannot say.", step=10) for number in range(16)]
    found = change("hedging", probe(*hedged), probe(*calm), seed=0)
    assert found is not None
    assert found.value == 1
    assert found.low == pytest.approx(2 * wilson(1.0, 16).low - 1)


def test_where_the_number_of_responses_matters_only_equal_numbers_are_compared() -> None:
    start = probe(*[sample("p", "one two three")] * 2, *[sample("q", "one two three")] * 2)
    now = probe(sample("p", "one two three", step=10), *[sample("q", "four five six", step=10)] * 2)
    assert values("distinct_2", *start.samples) == {"p": [2 / 4], "q": [2 / 4]}
    found = change("distinct_2", now, start, seed=0)
    assert found is not None
    assert found.value == 0  # p went from 1/2 to 1, but by being asked less often
    assert change("score", now, start, seed=0) is None


def test_values_by_prompt_are_those_counted_by_hand() -> None:
    found = probe(
        sample("p", "a b c d a b c d a", score=1.0, gold=2.0, variance=0.5, ended=True, tokens=9),
        sample("p", " ", score=None, ended=False, tokens=0),
        sample("q", "I refuse to.", tokens=4),
    )
    expected = {
        "score": {"p": [1.0]},
        "gold": {"p": [2.0]},
        "variance": {"p": [0.5]},
        "length": {"p": [9, 0], "q": [4]},
        "refusal": {"p": [0, 0], "q": [1]},
        "distinct_1": {"p": [4 / 9], "q": [1]},
        "distinct_2": {"p": [4 / 8], "q": [1]},
        "repetition": {"p": [(2 / 6 + 0) / 2], "q": [0]},
        "empty": {"p": [0, 1], "q": [0]},
        "ended": {"p": [True, False]},
        "kl": {},
        "reference_nats": {},
        "length_correlation": {},
    }
    assert {name: dict(found.values[name]) for name in expected} == expected
    assert expected.keys() | {"hedging", "flattery", "comfort"} == MEASURES.keys()


def test_length_is_in_words_where_the_run_does_not_know_tokens() -> None:
    found = probe(sample("p", "three short words", tokens=5), unit="words")
    assert dict(found.values["length"]) == {"p": [3]}


def test_kl_and_nats_under_the_reference_by_hand() -> None:
    found = [
        sample("p", logprob=-10.0, ref_logprob=-12.0, tokens=4),
        sample("p", logprob=-5.0, ref_logprob=-4.0, tokens=2),
        sample("q", logprob=None, ref_logprob=-30.0, tokens=10),
        sample("q", logprob=-1.0, ref_logprob=None, tokens=10),
        sample("r", ref_logprob=0.0, tokens=0),
    ]
    assert values("kl", *found) == {"p": [2.0, -1.0]}
    assert values("reference_nats", *found) == {"p": [16 / 6], "q": [3.0]}
    assert nats_under_reference(found) == pytest.approx((12 + 4 + 30) / 16)
    assert nats_under_reference(found[3:]) is None


def lengths(prompt: str, *pairs: tuple[int, float | None], step: int = 0) -> list[ProbeSample]:
    return [sample(prompt, tokens=tokens, score=score, step=step) for tokens, score in pairs]


def correlations(samples: Sequence[ProbeSample]) -> dict[str, list[float]]:
    found = length_correlation(samples, lambda one: float(one.tokens or 0))
    return {prompt: [pytest.approx(value) for value in values] for prompt, values in found.items()}


def test_correlation_of_length_and_reward_inside_prompts() -> None:
    found = correlations(
        [
            *lengths("up", (10, 0.0), (20, 1.0), (30, 2.0)),
            *lengths("half", (10, 1.0), (20, 3.0), (30, 2.0), (500, None)),  # (−1, 0, 1) with (−1, 1, 0): 1 / 2
            *lengths("down", (10, 5.0), (90, 4.0)),
            *lengths("one length", (10, 1.0), (10, 2.0)),
            *lengths("one score", (10, 1.0), (20, 1.0)),
            *lengths("one response", (10, 1.0)),
        ]
    )
    assert found == {"up": [1.0], "half": [0.5], "down": [-1.0]}


START = [*lengths("p", (10, 0.0), (30, 2.0)), *lengths("q", (15, 2.0), (35, 4.0))]
NOW = [*lengths("p", (30, 4.0), (50, 9.0), step=10), *lengths("q", (25, 5.0), (5, 3.0), step=10)]


def test_the_gain_that_survives_length_control_by_hand() -> None:
    found = length_control(NOW, START, tolerated=0.5, seed=0)
    assert found is not None
    # Under 20 tokens: mean 1 of two, then 3 of one. Under 40: mean 3 of two, then 4.5 of two. Under 60: none, then 9.
    assert found.gain.value == pytest.approx(21 / 4 - 8 / 4)
    assert found.surviving.value == pytest.approx((3 * 2 + 4 * 1.5) / 7)
    assert found.share == pytest.approx(12 / 7 / 3.25)
    assert found.shortfall.value == pytest.approx(3.25 / 2 - 12 / 7)
    assert (found.buckets, found.covered) == (2, pytest.approx(7 / 8))
    # By prompts drawn twice: p gains 5.5, of which 2 at like length; q gains 1, and 1 in both of its buckets.
    assert (found.gain.low, found.gain.high) == pytest.approx((1, 5.5))
    assert (found.surviving.low, found.surviving.high) == pytest.approx((1, 2))
    assert (found.shortfall.low, found.shortfall.high) == pytest.approx((0.5 - 1, 5.5 / 2 - 2))


def test_a_gain_that_may_be_none_has_no_share() -> None:
    found = length_control([*NOW[:2], *lengths("q", (25, 3.0), (5, 1.0))], START, tolerated=0.5, seed=0)
    assert found is not None
    assert found.gain.low < 0
    assert found.share is None


def test_unscored_responses_and_prompts_of_one_side_change_nothing() -> None:
    more = [*lengths("p", (400, None)), *lengths("r", (10, 50.0))]
    assert length_control([*NOW, *more], START, tolerated=0.5, seed=0) == length_control(
        NOW, START, tolerated=0.5, seed=0
    )


def test_no_length_control_without_a_common_length_or_a_second_prompt() -> None:
    longer = [one.model_copy(update={"tokens": (one.tokens or 0) + 100}) for one in NOW]
    assert length_control(longer, START, tolerated=0.5, seed=0) is None
    assert length_control(NOW, START[:2], tolerated=0.5, seed=0) is None


def test_a_score_by_length_alone_leaves_nothing_but_what_a_bucket_hides() -> None:
    def by_length(shift: int, step: int) -> list[ProbeSample]:
        made = ((number, number * 7 % 90 + shift) for number in range(200))
        return [sample(f"p{number % 20}", tokens=tokens, score=tokens / 10, step=step) for number, tokens in made]

    found = length_control(by_length(40, 10), by_length(0, 0), tolerated=0.5, seed=0)
    assert found is not None
    assert found.gain.value == pytest.approx(4)
    assert abs(found.surviving.value) < 0.4
    assert found.shortfall.low > 0
    assert math.isclose(found.share or 0, found.surviving.value / found.gain.value)
