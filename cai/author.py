"""One call to a model that writes, under a seed that a resumed run finds again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.config import SamplingConfig
from cai.engines import Engine
from cai.errors import RecordError
from cai.records import Message, Step, stable_seed
from cai.stage import OnStep, WorkItem
from cai.visible import whole


@dataclass(frozen=True)
class Author:
    """Writes replies with one engine."""

    engine: Engine
    sampling: SamplingConfig
    seed: int
    """Seed of the run."""
    on_step: OnStep
    """Called after every call."""

    async def reply(self, item: WorkItem[Any], name: str, messages: Sequence[Message]) -> Step:
        """Sample the reply that `item` knows by `name`; its text may be empty.

        Its seed follows from both, from the seed of the run and from the number of failed tries.

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
