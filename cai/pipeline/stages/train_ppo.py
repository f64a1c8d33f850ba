"""`train-ppo` in a recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

from cai.pipeline.stages.kind import MODELS, number
from cai.pipeline.stages.train_reward import REWARD
from cai.pipeline.stages.training import last, training
from cai.pipeline_records import Headline
from cai.train.ppo.config import PpoConfig


def _headlines(results: Mapping[str, Any]) -> Iterator[Headline]:
    yield number("steps", results["steps"])
    yield Headline(name="ended by", text=results["ended_by"])
    yield from last(results["metrics"], {"score": "score", "kl": "KL divergence", "length": "mean length"})
    if results["alerts"] is not None:  # there was a monitor
        yield number("alerts", len(results["alerts"]))


KIND = training(
    "ppo",
    PpoConfig,
    _headlines,
    {"model": MODELS, "adapter": MODELS, "rewards.model": REWARD, "gold.model": REWARD},
)
