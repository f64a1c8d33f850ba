"""Whether a judge can answer its questions at all, by replies whose answer is known."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cai.evaluate.records import EvaluationRecord, Opinion, QuestionCheck
from cai.evaluate.sets import KnownReply
from cai.statistics import CHANCE, Bools, Floats, Mean, resampled_sums, wilson


def check_questions(
    known: Iterable[KnownReply], records: Mapping[str, EvaluationRecord], *, seed: int
) -> tuple[QuestionCheck, ...]:
    """Check each question that known replies were asked about; `records` holds the judge's opinions by reply.

    A reply that the judge gave no answer about is in no figure.
    """
    by_question: dict[str, list[tuple[KnownReply, Opinion]]] = {}
    for reply in known:
        for opinion in (records[reply.id].opinions or ()) if reply.id in records else ():
            by_question.setdefault(reply.question, []).append((reply, opinion))
    return tuple(_check(question, asked, seed) for question, asked in by_question.items())


def _check(question: str, asked: Sequence[tuple[KnownReply, Opinion]], seed: int) -> QuestionCheck:
    return QuestionCheck(
        question=question,
        auc=auc(
            np.array([-opinion.log_odds for _, opinion in asked]),
            np.array([reply.yes for reply, _ in asked]),
            np.array([reply.prompt for reply, _ in asked]),
            seed=seed,
        ),
        n=len(asked),
        off_mass=float(np.mean([opinion.off_mass for _, opinion in asked])),
    )


def auc(leaning: Floats, yes: Bools, clusters: NDArray[Any], *, seed: int) -> Mean:
    """Share of pairs of a reply that does it (`yes`) and one that does not in which the former has the higher `leaning`
    (n,); ties count half.

    The interval is a percentile bootstrap over `clusters` (n,), the prompts. Where all draws agree, as with a judge
    that makes no mistake or no difference, it is Wilson's for the smaller of the two kinds. With replies of one kind
    alone it is all of [0, 1].
    """
    _, codes = np.unique(clusters, return_inverse=True)
    does, does_not = np.flatnonzero(yes), np.flatnonzero(~yes)
    if not len(does) or not len(does_not):
        return Mean(value=CHANCE, low=0.0, high=1.0)
    wins = 0.5 + 0.5 * np.sign(leaning[does][:, None] - leaning[does_not][None, :])
    value = float(wins.mean())
    draws = []
    for times in resampled_sums(np.eye(codes.max() + 1), seed=seed):  # how often each cluster is drawn
        first, second = times[:, codes[does]], times[:, codes[does_not]]
        pairs = first.sum(1) * second.sum(1)
        some = pairs > 0
        draws.append(((first @ wins) * second).sum(1)[some] / pairs[some])
    found = np.concatenate(draws)
    if np.ptp(found) < 1e-12:
        return wilson(value, min(len(does), len(does_not)))
    low, high = np.quantile(found, (0.025, 0.975))
    return Mean(value=value, low=float(low), high=float(high))
