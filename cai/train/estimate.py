"""What a training would take, before any weights are read: memory by part, steps, time.

All figures are estimates for one device. Memory is an upper bound of sorts: it adds up what is largest at different
moments (activations at the end of the forward pass, gradients at the end of the backward pass), for a batch of the
longest sequences.
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from cai.errors import ConfigError
from cai.progress import duration
from cai.records import Record
from cai.train.config import DpoConfig, RewardConfig, SftConfig, TrainConfig
from cai.train.plan import Plan
from cai.train.precision import trains_in_bf16, weights_dtype

EFFICIENCY = 0.5
"""Share of the rate of bare matrix products, of the model's width, that a whole training step reaches. Measured with a
model of 135M parameters on a busy CPU: 0.36 to 0.91, mostly near a half."""

GIB = 2**30
_MEASURED_SECONDS = 0.2
_TILE = (4096, 32768)
"""Tokens and vocabulary entries whose logits TRL's fused head holds at a time."""
_TILE_COPIES = 9
"""Tiles in float32 that it holds in the backward pass where it computes without Triton, as on a CPU (measured)."""


class MemoryEstimate(Record):
    """GiB on the device, by part."""

    weights: float
    """With their copies in bfloat16 where mixed precision makes them."""
    gradients: float
    optimizer: float
    """AdamW's two moments."""
    activations: float
    """What the layers keep for the backward pass, of one batch of the longest sequences."""
    head: float
    """What the output layer needs: the last hidden states, and logits of a part of the vocabulary at a time."""

    @property
    def total(self) -> float:
        """GiB of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


class TrainingEstimate(Record):
    """What a training would take on one device; every figure but the counts is an estimate."""

    parameters: int
    """Of the model, without an adapter."""
    trained: int
    """Parameters that training changes."""
    memory: MemoryEstimate
    tokens: int
    """Tokens of one epoch, without padding."""
    steps: int
    """Optimizer steps of the whole training."""
    flops: float
    """Floating-point operations of the whole training."""
    flops_per_second: float
    """Measured on this device, for matrix products alone."""
    efficiency: float = EFFICIENCY
    seconds: float
    """Of training alone: loading, evaluation, checkpoints and padding come on top."""


class Shape(NamedTuple):
    """Sizes of a transformer that activations and operations depend on."""

    parameters: int
    body: int
    """Parameters without the output layer, where that has some of its own."""
    multiplied: int
    """Parameters that each token is multiplied with: all matrices, the output layer among them, no look-ups."""
    output: int
    """Those of them that are the output layer's."""
    adapted: tuple[tuple[int, int], ...]
    """Inputs and outputs of each layer that an adapter would stand beside."""
    hidden: int
    heads: int
    """Width of all query heads together."""
    cached: int
    """Width of all key heads together; a cache holds as many keys as values."""
    inner: int
    """Width of the feed-forward layer."""
    gated: bool
    """Whether that layer has a gate beside its input, as SwiGLU has."""
    layers: int
    vocabulary: int


def estimate_training(
    config: SftConfig | RewardConfig | DpoConfig,
    model_config: Any,
    lengths: Sequence[int],
    *,
    max_length: int,
    device: str,
    weights: torch.dtype,
    bf16: bool,
    flops_per_second: float,
) -> TrainingEstimate:
    """Estimate a training of the model that `model_config`, of transformers, describes.

    `lengths` are the tokens of each encoded sequence of an epoch, one after the other; a pair has two.
    `max_length` is that of packed rows. `weights` is the weights' precision, `bf16` means mixed precision.
    `flops_per_second` comes from `measured_flops`.

    Operations (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; attention scores are left out as there): 2 for each
    parameter and token in the forward pass, 2 for the gradients of the activations, 2 for those of the weights. Frozen
    weights have no gradients: 4. Checkpointing repeats the forward pass. DPO reads its data once with the reference
    model, whose log-probabilities are kept, so that it takes no memory. Experts are counted as if all of them
    computed, so that time is overestimated for a model that has some.

    Raises:
        ConfigError: transformers has no model of this architecture and kind; no layer has a name of
            `lora_target_modules`.
    """
    scores = isinstance(config, RewardConfig)
    shape = shape_of(config, model_config, scores=scores)
    trained = shape.parameters
    if config.use_peft:
        trained = adapter_parameters(shape, config.lora_r) + (shape.output if scores else 0)
    sequences = 1 if isinstance(config, SftConfig) else 2
    tokens, rows, longest = sum(lengths), len(lengths) // sequences, max(lengths)
    if isinstance(config, SftConfig) and config.packing:
        rows, longest = math.ceil(tokens / max_length), max_length
    batches = math.ceil(rows / config.per_device_train_batch_size)
    an_epoch = math.ceil(batches / config.gradient_accumulation_steps)
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * an_epoch)
    flops = tokens * steps / an_epoch * flops_per_token(shape, config, trained)
    if isinstance(config, DpoConfig):
        flops += tokens * 2 * shape.multiplied
    if isinstance(config, RewardConfig):
        flops *= config.ensemble
    in_batch = config.per_device_train_batch_size * sequences * longest
    return TrainingEstimate(
        parameters=shape.parameters,
        trained=trained,
        memory=_memory(shape, config, trained, in_batch, device, weights.itemsize, bf16),
        tokens=tokens,
        steps=steps,
        flops=flops,
        flops_per_second=flops_per_second,
        seconds=flops / (flops_per_second * EFFICIENCY),
    )


def estimate_plan(plan: Plan[Any, Any]) -> TrainingEstimate:
    """Estimate a planned training on this machine; takes a fraction of a second of its device.

    Raises:
        ConfigError: as `estimate_training` does.
    """
    config = plan.config
    device = "cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu"
    bf16 = trains_in_bf16(config)
    dtype = torch.bfloat16 if bf16 else torch.float32
    return estimate_training(
        config,
        plan.start.config,
        [length for columns in plan.train.columns for length in _lengths(columns)],
        max_length=plan.start.max_length,
        device=device,
        weights=weights_dtype(config),
        bf16=bf16,
        flops_per_second=measured_flops(device, dtype, plan.start.config.get_text_config().hidden_size),
    )


def _lengths(columns: Mapping[str, Any]) -> list[int]:
    """Tokens of each sequence of an encoded row: of a conversation, or of both of a pair."""
    if "input_ids" in columns:
        return [len(columns["input_ids"])]
    prompt = len(columns.get("prompt_ids", ()))
    return [prompt + len(columns[side]) for side in ("chosen_ids", "rejected_ids")]


def measured_flops(device: str, dtype: torch.dtype, hidden: int, tokens: int = 512) -> float:
    """Floating-point operations a second in products of so many tokens with a matrix of `hidden` to 4·`hidden`."""
    left = torch.ones(tokens, hidden, device=device, dtype=dtype)
    right = torch.ones(hidden, 4 * hidden, device=device, dtype=dtype)
    left[:8] @ right  # the first call sets things up
    count, seconds = 0, 0.0
    while seconds < _MEASURED_SECONDS:
        count = max(1, 2 * count)  # more at a time, so that a GPU is not idle between them
        began = time.perf_counter()
        for _ in range(count):
            left @ right
        if left.device.type == "cuda":
            torch.cuda.synchronize(left.device)
        seconds = time.perf_counter() - began
    return 2 * tokens * hidden * 4 * hidden * count / seconds


def shape_of(config: TrainConfig, model_config: Any, *, scores: bool) -> Shape:
    """Build a model without memory for its weights, and read its sizes off: a reward model, or one that writes.

    Raises:
        ConfigError: transformers has no model of this architecture and kind; no layer has a name of
            `lora_target_modules`.
    """
    described = copy.deepcopy(model_config)
    if scores:
        described.num_labels = 1
    architecture = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = architecture.from_config(described, trust_remote_code=config.trust_remote_code)
    except ValueError as error:
        raise ConfigError(f"this training cannot be estimated: {' '.join(str(error).split())}") from None
    head = model.score if scores else model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }
    lookups = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    parameters = list(model.parameters())
    matrices = sum(one.numel() for one in parameters if one.ndim > 1 and id(one) not in lookups)
    tied = head.weight.numel() if id(head.weight) in lookups else 0
    targets = config.lora_target_modules
    adapted = [_sizes(one) for name, one in layers.items() if not targets or name.endswith(_suffixes(name, targets))]
    if not adapted:
        raise ConfigError(f"lora_target_modules: no linear layer is named {' or '.join(targets)}")
    text = model_config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        parameters=sum(one.numel() for one in parameters),
        body=sum(one.numel() for one in model.base_model.parameters()),
        multiplied=matrices + tied,
        output=head.weight.numel(),
        adapted=tuple(adapted),
        hidden=text.hidden_size,
        heads=text.num_attention_heads * head_size,
        cached=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * head_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        gated=any("gate" in name for name in layers),
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
    )


def _suffixes(name: str, targets: Sequence[str]) -> tuple[str, ...]:
    """What a layer's name may end with to be one of PEFT's `targets`."""
    return tuple(target if name == target else f".{target}" for target in targets)


def _sizes(layer: torch.nn.Module) -> tuple[int, int]:
    """Inputs and outputs."""
    rows, columns = layer.weight.shape  # type: ignore[misc]
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Parameters of an adapter of all layers that are adapted."""
    return rank * sum(sum(sizes) for sizes in shape.adapted)


def flops_per_token(shape: Shape, config: TrainConfig, trained: int) -> int:
    """Operations of a forward and a backward pass; see `estimate_training`."""
    forward = 2 * shape.multiplied
    backward = 2 * forward
    if config.use_peft:
        forward, backward = forward + 2 * trained, forward + 4 * trained
    return forward * (2 if config.gradient_checkpointing else 1) + backward


def _memory(
    shape: Shape, config: TrainConfig, trained: int, tokens: int, device: str, weight: int, bf16: bool
) -> MemoryEstimate:
    """GiB for a batch of `tokens`; `weight` is the size of a weight in bytes."""
    own = 4 if config.use_peft else weight  # PEFT holds adapters in float32
    operand = 2 if bf16 else weight
    copies = operand * shape.multiplied if operand < weight else 0
    adapters = own * trained if config.use_peft else 0
    layer = layer_bytes(shape, config, weight, bf16)
    kept = shape.layers * weight * shape.hidden + layer if config.gradient_checkpointing else shape.layers * layer
    head = tokens * (4 + weight + operand) * shape.hidden
    if not isinstance(config, RewardConfig):
        tile = min(tokens, _TILE[0]) * min(shape.vocabulary, _TILE[1])
        head += tile * (operand if device.startswith("cuda") else 4 * _TILE_COPIES)
    return MemoryEstimate(
        weights=(weight * shape.parameters + copies + adapters) / GIB,
        gradients=own * trained / GIB,
        optimizer=2 * own * trained / GIB,
        activations=tokens * kept / GIB,
        head=head / GIB,
    )


def layer_bytes(shape: Shape, config: TrainConfig, weight: int, bf16: bool) -> int:
    """Bytes that one layer keeps for the backward pass, for each token.

    The count is that of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1: 34·h and the scores of attention) for
    the layers of transformers. What differs: norms compute in float32 and keep their input so; attention never holds
    all its scores, so that nothing grows with the square of the length, but repeats grouped keys and values; there is
    no dropout; a gated feed-forward layer keeps four tensors of its inner width. Under mixed precision the matrices'
    inputs are kept as copies, one for each matrix. An adapter keeps its own input where the precision differs, and
    what is between its two matrices.
    """
    operand = 2 if bf16 else weight
    norms = 2 * (4 + weight) * shape.hidden + operand * shape.hidden * (5 if operand < weight else 2)
    attention = 4 * operand * shape.heads
    feed_forward = operand * shape.inner * (4 if shape.gated else 2)
    total = norms + attention + feed_forward
    if config.use_peft:
        inputs = 0 if operand == 4 else 2 if bf16 else 4
        adapted = sum(inputs * size + 4 * config.lora_r for size, _ in shape.adapted)
        total += adapted // shape.layers
    return total


def render_estimate(estimate: TrainingEstimate) -> Table:
    """The estimate as a table of names and values."""
    memory = estimate.memory
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    rows = [
        ("parameters", f"{estimate.parameters:,}, trained: {estimate.trained:,}"),
        ("memory", f"about {memory.total:.1f} GiB"),
        ("  weights", f"{memory.weights:.2f} GiB"),
        ("  gradients", f"{memory.gradients:.2f} GiB"),
        ("  optimizer", f"{memory.optimizer:.2f} GiB"),
        ("  activations", f"{memory.activations:.2f} GiB for a batch of the longest rows"),
        ("  output layer", f"{memory.head:.2f} GiB"),
        ("tokens an epoch", f"{estimate.tokens:,}"),
        ("steps", f"{estimate.steps:,}"),
        ("time", f"about {duration(estimate.seconds)}, without loading, evaluation and padding"),
        (
            "  from",
            f"{estimate.flops:.2g} operations at {estimate.efficiency:.0%} of the {estimate.flops_per_second:.2g} a "
            "second that matrix products reach here",
        ),
        ("", "All of this is estimated: expect the truth within a factor of two."),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table
