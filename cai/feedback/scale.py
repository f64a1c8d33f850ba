"""Which `scale` suits a judge best, by its labels of comparisons with a gold response."""

import math
import sys
from collections import Counter
from collections.abc import Iterable

import numpy as np

from cai import statistics
from cai.constitution import Constitution
from cai.feedback.judge_config import JudgeConfig, principle_weights
from cai.records import Judgement, Label, Verdict

_EDGE = sys.float_info.epsilon
"""A probability this close to 0 or 1 is all that is left of greater log-odds."""


def fitted_scale(labels: Iterable[Label], config: JudgeConfig, constitution: Constitution) -> float | None:
    """The `scale` with the least log loss, were all labels of this judge made anew with it.

    None where judgements are clamped, since a scale does nothing beyond the bounds, and where there is no label or no
    scale does better than always saying 0.5 (`statistics.fitted_scale`).
    """
    if config.bounds != (0.0, 1.0):
        return None
    log_odds: list[float] = []
    weights: list[float] = []
    places: list[int] = []
    gold_a: list[bool] = []
    for place, label in enumerate(labels):
        log_odds += [_log_odds(judgement, config.scale) for judgement in label.verdict.judgements]
        weights += _weights(label.verdict, config, constitution)
        places += [place] * len(label.verdict.judgements)
        gold_a.append(label.comparison.gold == "a")
    if not places:
        return None
    return statistics.fitted_scale(np.array(log_odds), np.array(weights), np.array(places), np.array(gold_a))


def _log_odds(judgement: Judgement, scale: float) -> float:
    """Log-odds of a at a scale of 1."""
    if judgement.value_a is not None and judgement.value_b is not None:
        return judgement.value_a - judgement.value_b
    p = min(max(judgement.p_a, _EDGE), 1 - _EDGE)
    return (math.log(p) - math.log1p(-p)) / scale


def _weights(verdict: Verdict, config: JudgeConfig, constitution: Constitution) -> list[float]:
    """What each judgement weighs in p_a: the mean is over orders, principles and protocols."""
    orders = Counter((one.protocol, one.principle_id) for one in verdict.judgements)
    weight: dict[tuple[str, str], float] = {}
    for protocol in config.protocol:
        asked = [(by, id_) for by, id_ in orders if by == protocol]
        principles = [constitution.principle(id_) for _, id_ in asked]
        weight.update(zip(asked, principle_weights(config, principles), strict=True))
    keys = [(one.protocol, one.principle_id) for one in verdict.judgements]
    return [weight[key] / orders[key] / len(config.protocol) for key in keys]
