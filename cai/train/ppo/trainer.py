"""The loop of PPO, one batch of episodes after the other."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object
from torch import Tensor
from transformers import get_scheduler

from cai.errors import ConfigError, StageError
from cai.records import stable_seed
from cai.train.checkpoints import checkpoint_path, finish_checkpoint, last_checkpoint
from cai.train.lifecycle import TENSORBOARD
from cai.train.models import stop_tokens
from cai.train.ppo.actor import Role, Texts
from cai.train.ppo.checkpoint import PpoState, read_checkpoint, write_checkpoint
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.loading import load_actor_critic
from cai.train.ppo.math import (
    AdaptiveKL,
    FixedKL,
    advantages_and_returns,
    explained_variance,
    kl_k1,
    kl_k3,
    moments,
    token_rewards,
    whiten,
)
from cai.train.ppo.plan import EncodedPrompt, PpoPlan
from cai.train.ppo.prompts import PromptOrder
from cai.train.ppo.rewards import RewardSource, Scored
from cai.train.ppo.rollout import padded, read_responses, write_responses
from cai.train.ppo.update import Episodes, optimise
from cai.train.ppo.vllm_config import VllmRolloutConfig
from cai.train.precision import trains_in_bf16

if TYPE_CHECKING:
    from cai.train.ppo.vllm_writer import VllmWriter


@dataclass(frozen=True)
class Rollouts:
    """Responses of the policy, what they are worth, and what all roles make of their tokens; n episodes, T tokens."""

    prompts: tuple[EncodedPrompt, ...]
    responses: tuple[str, ...]
    ended: tuple[bool, ...]
    """Whether a response ended by itself and was not cut."""
    texts: Texts
    scored: Scored
    scores: Tensor
    """(n,): with the penalty of those that did not end; 0 where there is none."""
    mask: Tensor
    """(n, T): tokens of the responses that have a score."""
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor


class PpoTrainer:
    """Trains one policy."""

    def __init__(self, plan: PpoPlan, reward: RewardSource, folder: Path) -> None:
        """Load the models, and the newest whole checkpoint below `folder` where there is one.

        Raises:
            ConfigError: the batch does not divide among the processes.
            EngineError: weights cannot be loaded.
            StageError: the checkpoint is damaged.
        """
        config = plan.config
        self.config: PpoConfig = config
        self.plan = plan
        self._reward = reward
        self.accelerator = Accelerator(
            mixed_precision="bf16" if trains_in_bf16(config) else "no",
            cpu=config.use_cpu or not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            log_with=[name for name in config.report_to if name != "none"] or None,
            project_dir=str(folder.parent),
        )
        check_batch(config, self.accelerator.num_processes)
        actor = load_actor_critic(plan.start, config, plan.values)
        optimizer = torch.optim.AdamW(
            actor.trained(), lr=config.learning_rate, eps=config.adam_epsilon, weight_decay=config.weight_decay
        )
        self.model, self._optimizer = self.accelerator.prepare(actor, optimizer)
        self.actor = self.accelerator.unwrap_model(self.model)
        self._rate = learning_rates(config)
        self._order = PromptOrder(len(plan.prompts), config.batch_size, config.seed)
        self._stops = frozenset(stop_tokens(plan.start.weights.base, plan.start.tokenizer))
        self._rows = config.rows(self.accelerator.device.type)
        self._writer = None if config.vllm is None else self._server(config.vllm, folder.parent)
        self._synced: int | None = None
        self.checkpoints = folder
        checkpoint = last_checkpoint(folder)
        self.state = PpoState(kl_coef=config.kl_coef)
        if checkpoint is not None:
            self.state = read_checkpoint(checkpoint, self.actor, self._optimizer.optimizer)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)

    def sync(self) -> None:
        """Have the server, where there is one, write as the policy is now; all processes take part."""
        if self._writer is not None and self._synced != self.state.step:
            self._writer.sync(self.actor, self.state.step)
            self._synced = self.state.step

    def close(self) -> None:
        """Close connections and trackers."""
        if self._writer is not None:
            self._writer.close()
        self.accelerator.end_training()

    def start_trackers(self) -> None:
        """Open the trackers that metrics are sent to."""
        self.accelerator.init_trackers(TENSORBOARD, config={})

    def step(self) -> dict[str, float]:
        """Learn from one batch of episodes; returns its figures, over all processes.

        Raises:
            StageError: too many episodes could not be scored, or the gradients are not finite.
        """
        config, number, began = self.config, self.state.step + 1, time.perf_counter()
        # 1. The prompts of this step; each process has its share.
        places = range(self.accelerator.process_index, config.batch_size, self.accelerator.num_processes)
        rows = self._order.rows(self.state.step)
        prompts = [self.plan.prompts[rows[place]] for place in places]
        # 2. The policy responds. 3. The responses are scored. 4. All roles read them.
        seeds = [stable_seed(config.seed, "episode", number, place) for place in places]
        self.sync()
        rollouts = self.roll_out(prompts, seeds)
        written = time.perf_counter()
        self._check_scored(rollouts.scored)
        # 5. Rewards of tokens: the pull towards the reference everywhere, the score at the end.
        k1, k3 = (estimate(rollouts.logprobs, rollouts.ref_logprobs) for estimate in (kl_k1, kl_k3))
        rewards = token_rewards(
            rollouts.scores, k1 if config.kl_estimator == "k1" else k3, rollouts.mask, self.state.kl_coef
        )
        if config.whiten_rewards:
            rewards = self._whitened(rewards, rollouts.mask, subtract_mean=False)
        # 6. Advantages and returns.
        advantages, returns = advantages_and_returns(rewards, rollouts.values, rollouts.mask, config.gamma, config.lam)
        episodes = Episodes(
            texts=rollouts.texts,
            mask=rollouts.mask,
            logprobs=rollouts.logprobs,
            values=rollouts.values,
            advantages=self._whitened(advantages, rollouts.mask, subtract_mean=True),
            returns=returns,
        )
        # 7. Optimiser steps.
        rate = config.learning_rate * self._rate(self.state.step) * self.state.learning_rate_factor
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        updated = optimise(self.model, self._optimizer, episodes, config, self.accelerator, number)
        ended = time.perf_counter()
        # 8. Figures, the KL coefficient, and the next step.
        figures = self._figures(rollouts, {"kl": k1, "kl_k3": k3, "rewards": rewards})
        tokens = self._sum(rollouts.texts.response_mask.sum())
        explained = explained_variance(*self._gathered(rollouts.values, returns, rollouts.mask))
        metrics = {
            "step": number,
            "episodes": number * config.batch_size,
            **figures,
            "kl_coef": self.state.kl_coef,
            "learning_rate": rate,
            **updated,
            **({} if math.isnan(explained) else {"explained_variance": explained}),
            "tokens_per_second": tokens / (ended - began),
            "seconds_rollout": written - began,
            "seconds_update": ended - written,
        }
        controller = (
            FixedKL(self.state.kl_coef)
            if config.kl_target is None
            else AdaptiveKL(self.state.kl_coef, config.kl_target, config.kl_horizon)
        )
        self.state = self.state.model_copy(
            update={"step": number, "kl_coef": controller.updated(figures["kl"], config.batch_size).coef}
        )
        return metrics

    def roll_out(self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int]) -> Rollouts:
        """Have the policy respond, and its responses scored and read by all roles."""
        config, start = self.config, self.plan.start
        pad = start.tokenizer.pad_token_id
        tokens = self._written([prompt.ids for prompt in prompts], seeds)
        ended = [row[-1] in self._stops for row in tokens]
        said = [row[:-1] if end else row for row, end in zip(tokens, ended, strict=True)]
        responses = [text.strip() for text in start.tokenizer.batch_decode(said, skip_special_tokens=True)]
        scored = self._reward.score([prompt.messages for prompt in prompts], responses)
        texts = padded([prompt.ids for prompt in prompts], tokens, pad, self.accelerator.device)
        has_score = torch.tensor(np.isfinite(scored.scores), device=self.accelerator.device)
        penalty = config.missing_eos_penalty * torch.tensor([not end for end in ended], dtype=torch.float32)
        scores = torch.tensor(np.nan_to_num(scored.scores), dtype=torch.float32) - penalty

        def read(role: Role) -> tuple[Tensor, ...]:
            return read_responses(self.actor, role, texts, temperature=config.temperature, batch_size=self._rows)

        with self.accelerator.autocast():
            (references,) = read("reference")
            logprobs, values = (tensor for role in self.actor.learners for tensor in read(role))
        return Rollouts(
            prompts=tuple(prompts),
            responses=tuple(responses),
            ended=tuple(ended),
            texts=texts,
            scored=scored,
            scores=torch.where(has_score, scores.to(has_score.device), 0.0),
            mask=texts.response_mask & has_score[:, None],
            logprobs=logprobs,
            ref_logprobs=references,
            values=values,
        )

    def save(self, spared: Collection[int] = ()) -> None:
        """Write a checkpoint, and remove old ones but those of the `spared` steps; all processes take part."""
        path = checkpoint_path(self.checkpoints, self.state.step)
        write_checkpoint(path, self.actor, self._optimizer.optimizer, self.state, main=self.main)
        if self.main:
            names = {checkpoint_path(self.checkpoints, step).name for step in spared}
            finish_checkpoint(path, f"{self.state.step} steps\n", self.config.save_total_limit, names)

    def go_back(self, checkpoint: Path) -> None:
        """Take the weights and moments of an earlier checkpoint; where the run stands does not change."""
        read_checkpoint(checkpoint, self.actor, self._optimizer.optimizer)

    def _written(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """Token ids of the policy's responses."""
        if self._writer is not None:
            return self._writer.write(prompts, seeds)
        with self.accelerator.autocast():
            return write_responses(
                self.actor,
                prompts,
                seeds,
                length=self.config.response_length,
                temperature=self.config.temperature,
                stops=self._stops,
                pad=self.plan.start.tokenizer.pad_token_id,
                batch_size=self._rows,
            )

    def _server(self, vllm: VllmRolloutConfig, run: Path) -> "VllmWriter":
        from cai.train.ppo.vllm_writer import VllmWriter

        return VllmWriter(
            vllm,
            run,
            length=self.config.response_length,
            temperature=self.config.temperature,
            stops=self._stops,
            longest_prompt=max(len(prompt.ids) for prompt in (*self.plan.prompts, *self.plan.held)),
            probe=self.plan.prompts[0].ids,
            main=self.main,
        )

    def _figures(self, rollouts: Rollouts, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the episodes that have a score, of all processes; `sums` (n, T) are summed over tokens first."""
        kept = rollouts.mask.any(-1)
        scores = rollouts.scores[kept]
        columns = {
            "score": scores,
            "length": rollouts.mask.sum(-1)[kept].float(),
            "eos_rate": torch.tensor(rollouts.ended, device=kept.device)[kept].float(),
            **{name: torch.where(rollouts.mask, values, 0.0).sum(-1)[kept] for name, values in sums.items()},
        }
        for name, part in rollouts.scored.parts.items():
            columns[f"score/{name}"] = torch.tensor(part, dtype=torch.float32, device=kept.device)[kept]
        means = self.accelerator.gather(
            torch.stack(
                [
                    torch.stack([values.sum() for values in columns.values()]),
                    len(scores) * torch.ones(len(columns), device=kept.device),
                ]
            )[None]
        ).sum(0)
        found = {name: float(total / count) for name, total, count in zip(columns, *means.tolist(), strict=True)}
        spread = self.accelerator.gather(moments(scores, torch.ones_like(scores, dtype=torch.bool))[None])
        variance = (spread[:, 2] + spread[:, 0] * (spread[:, 1] - found["score"]).square()).sum() / spread[:, 0].sum()
        unscored = self.accelerator.num_processes * len(kept) - int(means[1, 0])
        return {**found, "score_std": float(variance.sqrt()), "unscored": float(unscored)}

    def _whitened(self, values: Tensor, mask: Tensor, *, subtract_mean: bool) -> Tensor:
        gathered = self.accelerator.gather(moments(values, mask)[None])
        return whiten(values, mask, subtract_mean=subtract_mean, gathered=gathered)

    def _gathered(self, *tensors: Tensor) -> list[Tensor]:
        """Tensors (n, T) of all processes, one below the other; T is that of the longest response."""
        accelerator = self.accelerator
        return [accelerator.gather(accelerator.pad_across_processes(tensor, dim=1)) for tensor in tensors]

    def _sum(self, value: Tensor) -> float:
        return float(self.accelerator.reduce(value.float(), "sum"))

    def _check_scored(self, scored: Scored) -> None:
        """Stop where more episodes than allowed have no score, or all of them."""
        reasons = Counter(gather_object([reason for reason in scored.reasons if reason is not None]))
        missing, episodes, allowed = reasons.total(), self.config.batch_size, self.config.max_failure_share
        if missing == episodes:
            wrong, remedy = "so there is nothing to learn from", ""
        elif missing > allowed * episodes:
            wrong = f"more than the share of {allowed:g} that is allowed"
            remedy = ", or with a greater max_failure_share"
        else:
            return
        named = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        raise StageError(
            f"{missing} of the {episodes} responses of step {self.state.step + 1} could not be scored ({named}), "
            f"{wrong}; the last checkpoint is kept. Where a server was at fault{remedy}, the same command goes on; a "
            "changed reward is a new run"
        )


def check_batch(config: PpoConfig, processes: int) -> None:
    """Check that a batch can be divided among processes and mini-batches.

    Raises:
        ConfigError: it does not come out even.
    """
    whole = processes * config.num_mini_batches
    if config.batch_size % whole:
        below, above = config.batch_size // whole * whole, -(-config.batch_size // whole) * whole
        near = f"{below} and {above}" if below else f"{above}"
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide into {config.num_mini_batches} mini-batches for each of "
            f"{processes} processes; the nearest that do: {near}"
        )


def learning_rates(config: PpoConfig) -> Callable[[int], float]:
    """Factor of the learning rate after so many batches, by the scheduler's name."""
    warmup = config.warmup_steps if config.warmup_steps >= 1 else config.warmup_steps * config.steps
    scheduler = get_scheduler(
        config.lr_scheduler_type,
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        num_warmup_steps=round(warmup),
        num_training_steps=config.steps,
    )
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor
