"""Where a training computes, in which precision, and in which it holds weights."""

import torch

from cai.engines.transformers import choose_dtype
from cai.train.config import TrainConfig


def trains_in_bf16(config: TrainConfig) -> bool:
    """Whether mixed precision is used."""
    return choose_dtype("auto", training_device(config)) == torch.bfloat16 if config.bf16 is None else config.bf16


def weights_dtype(config: TrainConfig) -> torch.dtype:
    """In which precision weights are held: float32 where they are trained, the compute type below an adapter."""
    return torch.bfloat16 if config.use_peft and trains_in_bf16(config) else torch.float32


def training_device(config: TrainConfig) -> torch.device:
    """Where a training runs."""
    return torch.device("cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu")
