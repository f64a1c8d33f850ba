"""Figures from the records of a run: means with intervals over clusters of items, differences to the first model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cai.evaluate.records import EvaluationRecord, Figure, Metric, TaskName, Unmeasured
from cai.evaluate.sets import TaskSet
from cai.evaluate.task import Task
from cai.statistics import Floats, Mean, clustered_mean, resampled_sums

Values = Mapping[str, float]
"""Values of one metric of one model, by item."""

_SHARES = (0.0, 1.0)
_DIFFERENCES = (-1.0, 1.0)
_ANY = (-np.inf, np.inf)


@dataclass(frozen=True)
class Measurement:
    """A task of a run and what was recorded for it, as far as there are records."""

    task: Task[Any]
    items: TaskSet
    answers: Mapping[str, Mapping[str, EvaluationRecord]]
    """By model and item."""
    grades: Mapping[str, Mapping[str, EvaluationRecord]]
    """By model and item."""
    judged: bool
    """Whether there is a judge."""

    def values(self, model: str) -> Mapping[str, Values]:
        """The values of each metric of one model; a metric that no item has is not there.

        An item that the judge gave no opinion of has no value of a metric that needs one.
        """
        found: dict[str, dict[str, float]] = {}
        for item, record in self.answers[model].items():
            assert record.answer is not None
            grade = self.grades[model].get(item)
            opinions = None if grade is None else grade.opinions
            scores = self.task.scores(self.items.items[self.items.places[item]], record.answer, opinions)
            for name, value in scores.items():
                found.setdefault(name, {})[item] = value
        return found


def figures(
    measurement: Measurement, models: Sequence[str], unable: Mapping[str, str], *, seed: int
) -> Iterator[Figure | Unmeasured]:
    """One figure for each metric and model, or why there is none; metric after metric, in the order of the models.

    `unable` says of models why their engine cannot tell how likely a given reply is.
    """
    task = measurement.task
    clusters = {item.id: item.cluster for item in measurement.items.items}
    values = {model: measurement.values(model) for model in models}
    for metric in task.metrics:
        for model in models:
            reason = unable.get(model) if metric.reads_logprobs else None
            if metric.judged and not measurement.judged:
                reason = "no judge was named"
            found = _figure(task.name, metric, model, models[0], values, clusters, seed)
            if found is not None and reason is None:
                yield found
                continue
            missing = reason or "no item has a value: all failed, or `limit` leaves out those that have one"
            yield Unmeasured(task=task.name, metric=metric.name, model=model, reason=missing)


def _figure(
    task: TaskName,
    metric: Metric,
    model: str,
    first: str,
    values: Mapping[str, Mapping[str, Values]],
    clusters: Mapping[str, str],
    seed: int,
) -> Figure | None:
    """None where an item with a value is wanting."""
    names = metric.difference or (metric.name,)
    own = [values[model].get(name, {}) for name in names]
    base = [values[first].get(name, {}) for name in names]
    if not all(own):
        return None
    changes = [
        {item: value - before[item] for item, value in found.items() if item in before}
        for found, before in zip(own, base, strict=True)
    ]
    items = set().union(*own)
    return Figure(
        task=task,
        metric=metric,
        model=model,
        mean=_mean(own, clusters, _SHARES if metric.share else _ANY, seed),
        n=len(items),
        clusters=len({clusters[item] for item in items}),
        against_first=None
        if model == first or not all(changes)
        else _mean(changes, clusters, _DIFFERENCES if metric.share else _ANY, seed),
    )


def _mean(values: Sequence[Values], clusters: Mapping[str, str], bounds: tuple[float, float], seed: int) -> Mean:
    """The mean of one set of values, or of the first less that of the second."""
    parts = [(np.array(list(one.values())), np.array([clusters[item] for item in one])) for one in values]
    means = [clustered_mean(numbers, groups, seed=seed, bounds=bounds) for numbers, groups in parts]
    if len(means) == 1:
        return means[0]
    upper, lower = means
    names, codes = np.unique(np.concatenate([groups for _, groups in parts]), return_inverse=True)
    split = len(parts[0][0])
    totals: Floats = np.stack(
        [
            np.bincount(places, weights=weights, minlength=len(names))
            for (numbers, _), places in zip(parts, (codes[:split], codes[split:]), strict=True)
            for weights in (numbers, np.ones(len(numbers)))
        ],
        axis=1,
    )
    draws = np.concatenate(list(resampled_sums(totals, seed=seed)))
    draws = draws[(draws[:, 1] > 0) & (draws[:, 3] > 0)]
    found = draws[:, 0] / draws[:, 1] - draws[:, 2] / draws[:, 3]
    value = upper.value - lower.value
    if np.ptp(found) < 1e-12:  # no draw differs, so the two intervals are put together (Zou and Donner 2008)
        down = np.hypot(upper.value - upper.low, lower.high - lower.value)
        up = np.hypot(upper.high - upper.value, lower.value - lower.low)
        return Mean(value=value, low=float(value - down), high=float(value + up))
    low, high = np.quantile(found, (0.025, 0.975))
    return Mean(value=value, low=float(low), high=float(high))
