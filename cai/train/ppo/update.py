"""One batch of episodes → optimiser steps, by mini-batches, in micro-batches that do not change the result."""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cai.errors import StageError
from cai.records import stable_seed
from cai.train.ppo.actor import Texts, TokenStatistics
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.math import clipped, kl_k3, policy_losses, value_clipped, value_losses
from cai.train.ppo.rollout import by_length, chosen


@dataclass(frozen=True)
class Episodes:
    """What a batch of n episodes is learned from; tensors are (n, T), and count where `mask` is True."""

    texts: Texts
    mask: Tensor
    """Tokens of responses that have a score, bool."""
    logprobs: Tensor
    """Under the policy that wrote them."""
    values: Tensor
    """Of the values that the advantages were computed with."""
    advantages: Tensor
    """Whitened."""
    returns: Tensor


class Sums:
    """Sums over tokens of what the update shows, on the device; they become means over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add values, of any shape, where the mask is True, and count them."""
        kept = values.detach()[mask].double()
        both = torch.stack([kept.sum(), torch.tensor(float(kept.numel()), device=kept.device, dtype=torch.float64)])
        self._sums[name] = self._sums[name] + both if name in self._sums else both

    def means(self, accelerator: Any) -> dict[str, float]:
        """Mean of each that something was counted of, over all processes; in the same order in all of them."""
        names = sorted(self._sums)
        totals = accelerator.reduce(torch.stack([self._sums[name] for name in names]).float(), "sum")
        found = zip(names, totals.tolist(), strict=True)
        return {name: total / count for name, (total, count) in found if count}


def optimise(
    model: Any, optimizer: Any, episodes: Episodes, config: PpoConfig, accelerator: Any, step: int
) -> Mapping[str, float]:
    """Take the optimiser steps of a batch; returns what they looked like, as means over tokens.

    `model` is the actor as the accelerator wraps it. A mini-batch's losses are divided by the tokens of the whole
    mini-batch, over all processes; so the size of micro-batches does not matter, nor the number of processes where the
    batch is one mini-batch. Of several, each process draws its share from its own episodes.

    Raises:
        StageError: the gradients are not finite; nothing was learned from them.
    """
    sums, actor = Sums(), accelerator.unwrap_model(model)
    for epoch in range(config.num_ppo_epochs):
        for number, rows in enumerate(_mini_batches(episodes, config, accelerator, step, epoch)):
            tokens = accelerator.reduce(episodes.mask[rows].sum().float(), "sum").clamp(min=1)
            first = epoch == number == 0
            # The policy's passes come first, then those of the values: with adapters one of the two is on at a time.
            for role in actor.learners:
                parts = list(by_length(episodes.texts, rows, config.per_device_train_batch_size))
                for place, part in enumerate(parts):
                    waits = accelerator.no_sync(model) if place < len(parts) - 1 else nullcontext()
                    with waits:
                        loss = _loss(model, role, episodes, part, config, sums, first) / tokens
                        accelerator.backward(loss * accelerator.num_processes)  # gradients are averaged over processes
            norm = float(accelerator.clip_grad_norm_(actor.trained(), config.max_grad_norm or math.inf))
            if not math.isfinite(norm):
                raise StageError(
                    f"the gradients of step {step} are not finite, and weights that learned from them would be lost; "
                    "start anew with a lower learning_rate, or with bf16: false"
                )
            sums.add("grad_norm", torch.full_like(tokens, norm), torch.ones_like(tokens, dtype=torch.bool))
            optimizer.step()
            optimizer.zero_grad()
    return sums.means(accelerator)


def _mini_batches(episodes: Episodes, config: PpoConfig, accelerator: Any, step: int, epoch: int) -> Iterator[Tensor]:
    """Rows of this process, in an order that follows from seed, step, epoch and process alone."""
    seed = stable_seed(config.seed, "mini-batches", step, epoch, accelerator.process_index)
    rows = torch.randperm(len(episodes.mask), generator=torch.Generator().manual_seed(seed), device="cpu")
    yield from rows.to(episodes.mask.device).chunk(config.num_mini_batches)


def _loss(
    model: Any, role: str, episodes: Episodes, rows: Tensor, config: PpoConfig, sums: Sums, first: bool
) -> Tensor:
    """Sum of a role's losses over the tokens of some rows that count; the values' are multiplied by vf_coef."""
    texts, length = chosen(episodes.texts, rows)
    mask = episodes.mask[rows][:, :length]

    def of(values: Tensor) -> Tensor:
        return values[rows][:, :length]

    read: TokenStatistics = model(role, texts, config.temperature)
    loss = torch.zeros((), device=mask.device)
    if read.values is not None:
        old, returns = of(episodes.values), of(episodes.returns)
        losses = value_losses(read.values, old, returns, config.cliprange_value)
        sums.add("value_loss", losses, mask)
        sums.add("value_clip_fraction", value_clipped(read.values, old, returns, config.cliprange_value), mask)
        loss = loss + config.vf_coef * (losses * mask).sum()
    if read.logprobs is not None and read.entropies is not None:
        old, advantages = of(episodes.logprobs), of(episodes.advantages)
        losses = policy_losses(read.logprobs, old, advantages, config.cliprange)
        ratio = (read.logprobs - old).exp()
        sums.add("policy_loss", losses, mask)
        sums.add("clip_fraction", clipped(read.logprobs, old, advantages, config.cliprange), mask)
        sums.add("ratio", ratio, mask)
        sums.add("approx_kl", kl_k3(old, read.logprobs), mask)
        sums.add("entropy", read.entropies, mask)
        if first:
            sums.add("first_ratio_error", (ratio - 1).abs(), mask)
            # Tokens that were drawn from π have −ln π of its entropy on average, whatever they depend on.
            sums.add("surprise_gap", -old - read.entropies, mask)
        loss = loss + (losses * mask).sum()
    return loss
