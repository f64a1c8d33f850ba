"""Configuration of where the rewards of PPO come from."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from cai.config import EngineConfig, StrictModel
from cai.feedback.judge_config import JudgeConfig
from cai.train.combination import PENALTY, Combination

SourceName = Annotated[str, StringConstraints(pattern=r"^[\w.-]+$")]


class JudgeRewardConfig(StrictModel):
    """A judge that rates responses while they are learned from: direct RLAIF (Lee et al. 2023, section 3.2)."""

    engine: EngineConfig = EngineConfig()
    constitution: str = "hhh"
    """A constitution file, or the name of a shipped one."""
    judge: JudgeConfig = JudgeConfig(protocol=("score",))
    """How it rates. Principles are drawn by the prompt, so that all responses to one are rated by the same."""
    templates: Path | None = None
    """Folder with templates of your own; those it lacks are the shipped ones."""

    @model_validator(mode="after")
    def _rates(self) -> Self:
        wrong = []
        if self.engine.system is not None:
            wrong.append("`engine.system` has no effect on a judge; its system prompts are templates")
        if self.judge.protocol != ("score",):
            wrong.append("`judge.protocol` must be score, the only one that rates a response by itself")
        unused = [key for key in ("clamp", "scale") if key in self.judge.changed]
        wrong += [f"`judge.{key}` has no effect on a rating; leave it out" for key in unused]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class RewardSourceConfig(StrictModel):
    """One source of rewards: a reward model, a judge or a function."""

    model: str | None = None
    """A reward model: the directory of a `cai train reward` run, of a model with one output or of a LoRA adapter of
    one, or a hub id. It reads conversations with its own tokenizer and chat template; of one that is longer than its
    context, the oldest turns are left out."""
    ensemble_by: Combination = "mean"
    """How the rewards of an ensemble become one: their `mean`, the `worst` of them, or the mean less a penalty on their
    variance (`uncertainty`)."""
    penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = PENALTY
    """Factor of the variance."""
    judge: JudgeRewardConfig | None = None
    """A judge; its ratings from 1 to 10 are rescaled to [-1, 1]."""
    function: str | None = None
    """A Python function, `FILE.py:NAME` or `package.module:NAME`. It is called with a list of prompts, each a list of
    messages `{role, content}`, and a list of responses, and returns a number for each response."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """What its rewards are multiplied by before those of all sources are added up; negative for a penalty."""
    name: SourceName | None = None
    """What metrics call it. Default: the last part of the model's name, `judge`, or the function's own name."""

    @field_validator("function")
    @classmethod
    def _function_has_a_place(cls, function: str | None) -> str | None:
        if function is not None:
            place, _, name = function.rpartition(":")
            is_module = all(part.isidentifier() for part in place.split("."))
            if not name.isidentifier() or not (place.endswith(".py") or is_module):
                raise ValueError(f"{function!r} is not of the form FILE.py:NAME or package.module:NAME")
        return function

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        wrong = []
        if sum(source is not None for source in (self.model, self.judge, self.function)) != 1:
            wrong.append("give one of `model`, `judge` and `function`; several sources are several entries of the list")
        elif self.model is None:
            unused = [key for key in ("ensemble_by", "penalty") if key in self.changed]
            wrong += [f"`{key}` has no effect without a reward `model`; leave it out" for key in unused]
        if not self.weight:
            wrong.append("`weight` is 0, so the source has no effect; leave it out")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def called(self) -> str:
        """Its name, or what stands for it."""
        if self.name is not None:
            return self.name
        if self.model is not None:
            return re.sub(r"[^\w.-]+", "-", Path(self.model).name) or "model"
        return "judge" if self.function is None else self.function.rpartition(":")[2]
