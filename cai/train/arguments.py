"""From our configurations to TRL's own arguments."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl import DPOConfig as TrlDpoConfig, RewardConfig as TrlRewardConfig, SFTConfig as TrlSftConfig

from cai.errors import ConfigError, Problem
from cai.strict_yaml import nearest
from cai.train.config import DpoConfig, Kind, RewardConfig, SftConfig, TrlConfig
from cai.train.precision import training_device, trains_in_bf16

if TYPE_CHECKING:
    from cai.train.plan import Plan

_SAME = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "max_grad_norm",
    "gradient_checkpointing",
    "logging_steps",
    "save_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
)
"""Arguments that pass through as they are."""

_ARGUMENTS: dict[Kind, Any] = {"sft": TrlSftConfig, "reward": TrlRewardConfig, "dpo": TrlDpoConfig}


def trainer_arguments(plan: "Plan[Any, Any]", folder: Path, seed: int) -> Any:
    """TRL's arguments for a plan; checkpoints go below `folder`.

    Raises:
        ConfigError: TRL refuses a value.
    """
    config: TrlConfig = plan.config
    same = {name: getattr(config, name) for name in _SAME}
    try:
        return _ARGUMENTS[plan.kind](**{**same, **_common(plan, folder), **_own(plan), "seed": seed}, **config.trainer)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"TRL does not take these arguments: {' '.join(str(error).split())}") from None


def _common(plan: "Plan[Any, Any]", folder: Path) -> dict[str, Any]:
    config = plan.config
    return {
        "output_dir": str(folder),
        "use_cpu": training_device(config).type == "cpu",
        "bf16": trains_in_bf16(config),
        "eval_strategy": "steps" if plan.test.items else "no",
        "eval_steps": 1,  # `AskedSteps` sets it, once the number of steps in an epoch is known
        "save_strategy": "steps",
        "save_total_limit": None,  # `CheckpointKeeper` removes old ones
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it logs another number where the loss is none
        "disable_tqdm": True,
        "report_to": [name for name in config.report_to if name not in ("tensorboard", "none")],
        "dataloader_pin_memory": training_device(config).type == "cuda",
        "run_name": folder.parent.name,
    }


def _own(plan: "Plan[Any, Any]") -> dict[str, Any]:
    """Arguments of one kind of training alone."""
    config = plan.config
    if isinstance(config, SftConfig):
        return {"packing": config.packing, "max_length": plan.start.max_length if config.packing else None}
    if isinstance(config, RewardConfig):
        return {"center_rewards_coefficient": config.center_rewards_coefficient or None, "max_length": None}
    assert isinstance(config, DpoConfig)
    return {
        "beta": config.beta,
        "loss_type": ["sigmoid" if config.loss_type == "soft" else config.loss_type],
        "precompute_ref_log_probs": True,
        "max_length": None,
    }


def check_further(kind: Kind, config: TrlConfig) -> None:
    """Check the names of the arguments in `trainer`.

    Raises:
        ConfigError: TRL does not know one of them, it is an option of its own or for the run to set, or the loss does
            not read it.
    """
    known = {field.name for field in dataclasses.fields(_ARGUMENTS[kind])}
    soft = isinstance(config, DpoConfig) and config.loss_type == "soft"
    problems = []
    for name in config.trainer:
        if name in type(config).model_fields or name in _SET_HERE:
            message = "is set by an option of its own or by the run; leave it out here"
            problems.append(Problem(message, key=f"trainer.{name}"))
        elif name not in known:
            message = f"is no argument of TRL's trainer{nearest(name, sorted(known))}"
            problems.append(Problem(message, key=f"trainer.{name}"))
        elif soft and name in _OF_TRLS_LOSSES:
            message = "has no effect on loss_type soft; name one of TRL's losses"
            problems.append(Problem(message, key=f"trainer.{name}"))
    if problems:
        raise ConfigError(problems)


_SET_HERE = (
    "output_dir",
    "eval_strategy",
    "save_strategy",
    "logging_first_step",
    "logging_nan_inf_filter",
    "disable_tqdm",
    "dataloader_pin_memory",
    "run_name",
    "precompute_ref_log_probs",
    "resume_from_checkpoint",
    "hub_token",  # the manifest would hold it
    "remove_unused_columns",
)
"""Arguments of TRL that are no options here, since the run depends on them."""

_OF_TRLS_LOSSES = (
    "discopop_tau",
    "f_alpha_divergence_coef",
    "f_divergence_type",
    "label_smoothing",
    "ld_alpha",  # in the reference's log-probabilities it would have an effect, a wrong one
    "loss_weights",
    "router_aux_loss_coef",
    "use_weighting",
)
"""Arguments of TRL's DPO that its losses read, and ours on soft labels does not."""
