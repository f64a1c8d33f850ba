"""What became of scored responses: the records of a run of `cai score`, and the files that are made of them."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cai.data.formats import conversation_id
from cai.data.training_rows import LabelSource
from cai.journal import partial_path, replace_file, write_error
from cai.records import Message, Record, StageRecord
from cai.rundir import read_records
from cai.train.combination import Combination, combine
from cai.train.evaluation import RewardEvaluation, ScoredPairs, evaluate_rewards

SCORES = "scores.jsonl"
SUMMARY = "summary.json"

_SEED = 0
"""Of the bootstrap over labelled pairs."""


class ResponseScore(StageRecord):
    """The rewards of one response."""

    row: str
    """Id of the row that it stands in; its own id adds its place there, from 0."""
    origin: str
    """Where it comes from: a policy's name, `draft`, `revision 2`, `chosen`; empty where it is not known."""
    rewards: tuple[float, ...]
    """By member."""
    shortened: bool
    """Whether the oldest turns were left out, so that the conversation fits."""
    p_better: float | None
    """Of a labelled pair: the label's probability that this one is better than the other one."""
    label_source: LabelSource | None
    messages: tuple[Message, ...]
    """The whole conversation; it ends with the response."""


class ScoredResponse(ResponseScore):
    """A line of scores.jsonl."""

    reward: float
    """The members' rewards combined."""


class OriginSummary(Record):
    """The responses of one origin."""

    scored: int
    mean: float
    """Mean reward."""


class ScoreSummary(Record):
    """What a run came to. The numbers about rewards are None where no response has one."""

    scored: int
    shortened: int
    members: int
    ensemble_by: Combination
    penalty: float
    mean: float | None
    deviation: float | None
    """Standard deviation of the rewards (divided by n)."""
    lowest: float | None
    highest: float | None
    disagreement: float | None
    """Mean over responses of the standard deviation over the members (divided by m); None of one member."""
    origins: Mapping[str, OriginSummary]
    """In the order in which they were met."""
    half_pairs: int
    """Labelled pairs of which one response alone is scored."""
    pairs: RewardEvaluation | None
    """What the rewards are worth on the labelled pairs; None where there are none."""


def write_scores(run: Path, *, members: int, how: Combination, penalty: float, name: str) -> ScoreSummary:
    """Combine the rewards of a run's records, and write scores.jsonl and summary.json, each replaced whole.

    `name` is that of the responses. Reads the records once; memory grows by a few numbers for each.

    Raises:
        RunDirError: the records are broken, or a file cannot be written.
    """
    tally = _Tally()
    path = run / SCORES
    partial = partial_path(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in read_records(run, ResponseScore):
                reward = float(combine(np.array([record.rewards]), how, penalty)[0])
                file.write(ScoredResponse(**dict(record), reward=reward).model_dump_json() + "\n")
                tally.add(record, reward)
        partial.replace(path)
        summary = tally.summary(members, how, penalty, name)
        replace_file(run / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise write_error(path, error) from None
    return summary


class _Half(NamedTuple):
    """What is kept of a response of a labelled pair."""

    reward: float
    p_better: float
    length: int
    prompt: str
    source: LabelSource


class _Tally:
    """Figures of the records so far, which come in the order of the input."""

    def __init__(self) -> None:
        self._rewards: list[float] = []
        self._disagreement: list[float] = []
        self._origins: defaultdict[str, list[float]] = defaultdict(list)
        self._shortened = 0
        self._halves: dict[str, _Half] = {}
        self._pairs: list[tuple[_Half, _Half]] = []

    def add(self, record: ResponseScore, reward: float) -> None:
        self._rewards.append(reward)
        self._disagreement.append(float(np.std(record.rewards)))
        self._origins[record.origin].append(reward)
        self._shortened += record.shortened
        if record.p_better is None or record.label_source is None:
            return
        *prompt, response = record.messages
        half = _Half(
            reward, record.p_better, len(response.content), conversation_id(prompt), source=record.label_source
        )
        first = self._halves.pop(record.row, None)
        if first is None:
            self._halves[record.row] = half
        else:
            self._pairs.append((first, half))

    def summary(self, members: int, how: Combination, penalty: float, name: str) -> ScoreSummary:
        rewards = np.array(self._rewards)
        scored = len(rewards) > 0
        return ScoreSummary(
            scored=len(rewards),
            shortened=self._shortened,
            members=members,
            ensemble_by=how,
            penalty=penalty,
            mean=float(rewards.mean()) if scored else None,
            deviation=float(rewards.std()) if scored else None,
            lowest=float(rewards.min()) if scored else None,
            highest=float(rewards.max()) if scored else None,
            disagreement=float(np.mean(self._disagreement)) if scored and members > 1 else None,
            origins={
                origin: OriginSummary(scored=len(found), mean=float(np.mean(found)))
                for origin, found in self._origins.items()
            },
            half_pairs=len(self._halves),
            pairs=evaluate_rewards(self._scored_pairs(), seed=_SEED, name=name) if self._pairs else None,
        )

    def _scored_pairs(self) -> ScoredPairs:
        first, second = zip(*self._pairs, strict=True)
        return ScoredPairs(
            chosen=np.array([half.reward for half in first]),
            rejected=np.array([half.reward for half in second]),
            p_chosen=np.array([half.p_better for half in first]),
            chosen_length=np.array([float(half.length) for half in first]),
            rejected_length=np.array([float(half.length) for half in second]),
            clusters=np.array([half.prompt for half in first]),
            sources=np.array([half.source for half in first]),
        )
