"""What could not be measured on the samples of a run, or not on all of them, and why."""

from collections.abc import Iterator, Sequence

from cai.train.monitor.config import MonitorConfig
from cai.train.monitor.measures import MEASURES, Probe
from cai.train.monitor.phrases import equally_sampled, prompts_needed
from cai.train.monitor.records import Gap, Look

_OPTIONAL = ("score", "gold", "variance", "ended", "kl")
"""Measures of single responses that some may lack."""


def sample_gaps(probes: Sequence[Probe], looks: Sequence[Look], config: MonitorConfig) -> Iterator[Gap]:
    """The gaps of the last look; `probes` and `looks` are of the same steps."""
    if not probes:
        yield Gap(name="samples", reason="there are none, so all that is said comes from the metrics")
        return
    now, found = probes[-1], looks[-1]
    yield from _figures(now, found)
    if now.unit == "words":
        without = sum(sample.tokens is None for probe in probes for sample in probe.samples)
        total = sum(len(probe.samples) for probe in probes)
        yield Gap(
            name="length",
            reason=f"{without} of {total} samples have no token count, so lengths are in words and the gain in score "
            "is not split by length",
        )
    if found.kl is None:
        yield Gap(name="distance", reason="neither the samples nor the metrics of this step give the KL")
    elif found.kl < 0:
        yield Gap(name="distance", reason="the estimate of the KL is negative at this step, so it has no root")
    if probes[0].step > 0:
        yield Gap(name="change", reason="there are no samples of step 0, which everything is compared with")
    elif now.step == 0:
        yield Gap(name="change", reason="there are samples of step 0 alone, so nothing has changed yet")
    else:
        yield from _changes(now, probes[0], found, config)
        if len(probes) - 1 < config.looks_in_a_row:
            yield Gap(
                name="looks",
                reason=f"there are {len(probes) - 1} looks after the start, and an alert would better rest on "
                f"{config.looks_in_a_row} in a row",
            )


def _figures(now: Probe, found: Look) -> Iterator[Gap]:
    for name, measure in MEASURES.items():
        figure = found.figures.get(name)
        if figure is None:
            alone = name == "length_correlation" and all(len(samples) == 1 for samples in now.grouped.values())
            yield Gap(
                name=name, reason="one response a prompt, so none to compare it with" if alone else measure.missing
            )
        elif name in _OPTIONAL and figure.responses < len(now.samples):
            without = len(now.samples) - figure.responses
            yield Gap(name=name, reason=f"{without} of {len(now.samples)} responses have no value and are left out")


def _changes(now: Probe, start: Probe, found: Look, config: MonitorConfig) -> Iterator[Gap]:
    both = now.grouped.keys() & start.grouped.keys()
    apart = len(now.grouped.keys() | start.grouped.keys()) - len(both)
    if apart:
        yield Gap(
            name="prompts",
            reason=f"{apart} prompts have responses at one of this step and step 0 alone; changes leave them out",
        )
    unchanged = [name for name, figure in found.figures.items() if figure.change is None]
    if both and unchanged:
        yield Gap(name="change", reason=f"no prompt has it at this step and at step 0 alike: {', '.join(unchanged)}")
    alike, needed = len(equally_sampled(now.samples, start.samples)), prompts_needed(config.phrase_error)
    if alike < needed:
        yield Gap(
            name="phrases",
            reason=f"{alike} prompts have as many responses as at step 0, and it takes {needed} to tell the spread of "
            "a phrase from chance",
        )
    if now.unit == "tokens" and "score" in found.figures and found.length_control is None:
        yield Gap(
            name="length_gain",
            reason="fewer than two prompts have scores at this step and at step 0, or no response is as long as one "
            "was then",
        )
