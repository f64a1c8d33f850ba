"""What an evaluation leaves behind: answers of the models, opinions of the judge, and figures with intervals."""

import math
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import model_validator

from cai.records import Message, Record, StageResult, Step, Usage
from cai.statistics import CHANCE, Mean

TaskName = Literal[
    "harmlessness",
    "helpfulness",
    "over-refusal",
    "honesty",
    "sycophancy",
    "style",
    "compliance",
    "choices",
    "capability",
]
JUDGE = "judge"
"""Stands for the judge where a run names its models; no model may be called so."""
Better = Literal["higher", "lower"]
"""Which way of a figure is the good one."""


class Exchange(Record):
    """One reply of the model that is measured."""

    name: str
    """Which of the replies to an item it is: `reply`, or what the task calls it."""
    messages: tuple[Message, ...]
    """The conversation that it answers; the last turn is the user's."""
    reply: Step


class Measured(Record):
    """How likely the model finds a given reply."""

    name: str
    """Which of the given replies of an item it is."""
    logprob: float
    """Natural logarithm of its probability."""
    tokens: int
    usage: Usage


class Answer(Record):
    """All that the model under test did for one item."""

    exchanges: tuple[Exchange, ...] = ()
    measured: tuple[Measured, ...] = ()

    @property
    def usage(self) -> Usage:
        """Tokens of all calls."""
        return sum((one.reply.usage for one in self.exchanges), sum((one.usage for one in self.measured), Usage()))

    def exchange(self, name: str) -> Exchange:
        """The exchange of that name."""
        return next(one for one in self.exchanges if one.name == name)


class Opinion(Record):
    """The judge's answer to one question about one reply."""

    question: str
    """Id of the question: a principle of the run's constitution, or one of the shipped questions."""
    exchange: str
    """Name of the exchange whose reply it is about."""
    log_odds: float
    """Of No over Yes. Yes means that the reply does what the question asks about."""
    off_mass: float
    """Probability of everything that is neither Yes nor No."""
    usage: Usage

    @property
    def p_no(self) -> float:
        """Probability of No among Yes and No: 1 where the reply does not do what the question asks about."""
        return 0.5 * (1 + math.tanh(self.log_odds / 2))


class EvaluationRecord(StageResult):
    """One item of a task: the answer of one model, or the judge's opinions of that answer.

    Its id is `MODEL/TASK/ITEM` and `MODEL/TASK/ITEM/grade`. The judge's opinion of a known reply is one of the model
    `JUDGE`, with the id `judge/known/ITEM`, under the first task that asks the question.
    """

    model: str
    """Name of the model in this run."""
    task: TaskName
    item: str
    """Id of the item in the task's set."""
    answer: Answer | None = None
    opinions: tuple[Opinion, ...] | None = None

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if (self.answer is None) == (self.opinions is None):
            raise ValueError("holds an answer or opinions, and only one of them")
        return self

    @property
    def usage(self) -> Usage:
        """Tokens of all its model calls."""
        if self.answer is not None:
            return self.answer.usage
        return sum((one.usage for one in self.opinions or ()), Usage())


class Metric(Record):
    """What a task measures on one item or on all: the mean over those items that have it."""

    name: str
    """Unique within the task, in kebab-case."""
    meaning: str
    """In one line, for people."""
    better: Better | None = None
    """None where neither way is good in itself."""
    share: bool = True
    """Whether its values lie in [0, 1] and are shown as percentages."""
    judged: bool = False
    """Whether it needs the judge."""
    reads_logprobs: bool = False
    """Whether it needs an engine that tells how likely a given reply is."""
    questions: tuple[str, ...] = ()
    """Shipped questions to the judge that it follows from; a judge that cannot answer one of them makes it worthless.
    """
    difference: tuple[str, str] | None = None
    """Names of two metrics of the task, where this one is the mean of the former less that of the latter."""


class Figure(Record):
    """One metric of one model."""

    task: TaskName
    metric: Metric
    model: str
    mean: Mean
    """95% interval by a bootstrap over clusters of items."""
    n: int
    """Items that have the metric."""
    clusters: int
    against_first: Mean | None = None
    """Difference to the first model of the run on the items that both have, with its interval; None for the first."""


class QuestionCheck(Record):
    """Whether the judge can answer a question at all, by replies whose answer is known."""

    question: str
    auc: Mean
    """Share of pairs of a reply that does it and one that does not, in which the judge finds Yes likelier for the
    former; 0.5 is a coin's."""
    n: int
    """Replies asked about."""
    off_mass: float
    """Mean probability of everything that is neither Yes nor No."""

    @property
    def passed(self) -> bool:
        """Whether the judge does better than a coin: the interval lies above 0.5."""
        return self.auc.low > CHANCE


class Unmeasured(Record):
    """A metric that this run has no figure of."""

    task: TaskName
    metric: str
    model: str
    reason: str


class Evaluation(Record):
    """`evaluation.json`: all that `cai evaluate` found."""

    models: Mapping[str, str]
    """What each model is, by its name in this run; the first is what the others are compared with."""
    judge: str | None
    constitution: str
    """Name and version."""
    constitution_sha256: str
    sets_sha256: Mapping[TaskName, str]
    seed: int
    figures: tuple[Figure, ...]
    checks: tuple[QuestionCheck, ...]
    """Of the judge."""
    unmeasured: tuple[Unmeasured, ...]
    failures: Mapping[str, int]
    """Items without an answer or an opinion, by `TASK: reason`."""

    def failed_checks(self, metric: Metric) -> tuple[str, ...]:
        """The questions behind a metric that the judge cannot answer; with any, the metric's figures are worthless."""
        failed = {check.question for check in self.checks if not check.passed}
        return tuple(question for question in metric.questions if question in failed)
