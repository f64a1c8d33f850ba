"""What `ppo.py` and the processes that it starts tell each other. Loads nothing heavy."""

from collections.abc import Mapping
from typing import Any

from cai.records import Record

OURS_LORA, OURS_LORA_SHARED, TRL_LORA = "ours-lora", "ours-lora-shared", "trl-lora"
OURS_FULL, OURS_FULL_SHARED, TRL_FULL = "ours-full", "ours-full-shared", "trl-full"
TRL_ARMS = (TRL_LORA, TRL_FULL)
ARMS = (OURS_LORA, OURS_LORA_SHARED, TRL_LORA, OURS_FULL, OURS_FULL_SHARED, TRL_FULL)
JOB = "job.json"
"""The file with a `TrlJob`."""


class Workload(Record):
    """What each arm trains on."""

    model: str
    data: str
    """File or shipped set of prompts."""
    prompts: int
    """The first ones of them; rows that are no prompt, or have come before, are passed over."""
    batch_size: int
    """Episodes of a step."""
    steps: int
    """That are measured; there is one more before them."""
    response_length: int
    epochs: int
    """Passes over the episodes of a step; each is one optimiser step."""
    micro_batch: int
    """Episodes in one forward and backward pass."""
    bf16: bool
    use_cpu: bool


class TrlJob(Record):
    """What TRL's trainer does, for `ppo_trl.py`."""

    model: str
    """Directory or hub id of the policy's weights."""
    reward: str
    """Directory of the reward model, with the tokenizer of all arms."""
    steps: int
    prompts: tuple[tuple[int, ...], ...]
    """Token ids, in the order in which our trainer meets them. There is a batch more than is trained on: over the last
    one Accelerate accumulates no gradients."""
    arguments: Mapping[str, Any]
    """Of PPOConfig."""
    lora: Mapping[str, Any]
    """Of LoraConfig."""


class Clocks(Record):
    """Seconds of some work."""

    wall_s: float
    cpu_s: float
    """Processor time, of all threads together."""


class Measured(Record):
    """One process at work; all but the peaks is of the steps that are measured."""

    prompt_tokens: int
    tokens: int
    """Of the responses, with the end token."""
    ended: int
    """Responses that have one."""
    whole: Clocks
    writing: Clocks
    """Generation."""
    scoring: Clocks
    """The reward model."""
    update: Clocks
    peak_rss_mib: float
    peak_cuda_mib: float | None
    """Most that PyTorch had allocated on the CUDA device; None on a CPU."""
    device: str
    """`cpu`, or the name of the CUDA device."""
    threads: int
    """Of PyTorch."""
    versions: Mapping[str, str]
