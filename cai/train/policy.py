"""Training of language models: SFT (Bai et al. 2022, section 3) and DPO (Rafailov et al. 2023)."""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from cai.config import EngineConfig
from cai.train.collapse import COLLAPSE, CollapseCheck, check_collapse, held_prompts, write_collapse
from cai.train.lifecycle import TrainedModel
from cai.train.models import load_policy
from cai.train.plan import Plan
from cai.train.run import Training, last_metrics, run_trl, save_trained, train_model
from cai.train.trainers import PlainSftTrainer, SoftDpoTrainer


def train_sft(
    plan: Plan[Any, Any], out: Path, console: Console, *, command: Sequence[str] = (), overwrite: bool = False
) -> TrainedModel | None:
    """Fine-tune by a plan, or go on with it.

    Raises:
        KeyboardInterrupt, CaiError: see `run.run_trl`.
    """
    return _train(PlainSftTrainer, plan, out, console, command=command, overwrite=overwrite)


def train_dpo(
    plan: Plan[Any, Any], out: Path, console: Console, *, command: Sequence[str] = (), overwrite: bool = False
) -> TrainedModel | None:
    """Optimise on preferences by a plan, or go on with it.

    The reference's log-probabilities are computed once, before the first step, and kept on disk; so no second model is
    in memory, and a run that goes on does not compute them again.

    Raises:
        KeyboardInterrupt, CaiError: see `run.run_trl`.
    """
    trainer = partial(
        SoftDpoTrainer,
        soft=plan.config.loss_type == "soft",
        pad_token_id=plan.start.tokenizer.pad_token_id,
    )
    return _train(trainer, plan, out, console, command=command, overwrite=overwrite)


def _train(
    make_trainer: Callable[..., Any],
    plan: Plan[Any, Any],
    out: Path,
    console: Console,
    *,
    command: Sequence[str],
    overwrite: bool,
) -> TrainedModel | None:
    training = Training(
        plan=plan,
        out=out,
        folder=out,
        seed=plan.config.seed,
        load_model=load_policy,
        make_trainer=make_trainer,
        architecture=AutoModelForCausalLM,
        continues_adapter=True,
    )

    def work() -> Mapping[str, Any]:
        trainer = train_model(training, console)
        save_trained(training, trainer, {})
        metrics, main = last_metrics(trainer), trainer.args.process_index == 0
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
        check = look_at_replies(plan, out, console) if main and plan.config.collapse.prompts else None
        figures = None if check is None else check.model_dump(mode="json", exclude={"replies"})
        return {"metrics": metrics, "collapse": figures}

    return run_trl(plan, out, work, other_files=(COLLAPSE,), command=command, overwrite=overwrite)


def look_at_replies(plan: Plan[Any, Any], out: Path, console: Console) -> CollapseCheck:
    """Compare the trained model's replies with its start's, and write the comparison down."""
    config = plan.config
    prompts = held_prompts(
        (row.prompt for row in plan.test.items),
        (row.prompt for row in plan.train.items),
        config.collapse.prompts,
        config.seed,
    )
    device = "cpu" if config.use_cpu else "auto"
    where: dict[str, Any] = {"device": device, "trust_remote_code": config.trust_remote_code}
    check = check_collapse(
        EngineConfig(model=config.model, adapter=config.adapter, **where),
        EngineConfig(model=str(out), **where),
        prompts.prompts,
        max_tokens=config.collapse.max_tokens,
        seed=config.seed,
        note=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    write_collapse(check, out)
    return check
