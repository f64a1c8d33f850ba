"""An engine that answers from a script, for tests, documentation and dry benchmarks. No model, no network."""

import asyncio
import re
from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from cai.config import EngineConfig, Positive, StrictModel
from cai.engines.base import EngineInfo
from cai.engines.options import refuse_options
from cai.errors import ConfigError, EngineError, RecordError
from cai.records import Generation, Message, Sampling, Usage
from cai.strict_yaml import read_yaml, validation_problems


class Answer(StrictModel):
    """One rule of a script: the first whose `when` matches the request decides."""

    when: str = ""
    """Regular expression, searched in the last message."""
    say: str = ""
    """The reply. `{request}` stands for the last message, `{seed}` for the request's seed."""
    fail: Literal["context_overflow", "request_refused", "timeout", "server_error", "engine"] | None = None
    """Fail in place of a reply; `engine` fails for good."""
    finish_reason: Literal["stop", "length"] = "stop"


class Script(StrictModel):
    """What the scripted engine says."""

    answers: tuple[Answer, ...]
    concurrency: Positive = 64


class ScriptedEngine:
    """Answers by the rules of a `Script`. Token counts are counts of words."""

    def __init__(self, script: Script) -> None:
        """Take the rules."""
        self._rules = [(re.compile(answer.when, re.DOTALL), answer) for answer in script.answers]
        self.info = EngineInfo(engine="scripted", model="script", concurrency=script.concurrency, seeded=True)

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Generation:
        """Reply by the first rule that matches; see `Engine.generate`."""
        await asyncio.sleep(0)
        request = messages[-1].content
        answer = next((answer for pattern, answer in self._rules if pattern.search(request)), None)
        if answer is None:
            raise RecordError("request_refused", "the script has no answer to this request")
        if answer.fail == "engine":
            raise EngineError("the script ends the engine here")
        if answer.fail is not None:
            raise RecordError(answer.fail, "the script fails this request")
        text = answer.say.replace("{request}", request).replace("{seed}", str(sampling.seed))
        words = sum(message.content.count(" ") + 1 for message in messages)
        usage = Usage(prompt_tokens=words, completion_tokens=text.count(" ") + 1)
        return Generation(text=text, finish_reason=answer.finish_reason, usage=usage)

    async def aclose(self) -> None:
        """Nothing to free."""


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
