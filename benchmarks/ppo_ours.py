"""Our arms of `ppo.py`, and what all arms need: the reward model and the encoded prompts. Loads torch."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import TaskType
from ppo_meter import SCORING, UPDATE, WRITING, Meter
from ppo_records import JOB, OURS_FULL_SHARED, OURS_LORA, OURS_LORA_SHARED, Measured, TrlJob, Workload
from rich.console import Console
from transformers import AutoModelForSequenceClassification

from cai.data.prompts import PromptSource, read_prompts
from cai.data.rows import ignore
from cai.errors import ConfigError
from cai.train.config import RewardConfig
from cai.train.models import find_start, lora_config, stop_tokens
from cai.train.ppo import run, trainer
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.plan import plan_ppo
from cai.train.ppo.prompts import PromptOrder
from cai.train.ppo.rewards import ModelReward

REWARD, PROMPTS = "reward", "prompts.jsonl"
_SAME = (
    *("seed", "learning_rate", "lr_scheduler_type", "weight_decay", "adam_epsilon", "max_grad_norm"),
    *("per_device_train_batch_size", "num_mini_batches", "num_ppo_epochs", "response_length", "temperature"),
    *("missing_eos_penalty", "kl_coef", "kl_estimator", "gamma", "lam", "cliprange", "cliprange_value", "vf_coef"),
    *("whiten_rewards", "total_episodes", "gradient_checkpointing", "bf16"),
)
"""Settings that both trainers have by the same name."""


class _Enough(BaseException):
    """All steps are measured; nothing need be saved."""


def prepare(load: Workload, folder: Path) -> None:
    """Write the reward model, the prompts and the job of TRL's arms.

    Raises:
        ConfigError: there are fewer prompts; the model stops at tokens that TRL's trainer cannot be told of.
    """
    source = PromptSource(path=load.data)
    found = list(islice(read_prompts(source, kind="red_team", on_reject=ignore), load.prompts))
    if len(found) < load.prompts:
        raise ConfigError(f"--prompts {load.prompts} are more than the {len(found)} of {load.data}")
    lines = (json.dumps({"messages": [message.model_dump() for message in prompt.messages]}) for prompt in found)
    (folder / PROMPTS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    save_reward_model(load, folder / REWARD)
    config = ppo_config(load, folder, OURS_LORA)
    plan = plan_ppo(config)
    stops, end = stop_tokens(plan.start.weights.base, plan.start.tokenizer), plan.start.tokenizer.eos_token_id
    if stops != {end}:
        raise ConfigError(f"{load.model} stops at the tokens {sorted(stops)}; TRL's PPOTrainer knows one, {end}")
    order = PromptOrder(len(plan.prompts), config.batch_size, config.seed)
    lora = lora_config(config, TaskType.CAUSAL_LM)
    job = TrlJob(
        model=plan.start.weights.base,
        reward=str(folder / REWARD),
        steps=load.steps,
        prompts=tuple(plan.prompts[row].ids for batch in range(config.steps + 1) for row in order.rows(batch)),
        arguments={
            **{name: getattr(config, name) for name in _SAME},
            "gradient_accumulation_steps": load.batch_size // load.micro_batch,
            "local_rollout_forward_batch_size": config.rows(_device(load)),
            "use_cpu": _device(load) == "cpu",
        },
        lora={name: getattr(lora, name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")},
    )
    (folder / JOB).write_text(job.model_dump_json(), encoding="utf-8")


def _device(load: Workload) -> str:
    return "cuda" if torch.cuda.is_available() and not load.use_cpu else "cpu"


def save_reward_model(load: Workload, folder: Path) -> None:
    """The model itself with a head that reads a random direction."""
    start = find_start(RewardConfig(model=load.model), generates=True)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(start.weights.base, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    model.config.get_text_config().pad_token_id = start.tokenizer.pad_token_id
    model.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)


def ppo_config(load: Workload, folder: Path, arm: str) -> PpoConfig:
    """Our settings, from which those of TRL are taken; without the monitor and checkpoints, which TRL does not have."""
    return PpoConfig.model_validate(
        {
            "model": load.model,
            "prompts": [{"path": str(folder / PROMPTS)}],
            "rewards": [{"model": str(folder / REWARD)}],
            "use_peft": arm in (OURS_LORA, OURS_LORA_SHARED),
            "shared_trunk": arm in (OURS_LORA_SHARED, OURS_FULL_SHARED),
            "batch_size": load.batch_size,
            "total_episodes": (load.steps + 1) * load.batch_size,
            "response_length": load.response_length,
            "num_ppo_epochs": load.epochs,
            "per_device_train_batch_size": load.micro_batch,
            "bf16": load.bf16,
            "use_cpu": load.use_cpu,
            "probe": {"prompts": 0},
            "save_steps": load.steps + 2,
            "report_to": ["none"],
        }
    )


def measure(arm: str, load: Workload, folder: Path) -> Measured:
    """Train for the steps wanted, as `cai train ppo` does it; `folder` is that of `prepare`."""
    config = ppo_config(load, folder, arm)
    plan, meter = plan_ppo(config), Meter(load.steps, _device(load))
    (end,) = stop_tokens(plan.start.weights.base, plan.start.tokenizer)
    write, step = meter.timed(WRITING, trainer.write_responses), trainer.PpoTrainer.step

    def written(actor: Any, prompts: Sequence[Sequence[int]], *others: Any, **named: Any) -> list[list[int]]:
        found: list[list[int]] = write(actor, prompts, *others, **named)
        meter.count(
            prompt_tokens=sum(map(len, prompts)),
            tokens=sum(map(len, found)),
            ended=sum(row[-1] == end for row in found),
        )
        return found

    def stepped(self: trainer.PpoTrainer) -> dict[str, float]:
        metrics = step(self)
        if meter.step_ended():
            raise _Enough
        return metrics

    with ExitStack() as hooks:
        hooks.enter_context(patch.object(trainer, "write_responses", written))
        hooks.enter_context(patch.object(ModelReward, "score", meter.timed(SCORING, ModelReward.score)))
        hooks.enter_context(patch.object(trainer, "optimise", meter.timed(UPDATE, trainer.optimise)))
        hooks.enter_context(patch.object(trainer.PpoTrainer, "step", stepped))
        try:
            run.train_ppo(plan, folder / arm, Console(stderr=True, force_terminal=False), overwrite=True)
        except _Enough:
            return Measured.model_validate(meter.found())
    raise AssertionError("the training has fewer steps than are measured")
