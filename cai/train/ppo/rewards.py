"""The rewards of PPO: a batch of responses in, a score for each out, or the reason why there is none.

A source is a reward model or an ensemble of them, a judge (`judge_reward`) or a Python function (`function_reward`);
several are added up by their weights. Responses are text, so a source has a tokenizer and a chat template of its own.
`reward_plan` finds, checks and opens them. What a source cannot score is data, with a reason, and never gets a default;
a source that can score nothing at all raises.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cai.records import Message
from cai.statistics import Floats
from cai.train.combination import Combination, combine
from cai.train.reward_model import RewardEnsemble


@dataclass(frozen=True)
class Scored:
    """What a source makes of n responses."""

    scores: Floats
    """Shape (n,); NaN where there is none."""
    reasons: tuple[str | None, ...]
    """Why a response has no score: a reason of `reward_model.Scores`, or the code of the `RecordError` of a judge. None
    where it has one."""
    parts: Mapping[str, Floats]
    """What each source gave before its weight, by its name, shapes (n,); NaN where that source gave nothing."""
    variance: Floats | None = None
    """Variance (divided by m) of the rewards of an ensemble's m members, before any weight, shape (n,): of the source
    with the most members. None where no source has several."""


class RewardSource(Protocol):
    """Gives scores to responses."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    @property
    def details(self) -> Mapping[str, Any]:
        """The model and whatever else makes the scores repeatable, for a manifest."""
        ...

    def score(self, prompts: Sequence[tuple[Message, ...]], responses: Sequence[str]) -> Scored:
        """Score n responses, each to the prompt at the same place.

        Raises:
            EngineError: no response can be scored: the memory is full, the server is gone.
            StageError: a function of the user's failed, or gave something other than n numbers.
        """
        ...

    def close(self) -> None:
        """Free models and connections; nothing can be scored any more."""
        ...


def scored(name: str, values: Floats, reasons: Sequence[str | None], variance: Floats | None = None) -> Scored:
    """The scores of one source: `values` (n,) where there is no reason against one. A value that is no finite number
    has the reason `not_finite`."""
    found, scores = _sound(values, reasons)
    return Scored(scores, found, {name: scores}, variance)


def _sound(values: Floats, reasons: Sequence[str | None]) -> tuple[tuple[str | None, ...], Floats]:
    finite = np.isfinite(values).tolist()
    found = tuple(reason or (None if one else "not_finite") for reason, one in zip(reasons, finite, strict=True))
    return found, np.where(np.array([reason is None for reason in found], dtype=bool), values, np.nan)


class ModelReward:
    """A reward model, or an ensemble of them."""

    def __init__(
        self, name: str, model: str, ensemble: RewardEnsemble, ensemble_by: Combination, penalty: float
    ) -> None:
        """Take the loaded models; `model` is what the user calls them, the last two are those of `combine`."""
        self.name = name
        self.details: Mapping[str, Any] = {"model": model, **ensemble.details}
        self._ensemble = ensemble
        self._ensemble_by: Combination = ensemble_by
        self._penalty = penalty

    def score(self, prompts: Sequence[tuple[Message, ...]], responses: Sequence[str]) -> Scored:
        """See `RewardSource.score`."""
        found = self._ensemble.score(
            [
                (*prompt, Message(role="assistant", content=response))
                for prompt, response in zip(prompts, responses, strict=True)
            ]
        )
        variance = found.rewards.var(axis=1) if found.rewards.shape[1] > 1 else None
        return scored(self.name, combine(found.rewards, self._ensemble_by, self._penalty), found.reasons, variance)

    def close(self) -> None:
        """Let go of the models."""
        del self._ensemble


class MixedRewards:
    """Σ weight · score over one or more sources. Where one of them has no score, the sum has none."""

    def __init__(
        self,
        sources: Sequence[RewardSource],
        weights: Sequence[float],
        *,
        variance_of: str,
        resources: ExitStack | None = None,
    ) -> None:
        """Take the sources, whose names differ.

        `variance_of` names the one whose members' variance, if it has several, is passed on. `resources` is closed with
        the mix; without it, the sources stay open.
        """
        self.name = " + ".join(source.name for source in sources)
        self.details: Mapping[str, Any] = {source.name: source.details for source in sources}
        self._sources = sources
        self._weights = np.array(weights)
        self._variance_of = variance_of
        self._resources = resources or ExitStack()

    def score(self, prompts: Sequence[tuple[Message, ...]], responses: Sequence[str]) -> Scored:
        """Ask the sources one after the other; a response without a score has the reason of the first that gave one.
        See `RewardSource.score`."""
        found = {source.name: source.score(prompts, responses) for source in self._sources}
        parts = np.stack([one.scores for one in found.values()], axis=1)
        first = [next(filter(None, each), None) for each in zip(*(one.reasons for one in found.values()), strict=True)]
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of that is not finite, and marked
            total = (parts * self._weights).sum(axis=1)
        reasons, scores = _sound(total, first)
        return Scored(
            scores,
            reasons,
            {name: one.scores for name, one in found.items()},
            found[self._variance_of].variance,
        )

    def close(self) -> None:
        """Close all sources, the last one first."""
        self._resources.close()
