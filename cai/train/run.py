"""A training by one of TRL's trainers: SFT, reward model or DPO. Beside the files of every training there are

encoded/             the rows as token ids, and the reference's log-probabilities (DPO)
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import ArrayLike
from rich.console import Console
from safetensors import SafetensorError
from transformers import PrinterCallback, set_seed
from transformers.integrations import TensorBoardCallback

from cai.engines.weights import TRAINED, Weights
from cai.errors import ConfigError, StageError
from cai.journal import partial_path, whole_folder
from cai.train.arguments import trainer_arguments
from cai.train.callbacks import AskedSteps, MetricsFile, Progress, StopOnSignal, gentle_stop
from cai.train.card import write_model_cards
from cai.train.checkpoints import CheckpointKeeper, last_checkpoint, remove_torn, tokens_before
from cai.train.config import TrainConfig
from cai.train.curves import write_curves
from cai.train.lifecycle import CHECKPOINTS, CURVES, START, TENSORBOARD, TrainedModel, run_training
from cai.train.models import Start, complete_model, merge_start
from cai.train.monitor.files import METRICS
from cai.train.plan import Plan
from cai.train.precision import weights_dtype

_ENCODED = "encoded"


@dataclass(frozen=True)
class Training:
    """One model to train within a run."""

    plan: Plan[Any, Any]
    out: Path
    """The run directory."""
    folder: Path
    """Where the model goes: the run directory, or a member's folder in it."""
    seed: int
    load_model: Callable[[Start, TrainConfig, torch.dtype], Any]
    make_trainer: Callable[..., Any]
    """Takes TRL's arguments, the data sets, callbacks and the model; gives a trainer."""
    architecture: Any
    """transformers' class that loads the trained model."""
    continues_adapter: bool
    """Whether an adapter of the start may be trained on; else it is merged into the start's weights first."""


def train_model(training: Training, console: Console) -> Any:
    """Train one model, from its newest whole checkpoint where there is one, and return the trainer.

    Raises:
        KeyboardInterrupt: stopped by a signal; there is a checkpoint to go on from.
        StageError: the loss is not a number any more; the message says what to try.
    """
    plan, folder, config = training.plan, training.folder, training.plan.config
    # 1. One directory for all processes, one process that writes.
    checkpoints = folder / CHECKPOINTS
    arguments = trainer_arguments(plan, checkpoints, training.seed)
    main = arguments.process_index == 0
    note = _note(console, main)
    merges = plan.start.weights.adapter is not None and not (training.continues_adapter and config.use_peft)
    # 2. The rows as token ids on disk, where TRL keeps the reference's log-probabilities beside them.
    if main:
        for name in remove_torn(checkpoints):
            note(f"{name} is torn, the process died while it was written; removed")
        _write_encoded(training.out / _ENCODED, plan)
        if merges:
            merge_start(plan.start, config, training.out / START)
    arguments.distributed_state.wait_for_everyone()
    train, test = _read_encoded(training.out / _ENCODED)
    start = replace(plan.start, weights=Weights(str((training.out / START).absolute()), None)) if merges else plan.start
    # 3. The model as it is at the start; a checkpoint is read over it.
    set_seed(training.seed)
    model = training.load_model(start, config, weights_dtype(config))
    stop, progress = StopOnSignal(), Progress(console)
    callbacks = [progress, AskedSteps(config.eval_steps), MetricsFile(folder / METRICS), stop]
    if "tensorboard" in config.report_to and main:
        callbacks.append(_tensorboard(folder / TENSORBOARD))
    try:
        trainer = training.make_trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=test,
            processing_class=plan.start.tokenizer,
            callbacks=callbacks,
            group_by_length=config.group_by_length,
        )
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"TRL does not take these settings: {' '.join(str(error).split())}") from None
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(CheckpointKeeper(config.save_total_limit, lambda: trainer._total_train_tokens))
    # 4. Train.
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint is not None:
        note(f"going on from {checkpoint.name}")
        trainer._total_train_tokens = tokens_before(checkpoint)  # TRL counts them and forgets
    try:
        with gentle_stop(stop, note) if arguments.world_size == 1 else nullcontext():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except SafetensorError as error:
        raise StageError(
            f"{checkpoint} is damaged ({error}); remove it, and the same command goes on from the one before"
        ) from None
    finally:
        progress.close()
    if stop.asked:
        raise KeyboardInterrupt
    check_finite("loss", [entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    if main:
        write_curves(trainer.state.log_history, folder / CURVES)
    return trainer


def check_finite(name: str, values: ArrayLike) -> None:
    """Check that all values of a figure of that name are numbers.

    Raises:
        StageError: one is not; the message says what to try.
    """
    if not np.isfinite(values).all():
        raise StageError(
            f"the {name} is not a number any more, so the weights are worth nothing; try a lower learning_rate, or "
            "bf16: false, with --overwrite"
        )


def save_trained(training: Training, trainer: Any, settings: Mapping[str, Any]) -> None:
    """Write the trained model, whole or not at all; all processes take part."""
    target, plan = training.folder / TRAINED, training.plan
    main = trainer.args.process_index == 0
    with whole_folder(target) if main else nullcontext(partial_path(target)) as folder:
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(folder))
        trainer.accelerator.wait_for_everyone()
        if main:
            merge = plan.config.merge_adapter
            complete_model(folder, plan.start, training.architecture, merge=merge, settings=settings)


def run_trl(
    plan: Plan[Any, Any],
    out: Path,
    work: Callable[[], Mapping[str, Any]],
    *,
    other_files: Sequence[str] = (),
    command: Sequence[str] = (),
    overwrite: bool = False,
) -> TrainedModel | None:
    """Do the `work` of a plan in its run directory; see `run_training`.

    Raises:
        KeyboardInterrupt, CaiError: as `run_training`.
    """
    datasets.disable_progress_bars()
    trainer_arguments(plan, out / CHECKPOINTS, plan.config.seed)  # what TRL refuses, before anything is written
    return run_training(
        plan,
        out,
        work,
        partial(write_model_cards, out, plan),
        other_files=(_ENCODED, *other_files),
        command=command,
        overwrite=overwrite,
    )


def last_metrics(trainer: Any) -> Mapping[str, float]:
    """The latest value of each figure that the trainer logged."""
    found: dict[str, float] = {}
    for entry in trainer.state.log_history:
        found |= entry
    return found


def _note(console: Console, main: bool) -> Callable[[str], None]:
    def note(text: str) -> None:
        if main:
            console.print(text, markup=False, soft_wrap=True)

    return note


def _write_encoded(folder: Path, plan: Plan[Any, Any]) -> None:
    """Put the encoded rows on disk, whole or not at all; those of an interrupted run are the same ones."""
    if folder.is_dir():
        return
    with whole_folder(folder) as written:
        for name, split in (("train", plan.train), ("test", plan.test)):
            if split.columns:
                datasets.Dataset.from_list([dict(row) for row in split.columns]).save_to_disk(str(written / name))


def _read_encoded(folder: Path) -> tuple[Any, Any]:
    test = folder / "test"
    return (
        datasets.load_from_disk(str(folder / "train")),
        datasets.load_from_disk(str(test)) if test.is_dir() else None,
    )


def _tensorboard(folder: Path) -> TensorBoardCallback:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "report_to: tensorboard is not installed; pip install tensorboard, or --report-to none"
        ) from None
    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))
