"""Looks at a run: rows of looks, tolerances from both sides, the best step, and what could not be measured."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from cai.errors import DataError
from cai.train.monitor.config import MonitorConfig
from cai.train.monitor.looking import look
from cai.train.monitor.records import MonitorReport, ProbeSample, StepMetrics

PROMPTS, REPLIES = 16, 2
REFUSAL = "I'm sorry, but I can't help with that."


def probe(step: int, shown: Callable[[int], dict[str, Any]] = lambda _: {}, **values: Any) -> list[ProbeSample]:
    """Two responses to each prompt, with words that no other has; `shown` gives what differs, by their number."""
    draw = random.Random(step)
    return [
        ProbeSample.model_validate(
            {
                "step": step,
                "prompt_id": f"p{number // REPLIES}",
                "response": " ".join(f"w{draw.random()}" for _ in range(12)),
                **values,
                **shown(number),
            }
        )
        for number in range(PROMPTS * REPLIES)
    ]


def refusing(step: int) -> list[ProbeSample]:
    """Every response refuses, at the same length and in words of its own otherwise."""
    return probe(step, lambda number: {"response": f"{REFUSAL} " + " ".join(f"r{step}x{number}x{n}" for n in range(4))})


def beyond(report: MonitorReport) -> list[tuple[str, ...]]:
    return [one.beyond for one in report.looks]


def test_an_alert_takes_two_looks_in_a_row() -> None:
    once = look([], [*probe(0), *probe(10), *refusing(20)])
    assert beyond(once) == [(), (), ("refusal", "phrases")]
    assert (once.alerts, once.past_alerts) == ((), ())
    apart = look([], [*probe(0), *refusing(10), *probe(20), *refusing(30)])
    assert (apart.alerts, apart.past_alerts) == ((), ())
    twice = look([], [*probe(0), *probe(10), *refusing(20), *refusing(30)])
    assert [(alert.name, alert.since, alert.until) for alert in twice.alerts] == [
        ("phrases", 20, None),
        ("refusal", 20, None),
    ]
    over = look([], [*probe(0), *refusing(10), *refusing(20), *probe(30)])
    assert over.alerts == ()
    assert {(alert.name, alert.since, alert.until) for alert in over.past_alerts} == {
        ("phrases", 10, 30),
        ("refusal", 10, 30),
    }
    three = look([], [*probe(0), *probe(10), *refusing(20), *refusing(30)], MonitorConfig(looks_in_a_row=3))
    assert three.alerts == ()


def collapsed(step: int) -> list[ProbeSample]:
    """Responses that are all the same."""
    return [one.model_copy(update={"response": "a a a a a a"}) for one in probe(step)]


def test_the_only_look_does_not_stop_a_training_that_two_would_stop() -> None:
    found = look([], [*probe(0), *collapsed(10)])
    assert {alert.action for alert in found.alerts if alert.name == "distinct_2"} == {"warn"}
    found = look([], [*probe(0), *collapsed(10), *collapsed(20)])
    assert {alert.action for alert in found.alerts if alert.name == "distinct_2"} == {"stop"}


def test_the_only_look_may_raise_an_alert_and_the_report_says_so() -> None:
    found = look([], [*probe(0), *refusing(10)])
    assert {alert.name for alert in found.alerts} == {"refusal", "phrases"}
    (gap,) = (gap for gap in found.gaps if gap.name == "looks")
    assert gap.reason == "there are 1 looks after the start, and an alert would better rest on 2 in a row"


def wavering(values: dict[str, Any], name: str, amount: float) -> Callable[[int], dict[str, Any]]:
    """The value of `name` higher and lower in turns of prompts, by a hundredth of `amount`."""
    return lambda number: {**values, name: values[name] + amount / 100 * (-1) ** (number // REPLIES)}


@pytest.mark.parametrize(
    ("name", "start", "tolerated", "check", "action"),
    [
        ("tokens", 100, 130, "longer", "warn"),
        ("tokens", 100, 70, "shorter", "warn"),
        ("variance", 0.2, 0.4, "variance", "raise_kl_coef"),
        ("ref_logprob", -20.0, -20 - 10 * math.log(2), "perplexity", "raise_kl_coef"),  # of ten tokens
    ],
)
def test_a_tolerance_is_left_where_all_of_the_interval_has_left_it(
    name: str, start: float, tolerated: float, check: str, action: str
) -> None:
    once = MonitorConfig(looks_in_a_row=1)

    def found(now: float) -> MonitorReport:
        first, second = ({"tokens": 10, name: value} for value in (start, now))
        if name == "tokens":
            return look([], [*probe(0, **first), *probe(10, lambda number: {name: now + (-1) ** (number // 2)})], once)
        return look([], [*probe(0, **first), *probe(10, wavering(second, name, now))], once)

    step = 0.05 * (tolerated - start)
    if name == "tokens":
        step = math.copysign(2, step)
    assert beyond(found(tolerated - step))[1] == ()
    assert beyond(found(tolerated))[1] == ()  # at the tolerance, the interval holds it
    report = found(tolerated + step)
    assert beyond(report)[1] == (check,)
    (alert,) = report.alerts
    assert (alert.name, alert.action) == (check, action)
    assert "clearly" in alert.reason
    assert alert.value != alert.start


@pytest.mark.parametrize(
    ("check", "changed", "now"),
    [
        ("empty", lambda number: {"response": "" if number % 2 else "a b c d e f g"}, 0.5),
        ("ended", lambda number: {"ended": number % 3 == 0}, 11 / 32),
        ("distinct_2", lambda _: {"response": "all the same words"}, 1 / 2),
        ("repetition", lambda number: {"response": f"a{number} b c d " * 4}, 9 / 13),
        ("flattery", lambda number: {"response": "Good point." if number % 2 else f"No{number}."}, 0.5),
    ],
)
def test_shares_are_checked(check: str, changed: Callable[[int], dict[str, Any]], now: float) -> None:
    report = look([], [*probe(0, ended=True), *probe(10, lambda number: {"ended": True, **changed(number)})])
    assert check in report.looks[1].beyond
    (result,) = (result for result in report.checks if result.name == check)
    assert (result.value, result.beyond) == (pytest.approx(now), True)


def judged(step: int, score: float, gold: float) -> list[ProbeSample]:
    """Means of both scores, with a little noise by prompt and more between prompts."""
    return probe(
        step,
        lambda number: {
            "score": score + number // REPLIES + 0.1 * (-1) ** (number + step // 10),
            "gold": gold + number // REPLIES + 0.1 * (-1) ** ((number // REPLIES + step // 10) // 2),
        },
    )


def test_gold_is_compared_with_its_highest_look() -> None:
    report = look([], [*judged(0, 0, 0), *judged(10, 1, 2), *judged(20, 2, 1.5), *judged(30, 3, 1)])
    assert beyond(report) == [(), (), ("gold_falls",), ("gold_falls",)]
    (alert,) = report.alerts
    assert (alert.name, alert.since, alert.action) == ("gold_falls", 20, "stop")
    assert alert.value == pytest.approx(-1)
    assert "Since step 10" in alert.reason
    assert report.best is not None
    assert report.best.step == 10


@pytest.mark.parametrize(("score", "gold"), [(2, 2.5), (0.5, 0.5), (1, 0.5), (2, 2)])
def test_gold_and_proxy_that_move_together_are_no_fault(score: float, gold: float) -> None:
    report = look([], [*judged(0, 0, 0), *judged(10, 1, 2), *judged(20, score, gold)])
    assert beyond(report)[2] == ()


def lengthy(step: int, tokens: int, slope: float) -> list[ProbeSample]:
    """Twenty tokens between the two responses to a prompt, and `slope` of score for each token."""
    return probe(
        step,
        lambda number: {
            "tokens": tokens + 20 * (number % 2) + number // REPLIES,
            "score": slope * (tokens + 20 * (number % 2)) + number // REPLIES,
        },
    )


def test_length_pays_only_where_it_is_longer_and_scores_follow_it() -> None:
    pays = look([], [*lengthy(0, 100, 0.1), *lengthy(10, 130, 0.1)])
    assert {"length_pays", "length_gain"} <= set(pays.looks[1].beyond)
    (result,) = (check for check in pays.checks if check.name == "length_pays")
    assert (result.value, result.start) == (pytest.approx(1), pytest.approx(1))
    same = look([], [*lengthy(0, 100, 0.1), *lengthy(10, 110, 0.1)])
    assert beyond(same)[1] == ()
    averse = look([], [*lengthy(0, 100, -0.1), *lengthy(10, 130, -0.1)])
    assert "length_pays" not in averse.looks[1].beyond
    assert "length_gain" not in averse.looks[1].beyond  # there is no gain


def test_without_gold_the_best_step_is_the_highest_proxy_before_the_stop() -> None:
    def scored(step: int, score: float, same: bool = False) -> list[ProbeSample]:
        return probe(step, score=score, **({"response": "all the same words"} if same else {}))

    sound = look([], [*scored(0, 1), *scored(10, 3), *scored(20, 3)])
    assert sound.best is not None
    assert sound.best.step == 10
    collapsed = look([], [*scored(0, 1), *scored(10, 2), *scored(20, 5, True), *scored(30, 9, True)])
    assert collapsed.alerts[0].action == "stop"
    assert collapsed.best is not None
    assert collapsed.best.step == 10
    assert "before step 20" in collapsed.best.reason


def test_distance_and_fit_come_from_samples_or_else_from_the_metrics_of_that_very_step() -> None:
    samples = [one for step in range(0, 60, 10) for one in judged(step, 0, step**0.5)]
    metrics = [StepMetrics(step=step, kl=step / 10) for step in range(0, 60, 5)]
    report = look(metrics, samples)
    assert [one.kl for one in report.looks] == [0, 1, 2, 3, 4, 5]
    assert report.looks[4].distance == 2
    assert report.fit is not None
    assert report.fit.points == 5
    sparse = look([StepMetrics(step=11, kl=4.0)], samples)
    assert [one.kl for one in sparse.looks] == [0, None, None, None, None, None]
    own = look(metrics, [one.model_copy(update={"logprob": -1.0, "ref_logprob": -10.0}) for one in samples])
    assert [one.kl for one in own.looks] == [0, 9, 9, 9, 9, 9]
    assert own.fit is None
    below = look([], [*probe(0), *probe(10, logprob=-2.0, ref_logprob=-1.0)])
    assert (below.looks[1].kl, below.looks[1].distance) == (-1, None)


def reasons(report: MonitorReport, name: str) -> list[str]:
    return [gap.reason for gap in report.gaps if gap.name == name]


def test_what_samples_lack_is_said() -> None:
    found = look([], [*probe(0), *probe(10)])
    assert reasons(found, "score") == ["no proxy scores"]
    assert reasons(found, "gold") == ["no gold scores"]
    assert reasons(found, "variance") == ["no ensemble variance"]
    assert reasons(found, "kl")[0] == "no log-probabilities under both models"
    assert "64 of 64 samples have no token count" in reasons(found, "length")[0]
    assert reasons(found, "distance") == ["neither the samples nor the metrics of this step give the KL"]
    assert found.length_unit == "words"
    assert found.looks[1].perplexity is None
    assert {"score", "gold", "variance", "kl", "ended"}.isdisjoint(found.looks[1].figures)
    assert {check.name for check in found.checks}.isdisjoint({"gold_falls", "variance", "ended", "perplexity"})


def test_what_some_samples_lack_is_counted() -> None:
    missing = probe(10, lambda number: {"gold": math.nan if number < 3 else 1.0, "tokens": None if number else 5})
    found = look([], [*probe(0, gold=1.0, tokens=5), *missing])
    assert reasons(found, "gold") == ["3 of 32 responses have no value and are left out"]
    assert found.looks[1].figures["gold"].responses == 29
    assert "31 of 64 samples have no token count" in reasons(found, "length")[0]


def test_one_response_a_prompt_and_few_prompts_are_said() -> None:
    def alone(step: int) -> list[ProbeSample]:
        return [one for one in probe(step, score=1.0, tokens=5)[::2] if one.prompt_id < "p14"]  # p0, p1, p10 to p13

    found = look([], [*alone(0), *alone(10)])
    assert reasons(found, "length_correlation") == ["one response a prompt, so none to compare it with"]
    assert reasons(found, "phrases")[0].startswith("6 prompts have as many responses as at step 0, and it takes 7")


@pytest.mark.parametrize("steps", [(10, 20), (0,)])
def test_without_a_start_or_anything_after_it_nothing_is_judged(steps: tuple[int, ...]) -> None:
    found = look([], [one for step in steps for one in refusing(step)])
    assert (found.checks, found.alerts) == ((), ())
    assert all(figure.change is None for one in found.looks for figure in one.figures.values())
    assert found.looks[-1].figures["refusal"].mean.value == 1
    said = "no samples of step 0" if steps[0] else "samples of step 0 alone"
    assert said in reasons(found, "change")[0]


def test_prompts_that_were_not_asked_before_are_said() -> None:
    other = [one.model_copy(update={"prompt_id": f"new {one.prompt_id}"}) for one in probe(10)]
    found = look([], [*probe(0), *other])
    assert reasons(found, "prompts")[0].startswith("32 prompts")
    assert found.alerts == ()
    half = look([], [*probe(0), *probe(10)[:16]])
    assert reasons(half, "prompts")[0].startswith("8 prompts")


def test_lengths_of_samples_go_before_those_of_the_metrics() -> None:
    growing = [StepMetrics(step=step, length=10.0 + step, entropy=1.0) for step in range(1, 30)]
    assert "longer" in {alert.name for alert in look(growing, []).alerts}
    assert look(growing, [*probe(0), *probe(10)]).alerts == ()


def test_nothing_to_look_at_is_refused() -> None:
    with pytest.raises(DataError, match="neither a line of metrics nor a sample"):
        look([], [])


def test_the_order_of_the_samples_does_not_matter() -> None:
    samples = [*judged(0, 0, 0), *judged(10, 1, 2), *judged(20, 2, 1.5), *judged(30, 3, 1)]
    one, other = look([], samples), look([], samples[::-1])
    assert [each.step for each in other.looks] == [0, 10, 20, 30]
    assert [(alert.name, alert.since) for alert in other.alerts] == [("gold_falls", 20)]
    assert other.best == one.best
    for name, found in one.looks[-1].figures.items():
        mean = other.looks[-1].figures[name].mean
        assert (mean.value, mean.low, mean.high) == pytest.approx((found.mean.value, found.mean.low, found.mean.high))
