"""Replies for pairs: one call to a policy, under a seed that a resumed run finds again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.config import SamplingConfig
from cai.engines import Engine
from cai.errors import RecordError
from cai.records import Message, Step, stable_seed
from cai.running import OnStep
from cai.stage import WorkItem
from cai.visible import whole


@dataclass(frozen=True)
class Author:
    """Writes replies with one engine."""

    engine: Engine
    sampling: SamplingConfig
    seed: int
    """Seed of the run."""
    on_step: OnStep

    async def reply(self, item: WorkItem[Any], name: str, messages: Sequence[Message]) -> Step:
        """Sample the reply that `item` knows by `name`; its seed hangs on these, the run's and the failed tries.

        Raises:
            RecordError: as the engine's; `step` is `name`.
        """
        tries = (item.attempt,) if item.attempt else ()
        seed = stable_seed(self.seed, item.id, name, *tries)
        try:
            generation = await self.engine.generate(messages, self.sampling.sampling(seed))
        except RecordError as error:
            error.step = name
            raise
        self.on_step(generation.usage)
        return Step(
            text=whole(generation.text).strip(),
            finish_reason=generation.finish_reason,
            usage=generation.usage,
            seed=seed,
        )
