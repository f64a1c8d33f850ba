"""Comparisons of planted strength, for tests of ratings and of length control."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cai.evaluate.bradley_terry import Duels

POLICIES = ("ann", "bob", "cy", "dee")


def duels(rows: Sequence[tuple[int, int, float, Any]], lengths: Sequence[tuple[float, float]] | None = None) -> Duels:
    """Comparisons (first, second, p, prompt), of equal length where no lengths are given."""
    first, second, p, clusters = zip(*rows, strict=True)
    chars = np.array(lengths if lengths is not None else [(1, 1)] * len(rows), dtype=np.float64)
    return Duels(
        policies=POLICIES[: 1 + max(second)],
        first=np.array(first),
        second=np.array(second),
        p=np.array(p, dtype=np.float64),
        clusters=np.array([f"{cluster}" for cluster in clusters]),
        chars_first=chars[:, 0],
        chars_second=chars[:, 1],
    )


def won(first: int, second: int, wins: int, losses: int) -> list[tuple[int, int, float, str]]:
    """So many wins and losses of the first one, each on a prompt of its own."""
    return [(first, second, float(n < wins), f"{first}{second} {n}") for n in range(wins + losses)]


def share(log_odds: Any) -> Any:
    return 1 / (1 + np.exp(-log_odds))


def planted(
    strengths: Sequence[float],
    prompts: int,
    seed: int,
    *,
    each: int = 1,
    taste: float = 0.0,
    soft: bool = False,
    each_own_prompt: bool = False,
) -> Duels:
    """All pairs of policies on each prompt, `each` times.

    A prompt shifts the strength of each policy by `taste` standard deviations, so that its comparisons depend on one
    another. `soft` gives the probabilities themselves. `each_own_prompt` hides which prompts belong together.
    """
    random = np.random.default_rng(seed)
    rows: list[tuple[int, int, float, Any]] = []
    for prompt in range(prompts):
        there = np.array(strengths) + taste * random.standard_normal(len(strengths))
        for first in range(len(there)):
            for second in range(first + 1, len(there)):
                for _ in range(each):
                    p = float(share(there[first] - there[second]))
                    p = p if soft else float(random.random() < p)
                    rows.append((first, second, p, len(rows) if each_own_prompt else prompt))
    return duels(rows)
