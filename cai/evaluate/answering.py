"""The model under test, as tasks see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cai.author import Author
from cai.errors import RecordError
from cai.evaluate.records import Exchange, Measured
from cai.prompting import with_system
from cai.records import Message
from cai.stage import WorkItem


@dataclass(frozen=True)
class EngineRespondent:
    """Answers for one item of a task with an engine; see `task.Respondent`."""

    author: Author
    system: str | None
    """The model's own system prompt."""
    item: WorkItem[Any]

    async def reply(self, name: str, messages: Sequence[Message]) -> Exchange:
        """Sample the reply to a conversation.

        Raises:
            RecordError: as the engine's; `step` is `name`.
        """
        reply = await self.author.reply(self.item, name, with_system(messages, self.system or ""))
        return Exchange(name=name, messages=tuple(messages), reply=reply)

    async def measure(self, name: str, messages: Sequence[Message], reply: str) -> Measured:
        """Read how likely the model finds a given reply.

        Raises:
            RecordError: as the engine's; `step` is `name`.
        """
        try:
            found = await self.author.engine.reply_logprob(with_system(messages, self.system or ""), reply)
        except RecordError as error:
            error.step = name
            raise
        self.author.on_step(found.usage)
        return Measured(name=name, logprob=found.logprob, tokens=found.tokens, usage=found.usage)
