"""The four ways to judge a comparison by one principle; `cai.feedback.judge` has the table of them."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from cai.engines import Engine, ReplyLogprob
from cai.errors import RecordError
from cai.feedback.asking import Answer, Asker, Question
from cai.feedback.judge_config import JudgeConfig
from cai.feedback.prompts import COMPARISON_FILES, JudgePrompts
from cai.principles import Principle
from cai.prompting import with_system
from cai.records import Comparison, Judgement, Message, Prompt, Side, Usage
from cai.stage import gather_all

CONTENT_FREE = "N/A"
"""What stands for conversation and responses where a judge's liking for an option as such is measured."""
RATINGS = tuple(str(rating) for rating in range(1, 11))


class PrincipleJudge(Protocol):
    """Judges a comparison by one principle, whose texts are phrased."""

    async def judge(self, comparison: Comparison, principle: Principle, attempt: int) -> list[Judgement]:
        """The judgements, which count the same in the mean.

        Raises:
            RecordError: as `Asker.ask`.
        """
        ...


class Pairwise:
    """Both responses as the options A and B, asked in both orders."""

    def __init__(self, config: JudgeConfig, prompts: JudgePrompts, asker: Asker) -> None:
        """Take what the judgements share."""
        self._config = config
        self._prompts = prompts
        self._asker = asker
        self._file = COMPARISON_FILES[config.layout]
        self._liking: dict[Principle, asyncio.Task[float]] = {}

    async def judge(self, comparison: Comparison, principle: Principle, attempt: int) -> list[Judgement]:
        """One judgement for each order of the responses."""
        bias = await self._liking_for_a(principle) if self._config.content_free else 0.0
        sign = 1 if principle.polarity == "better" else -1

        async def judged(order: Literal["ab", "ba"]) -> Judgement:
            shown = comparison if order == "ab" else comparison.swap()
            name = f"pairwise {principle.id} {order}"
            replies = (shown.a.text, shown.b.text)
            answer = await self._ask(comparison.id, name, comparison.prompt.messages, replies, principle, attempt)
            first = sign * (answer.log_odds(0, 1) - bias)
            return Judgement(
                protocol="pairwise",
                principle_id=principle.id,
                order=order,
                p_a=_sigmoid(self._config.scale * (first if order == "ab" else -first)),
                off_mass=answer.off_mass,
                rationales=answer.rationales,
                usage=answer.usage,
            )

        return await gather_all([judged("ab"), judged("ba")])

    def _liking_for_a(self, principle: Principle) -> Awaitable[float]:
        """Log-odds of A over B where nothing has content; asked once for each principle, in no record's usage."""
        task = self._liking.get(principle)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._liking[principle] = asyncio.ensure_future(self._measure_liking(principle))
        return asyncio.shield(task)

    async def _measure_liking(self, principle: Principle) -> float:
        talk, nothing = (Message(role="user", content=CONTENT_FREE),), (CONTENT_FREE, CONTENT_FREE)
        answer = await self._ask("content-free", f"content-free {principle.id}", talk, nothing, principle, 0)
        return answer.log_odds(0, 1)

    async def _ask(
        self,
        item: str,
        step: str,
        conversation: tuple[Message, ...],
        replies: tuple[str, str],
        principle: Principle,
        attempt: int,
    ) -> Answer:
        cot = self._config.cot
        request = self._prompts.comparison(self._config.layout, conversation, replies, principle, cot)
        return await self._asker.ask(Question(item, step, self._file, request, ("A", "B"), attempt), cot=cot)


class Alone:
    """One response at a time: log-odds of No, it is not at fault (`pointwise`), or the expected rating (`score`)."""

    def __init__(
        self, config: JudgeConfig, prompts: JudgePrompts, asker: Asker, protocol: Literal["pointwise", "score"]
    ) -> None:
        """Take what the judgements share."""
        self._config = config
        self._prompts = prompts
        self._asker = asker
        self._protocol: Literal["pointwise", "score"] = protocol

    async def judge(self, comparison: Comparison, principle: Principle, attempt: int) -> list[Judgement]:
        """One judgement: σ(scale · (value of a − value of b))."""

        def asked(side: Side) -> Awaitable[tuple[float, Answer]]:
            reply = comparison.a.text if side == "a" else comparison.b.text
            return self.value(comparison.prompt, reply, principle, comparison.id, side, attempt)

        (value_a, answer_a), (value_b, answer_b) = await gather_all([asked("a"), asked("b")])
        return [
            Judgement(
                protocol=self._protocol,
                principle_id=principle.id,
                order=None,
                p_a=_sigmoid(self._config.scale * (value_a - value_b)),
                value_a=value_a,
                value_b=value_b,
                off_mass=max(answer_a.off_mass, answer_b.off_mass),
                rationales=answer_a.rationales + answer_b.rationales,
                usage=answer_a.usage + answer_b.usage,
            )
        ]

    async def value(
        self, prompt: Prompt, reply: str, principle: Principle, item: str, side: str, attempt: int
    ) -> tuple[float, Answer]:
        """What the judge makes of one response, the more the better, and the answer that it follows from."""
        cot, step = self._config.cot, f"{self._protocol} {principle.id} {side}"
        if self._protocol == "pointwise":
            request = self._prompts.alone("question.j2", prompt.messages, reply, principle, cot)
            question = Question(item, step, "question.j2", request, ("Yes", "No"), attempt)
            answer = await self._asker.ask(question, cot=cot)
            return answer.log_odds(1, 0), answer
        request = self._prompts.alone("score.j2", prompt.messages, reply, principle, cot)
        answer = await self._asker.ask(Question(item, step, "score.j2", request, RATINGS, attempt), cot=cot)
        return answer.expected(), answer


class Likelihood:
    """How much likelier a response is for an author who is asked to keep to the principle than to oppose it."""

    def __init__(
        self, config: JudgeConfig, prompts: JudgePrompts, engine: Engine, on_step: Callable[[Usage], None]
    ) -> None:
        """Take what the judgements share."""
        self._config = config
        self._prompts = prompts
        self._engine = engine
        self._on_step = on_step

    async def judge(self, comparison: Comparison, principle: Principle, attempt: int) -> list[Judgement]:  # noqa: ARG002 - nothing is sampled
        """One judgement: σ(scale · (log-likelihood ratio of a − that of b))."""
        sides: tuple[tuple[Side, str], ...] = (("a", comparison.a.text.strip()), ("b", comparison.b.text.strip()))
        systems = self._prompts.contrast(principle)
        found = await gather_all(
            [
                self._measured(comparison.prompt, system, reply, f"likelihood {principle.id} {side}")
                for side, reply in sides
                for system in systems
            ]
        )
        value_a, value_b = self._ratio(found[0], found[1]), self._ratio(found[2], found[3])
        return [
            Judgement(
                protocol="likelihood",
                principle_id=principle.id,
                order=None,
                p_a=_sigmoid(self._config.scale * (value_a - value_b)),
                value_a=value_a,
                value_b=value_b,
                off_mass=0.0,
                usage=sum((one.usage for one in found), Usage()),
            )
        ]

    async def _measured(self, prompt: Prompt, system: str, reply: str, step: str) -> ReplyLogprob:
        try:
            found = await self._engine.reply_logprob(with_system(prompt.messages, system), reply)
        except RecordError as error:
            error.step = step
            raise
        self._on_step(found.usage)
        return found

    def _ratio(self, followed: ReplyLogprob, opposed: ReplyLogprob) -> float:
        """Log-likelihood ratio in nats, or in nats a token."""
        ratio = followed.logprob - opposed.logprob
        return ratio / followed.tokens if self._config.per_token else ratio


def _sigmoid(log_odds: float) -> float:
    """1 / (1 + e^-x) without overflow."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    return math.exp(log_odds) / (1 + math.exp(log_odds))
