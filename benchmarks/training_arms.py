"""One run of one arm of `training.py`, in a process that does nothing else. Loads torch, transformers and TRL."""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from common import machine
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from torch.utils.data import DataLoader
from training_records import GROUPED, PACKED, TRL, Arm, Measured, Part, Rows, Workload
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import (
    DPOConfig as TrlDpoConfig,
    DPOTrainer,
    RewardConfig as TrlRewardConfig,
    RewardTrainer,
    SFTConfig as TrlSftConfig,
    SFTTrainer,
)

from cai.config import load_config
from cai.data.preference_source import PreferenceSource, read_preferences
from cai.data.training_rows import Demonstration, Preference
from cai.errors import DataError
from cai.records import Message
from cai.train.batches import BatchOrder
from cai.train.config import DpoConfig, RewardConfig, SftConfig, TrainConfig
from cai.train.models import find_start, load_policy, load_reward_model
from cai.train.plan import Kind, plan_dpo, plan_reward, plan_sft
from cai.train.precision import trains_in_bf16, weights_dtype
from cai.train.run import Training, train_model
from cai.train.trainers import PlainSftTrainer, SoftDpoTrainer, SoftRewardTrainer

LOGGING_STEPS = 10
PREFERENCES, DEMONSTRATIONS = "preferences.jsonl", "demonstrations.jsonl"


class Stretch:
    """Times and sizes of some batches, added up."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.tokens, self.positions = 0.0, 0.0, 0, 0
        self._since = (0.0, 0.0)

    def start(self) -> None:
        self._since = _now()

    def stop(self) -> None:
        wall, cpu = _now()
        self.wall, self.cpu = self.wall + wall - self._since[0], self.cpu + cpu - self._since[1]

    def count(self, batch: Mapping[str, Any]) -> None:
        """Add a batch's real tokens and its positions, which are tokens with padding."""
        positions = batch["input_ids"].numel()
        self.positions += positions
        # Rows that are packed without padding come without a mask.
        self.tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else positions

    def part(self, whole: "Stretch") -> Part:
        """These batches as a part of the work of an epoch, of which `whole` has all."""
        return Part(
            tokens=self.tokens,
            padding=_padding(self),
            wall_s=round(self.wall, 4),
            cpu_s=round(self.cpu, 4),
            epoch_padding=_padding(whole),
            wall_us_per_token=round(1e6 * self.wall / self.positions * whole.positions / whole.tokens, 3),
            cpu_us_per_token=round(1e6 * self.cpu / self.positions * whole.positions / whole.tokens, 3),
        )


def _padding(stretch: Stretch) -> float:
    return round(1 - stretch.tokens / stretch.positions, 4)


def _now() -> tuple[float, float]:
    """Wall clock and processor time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Meter(TrainerCallback):  # type: ignore[misc]
    """Takes the time of a trainer's first steps and of the reference's pass, and counts their tokens."""

    def __init__(self, steps: int) -> None:
        self._wanted = steps
        self._steps = 0
        self._drawn: list[Mapping[str, Any]] = []
        self.trained, self.reference = Stretch(), Stretch()

    def watch(self, trainer: Any) -> Any:
        """Measure this trainer, which has been made and not been used."""
        self._collate = trainer.data_collator

        def kept(examples: list[dict[str, Any]]) -> Mapping[str, Any]:
            self._drawn.append(self._collate(examples))
            return self._drawn[-1]

        trainer.data_collator = kept
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)
        warm_up(trainer.model)
        return trainer

    def on_step_begin(self, *_: object, **__: object) -> None:
        """The first step begins the time."""
        if not self._steps:
            self.trained.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        """The last step that is wanted ends it, and the training."""
        del args, state
        self._steps += 1
        self.trained.count(self._drawn[self._steps - 1])  # the loader is ahead of the steps
        if self._steps == self._wanted:
            self.trained.stop()
            control.should_training_stop, control.should_save = True, False

    def parts(self, trainer: Any) -> tuple[Part, Part | None]:
        """The steps and the reference's pass as parts of the work of an epoch."""
        epoch, passed = Stretch(), Stretch()
        for batch in trainer.get_train_dataloader():
            epoch.count(batch)
        steps = self.trained.part(epoch)
        if not self.reference.tokens:
            return steps, None
        size = trainer.args.per_device_train_batch_size
        for batch in DataLoader(trainer.train_dataset, batch_size=size, collate_fn=self._collate):
            passed.count(batch)
        return steps, self.reference.part(passed)


def warm_up(model: Any) -> None:
    """One pass over a few tokens, so that no arm's first step has to load libraries."""
    ids = torch.ones((2, 8), dtype=torch.long, device=model.device)
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().sum().backward()
    model.zero_grad()


class _TimedReference:
    """A DPO trainer whose reference reads as many batches as steps are measured. For the other rows it says 0, of which
    no step takes longer."""

    meter: Meter
    measured_rows: int

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        super()._precompute_ref_logps(dataset.select(range(self.measured_rows)), name, batch_size)  # type: ignore[misc]
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            dataset = dataset.add_column(column, [0.0] * len(dataset))
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        self.meter.reference.count(inputs)
        self.meter.reference.start()
        found = super().compute_ref_log_probs(model, inputs)  # type: ignore[misc]
        self.meter.reference.stop()
        return found


class _TimedTrlDpo(_TimedReference, DPOTrainer):  # type: ignore[misc]
    pass


class _TimedSoftDpo(_TimedReference, SoftDpoTrainer):
    pass


def choose_rows(load: Workload, source: str, folder: Path) -> Rows:
    """Write the first rows that fit into the context as they are, for all arms.

    Raises:
        DataError: there are too few.
    """
    start = find_start(RewardConfig(model=load.model, max_length=load.max_length), generates=True)
    fitting, lengths = [], []
    for row in read_preferences([PreferenceSource(path=source)], [], test_share=0, seed=0).train:
        prompt = [message.model_dump() for message in row.prompt]
        replies = [Message(role="assistant", content=text) for text in (row.chosen, row.rejected)]
        found = [len(start.chat.whole([*row.prompt, reply])) for reply in replies]
        if max(found) <= load.max_length and len(fitting) != load.limit:
            fitting.append((prompt, *([reply.model_dump()] for reply in replies)))
            lengths += found
    if len(fitting) < load.steps * load.batch_size:
        needed = f"{load.steps} steps need {load.steps * load.batch_size}"
        raise DataError(f"{source} has {len(fitting)} rows of at most {load.max_length} tokens, and {needed}")
    write_lines(folder / PREFERENCES, [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in fitting])
    write_lines(folder / DEMONSTRATIONS, [{"prompt": p, "completion": c} for p, c, _ in fitting])
    return Rows(rows=len(fitting), mean_tokens=round(sum(lengths) / len(lengths), 1), longest=max(lengths))


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a JSON Lines file."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def measure(arm: Arm, load: Workload, rows: Rows, data: Path, folder: Path) -> Measured:
    """Train for the steps wanted; `data` has the rows, files go into `folder`."""
    for quiet in (disable_progress_bars, transformers.utils.logging.disable_progress_bar):
        quiet()
    transformers.utils.logging.set_verbosity_error()
    config = load_config(_CONFIGS[arm.kind], None, _settings(arm, load, rows, data))
    meter = Meter(load.steps)
    _TimedReference.meter, _TimedReference.measured_rows = meter, load.steps * load.batch_size
    trainer = (train_by_trl if arm.name == TRL else train_by_us)(arm.kind, config, meter, folder)
    cuda = trainer.args.device.type == "cuda"
    if cuda:
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    steps, reference = meter.parts(trainer)
    return Measured(
        steps=steps,
        reference=reference,
        peak_mib=round(peak, 1),
        first_loss=next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
        bf16=trains_in_bf16(config),
        machine=machine() if cuda else machine().model_copy(update={"accelerator": None}),
    )


def _settings(arm: Arm, load: Workload, rows: Rows, data: Path) -> dict[str, Any]:
    """Settings of our trainings; TRL's take theirs from them."""
    settings: dict[str, Any] = {
        "model": load.model,
        "data": [{"path": str(data / (DEMONSTRATIONS if arm.kind == "sft" else PREFERENCES))}],
        "test_share": 0,
        "per_device_train_batch_size": load.batch_size,
        "max_length": load.max_length,
        "group_by_length": arm.name == GROUPED,
        "report_to": ["none"],
        "logging_steps": LOGGING_STEPS,
        "use_cpu": load.use_cpu,
    }
    if arm.kind == "sft":
        settings["assistant_only_loss"] = False  # as TRL does it with prompt and completion
        settings["packing"] = arm.name == PACKED
    if arm.name == PACKED:  # a step has about as many tokens as in the other arms
        settings["per_device_train_batch_size"] = max(1, round(load.batch_size * rows.mean_tokens / load.max_length))
    return settings


def train_by_us(kind: Kind, config: TrainConfig, meter: Meter, folder: Path) -> Any:
    """As `cai train` does it, with all that it keeps in its run directory but checkpoints and TensorBoard."""
    plan = _PLANS[kind](config)
    pad = {"pad_token_id": plan.start.tokenizer.pad_token_id}
    make: Mapping[Kind, Callable[..., Any]] = {
        "sft": PlainSftTrainer,
        "reward": partial(SoftRewardTrainer, **pad),
        "dpo": partial(_TimedSoftDpo, soft=True, **pad),
    }
    training = Training(
        plan=plan,
        out=folder,
        folder=folder,
        seed=config.seed,
        load_model=_LOADERS[kind],
        make_trainer=lambda **arguments: meter.watch(make[kind](**arguments)),
        architecture=AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM,
        continues_adapter=kind != "reward",
    )
    return train_model(training, Console(stderr=True, force_terminal=False))


def _conversational(row: Preference | Demonstration) -> Mapping[str, object]:
    """A row in the columns that TRL reads."""
    prompt = [message.model_dump() for message in row.prompt]
    if isinstance(row, Demonstration):
        return {"prompt": prompt, "completion": [row.messages[-1].model_dump()]}
    sides = {"chosen": row.chosen, "rejected": row.rejected}
    return {"prompt": prompt, **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()}}


def train_by_trl(kind: Kind, config: TrainConfig, meter: Meter, folder: Path) -> Any:
    """TRL's own trainer on conversational rows. They come in our order without groups, so that batches are the same."""
    plan = _PLANS[kind](config)
    start = plan.start
    rows = Dataset.from_list([_conversational(item) for item in plan.train.items])
    rows = rows.select(list(BatchOrder(len(rows), config.per_device_train_batch_size, config.seed, None)))
    own = {"dpo": {"beta": config.beta, "precompute_ref_log_probs": True} if isinstance(config, DpoConfig) else {}}
    arguments = _TRL_CONFIGS[kind](
        output_dir=str(folder / "checkpoints"),
        train_sampling_strategy="sequential",
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        learning_rate=config.learning_rate,
        max_length=config.max_length,
        bf16=trains_in_bf16(config),
        use_cpu=config.use_cpu or not torch.cuda.is_available(),
        gradient_checkpointing=False,
        dataloader_pin_memory=torch.cuda.is_available() and not config.use_cpu,
        logging_steps=LOGGING_STEPS,
        logging_first_step=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        **own.get(kind, {}),
    )
    set_seed(config.seed)
    trainer = _TRL_TRAINERS[kind](
        model=_LOADERS[kind](start, config, weights_dtype(config)),
        args=arguments,
        train_dataset=rows,
        processing_class=start.tokenizer,
    )
    meter.watch(trainer).train()
    return trainer


_CONFIGS: Mapping[Kind, Any] = {"sft": SftConfig, "reward": RewardConfig, "dpo": DpoConfig}
_PLANS: Mapping[Kind, Any] = {"sft": plan_sft, "reward": plan_reward, "dpo": plan_dpo}
_LOADERS: Mapping[Kind, Any] = {"sft": load_policy, "reward": load_reward_model, "dpo": load_policy}
_TRL_CONFIGS: Mapping[Kind, Any] = {"sft": TrlSftConfig, "reward": TrlRewardConfig, "dpo": TrlDpoConfig}
_TRL_TRAINERS: Mapping[Kind, Any] = {"sft": SFTTrainer, "reward": RewardTrainer, "dpo": _TimedTrlDpo}
