"""One question to a judge: its reasoning, if it is to reason, and then the probabilities of the options."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cai.engines import Engine
from cai.engines.choices import spelled_choice
from cai.errors import RecordError
from cai.feedback.judge_config import JudgeConfig
from cai.feedback.prompts import JudgePrompts
from cai.records import Message, Sampling, Step, Usage, stable_seed
from cai.stage import gather_all
from cai.visible import whole

VERDICT_TOKENS = 16
"""Tokens within which a sampled verdict must name its option."""
_OUT_OF_TEN = re.compile(r"(?<=\d)(\s*/\s*|\s+out of\s+)10\b")
_ARTICLE = re.compile(r"(?:^|[.!?:\n])\W*([A-Z])[ \t]+(?!is\b)\w")
"""A letter that begins a sentence or a line and goes on, but not by a verb."""
_LEAST = -80.0
"""Natural logarithm that stands for no probability at all, so that differences stay finite."""


@dataclass(frozen=True)
class Question:
    """What is asked, and under which name."""

    item: str
    """Id of what is judged."""
    step: str
    """Name of the question; failures are counted by it, seeds derive from it."""
    file: str
    """Template file that it was rendered from."""
    request: Message
    options: tuple[str, ...]
    attempt: int
    """Number of tries that failed before."""


@dataclass(frozen=True)
class Answer:
    """How likely the judge finds each option."""

    logprobs: tuple[float, ...]
    """Natural logarithms, finite, not normalised over the options."""
    off_mass: float
    """Probability of everything else."""
    rationales: tuple[Step, ...]
    """What the judge wrote before: one text, or none."""
    usage: Usage

    def log_odds(self, first: int, second: int) -> float:
        """Log-odds of one option over another."""
        return self.logprobs[first] - self.logprobs[second]

    def expected(self) -> float:
        """Mean of 1, 2, … under the options' normalised probabilities."""
        masses = [math.exp(logprob) for logprob in self.logprobs]
        return sum(mass * rating for rating, mass in enumerate(masses, 1)) / sum(masses)


class Asker:
    """Puts questions to one engine."""

    def __init__(
        self,
        config: JudgeConfig,
        prompts: JudgePrompts,
        openings: dict[str, tuple[Message, ...]],
        engine: Engine,
        *,
        seed: int,
        on_step: Callable[[Usage], None],
    ) -> None:
        """Take the engine and, by template file, what stands before every request."""
        self._config = config
        self._prompts = prompts
        self._openings = openings
        self._engine = engine
        self._seed = seed
        self._on_step = on_step

    async def ask(self, question: Question, *, cot: bool) -> Answer:
        """Read the probabilities of a question's options; with `cot` the judge first writes its reasons, at
        temperature 0 (Lee et al. 2023, section 2.2).

        Raises:
            RecordError: `off_option` where the options together are less likely than `min_option_mass`; `empty_reply`
                where the judge gave no reasons; or as the engine's. `step` is the question's.
        """
        try:
            return await self._ask(question, cot)
        except RecordError as error:
            error.step = question.step
            raise

    async def _ask(self, question: Question, cot: bool) -> Answer:
        messages = (*self._openings[question.file], question.request)
        rationale = await self._reasons(question, messages) if cot else None
        if self._config.sample_verdicts is not None:
            logprobs, off_mass, usage = await self._votes(question, messages, self._config.sample_verdicts)
        else:
            prefill = self._prompts.answer(question.file, rationale.text if rationale else None)
            logprobs, off_mass, usage = await self._read(messages, prefill, question.options)
        if off_mass > 1 - self._config.min_option_mass or all(logprob <= _LEAST for logprob in logprobs):
            options = ", ".join(question.options) if len(question.options) < 4 else "the ratings"
            raise RecordError(
                "off_option",
                f"the judge gives {1 - off_mass:.3f} of its probability to {options}; the rest is elsewhere",
            )
        spent = usage + rationale.usage if rationale else usage
        return Answer(logprobs, off_mass, (rationale,) if rationale else (), spent)

    async def _reasons(self, question: Question, messages: Sequence[Message]) -> Step:
        seed = stable_seed(self._seed, question.item, question.step, "reasons", question.attempt)
        sampling = Sampling(max_tokens=self._config.cot_tokens, temperature=0.0, seed=seed)
        generation = await self._engine.generate(messages, sampling)
        self._on_step(generation.usage)
        text = whole(generation.text).strip()
        if not text:
            raise RecordError("empty_reply", "the judge's reasoning has no text")
        return Step(text=text, finish_reason=generation.finish_reason, usage=generation.usage, seed=seed)

    async def _read(
        self, messages: Sequence[Message], prefill: str, options: Sequence[str]
    ) -> tuple[tuple[float, ...], float, Usage]:
        """Log-probabilities of the options as what follows `prefill`, the mass outside of them, tokens."""
        found = await self._engine.choice_logprobs(messages, prefill, options)
        self._on_step(found.usage)
        usage, off_mass = found.usage, found.off_mass
        masses = [math.exp(logprob) for logprob in found.logprobs]
        if options[-1] == "10" and not masses[-1]:  # most vocabularies know single digits only: a 1 may go on with a 0
            after_one = await self._engine.choice_logprobs(messages, _with_one(prefill), ("0",))
            self._on_step(after_one.usage)
            usage = usage + after_one.usage
            goes_on = math.exp(after_one.logprobs[0])
            masses[-1] += masses[0] * goes_on
            masses[0] *= 1 - goes_on
        return tuple(_log(mass) for mass in masses), off_mass, usage

    async def _votes(
        self, question: Question, messages: Sequence[Message], number: int
    ) -> tuple[tuple[float, ...], float, Usage]:
        """Shares of the options among `number` written verdicts; those that name none or several are the mass outside.

        Each of two options has half a vote more, so that a few verdicts do not make a certainty.
        """

        async def vote(which: int) -> tuple[int | None, Usage]:
            seed = stable_seed(self._seed, question.item, question.step, which, question.attempt)
            sampling = Sampling(max_tokens=VERDICT_TOKENS, temperature=1.0, seed=seed)
            generation = await self._engine.generate(messages, sampling)
            self._on_step(generation.usage)
            return named_option(generation.text, question.options), generation.usage

        votes = await gather_all([vote(which) for which in range(number)])
        counts = Counter(index for index, _ in votes if index is not None)
        off_mass = 1 - counts.total() / number
        more = 0.5 if len(question.options) == 2 and counts else 0.0
        total = max(1.0, counts.total() + more * len(question.options))
        logprobs = tuple(_log((counts[index] + more) / total) for index in range(len(question.options)))
        return logprobs, off_mass, sum((usage for _, usage in votes), Usage())


def named_option(text: str, options: Sequence[str]) -> int | None:
    """Index of the option that a written verdict names; None where it names none, or more than one.

    A letter that begins a sentence and goes on (`A safer reply …`) may be an article, so it is no vote by itself, nor
    is another option beside it; for B it is the same, so that neither gains. The 10 of `7/10` and `7 out of 10` is no
    rating.
    """
    words = _OUT_OF_TEN.sub(" ", text).split()
    named = Counter(index for word in words if (index := spelled_choice(word, options)) is not None)
    if len(named) != 1:
        return None
    [(index, times)] = named.items()
    return index if times > _ARTICLE.findall(text).count(options[index]) else None


def _with_one(prefill: str) -> str:
    """The answer's beginning with a rating of 1, as a judge would write it: `Rating: (1`, `Rating: 1` or `1`."""
    return f"{prefill}1" if not prefill or prefill.endswith("(") else f"{prefill} 1"


def _log(mass: float) -> float:
    return max(_LEAST, math.log(mass)) if mass > 0 else _LEAST
