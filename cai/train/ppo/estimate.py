"""What a PPO training would take on one device, before any weights are read: memory by part, time by phase.

Memory is an upper bound of sorts, as in `cai.train.estimate`: it adds up what is largest at different moments, for the
longest prompts and responses of full length. Left out are the engine of a judge in this process, what a reward function
takes, and what reward models need beside their weights.

Time is that of responses of full length. Left out are judges and functions, the monitor's looks, checkpoints and
padding. On a GPU the writing of a small model waits for the launches of its many small operations, which are not
counted either, so that it may take several times as long.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from rich.table import Table
from transformers import AutoConfig

from cai.engines.transformers import choose_device
from cai.progress import duration
from cai.records import Record
from cai.train.estimate import (
    EFFICIENCY,
    GIB,
    Shape,
    adapter_parameters,
    flops_per_token,
    layer_bytes,
    measured_flops,
    shape_of,
)
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.math import CHUNK
from cai.train.ppo.plan import PpoPlan
from cai.train.precision import trains_in_bf16, weights_dtype
from cai.train.reward_checkpoints import RewardCheckpoints

_PIECES = 3
"""Pieces of `CHUNK` logits in float32 that are held at a time."""


class PpoMemory(Record):
    """GiB on the device, by part."""

    weights: float
    """Of policy, reference and values, which share a base below adapters; with copies in bfloat16 where mixed precision
    makes them."""
    adapters: float
    rewards: float
    """Of the reward models, gold among them."""
    gradients: float
    optimizer: float
    """AdamW's two moments."""
    activations: float
    """What the layers keep for the backward pass, of a micro-batch."""
    logits: float
    """Of a micro-batch with their gradients, or of the responses that are read at a time: the larger of the two."""
    cache: float
    """Keys and values of the responses that are written at a time."""

    @property
    def total(self) -> float:
        """GiB of all parts."""
        total: float = sum(dict(self).values())
        return total


class PpoEstimate(Record):
    """What a training would take on one device; every figure but the counts is an estimate."""

    parameters: int
    """Of the language model, without an adapter."""
    trained: int
    """Parameters that training changes, of policy and values."""
    memory: PpoMemory
    steps: int
    episodes: int
    """Of a step."""
    tokens: int
    """That a step writes, where all responses have full length."""
    writing: float
    """Seconds a step, as the next two."""
    reading: float
    """By policy, reference, values and reward models."""
    updating: float
    flops_per_second: float
    """Measured on this device, for matrix products alone."""
    writing_flops_per_second: float
    """The same for as few tokens at a time as are written."""
    efficiency: float = EFFICIENCY
    """Share of these rates that training reaches."""

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.steps * (self.writing + self.reading + self.updating)


class Sizes(NamedTuple):
    """All that an estimate is made from, beside the configuration."""

    shape: Shape
    """Of the language model."""
    value_rank: int
    """Of the adapter of the values."""
    rewards: tuple[Shape, ...]
    """Of the reward models in this process."""
    longest: int
    """Tokens of the longest prompt."""
    mean: float
    """Mean tokens of a prompt."""
    device: str
    """Its type."""
    weight: int
    """Bytes of a weight of the language model."""
    operand: int
    """Of what it computes with, and of the weights of reward models."""


class _Flops(NamedTuple):
    """Operations of one step."""

    writing: float
    reading: float
    updating: float


def estimate_ppo(plan: PpoPlan) -> PpoEstimate:
    """Estimate a planned training on this machine; takes a fraction of a second of its device.

    Raises:
        ConfigError: transformers has no model of this architecture; no layer has a name of `lora_target_modules`.
    """
    config = plan.config
    device = choose_device("cpu" if config.use_cpu else "auto")
    compute = torch.bfloat16 if trains_in_bf16(config) else torch.float32
    hidden = plan.start.config.get_text_config().hidden_size
    lengths = [len(prompt.ids) for prompt in plan.prompts]
    rows = min(config.rows(device.type), config.batch_size)
    return estimated(
        config,
        Sizes(
            shape=shape_of(config, plan.start.config, scores=False),
            value_rank=_value_rank(plan),
            rewards=tuple(_reward_shapes(plan)),
            longest=max(lengths),
            mean=sum(lengths) / len(lengths),
            device=device.type,
            weight=weights_dtype(config).itemsize,
            operand=compute.itemsize,
        ),
        measured_flops(device.type, compute, hidden),
        measured_flops(device.type, compute, hidden, rows),
    )


def estimated(config: PpoConfig, sizes: Sizes, rate: float, writing_rate: float) -> PpoEstimate:
    """Estimate a training by sizes, and by rates of `measured_flops`."""
    flops = _flops(config, sizes)
    return PpoEstimate(
        parameters=sizes.shape.parameters,
        trained=sum(_trained(config, sizes)),
        memory=_memory(config, sizes),
        steps=config.steps,
        episodes=config.batch_size,
        tokens=config.batch_size * config.response_length,
        writing=flops.writing / (EFFICIENCY * writing_rate),
        reading=flops.reading / (EFFICIENCY * rate),
        updating=flops.updating / (EFFICIENCY * rate),
        flops_per_second=rate,
        writing_flops_per_second=writing_rate,
    )


def _trained(config: PpoConfig, sizes: Sizes) -> tuple[int, int]:
    """Parameters of the policy and of the values that training changes; a value head has a bias."""
    shape = sizes.shape
    if config.use_peft:
        policy, trunk = (adapter_parameters(shape, rank) for rank in (config.lora_r, sizes.value_rank))
    else:
        policy, trunk = shape.parameters, shape.body
    return policy, (0 if config.shared_trunk else trunk) + shape.hidden + 1


def _memory(config: PpoConfig, sizes: Sizes) -> PpoMemory:
    shape, weight, operand = sizes.shape, sizes.weight, sizes.operand
    policy, values = _trained(config, sizes)
    trained = policy + values
    base = weight * shape.parameters
    if not config.use_peft:
        multiplied = shape.multiplied + (0 if config.shared_trunk else shape.multiplied - shape.output)
        copies = operand * multiplied if operand < weight else 0  # of what is trained
        base += weight * shape.parameters + 4 * values + copies
    length = sizes.longest + config.response_length
    layer = layer_bytes(shape, config, weight, operand == 2)
    kept = shape.layers * weight * shape.hidden + layer if config.gradient_checkpointing else shape.layers * layer
    micro, rows = (
        min(size, config.batch_size) for size in (config.per_device_train_batch_size, config.rows(sizes.device))
    )
    read = max(2 * micro, rows)  # the backward pass has the logits and their gradient
    logits = read * config.response_length * shape.vocabulary
    return PpoMemory(
        weights=base / GIB,
        adapters=(4 * trained if config.use_peft else 0) / GIB,
        rewards=operand * sum(one.parameters for one in sizes.rewards) / GIB,
        gradients=4 * trained / GIB,
        optimizer=8 * trained / GIB,
        activations=micro * length * kept / GIB,
        logits=(operand * logits + 4 * _PIECES * min(CHUNK, logits)) / GIB,
        cache=rows * length * 2 * shape.layers * operand * shape.cached / GIB,
    )


def _flops(config: PpoConfig, sizes: Sizes) -> _Flops:
    """Counted as `cai.train.estimate` does. The output layer sees the tokens of responses alone, and the values have
    none."""
    whole = sizes.shape
    body = whole._replace(multiplied=whole.multiplied - whole.output)
    policy, values = _trained(config, sizes)
    adapters = (policy, values) if config.use_peft else (0, 0)
    responses = config.batch_size * config.response_length
    tokens = config.batch_size * sizes.mean + responses
    forward = 2 * body.multiplied * tokens
    written = forward + 2 * whole.output * responses + 2 * adapters[0] * tokens
    by_reference = forward + 2 * whole.output * responses
    rewarded = sum(2 * one.multiplied for one in sizes.rewards) * tokens
    once = flops_per_token(body, config, policy)
    output = flops_per_token(whole, config, policy) - once
    if config.shared_trunk:
        valued, valuing = 2.0 * values * responses, 6.0 * values * responses
    else:
        valued, valuing = forward + 2 * adapters[1] * tokens, tokens * flops_per_token(body, config, values)
    return _Flops(
        writing=written,
        reading=written + by_reference + valued + rewarded,
        updating=config.num_ppo_epochs * (tokens * once + valuing + responses * output),
    )


def _value_rank(plan: PpoPlan) -> int:
    """Rank of the values' adapter, which may come from a reward model."""
    checkpoint = plan.values.checkpoint
    if checkpoint is None or checkpoint.weights.adapter is None:
        return plan.config.lora_r
    rank: int = LoraConfig.from_pretrained(str(checkpoint.weights.adapter)).r
    return rank


def _reward_shapes(plan: PpoPlan) -> Iterator[Shape]:
    """The shapes of all reward models that are loaded into this process."""
    whole = plan.config.model_copy(update={"lora_target_modules": ()})
    for part in (*plan.rewards.parts, *(() if plan.gold is None else plan.gold.parts)):
        if isinstance(part.found, RewardCheckpoints):
            for member in part.found.members:
                described: Any = AutoConfig.from_pretrained(
                    member.weights.base, trust_remote_code=part.found.trust_remote_code
                )
                yield shape_of(whole, described, scores=True)


def render_estimate(estimate: PpoEstimate) -> Table:
    """The estimate as a table of names and values."""
    memory = estimate.memory
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    step = estimate.writing + estimate.reading + estimate.updating
    rows = [
        ("parameters", f"{estimate.parameters:,}, trained: {estimate.trained:,}"),
        ("memory", f"about {memory.total:.1f} GiB"),
        ("  weights", f"{memory.weights:.2f} GiB, of policy, reference and values"),
        ("  adapters", f"{memory.adapters:.2f} GiB"),
        ("  reward models", f"{memory.rewards:.2f} GiB"),
        ("  gradients", f"{memory.gradients:.2f} GiB"),
        ("  optimizer", f"{memory.optimizer:.2f} GiB"),
        ("  activations", f"{memory.activations:.2f} GiB, for the longest episodes"),
        ("  logits", f"{memory.logits:.2f} GiB"),
        ("  cache", f"{memory.cache:.2f} GiB, of the responses that are written at a time"),
        ("steps", f"{estimate.steps:,} of {estimate.episodes:,} episodes, each at most {estimate.tokens:,} new tokens"),
        ("time", f"about {duration(estimate.seconds)}, {duration(step)} a step"),
        ("  writing", duration(estimate.writing)),
        ("  reading", duration(estimate.reading)),
        ("  updating", duration(estimate.updating)),
        (
            "  from",
            f"{estimate.efficiency:.0%} of the operations a second that matrix products reach here: "
            f"{estimate.flops_per_second:.2g}, in writing {estimate.writing_flops_per_second:.2g}",
        ),
        ("", "Without judges, reward functions, looks of the monitor and loading. Responses count at full length."),
        ("", "All of this is estimated: expect the truth within a factor of two, and on a GPU more time for writing."),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table
