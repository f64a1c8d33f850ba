"""`train-reward` in a recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

from cai.pipeline.stages.kind import MODELS, interval
from cai.pipeline.stages.training import PAIRS, training
from cai.pipeline_records import Headline
from cai.statistics import Mean
from cai.train.config import RewardConfig

REWARD = frozenset({"train-reward"})


def _headlines(results: Mapping[str, Any]) -> Iterator[Headline]:
    sources = (results["evaluation"] or {}).get("sources", ())
    for one in sources:
        of = "" if len(sources) == 1 else f" on {one['source']}"
        accuracy = one["accuracy"]
        yield interval(f"accuracy{of}", None if accuracy is None else Mean.model_validate(accuracy))
        yield interval(f"log loss{of}", Mean.model_validate(one["log_loss"]), share=False)


KIND = training("reward", RewardConfig, _headlines, {**PAIRS, "model": MODELS | REWARD, "adapter": MODELS | REWARD})
