"""Looks at a run: every probe is measured and checked against the start, and what stands at the last step is said."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from cai.errors import DataError
from cai.train.monitor.checks import (
    check_gold,
    check_length_control,
    check_length_correlation,
    check_phrases,
    check_rule,
    clearly_longer,
    rules,
)
from cai.train.monitor.config import MonitorConfig
from cai.train.monitor.gaps import sample_gaps
from cai.train.monitor.length import length_control
from cai.train.monitor.measures import MEASURES, Probe, figure, nats_under_reference, reply_statistics
from cai.train.monitor.overoptimisation import fit_law
from cai.train.monitor.phrases import equally_sampled, grown_phrases, prompts_needed
from cai.train.monitor.records import (
    ACTIONS,
    Alert,
    BestStep,
    CheckResult,
    Fit,
    Gap,
    Look,
    MonitorReport,
    PhraseGrowth,
    ProbeSample,
    StepMetrics,
)
from cai.train.monitor.steps import check_steps, merge_steps, not_finite, series, step_figures, step_rules


def look(
    metrics: Sequence[StepMetrics], samples: Sequence[ProbeSample], config: MonitorConfig | None = None
) -> MonitorReport:
    """Measure and judge a run as far as its files go; either may be empty.

    All looks are measured anew, some 0.1 s each with 64 responses.

    Raises:
        DataError: both are empty.
    """
    config = config or MonitorConfig()
    if not metrics and not samples:
        raise DataError("there is neither a line of metrics nor a sample, so there is nothing to look at")
    rows = merge_steps(metrics)
    probes = _probes(samples)
    start = probes[0] if probes and probes[0].step == 0 else None
    looks: list[Look] = []
    results: list[list[CheckResult]] = []
    for place, probe in enumerate(probes):
        found, checks = _measured(probe, start, probes[:place], rows, config)
        looks.append(found)
        results.append(checks)
    gaps = list(sample_gaps(probes, looks, config))
    alerts = [*_alerts(looks, results, config.looks_in_a_row), *not_finite(rows)]
    checks = list(results[-1]) if results else []
    on_samples = {check.name for check in checks}
    for rule in step_rules(config):
        if rule.name in on_samples:
            continue
        outcome = check_steps(rows, rule, config)
        if isinstance(outcome, str):
            gaps.append(Gap(name=rule.name, reason=outcome))
        else:
            checks.append(outcome[0])
            alerts += outcome[1]
    fit = _fit(looks)
    if isinstance(fit, str):
        gaps.append(Gap(name="fit", reason=fit))
    alerts.sort(key=lambda alert: (ACTIONS.index(alert.action), alert.since))
    return MonitorReport(
        step=max([row.step for row in rows[-1:]] + [probe.step for probe in probes[-1:]]),
        responses=len(probes[-1].samples) if probes else 0,
        prompts=len(probes[-1].grouped) if probes else 0,
        length_unit=probes[-1].unit if probes else "tokens",
        looks=tuple(looks),
        steps=step_figures(rows, config),
        checks=tuple(checks),
        alerts=tuple(alert for alert in alerts if alert.until is None),
        past_alerts=tuple(alert for alert in alerts if alert.until is not None),
        fit=None if isinstance(fit, str) else fit,
        best=best_step(looks, rows, alerts),
        gaps=tuple(gaps),
    )


def best_step(looks: Sequence[Look], metrics: Sequence[StepMetrics], alerts: Sequence[Alert]) -> BestStep | None:
    """The step whose checkpoint to keep: of the highest gold score, or where there is none, of the highest proxy score
    before the first `stop` alert began.

    Proxy scores are the samples', or without any the metrics'. None where there is no score, or none before the stop.
    """
    gold = [(look.figures["gold"].mean.value, look.step) for look in looks if "gold" in look.figures]
    if gold:
        return BestStep(step=_highest(gold), reason="its gold score is the highest of all looks")
    proxy = [(look.figures["score"].mean.value, look.step) for look in looks if "score" in look.figures]
    proxy = proxy or [(value, step) for step, value in series(metrics, "score")]
    stop = min((alert.since for alert in alerts if alert.action == "stop"), default=math.inf)
    before = [(value, step) for value, step in proxy if step < stop]
    if not before:
        return None
    end = "" if stop == math.inf else f" before step {stop:g}, where the run should have stopped"
    return BestStep(step=_highest(before), reason=f"without gold scores: its proxy score is the highest{end}")


def _highest(scores: Sequence[tuple[float, int]]) -> int:
    """The step of the highest score, the first of equal ones."""
    return max(scores, key=lambda pair: (pair[0], -pair[1]))[1]


def _probes(samples: Sequence[ProbeSample]) -> list[Probe]:
    """The samples by step, in order, with values that are not finite taken as missing."""
    found: defaultdict[int, list[ProbeSample]] = defaultdict(list)
    for sample in samples:
        broken = {name: None for name in _numbers(sample) if not math.isfinite(getattr(sample, name))}
        found[sample.step].append(sample.model_copy(update=broken) if broken else sample)
    in_tokens = all(sample.tokens is not None for sample in samples)
    return [Probe(step, tuple(found[step]), "tokens" if in_tokens else "words") for step in sorted(found)]


def _numbers(sample: ProbeSample) -> list[str]:
    names = ("score", "gold", "variance", "logprob", "ref_logprob")
    return [name for name in names if getattr(sample, name) is not None]


def _measured(
    now: Probe, start: Probe | None, earlier: Sequence[Probe], rows: Sequence[StepMetrics], config: MonitorConfig
) -> tuple[Look, list[CheckResult]]:
    """A probe's figures and, after the start, its checks."""
    reference = start if start is not None and now.step > 0 else None
    found = {name: figure(name, now, reference, seed=config.seed) for name in MEASURES}
    figures = {name: one for name, one in found.items() if one is not None}
    control = None
    phrases: tuple[PhraseGrowth, ...] = ()
    checks: list[CheckResult | None] = []
    if reference is not None:
        checks = [
            check_rule(rule, now, reference, figures[rule.measure], seed=config.seed)
            for rule in rules(config)
            if rule.measure in figures
        ]
        checks.append(check_gold(now, earlier, seed=config.seed))
        longer = clearly_longer(now, reference, config)
        if "length_correlation" in figures:
            checks.append(check_length_correlation(reference, longer, figures["length_correlation"], config))
        if now.unit == "tokens":
            control = length_control(now.samples, reference.samples, tolerated=config.gain_surviving, seed=config.seed)
        if control is not None:
            checks.append(check_length_control(longer, control, config))
        if len(equally_sampled(now.samples, reference.samples)) >= prompts_needed(config.phrase_error):
            phrases = grown_phrases(now.samples, reference.samples, rise=config.phrase_rise, error=config.phrase_error)
            checks.append(check_phrases(phrases, config))
    made = [check for check in checks if check is not None]
    whole = reply_statistics(now.samples)
    nats = nats_under_reference(now.samples)
    return Look(
        step=now.step,
        figures=figures,
        kl=_kl(now, figures["kl"].mean.value if "kl" in figures else None, rows),
        perplexity=None if nats is None else math.exp(min(nats, 700.0)),
        repeated_closing=whole.repeated_closing,
        closing=whole.closing,
        length_control=control,
        phrases=phrases,
        beyond=tuple(check.name for check in made if check.beyond),
    ), made


def _kl(probe: Probe, sampled: float | None, rows: Sequence[StepMetrics]) -> float | None:
    if probe.step == 0:
        return 0.0
    if sampled is not None:
        return sampled
    return next(
        (row.kl for row in rows if row.step == probe.step and row.kl is not None and math.isfinite(row.kl)), None
    )


def _alerts(looks: Sequence[Look], results: Sequence[Sequence[CheckResult]], in_a_row: int) -> Iterator[Alert]:
    """The alerts of all looks: checks that are beyond at enough looks on end.

    Where there are fewer looks than that, one that is beyond at all of them only warns: it is too little to act on.
    """
    later = [(look.step, checks) for look, checks in zip(looks, results, strict=True) if look.step > 0]
    needed = min(in_a_row, len(later))
    open_: dict[str, list[tuple[int, CheckResult]]] = {}
    for step, checks in later:
        beyond = {check.name: check for check in checks if check.beyond}
        for name in open_.keys() - beyond.keys():
            yield from _alert(open_.pop(name), needed, in_a_row, until=step)
        for name, check in beyond.items():
            open_.setdefault(name, []).append((step, check))
    for row in open_.values():
        yield from _alert(row, needed, in_a_row, until=None)


def _alert(row: Sequence[tuple[int, CheckResult]], needed: int, in_a_row: int, *, until: int | None) -> Iterator[Alert]:
    if len(row) >= needed:
        last = row[-1][1]
        action = last.action if len(row) >= in_a_row else "warn"
        told = last.model_dump(exclude={"title", "above", "beyond", "action"})
        yield Alert(**told, action=action, since=row[0][0], until=until)


def _fit(looks: Sequence[Look]) -> Fit | str:
    """The law of reinforcement learning on the gold scores of all looks."""
    points = [
        (look.distance, look.figures["gold"].change.value)
        for look in looks
        if look.distance is not None and "gold" in look.figures and look.figures["gold"].change is not None
    ]
    return fit_law([d for d, _ in points], [gold for _, gold in points])
