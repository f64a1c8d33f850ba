"""The monitor on the metrics of training steps: rows of steps, limits, what is not finite, rows of other trainers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from cai.train.monitor.config import MonitorConfig
from cai.train.monitor.looking import look
from cai.train.monitor.records import Alert, MonitorReport, StepMetrics
from cai.train.monitor.steps import merge_steps


def steps(column: str, *values: float, first: int = 1) -> list[StepMetrics]:
    return [StepMetrics.model_validate({"step": first + place, column: value}) for place, value in enumerate(values)]


def report(column: str, *values: float, **settings: Any) -> MonitorReport:
    return look(steps(column, *values), [], MonitorConfig(steps_in_a_row=3, **settings))


def spans(alerts: Sequence[Alert]) -> list[tuple[str, int, int | None]]:
    return [(alert.name, alert.since, alert.until) for alert in alerts]


FIRST = (2.0, 2.2, 1.8)


@pytest.mark.parametrize(
    ("column", "name", "sound", "beyond", "action"),
    [
        ("entropy", "entropy", 0.61, 0.59, "lower_learning_rate"),  # 0.3 × 2
        ("length", "longer", 2.59, 2.61, "warn"),  # 1.3 × 2
        ("length", "shorter", 1.41, 1.39, "warn"),  # 0.7 × 2
        ("eos_rate", "ended", 1.91, 1.79, "warn"),  # 2 - 0.1 = 1.9, and below every one of the first
        ("kl", "kl", 50, 50.1, "raise_kl_coef"),
        ("kl", "kl_negative", -1, -1.1, "warn"),
        ("clip_fraction", "clip_fraction", 0.3, 0.31, "lower_learning_rate"),
    ],
)
def test_a_limit_must_be_left_for_all_of_the_last_steps(
    column: str, name: str, sound: float, beyond: float, action: str
) -> None:
    first = FIRST if column in ("entropy", "length", "eos_rate") else (0.0, 0.1, 0.05)
    assert spans(report(column, *first, beyond, beyond, sound).alerts) == []
    assert spans(report(column, *first, sound, sound, sound).alerts) == []
    assert spans(report(column, *first, sound, beyond, beyond, beyond).alerts) == [(name, 5, None)]
    found = report(column, *first, beyond, beyond, beyond)
    (alert,) = found.alerts
    assert (alert.action, alert.value) == (action, pytest.approx(beyond))
    (check,) = (check for check in found.checks if check.name == name)
    assert (check.beyond, check.value) == (True, pytest.approx(beyond))
    assert alert.reason == check.reason


def test_a_value_among_the_first_ones_is_noise() -> None:
    first = (1.0, 3.0, 2.0)
    assert report("length", *first, 2.9, 2.9, 2.9).alerts == ()  # above 1.3 × 2, and below 3
    assert spans(report("length", *first, 3.1, 3.1, 3.1).alerts) == [("longer", 4, None)]


def test_an_alert_that_has_passed_is_kept_with_its_end() -> None:
    found = report("clip_fraction", 0.5, 0.5, 0.5, 0.5, 0.1, 0.1, 0.1)
    assert found.alerts == ()
    assert spans(found.past_alerts) == [("clip_fraction", 1, 5)]
    assert "clip_fraction over 3 steps: 0.5; all of them above 0.3" in found.past_alerts[0].reason


def test_too_few_steps_are_said_and_not_judged() -> None:
    found = report("entropy", 2.0, 2.0, 2.0, 0.1, 0.1)
    assert found.checks == ()
    gaps = {gap.name: gap.reason for gap in found.gaps}
    assert gaps["entropy"] == "the metrics have 5 steps with entropy, and the check takes 6"
    assert gaps["kl"] == "the metrics have no kl"
    assert gaps["samples"] == "there are none, so all that is said comes from the metrics"


def test_figures_are_means_of_the_first_and_last_steps() -> None:
    (figure,) = report("kl_coef", 1.0, 2.0, 6.0, 50.0, 7.0, 8.0, 12.0).steps
    assert (figure.name, figure.rows, figure.start, figure.now) == ("kl_coef", 7, 3.0, 9.0)


@pytest.mark.parametrize("column", ["score", "kl", "entropy"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_not_finite_stops_the_run(column: str, value: float) -> None:
    found = report(column, 1.0, 2.0, value)
    (alert,) = found.alerts
    assert (alert.name, alert.action, alert.since, alert.until) == ("not_finite", "stop", 3, None)
    assert f"{column} at step 3" in alert.reason
    assert found.steps[0].now == 1.5  # the value is in no mean
    recovered = report(column, 1.0, value, value, 2.0)
    assert spans(recovered.past_alerts) == [("not_finite", 2, 4)]
    assert recovered.alerts == ()


def test_an_undefined_explained_variance_is_no_fault() -> None:
    assert report("explained_variance", 1.0, math.nan).alerts == ()


def test_rows_of_one_step_are_merged_and_steps_sorted() -> None:
    rows = [
        StepMetrics(step=5, score=1.0, kl=2.0),
        StepMetrics(step=3, score=0.5),
        StepMetrics(step=5, kl=3.0, entropy=4.0),
    ]
    assert merge_steps(rows) == [
        StepMetrics(step=3, score=0.5),
        StepMetrics(step=5, score=1.0, kl=3.0, entropy=4.0),
    ]


def test_the_best_step_of_metrics_alone_is_that_of_the_highest_score_before_the_stop() -> None:
    found = report("score", 1.0, 3.0, 2.0, math.nan, 9.0)
    assert found.best is not None
    assert found.best.step == 2
    assert "before step 4" in found.best.reason
    assert report("entropy", 1.0).best is None
    assert report("score", math.nan).best is None
