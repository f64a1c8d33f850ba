"""An engine that answers from a script, for tests, documentation and dry benchmarks. No model, no network."""

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cai.config import EngineConfig, Positive, Share, StrictModel
from cai.engines.base import ChoiceLogprobs, EngineInfo, ReplyLogprob
from cai.engines.options import refuse_options
from cai.errors import ConfigError, EngineError, RecordError
from cai.records import Generation, Message, Sampling, Usage
from cai.strict_yaml import read_yaml, validation_problems

Kind = Literal["say", "choices", "logprob"]
"""What a request asks for, by the name of the key that answers it."""


class Answer(StrictModel):
    """One rule of a script: of those that answer this kind of request, the first whose `when` matches decides.

    `say` answers requests for a reply, `choices` those for the probabilities of choices, `logprob` those for the
    probability of a reply; `fail` answers all of them. A rule may have several.
    """

    when: str = ""
    """Regular expression, searched in the last message; for `logprob` in all messages and the reply, one a line."""
    say: str | None = None
    """The reply. `{request}` stands for the last message, `{seed}` for the request's seed."""
    choices: dict[str, Share] | None = None
    """Probability of each choice. One that is not named has probability 0; what is left of 1 is off the choices. YAML
    takes Yes, No and numbers for text in quotation marks only."""
    logprob: Annotated[float, Field(le=0)] | None = None
    """Natural logarithm of the reply's probability."""
    fail: Literal["context_overflow", "request_refused", "timeout", "server_error", "engine"] | None = None
    """Fail in place of an answer; `engine` fails for good."""
    finish_reason: Literal["stop", "length"] = "stop"

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if all(value is None for value in (self.say, self.choices, self.logprob, self.fail)):
            raise ValueError("answers nothing; give it `say`, `choices`, `logprob` or `fail`")
        # Rounded probabilities may add up to a little more than 1.
        if self.choices is not None and (total := math.fsum(self.choices.values())) > 1 + 1e-9:
            raise ValueError(f"the probabilities of its `choices` add up to {total:g}; they must not exceed 1")
        return self

    def answers(self, kind: Kind) -> bool:
        """Whether the rule is one for this kind of request."""
        return self.fail is not None or getattr(self, kind) is not None


class Script(StrictModel):
    """What the scripted engine says."""

    answers: tuple[Answer, ...]
    concurrency: Positive = 64


class ScriptedEngine:
    """Answers by the rules of a `Script`. Token counts are counts of words."""

    def __init__(self, script: Script) -> None:
        """Take the rules."""
        self._rules = [(re.compile(answer.when, re.DOTALL), answer) for answer in script.answers]
        self.info = EngineInfo(
            engine="scripted",
            model="script",
            concurrency=script.concurrency,
            seeded=True,
            choice_logprobs=True,
            reply_logprob=True,
        )

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        """Reply by the first rule that matches; see `Engine.generate`."""
        request = messages[-1].content
        answer = await self._answer("say", request)
        text = (answer.say or "").replace("{request}", request).replace("{seed}", str(sampling.seed))
        usage = Usage(prompt_tokens=_words(messages), completion_tokens=text.count(" ") + 1)
        return Generation(text=text, finish_reason=answer.finish_reason, usage=usage)

    async def choice_logprobs(
        self, messages: Sequence[Message], prefill: str, choices: Sequence[str]
    ) -> ChoiceLogprobs:
        """Give the probabilities of the first rule that matches; see `Engine.choice_logprobs`."""
        named = (await self._answer("choices", messages[-1].content)).choices or {}
        probabilities = [named.get(choice, 0.0) for choice in choices]
        return ChoiceLogprobs(
            logprobs=tuple(math.log(p) if p else -math.inf for p in probabilities),
            off_mass=max(0.0, 1.0 - math.fsum(probabilities)),
            usage=Usage(prompt_tokens=_words(messages) + len(prefill.split())),
        )

    async def reply_logprob(self, messages: Sequence[Message], reply: str) -> ReplyLogprob:
        """Give the log-probability of the first rule that matches; see `Engine.reply_logprob`."""
        answer = await self._answer("logprob", "\n".join([*(message.content for message in messages), reply]))
        words = len(reply.split())
        if not words:
            raise RecordError("empty_reply", "the reply is empty, so it has no probability")
        usage = Usage(prompt_tokens=_words(messages) + words)
        return ReplyLogprob(logprob=answer.logprob or 0.0, tokens=words, usage=usage)

    async def aclose(self) -> None:
        """Nothing to free."""

    async def _answer(self, kind: Kind, text: str) -> Answer:
        """The rule for a request.

        Raises:
            RecordError: there is none, or it fails the request.
            EngineError: it ends the engine.
        """
        await asyncio.sleep(0)
        answer = next((rule for pattern, rule in self._rules if rule.answers(kind) and pattern.search(text)), None)
        if answer is None:
            raise RecordError("request_refused", f"the script has no answer to this request (`{kind}`)")
        if answer.fail == "engine":
            raise EngineError("the script ends the engine here")
        if answer.fail is not None:
            raise RecordError(answer.fail, "the script fails this request")
        return answer


def _words(messages: Sequence[Message]) -> int:
    return sum(message.content.count(" ") + 1 for message in messages)


def open_scripted(config: EngineConfig) -> ScriptedEngine:
    """Read the script of `config`.

    Raises:
        ConfigError: it is wrong.
    """
    unused = ("model", "adapter", "base_url", "batch_size", "max_model_len")
    refuse_options(config, dict.fromkeys(unused, "the script decides what is said"))
    assert config.script is not None, "EngineConfig sees to it"
    file = read_yaml(config.script)
    if file.problems:
        raise ConfigError(file.problems)
    try:
        script = Script.model_validate(file.data)
        return ScriptedEngine(script)
    except ValidationError as error:
        raise ConfigError(validation_problems(error, file, Script)) from None
    except re.error as error:
        raise ConfigError(f"{config.script}: `when` is not a regular expression: {error}") from None
