"""What `cai compare` is asked: two sides, the training of their reward models, and prices where they are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from cai.config import Positive, StrictModel
from cai.data.preference_source import PreferenceSource
from cai.train.config import RewardConfig

LabelSide = Literal["ai", "human"]
"""Who gave the labels that a figure is about."""
SIDES: tuple[LabelSide, LabelSide] = ("ai", "human")
NAMES: Mapping[LabelSide, str] = {"ai": "AI", "human": "human"}
"""For people."""

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SET_HERE = ("data", "eval_data", "test_share", "seed", "ensemble", "load_best_model_at_end", "metric_for_best_model")
"""Arguments of `cai train reward` that the comparison sets itself. The best weights cannot be kept, since the labels
that choose them would be those that the model is measured on."""


class Prices(StrictModel):
    """What labels cost. A side without a price has no cost in the report; nothing is assumed."""

    currency: Annotated[str, Field(min_length=1)]
    """Such as `USD`; it is printed and not computed with."""
    ai_label: Price | None = None
    """Of one AI label."""
    ai_million_prompt_tokens: Price | None = None
    """Of a million prompt tokens of the judge, those of a prefix cache included; in place of `ai_label`."""
    ai_million_completion_tokens: Price | None = None
    """Of a million tokens that the judge wrote; beside the price of prompt tokens."""
    human_label: Price | None = None
    """Of one comparison with a human label, whatever the number of raters."""
    human_hour: Price | None = None
    """Of an hour of rating; in place of `human_label`."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        tokens = (self.ai_million_prompt_tokens, self.ai_million_completion_tokens)
        if (tokens[0] is None) != (tokens[1] is None):
            raise ValueError("state the prices of prompt tokens and of completion tokens, or neither")
        if self.ai_label is not None and tokens[0] is not None:
            raise ValueError("state ai_label or the prices of tokens, not both")
        if self.human_label is not None and self.human_hour is not None:
            raise ValueError("state human_label or human_hour, not both")
        if {self.ai_label, tokens[0], self.human_label, self.human_hour} == {None}:
            raise ValueError("states no price; give ai_label, human_label, or prices of tokens or hours")
        return self


class CompareConfig(StrictModel):
    """Configuration of `cai compare`."""

    ai: PreferenceSource
    """The AI path's labels."""
    human: PreferenceSource
    """The human path's labels of the same comparisons."""
    test: PreferenceSource | None = None
    """Comparisons with human labels to measure on, in place of those that `test_share` takes. Their prompts are not
    trained on."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the prompts that are held out from both sides, by a hash of the conversation and `seed`."""
    seed: int = 0
    """Fixes the held-out prompts and the order in which subsets grow; the first reward model of each has this seed."""
    seeds: Positive = 3
    """Reward models for each set of labels, with seeds that follow one another."""
    sizes: tuple[Positive, ...] | None = None
    """Numbers of labels at which both sides are trained, beside all of them. Default: an eighth, a quarter and a half
    of all; an empty list leaves the curve out."""
    reward: RewardConfig = RewardConfig()
    """The training of every reward model, by the names of `cai train reward`."""
    prices: Prices | None = None
    """What labels cost. Without it the report says that no price was stated."""
    ratings: Path | None = None
    """The human side's ratings, for the seconds that a label takes: a file of them, or a run of `cai export`. Default:
    those in the run of `human`."""
    ranking: Path | None = None
    """Ranking of policies that were trained on either side's labels, to be shown beside: a run of `cai rank`."""

    FREE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"ai.path", "human.path", "test.path", "sizes", "seeds", "prices", "ratings", "ranking"}
    )

    @field_validator("reward")
    @classmethod
    def _leaves_the_rest(cls, reward: RewardConfig) -> RewardConfig:
        if given := [name for name in _SET_HERE if name in reward.model_fields_set]:
            raise ValueError(f"the comparison sets {', '.join(given)} itself; leave it out here")
        return reward
