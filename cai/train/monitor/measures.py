"""What is measured on the responses of one probe: each measure as values by prompt, and their means."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from cai.records import Generation, Usage
from cai.statistics import Floats, Mean, clustered_mean
from cai.train.collapse import ReplyStatistics, measure_replies
from cai.train.monitor.length import length_correlation
from cai.train.monitor.phrases import PHRASES, ByPrompt, equally_sampled, holds
from cai.train.monitor.records import Figure, LengthUnit, ProbeSample

_Values = Callable[["Probe"], ByPrompt]
_ANY = (-math.inf, math.inf)
_SHARE = (0.0, 1.0)


class Measure(NamedTuple):
    """Something that is measured on the responses to each prompt."""

    title: str
    """For people."""
    values: _Values
    bounds: tuple[float, float]
    """Least and greatest possible value."""
    missing: str
    """Why there would be no value at all."""
    pooled: bool = False
    """Whether it is taken over all responses to a prompt at once, so that their number matters."""


@dataclass(frozen=True)
class Probe:
    """The responses sampled at one step."""

    step: int
    samples: tuple[ProbeSample, ...]
    """At least one."""
    unit: LengthUnit

    @cached_property
    def values(self) -> Mapping[str, ByPrompt]:
        """Values of all measures, by name."""
        return {name: measure.values(self) for name, measure in MEASURES.items()}

    @cached_property
    def replies(self) -> Mapping[str, ReplyStatistics]:
        """What `collapse` counts on the responses to each prompt; ends are not known here, so its `eos_rate` is not."""
        return {prompt: reply_statistics(samples) for prompt, samples in self.grouped.items()}

    @cached_property
    def grouped(self) -> Mapping[str, Sequence[ProbeSample]]:
        """Samples by prompt."""
        found = defaultdict(list)
        for sample in self.samples:
            found[sample.prompt_id].append(sample)
        return found

    def length(self, sample: ProbeSample) -> float:
        """Tokens of a response, or words where tokens are not known throughout the run."""
        return sample.tokens if self.unit == "tokens" and sample.tokens is not None else len(sample.response.split())


def reply_statistics(samples: Sequence[ProbeSample]) -> ReplyStatistics:
    """Variety and closings of responses. Its `eos_rate` means nothing, since how they ended is not looked at."""
    return measure_replies(
        [Generation(text=sample.response, finish_reason="stop", usage=Usage()) for sample in samples]
    )


def nats_under_reference(samples: Sequence[ProbeSample]) -> float | None:
    """−Σ ref_logprob / Σ tokens over the responses that have both; its exponential is their perplexity."""
    known = [(s.ref_logprob, s.tokens) for s in samples if s.ref_logprob is not None and s.tokens]
    return -sum(logprob for logprob, _ in known) / sum(tokens for _, tokens in known) if known else None


def _each(value: Callable[[ProbeSample], float | None]) -> _Values:
    """A value of each response."""

    def values(probe: Probe) -> ByPrompt:
        found = {prompt: [value(sample) for sample in samples] for prompt, samples in probe.grouped.items()}
        known = {prompt: [one for one in values if one is not None] for prompt, values in found.items()}
        return {prompt: values for prompt, values in known.items() if values}

    return values


def _replies(value: Callable[[ReplyStatistics], float]) -> _Values:
    return lambda probe: {prompt: [value(found)] for prompt, found in probe.replies.items()}


def _reference_nats(probe: Probe) -> ByPrompt:
    found = {prompt: nats_under_reference(samples) for prompt, samples in probe.grouped.items()}
    return {prompt: [nats] for prompt, nats in found.items() if nats is not None}


def _kl(sample: ProbeSample) -> float | None:
    known = sample.logprob is not None and sample.ref_logprob is not None
    return sample.logprob - sample.ref_logprob if known else None  # type: ignore[operator]


def _phrase(name: str) -> _Values:
    return _each(lambda sample: float(holds(name, sample.response)))


_ONE_LENGTH = "no prompt has scored responses of different lengths"

MEASURES: Mapping[str, Measure] = {
    "score": Measure("proxy score", _each(lambda sample: sample.score), _ANY, "no proxy scores"),
    "gold": Measure("gold score", _each(lambda sample: sample.gold), _ANY, "no gold scores"),
    "variance": Measure(
        "ensemble variance", _each(lambda sample: sample.variance), (0, math.inf), "no ensemble variance"
    ),
    "length": Measure("length", lambda probe: _each(probe.length)(probe), (0, math.inf), ""),
    "length_correlation": Measure(
        "correlation of length and score",
        lambda probe: length_correlation(probe.samples, probe.length),
        (-1, 1),
        _ONE_LENGTH,
        pooled=True,
    ),
    **{name: Measure(name, _phrase(name), _SHARE, "") for name in PHRASES},
    "distinct_1": Measure("distinct words", _replies(lambda found: found.distinct_1), _SHARE, "", pooled=True),
    "distinct_2": Measure("distinct word pairs", _replies(lambda found: found.distinct_2), _SHARE, "", pooled=True),
    "repetition": Measure(
        "repeats within a response", _replies(lambda found: found.repetition), _SHARE, "", pooled=True
    ),
    "empty": Measure("empty", _each(lambda sample: float(not sample.response.strip())), _SHARE, ""),
    "ended": Measure("end by themselves", _each(lambda sample: sample.ended), _SHARE, "no word on how responses ended"),
    "kl": Measure("KL on the samples", _each(_kl), _ANY, "no log-probabilities under both models"),
    "reference_nats": Measure(
        "nats a token under the reference",
        _reference_nats,
        (0, math.inf),
        "no log-probabilities and token counts under the reference",
        pooled=True,
    ),
}
"""All measures, by name.

`score`, `gold`: rewards; both start at 0 where their `Figure.change` is read (Gao et al. 2022, arXiv 2210.10760).
`variance`: of the proxy ensemble (Coste et al. 2023, arXiv 2310.02743): where it grows, its members have seen nothing
alike. `length_correlation`: see `length`. Phrase lists: share of the responses that hold one; see `phrases.PHRASES`.
`distinct_n`, `repetition`: see `collapse.ReplyStatistics`, over the responses to one prompt. `kl`: k1, the policy's
log-probability less the reference's. `reference_nats`: see `nats_under_reference`, over the responses to one prompt.
"""


def figure(name: str, now: Probe, start: Probe | None, *, seed: int) -> Figure | None:
    """The mean of a measure over all responses and its change since `start`; None where nothing can be measured."""
    by_prompt = dict(sorted(now.values[name].items()))
    if not by_prompt:
        return None
    values = np.array([value for values in by_prompt.values() for value in values], dtype=float)
    clusters = np.repeat(np.arange(len(by_prompt)), [len(values) for values in by_prompt.values()])
    return Figure(
        mean=clustered_mean(values, clusters, seed=seed, bounds=MEASURES[name].bounds),
        responses=sum(len(now.grouped[id]) for id in by_prompt) if MEASURES[name].pooled else len(values),
        prompts=len(by_prompt),
        change=None if start is None else change(name, now, start, seed=seed),
    )


def moves(name: str, now: Probe, start: Probe, *, factor: float = 1.0) -> Floats:
    """A measure's mean over each prompt's responses now, less `factor` times that at the start; shape (prompts,).

    Prompts that are measured in one of them alone are left out, and so are, where the number of responses to a prompt
    matters, those with another number.
    """
    here, there = now.values[name], start.values[name]
    prompts = here.keys() & there.keys()
    if MEASURES[name].pooled:
        prompts &= equally_sampled(now.samples, start.samples)
    return np.array([np.mean(here[prompt]) - factor * np.mean(there[prompt]) for prompt in sorted(prompts)])


def change(name: str, now: Probe, start: Probe, *, factor: float = 1.0, seed: int) -> Mean | None:
    """Mean of `moves`, with an interval by a bootstrap over prompts; None where no prompt is measured in both."""
    found = moves(name, now, start, factor=factor)
    if not len(found):
        return None
    low, high = MEASURES[name].bounds
    return clustered_mean(found, np.arange(len(found)), seed=seed, bounds=(low - factor * high, high - factor * low))
