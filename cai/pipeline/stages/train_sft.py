"""`train-sft` in a recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

from cai.pipeline.stages.kind import MODELS
from cai.pipeline.stages.training import last, training
from cai.pipeline_records import Headline
from cai.train.config import SftConfig


def _headlines(results: Mapping[str, Any]) -> Iterator[Headline]:
    yield from last(results["metrics"], {"train_loss": "loss", "eval_loss": "held-out loss"})


KIND = training(
    "sft",
    SftConfig,
    _headlines,
    {"model": MODELS, "adapter": MODELS, "data.path": frozenset({"critique-revise"})},
)
