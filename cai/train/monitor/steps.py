"""The figures of training steps, and the checks on them.

They come without an interval, so a check takes several steps on end. Values that are not finite are left out of every
figure and raise an alert of their own.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from cai.train.monitor.config import MonitorConfig
from cai.train.monitor.records import Action, Alert, CheckResult, StepFigure, StepMetrics

COLUMNS = tuple(name for name in StepMetrics.model_fields if name != "step")
_MUST_BE_FINITE = ("score", "kl", "entropy")
"""Others may be undefined in a sound run, such as the explained variance of constant returns."""

Series = Sequence[tuple[int, float]]
"""Finite values of a column with their steps."""


@dataclass(frozen=True)
class StepRule:
    """A column must not stay for long beyond `factor` × start + `offset`."""

    name: str
    column: str
    action: Action
    meaning: str
    factor: float = 0.0
    """0 stands for a limit that does not depend on the start."""
    offset: float = 0.0
    above: bool = True


def merge_steps(metrics: Sequence[StepMetrics]) -> list[StepMetrics]:
    """One row a step, in order. Of several rows of one step, as other trainers write, the last value of each counts."""
    found: dict[int, dict[str, float]] = {}
    for row in metrics:
        found.setdefault(row.step, {}).update(row.model_dump(exclude={"step"}, exclude_none=True))
    return [StepMetrics(step=step, **found[step]) for step in sorted(found)]


def series(metrics: Sequence[StepMetrics], column: str) -> Series:
    """The finite values of a column."""
    values = ((row.step, getattr(row, column)) for row in metrics)
    return [(step, value) for step, value in values if value is not None and math.isfinite(value)]


def step_figures(metrics: Sequence[StepMetrics], config: MonitorConfig) -> tuple[StepFigure, ...]:
    """Mean of the first and of the last steps of each column that has values."""
    size = config.steps_in_a_row
    columns = ((name, [value for _, value in series(metrics, name)]) for name in COLUMNS)
    return tuple(
        StepFigure(name=name, rows=len(values), start=mean(values[:size]), now=mean(values[-size:]))
        for name, values in columns
        if values
    )


def step_rules(config: MonitorConfig) -> Iterator[StepRule]:
    """All checks of columns. `longer`, `shorter` and `ended` are better made on samples, where there are any."""
    yield StepRule("kl", "kl", "raise_kl_coef", "the policy has gone far from the reference", offset=config.kl_limit)
    yield StepRule(
        "kl_negative",
        "kl",
        "warn",
        "a divergence cannot be negative, so the log-probabilities of the policy and of the responses disagree",
        offset=-config.kl_below,
        above=False,
    )
    yield StepRule(
        "entropy",
        "entropy",
        "lower_learning_rate",
        "the policy has grown sure of itself and hardly varies",
        factor=config.entropy_fall,
        above=False,
    )
    yield StepRule(
        "clip_fraction",
        "clip_fraction",
        "lower_learning_rate",
        "updates go further than the clipped objective is meant for",
        offset=config.clip_fraction,
    )
    yield StepRule("longer", "length", "warn", "responses are getting longer", factor=config.length_growth)
    yield StepRule(
        "shorter", "length", "warn", "responses are getting shorter", factor=config.length_shrinkage, above=False
    )
    yield StepRule(
        "ended", "eos_rate", "warn", "the policy unlearns to stop", factor=1.0, offset=-config.ended_fall, above=False
    )


def check_steps(
    metrics: Sequence[StepMetrics], rule: StepRule, config: MonitorConfig
) -> tuple[CheckResult, tuple[Alert, ...]] | str:
    """A check at the last step, and the alerts of all steps; or why it cannot be made.

    A step is beyond where its value is beyond the limit and, if the limit depends on the start, beyond every value of
    the first steps too. An alert takes `steps_in_a_row` such steps on end.
    """
    values, size = series(metrics, rule.column), config.steps_in_a_row
    if not values:
        return f"the metrics have no {rule.column}"
    if len(values) < 2 * size:
        return f"the metrics have {len(values)} steps with {rule.column}, and the check takes {2 * size}"
    first = [value for _, value in values[:size]]
    limit = rule.factor * mean(first) + rule.offset
    sign = 1 if rule.above else -1
    bounds = [limit, *first] if rule.factor else [limit]
    strict = max(sign * bound for bound in bounds)
    flags = [sign * value > strict for _, value in values]
    now = mean(value for _, value in values[-size:])

    def worded(value: float, beyond: bool) -> str:
        side = "above" if rule.above else "below"
        start = f", at the start {mean(first):.3g}" if rule.factor else ""
        end = f": {rule.meaning}" if beyond else ""
        return (
            f"{rule.column} over {size} steps: {value:.3g}{start}; {'all' if beyond else 'not all'} of them {side} "
            f"{limit:.3g}{end}."
        )

    start = mean(first) if rule.factor else None
    beyond = all(flags[-size:])
    result = CheckResult(
        name=rule.name,
        title=f"{rule.column}, in training",
        action=rule.action,
        value=now,
        start=start,
        threshold=limit,
        above=rule.above,
        beyond=beyond,
        reason=worded(now, beyond),
    )
    alerts: list[Alert] = []
    for begin, end in _rows(flags):
        if end - begin >= size:
            value = mean(value for _, value in values[end - size : end])
            alerts.append(
                Alert(
                    name=rule.name,
                    action=rule.action,
                    since=values[begin][0],
                    until=values[end][0] if end < len(values) else None,
                    value=value,
                    start=start,
                    threshold=limit,
                    reason=worded(value, True),
                )
            )
    return result, tuple(alerts)


def not_finite(metrics: Sequence[StepMetrics]) -> tuple[Alert, ...]:
    """Alerts on steps whose score, KL or entropy is no finite number; there is no noise in that, so one step is enough.

    Its value is the number of such steps on end.
    """
    broken = [
        [name for name in _MUST_BE_FINITE if (value := getattr(row, name)) is not None and not math.isfinite(value)]
        for row in metrics
    ]
    return tuple(
        Alert(
            name="not_finite",
            action="stop",
            since=metrics[begin].step,
            until=metrics[end].step if end < len(metrics) else None,
            value=float(end - begin),
            start=None,
            threshold=0.0,
            reason=f"{' and '.join(broken[begin])} at step {metrics[begin].step}: not a finite number; training broke.",
        )
        for begin, end in _rows([bool(names) for names in broken])
    )


def _rows(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of the runs of True."""
    begin = None
    for place, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = place
        elif not flag and begin is not None:
            yield begin, place
            begin = None
