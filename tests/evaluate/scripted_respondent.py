"""A model under test that says what it is told, for the tests of tasks; and a judge's opinions with known odds."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cai.evaluate.records import Answer, Exchange, Measured, Opinion
from cai.evaluate.task import Item, Task
from cai.records import Message, Step, Usage
from cai.statistics import Mean, clustered_mean

Say = Callable[[str, Sequence[Message]], str]
"""The reply to a conversation, by its name and its turns."""


class ScriptedRespondent:
    """Replies by a function, and knows how likely given replies are; keeps what it was asked."""

    def __init__(self, say: Say, likely: Mapping[str, tuple[float, int]] | None = None) -> None:
        self._say = say
        self._likely = likely or {}
        self.asked: dict[str, list[tuple[str, str]]] = {}

    async def reply(self, name: str, messages: Sequence[Message]) -> Exchange:
        self._note(name, messages)
        step = Step(text=self._say(name, messages), finish_reason="stop", usage=Usage(prompt_tokens=1), seed=0)
        return Exchange(name=name, messages=tuple(messages), reply=step)

    async def measure(self, name: str, messages: Sequence[Message], reply: str) -> Measured:
        self._note(name, messages)
        logprob, tokens = self._likely[reply]
        return Measured(name=name, logprob=logprob, tokens=tokens, usage=Usage(prompt_tokens=tokens))

    def _note(self, name: str, messages: Sequence[Message]) -> None:
        assert name not in self.asked, "each reply to an item has a name of its own"
        self.asked[name] = [(message.role, message.content) for message in messages]


def always(text: str) -> Say:
    return lambda _name, _messages: text


def answered(task: Task[Any], item: Item, say: Say) -> Answer:
    return asyncio.run(task.answer(item, ScriptedRespondent(say)))


def scored(task: Task[Any], item: Item, say: Say, opinions: Sequence[Opinion] | None = None) -> Mapping[str, float]:
    return task.scores(item, answered(task, item, say), opinions)


def opinion(question: str, exchange: str, p_yes: float) -> Opinion:
    log_odds = math.log((1 - p_yes) / p_yes)
    return Opinion(question=question, exchange=exchange, log_odds=log_odds, off_mass=0.0, usage=Usage())


def interval(
    rows: Sequence[Mapping[str, float]], metric: str, bounds: tuple[float, float] = (0.0, 1.0), less: str | None = None
) -> Mean:
    """Mean of a metric, or of its difference to another one, over the rows that have it, each its own cluster."""
    values = [row[metric] - (row[less] if less else 0.0) for row in rows if metric in row]
    return clustered_mean(np.array(values), np.arange(len(values)), seed=0, bounds=bounds)


def in_order(*means: Mean) -> bool:
    """Whether each interval lies below the next one."""
    return all(one.high < next_.low for one, next_ in pairwise(means))
