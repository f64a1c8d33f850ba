"""An engine whose answers are Python functions of the request, and which keeps what it was asked."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cai.engines import ChoiceLogprobs, EngineInfo, ReplyLogprob
from cai.records import Generation, Message, Sampling, Usage


@dataclass
class StubEngine:
    """Answers by its functions; each takes the text of the last message, `odds` the prefill too."""

    odds: Callable[[str, str], Mapping[str, float]] = lambda _request, _prefill: {}
    """Probability of each choice by name."""
    says: Callable[[str], str] = lambda _request: "Because."
    likes: Callable[[str, str], float] = lambda _system, _reply: -1.0
    """Log-probability of a reply under a system turn."""
    logprobs: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Request and prefill of every choice, in order."""
    samplings: list[Sampling] = field(default_factory=list)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="stub",
            model="stub",
            concurrency=8,
            seeded=True,
            choice_logprobs=self.logprobs,
            reply_logprob=self.logprobs,
        )

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        self.samplings.append(sampling)
        usage = Usage(prompt_tokens=10, completion_tokens=2)
        return Generation(text=self.says(messages[-1].content), finish_reason="stop", usage=usage)

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        self.asked.append((messages[-1].content, prefill))
        found = self.odds(messages[-1].content, prefill)
        masses = [found.get(choice, 0.0) for choice in choices]
        return ChoiceLogprobs(
            logprobs=tuple(math.log(mass) if mass else -math.inf for mass in masses),
            off_mass=1 - sum(masses),
            usage=Usage(prompt_tokens=7),
        )

    async def reply_logprob(self, messages: Sequence[Message], reply: str) -> ReplyLogprob:
        tokens = len(reply.split())
        return ReplyLogprob(
            logprob=self.likes(messages[0].content, reply), tokens=tokens, usage=Usage(prompt_tokens=tokens)
        )

    async def aclose(self) -> None:
        pass
