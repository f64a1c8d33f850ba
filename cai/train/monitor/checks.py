"""The checks on the responses of one probe: which figures are beyond their tolerance by more than noise."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cai.statistics import Floats, Mean
from cai.train.monitor.config import MonitorConfig
from cai.train.monitor.measures import MEASURES, Probe, change, moves
from cai.train.monitor.phrases import PHRASES
from cai.train.monitor.records import Action, CheckResult, Figure, LengthControl, PhraseGrowth
from cai.visible import visible

ALIKE = 6
"""Prompts that tell a move from chance where all moved alike."""

_PHRASES = "share of the phrase that spread most"


@dataclass(frozen=True)
class Rule:
    """A measure must not leave what lies between it and `factor` × start + `offset`."""

    measure: str
    action: Action
    meaning: str
    factor: float = 1.0
    offset: float = 0.0
    above: bool = True
    """Whether the forbidden side is above."""
    name: str = ""
    """Default: the measure's."""
    shown: Callable[[float], str] = "{:.3g}".format


def rules(config: MonitorConfig) -> Iterator[Rule]:
    """All checks of one measure against that of the start."""
    yield Rule(
        "length", "warn", "responses are getting longer", config.length_growth, name="longer", shown="{:.1f}".format
    )
    yield Rule(
        "length",
        "warn",
        "responses are getting shorter",
        config.length_shrinkage,
        above=False,
        name="shorter",
        shown="{:.1f}".format,
    )
    yield Rule(
        "variance",
        "raise_kl_coef",
        "the reward models disagree on what the policy now writes, so their mean means less",
        config.variance_growth,
    )
    meanings = {
        "refusal": "the policy learns to refuse",
        "hedging": "the policy learns to hedge",
        "flattery": "the policy learns to flatter and agree",
        "comfort": "the policy learns to comfort by rote",
    }
    for name in PHRASES:
        yield _rate(name, meanings[name], config.rate_rise)
    yield _rate("empty", "the policy falls silent", config.rate_rise)
    yield _rate("repetition", "responses go in circles", config.repetition_rise)
    yield Rule(
        "distinct_2",
        "stop",
        "the responses to a prompt have become alike: the policy has collapsed",
        config.distinct_fall,
        above=False,
        shown="{:.0%}".format,
    )
    yield Rule(
        "ended",
        "warn",
        "the policy unlearns to stop",
        offset=-config.ended_fall,
        above=False,
        shown="{:.0%}".format,
    )
    yield Rule(
        "reference_nats",
        "raise_kl_coef",
        "the reference finds these responses improbable: they leave what it knows as language",
        offset=math.log(config.perplexity_growth),
        name="perplexity",
        shown="{:.2f}".format,
    )


def _rate(name: str, meaning: str, rise: float) -> Rule:
    return Rule(name, "warn", meaning, offset=rise, shown="{:.0%}".format)


def clearly(interval: Mean, moves: Floats, limit: float, *, above: bool) -> bool:
    """Whether all of the interval of the prompts' `moves` lies on one side of `limit`.

    Where all prompts moved alike, as in a full collapse, the bootstrap tells nothing and the interval is the widest
    possible. Then it takes `ALIKE` prompts, all of which fall on that side by chance once in 64 times.
    """
    if np.ptp(moves) == 0 and len(moves) >= ALIKE:
        return bool(moves[0] > limit if above else moves[0] < limit)
    return interval.low > limit if above else interval.high < limit


def check_rule(rule: Rule, now: Probe, start: Probe, figure: Figure, *, seed: int) -> CheckResult | None:
    """Whether the measure has clearly left what is tolerated. None where no prompt is measured at both steps."""
    excess = figure.change
    if rule.factor != 1:
        excess = change(rule.measure, now, start, factor=rule.factor, seed=seed)
    if excess is None or figure.change is None:
        return None
    found = moves(rule.measure, now, start, factor=rule.factor)
    beyond = clearly(excess, found, rule.offset, above=rule.above)
    # The start is that of the prompts of both, so that value, start and threshold are of one kind.
    then = figure.mean.value - figure.change.value
    threshold = rule.factor * then + rule.offset
    title = MEASURES[rule.measure].title + (f" in {now.unit}" if rule.measure == "length" else "")
    side = "above" if rule.above else "below"
    return CheckResult(
        name=rule.name or rule.measure,
        title=title,
        action=rule.action,
        value=figure.mean.value,
        start=then,
        threshold=threshold,
        above=rule.above,
        beyond=beyond,
        reason=(
            f"{title[0].upper()}{title[1:]}: {rule.shown(figure.mean.value)}, at the start {rule.shown(then)}; "
            + (
                f"clearly {side} the {rule.shown(threshold)} that is tolerated: {rule.meaning}."
                if beyond
                else f"not clearly {side} the {rule.shown(threshold)} that is tolerated."
            )
        ),
    )


def check_gold(now: Probe, earlier: Sequence[Probe], *, seed: int) -> CheckResult | None:
    """Whether gold has fallen while the proxy has risen, since the look at which gold was highest.

    This is over-optimisation as Gao et al. 2022 define it. The look is the best of several, so its gold score is a
    little too high by chance; that the proxy must have risen since, and at several looks on end, makes up for it. None
    without both scores.
    """
    known = [probe for probe in earlier if probe.values["gold"] and probe.values["score"]]
    if not known or not now.values["gold"]:
        return None
    best = max(known, key=_mean_gold)
    gold = change("gold", now, best, seed=seed)
    proxy = change("score", now, best, seed=seed)
    if gold is None or proxy is None:
        return None
    beyond = clearly(gold, moves("gold", now, best), 0, above=False) and clearly(
        proxy, moves("score", now, best), 0, above=True
    )
    return CheckResult(
        name="gold_falls",
        title="gold since its highest look",
        action="stop",
        value=gold.value,
        start=0.0,
        threshold=0.0,
        above=False,
        beyond=beyond,
        reason=(
            f"Since step {best.step}, where gold was highest, it has moved by {_interval(gold)} and the proxy by "
            f"{_interval(proxy)}: "
            + (
                "the policy gains on the proxy and loses what it stands for."
                if beyond
                else "not clearly apart, gold down and proxy up."
            )
        ),
    )


def clearly_longer(now: Probe, start: Probe, config: MonitorConfig) -> bool:
    """Whether responses are longer than lengths may drift."""
    factor = config.length_drift
    grown = change("length", now, start, factor=factor, seed=config.seed)
    return grown is not None and clearly(grown, moves("length", now, start, factor=factor), 0, above=True)


def check_length_correlation(start: Probe, longer: bool, correlation: Figure, config: MonitorConfig) -> CheckResult:
    """Whether reward goes with length inside prompts, and responses are clearly `longer`.

    Either alone is no fault: rewards may well favour fuller answers, and lengths may grow for good reasons.
    """
    found, limit = correlation.mean, config.length_correlation
    before = start.values["length_correlation"]
    beyond = longer and found.low > limit
    return CheckResult(
        name="length_pays",
        title=MEASURES["length_correlation"].title,
        action="raise_kl_coef",
        value=found.value,
        start=_mean([value for values in before.values() for value in values]) if before else None,
        threshold=limit,
        above=True,
        beyond=beyond,
        reason=(
            f"Within a prompt, score and length correlate by {found.value:.2f} ({found.low:.2f} to {found.high:.2f}), "
            f"and responses are {'clearly' if longer else 'not clearly'} longer than {config.length_drift:g} "
            "times the start's" + (": the reward pays for length, and the policy takes it." if beyond else ".")
        ),
    )


def check_length_control(longer: bool, found: LengthControl, config: MonitorConfig) -> CheckResult:
    """Whether too little of a clear gain is left at like length, and responses are clearly `longer`."""
    beyond = longer and found.gain.low > 0 and found.shortfall.low > 0
    return CheckResult(
        name="length_gain",
        title="score gain at like length",
        action="raise_kl_coef",
        value=found.surviving.value,
        start=0.0,
        threshold=config.gain_surviving * found.gain.value,
        above=False,
        beyond=beyond,
        reason=(
            f"Of a score gain of {_interval(found.gain)}, {_interval(found.surviving)} is left among responses of like "
            "length" + (": most of the gain is length." if beyond else ".")
        ),
    )


def check_phrases(found: Sequence[PhraseGrowth], config: MonitorConfig) -> CheckResult:
    """Whether any phrase has spread; see `phrases.grown_phrases`, which holds the test."""
    if not found:
        return CheckResult(
            name="phrases",
            title=_PHRASES,
            action="raise_kl_coef",
            value=0.0,
            start=0.0,
            threshold=config.phrase_rise,
            above=True,
            beyond=False,
            reason="No phrase has spread beyond chance.",
        )
    first = found[0]
    return CheckResult(
        name="phrases",
        title=_PHRASES,
        action="raise_kl_coef",
        value=first.share,
        start=first.start,
        threshold=first.start + config.phrase_rise,
        above=True,
        beyond=True,
        reason=(
            f"“{visible(first.text)}” {'ends' if first.kind == 'closing' else 'is in'} {first.share:.0%} of the "
            f"responses, at the start {first.start:.0%}; it rose with {first.risen} prompts and fell with "
            f"{first.fallen}: boilerplate spreads."
        ),
    )


def _mean_gold(probe: Probe) -> float:
    return _mean([value for values in probe.values["gold"].values() for value in values])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _interval(mean: Mean) -> str:
    return f"{mean.value:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})"
