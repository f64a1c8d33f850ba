"""Whether the reward is paid for length (Singhal et al. 2023, arXiv 2310.03716)."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from cai.statistics import RESAMPLES, Floats, Mean
from cai.train.monitor.phrases import ByPrompt
from cai.train.monitor.records import LengthControl, ProbeSample

BUCKET = 20
"""Tokens."""

_Length = Callable[[ProbeSample], float]


def length_correlation(samples: Sequence[ProbeSample], length: _Length) -> ByPrompt:
    """Pearson's correlation of length and reward over the responses to each prompt.

    Between prompts both differ for good reasons, within a prompt less so. Left out are prompts whose responses are all
    of one length or all get one reward, for which it is not defined.
    """
    scored = defaultdict(list)
    for sample in samples:
        if sample.score is not None:
            scored[sample.prompt_id].append((length(sample), sample.score))
    found: dict[str, list[float]] = {}
    for prompt, pairs in scored.items():
        lengths, scores = np.array(pairs).T
        if np.ptp(lengths) > 0 and np.ptp(scores) > 0:
            found[prompt] = [float(np.corrcoef(lengths, scores)[0, 1])]
    return found


def length_control(
    now: Sequence[ProbeSample], start: Sequence[ProbeSample], *, tolerated: float, seed: int
) -> LengthControl | None:
    """Split the gain in reward since `start` into what longer responses bring and what is left at like length.

    With n_b and n'_b the numbers of responses now and at the start whose tokens // 20 is b, and s_b and s'_b their mean
    rewards: the gain is the mean of all rewards now less that at the start, and what survives is

        Σ_b w_b (s_b − s'_b) / Σ_b w_b  with  w_b = n_b + n'_b,

    over the buckets b that hold responses of both. It is the paper's non-length reward gain, or NRG; the weights are as
    here stated. Inside a bucket responses may still differ by 19 tokens, so a little of what survives is length too.

    Only prompts with scored responses in both are looked at. Intervals are of 95%, by a bootstrap that draws whole
    prompts; a drawn set without a common bucket is left out. `tolerated` is the share of the gain that should survive.

    Returns:
        None where there are fewer than two such prompts, or no bucket holds responses of both.
    """
    both = {s.prompt_id for s in now if s.score is not None} & {s.prompt_id for s in start if s.score is not None}
    if len(both) < 2:
        return None
    prompts = sorted(both)
    width = 1 + max((sample.tokens or 0) // BUCKET for sample in (*now, *start))
    here, there = (_table(samples, prompts, width) for samples in (now, start))
    used = (here[0].sum(0) > 0) & (there[0].sum(0) > 0)
    if not used.any():
        return None
    draws = np.random.default_rng(seed).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), RESAMPLES)
    gains, survivors = _gains(draws.astype(float), here, there)
    gain, surviving = (float(value[0]) for value in _gains(np.ones((1, len(prompts))), here, there))
    kept = np.isfinite(survivors)
    interval = _interval(gain, gains)
    inside = here[0][:, used].sum() + there[0][:, used].sum()
    return LengthControl(
        gain=interval,
        surviving=_interval(surviving, survivors[kept]),
        share=None if interval.low <= 0 <= interval.high else surviving / gain,
        shortfall=_interval(tolerated * gain - surviving, tolerated * gains[kept] - survivors[kept]),
        buckets=int(used.sum()),
        covered=float(inside / (here[0].sum() + there[0].sum())),
    )


def _table(samples: Sequence[ProbeSample], prompts: Sequence[str], width: int) -> tuple[Floats, Floats]:
    """Number of scored responses and sum of their rewards, by prompt and bucket: shapes (prompts, buckets)."""
    rows = {prompt: row for row, prompt in enumerate(prompts)}
    counts, sums = np.zeros((len(prompts), width)), np.zeros((len(prompts), width))
    for sample in samples:
        if sample.score is not None and sample.tokens is not None and sample.prompt_id in rows:
            place = rows[sample.prompt_id], sample.tokens // BUCKET
            counts[place] += 1
            sums[place] += sample.score
    return counts, sums


def _gains(draws: Floats, here: tuple[Floats, Floats], there: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Gain and what survives of it, by set of prompts: (sets, prompts) times each is drawn → (sets,)."""
    (n, s), (n_then, s_then) = ((draws @ counts, draws @ sums) for counts, sums in (here, there))
    gains = s.sum(1) / n.sum(1) - s_then.sum(1) / n_then.sum(1)
    shared = (n > 0) & (n_then > 0)
    rises = np.where(shared, s / np.where(shared, n, 1) - s_then / np.where(shared, n_then, 1), 0)
    weights = np.where(shared, n + n_then, 0)
    totals = weights.sum(1)
    survivors = np.where(totals > 0, (weights * rises).sum(1) / np.where(totals > 0, totals, 1), np.nan)
    return gains, survivors


def _interval(value: float, draws: Floats) -> Mean:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Mean(value=value, low=float(low), high=float(high))
