"""Why a PPO run goes bad, named while it runs: causes that show in the figures of its steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

Metrics = Mapping[str, float | None]

NEGATIVE_STEPS = 5
"""Steps in a row after which a negative KL is no chance."""
NEGATIVE_KL = -0.05
"""Nats an episode."""
RATIO_ERROR = {"no": 1e-3, "bf16": 0.05}
"""Mean distance from 1 of the ratio before the first update that rounding explains, by precision."""
CONSTANT_STEPS = 3
SURPRISE_STEPS = 10
SURPRISE_GAP = 0.1
"""Nats a token."""
SURPRISE_ERRORS = 6.0
"""Standard errors of the mean over these steps; a wrong alarm at one step in some thousands."""


class Cause(NamedTuple):
    """One thing that goes wrong."""

    name: str
    sentence: str


def diagnose(history: Sequence[Metrics], *, mixed_precision: str) -> list[Cause]:
    """Causes that show in the latest of the steps' figures."""
    found = (check(history, mixed_precision) for check in _CHECKS)
    return [cause for cause in found if cause is not None]


def _negative_kl(history: Sequence[Metrics], _: str) -> Cause | None:
    """An estimate of one batch may be below 0; many in a row mean that the tokens are not the policy's own."""
    latest = [_value(entry, "kl") for entry in history[-NEGATIVE_STEPS:]]
    if len(latest) < NEGATIVE_STEPS or not all(kl < NEGATIVE_KL for kl in latest):
        return None
    return Cause(
        "negative_kl",
        f"the KL divergence from the reference has been negative for {NEGATIVE_STEPS} steps ({latest[-1]:.3f} nats an "
        "episode), which it cannot be for tokens that the policy itself drew: the probabilities are not those of "
        "sampling. Causes: top-k, top-p or another temperature on the rollout server; a server with older weights; "
        "padding or tokens after the end counted",
    )


def _surprise(history: Sequence[Metrics], _: str) -> Cause | None:
    """How improbable tokens are against what their distribution's entropy says: 0 on average for tokens drawn from it.

    It shows at once, in either direction, where the KL divergence may hide it.
    """
    gaps = [_value(entry, "surprise_gap") for entry in history[-SURPRISE_STEPS:]]
    if len(gaps) < SURPRISE_STEPS or any(map(math.isnan, gaps)):
        return None
    error = stdev(gaps) / math.sqrt(len(gaps))
    if not abs(mean(gaps)) > max(SURPRISE_GAP, SURPRISE_ERRORS * error):
        return None
    less = mean(gaps) > 0
    return Cause(
        "surprise",
        f"over {SURPRISE_STEPS} steps the tokens of responses were {'less' if less else 'more'} probable under the "
        f"policy than tokens drawn from it are ({mean(gaps):+.2f} nats a token), so something else drew them. Causes: "
        + ("a higher temperature on" if less else "top-k, top-p or a lower temperature on")
        + " the rollout server; a server with other weights",
    )


def _ratio(history: Sequence[Metrics], mixed_precision: str) -> Cause | None:
    error = _value(history[-1], "first_ratio_error")
    if not error > RATIO_ERROR[mixed_precision]:
        return None
    return Cause(
        "ratio",
        f"before the first update of step {history[-1]['step']:.0f} the ratio of new to old probabilities was off 1 by "
        f"{error:.3g} on average, and it should be 1. Causes: dropout that is on; rounding, which `bf16: false` tells; "
        "layers whose result depends on the batch",
    )


def _constant(history: Sequence[Metrics], _: str) -> Cause | None:
    latest = [_value(entry, "score_std") for entry in history[-CONSTANT_STEPS:]]
    if len(latest) < CONSTANT_STEPS or any(deviation != 0 for deviation in latest):
        return None
    return Cause(
        "constant_reward",
        f"all responses of {CONSTANT_STEPS} steps had the same score, so there is nothing to learn; look at what the "
        "reward gives to single responses (`cai score`)",
    )


_CHECKS: tuple[Callable[[Sequence[Metrics], str], Cause | None], ...] = (_negative_kl, _surprise, _ratio, _constant)


def _value(entry: Metrics, name: str) -> float:
    value = entry.get(name)
    return math.nan if value is None else value
