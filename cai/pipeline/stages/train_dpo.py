"""`train-dpo` in a recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

from cai.pipeline.stages.training import PAIRS, last, training
from cai.pipeline_records import Headline
from cai.train.config import DpoConfig


def _headlines(results: Mapping[str, Any]) -> Iterator[Headline]:
    names = {
        "train_loss": "loss",
        "eval_loss": "held-out loss",
        "eval_rewards/accuracies": "held-out accuracy",
        "eval_rewards/margins": "held-out margin",
    }
    yield from last(results["metrics"], names)


KIND = training("dpo", DpoConfig, _headlines, PAIRS)
