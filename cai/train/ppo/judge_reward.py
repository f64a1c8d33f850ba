"""Rewards from a judge that rates each response: direct RLAIF (Lee et al. 2023, section 3.2), with no reward model."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from cai.constitution import Constitution, load_constitution
from cai.data.formats import conversation_id
from cai.engines import open_engine
from cai.errors import RecordError
from cai.feedback.judge import Judge
from cai.feedback.judge_config import check_constitution
from cai.feedback.prompts import JudgePrompts
from cai.records import Message, Prompt
from cai.stage import WorkItem, run_stage
from cai.train.ppo.event_loop import EventLoop
from cai.train.ppo.reward_config import JudgeRewardConfig
from cai.train.ppo.rewards import Scored, scored


@dataclass(frozen=True)
class FoundJudge:
    """What a judge works from, loaded and checked; its engine is not opened yet."""

    config: JudgeRewardConfig
    constitution: Constitution
    prompts: JudgePrompts


def find_judge(config: JudgeRewardConfig) -> FoundJudge:
    """Load the constitution and the templates of a judge.

    Raises:
        ConstitutionError: the constitution is wrong, or too few of its principles can be asked about one response.
        TemplateError: a template is wrong.
    """
    constitution = load_constitution(config.constitution)
    check_constitution(config.judge, constitution)
    return FoundJudge(config, constitution, JudgePrompts(config.templates))


class JudgeReward:
    """A judge with an open engine. They live on an event loop that runs only while responses are rated."""

    def __init__(self, name: str, found: FoundJudge, *, seed: int) -> None:
        """Open the engine. `name` is what metrics call the source; `seed` fixes which principles are drawn.

        Raises:
            EngineError: the model or the server cannot be used.
            ConfigError: an option does not fit the engine, or it does not offer what the judge needs.
        """
        self.name = name
        self._loop = EventLoop()
        self._resources = AsyncExitStack()
        config = found.config
        try:
            engine = self._loop.run(self._resources.enter_async_context(open_engine(config.engine)))
            self.details: Mapping[str, Any] = engine.info.model_dump(mode="json")
            self._concurrency = config.engine.concurrency or engine.info.concurrency
            self._judge = Judge(
                config.judge, found.constitution, found.prompts, engine, seed=seed, on_step=lambda _: None
            )
        except BaseException:
            self.close()
            raise

    def score(self, prompts: Sequence[tuple[Message, ...]], responses: Sequence[str]) -> Scored:
        """Rate all responses, as many at a time as keep the engine busy; see `RewardSource.score`.

        Raises:
            KeyboardInterrupt: interrupted; requests in flight are cancelled.
        """
        asked = [
            WorkItem(place, str(place), (Prompt(id=conversation_id(prompt), messages=prompt), response))
            for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        found = self._loop.run(self._rate(asked))
        values = np.array([found[item.index][0] for item in asked])
        return scored(self.name, values, [found[item.index][1] for item in asked])

    def close(self) -> None:
        """Close the engine, and the event loop."""
        try:
            self._loop.run(self._resources.aclose())
        finally:
            self._loop.close()

    async def _rate(self, asked: Sequence[WorkItem[tuple[Prompt, str]]]) -> Mapping[int, tuple[float, str | None]]:
        """Rating, or NaN and the reason why there is none, by place."""
        found: dict[int, tuple[float, str | None]] = {}

        async def rate(item: WorkItem[tuple[Prompt, str]]) -> None:
            try:
                rating, _ = await self._judge.score(*item.of)
            except RecordError as error:  # how many are too many is for the training to say
                found[item.index] = (math.nan, error.reason)
            else:
                found[item.index] = (rating, None)

        def nothing(_: object) -> None:
            """All that comes of an item is in `found`."""

        await run_stage(iter(asked), rate, concurrency=self._concurrency, on_result=nothing, on_failure=nothing)
        return found
