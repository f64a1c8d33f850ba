"""The life of a PPO training. Beside the files of every training there are

samples.jsonl        responses to held-out prompts at each look of the monitor
monitor.json         what the monitor makes of them and of the metrics; monitor.svg shows it
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import AutoModelForCausalLM, set_seed

from cai.engines.weights import TRAINED, Weights
from cai.journal import whole_folder
from cai.progress import StageProgress
from cai.train.callbacks import StopOnSignal, gentle_stop
from cai.train.checkpoints import checkpoint_path, remove_torn
from cai.train.curves import write_curves
from cai.train.lifecycle import CHECKPOINTS, CURVES, START, TrainedModel, run_training
from cai.train.models import complete_model, merge_start
from cai.train.monitor.files import DRAWING, METRICS, REPORT, SAMPLES
from cai.train.monitor.records import MonitorReport, ProbeSample
from cai.train.ppo.actor import POLICY_ADAPTER, ActorCritic
from cai.train.ppo.card import write_card
from cai.train.ppo.diagnosis import diagnose
from cai.train.ppo.loading import find_value_start
from cai.train.ppo.log import REPEAT, StepLog, headings, line, read_log
from cai.train.ppo.plan import PpoPlan
from cai.train.ppo.rewards import RewardSource
from cai.train.ppo.trainer import PpoTrainer
from cai.train.ppo.vllm_config import ADAPTERS
from cai.train.ppo.watch import probe, react, watch, worth_keeping
from cai.train.precision import trains_in_bf16
from cai.visible import visible

_SHOWN = 300
"""Characters of a response that are shown."""


def train_ppo(
    plan: PpoPlan, out: Path, console: Console, *, command: Sequence[str] = (), overwrite: bool = False
) -> TrainedModel | None:
    """Train a policy by a plan, or go on with it.

    Raises:
        KeyboardInterrupt: interrupted by a signal; the same command goes on from the last checkpoint.
        CaiError: the run cannot go on; the last checkpoint is kept.
    """

    def work() -> Mapping[str, Any]:
        return _train(plan, out, console)

    return run_training(
        plan,
        out,
        work,
        partial(write_card, out, plan),
        other_files=(SAMPLES, REPORT, DRAWING, ADAPTERS),
        command=command,
        overwrite=overwrite,
    )


def _train(plan: PpoPlan, out: Path, console: Console) -> Mapping[str, Any]:
    config = plan.config
    set_seed(config.seed)
    # 1. One process makes ready what all of them read; each takes its own device before anything is put there.
    processes = PartialState(cpu=config.use_cpu)
    say = _voice(console, processes.is_main_process)
    checkpoints, merges = out / CHECKPOINTS, plan.start.weights.adapter is not None
    if processes.is_main_process:
        for name in remove_torn(checkpoints):
            say(f"{name} is torn, the process died while it was written; removed")
        if merges:
            merge_start(plan.start, config, out / START)
    processes.wait_for_everyone()
    if merges:
        start = replace(plan.start, weights=Weights(str((out / START).absolute()), None))
        values = find_value_start(start, config, plan.rewards.only_model, config.rewards[0].weight)
        plan = replace(plan, start=start, values=values)
        say(values.note)
    # 2. Rewards, and the models.
    device = "cpu" if config.use_cpu else "auto"
    dtype = "bfloat16" if trains_in_bf16(config) else "float32"
    with ExitStack() as resources:
        reward, gold = (
            None
            if source is None
            else resources.enter_context(closing(source.open(seed=config.seed, device=device, dtype=dtype)))
            for source in (plan.rewards, plan.gold)
        )
        assert reward is not None
        trainer = PpoTrainer(plan, reward, checkpoints)
        if trainer.state.step:
            say(f"going on from {checkpoint_path(checkpoints, trainer.state.step).name}")
        # 3. Train.
        session = resources.enter_context(closing(_Session(trainer, gold, out, console)))
        session.train()
        saved = session.choose() if trainer.state.stopped else trainer.state.step
        save_policy(trainer, out / TRAINED)
        ended_by = "alert" if trainer.state.stopped else "steps"
        return {"steps": trainer.state.step, "ended_by": ended_by, "saved_step": saved, **session.results()}


class _Session:
    """What happens between the steps: figures are written and shown, the monitor looks, checkpoints are made."""

    def __init__(self, trainer: PpoTrainer, gold: RewardSource | None, out: Path, console: Console) -> None:
        step = trainer.state.step
        self._trainer, self._gold, self._out, self._console = trainer, gold, out, console
        self._say = _voice(console, trainer.main)
        self._metrics, self._samples = (
            StepLog(out / name, step) if trainer.main else None for name in (METRICS, SAMPLES)
        )
        self._history: list[dict[str, Any]] = read_log(out / METRICS) if trainer.main else []
        looked = trainer.main and step and trainer.config.probe.prompts
        self._report: MonitorReport | None = watch(out, trainer.config) if looked else None
        self._named: set[str] = set()
        self._shown = 0
        trainer.start_trackers()

    def train(self) -> None:
        """Take the steps that are left, until the monitor stops them.

        Raises:
            KeyboardInterrupt: a signal came; there is a checkpoint to go on from.
        """
        trainer, config = self._trainer, self._trainer.config
        stop = StopOnSignal()
        alone = trainer.accelerator.num_processes == 1
        progress = StageProgress(self._console, "steps", config.steps, trainer.state.step)
        with gentle_stop(stop, self._say) if alone else nullcontext(), progress if trainer.main else nullcontext():
            if not trainer.state.step and config.probe.prompts:
                self._look()
            while trainer.state.step < config.steps and not trainer.state.stopped:
                self._record(trainer.step())
                if trainer.main:
                    progress.finished()
                step, last = trainer.state.step, trainer.state.step == config.steps
                looks = config.probe.prompts and (last or not step % config.probe.every)
                if looks:
                    self._look()
                if looks or last or stop.asked or not step % config.save_steps:
                    trainer.save(self._worth_keeping())
                if stop.asked and not last and not trainer.state.stopped:
                    raise KeyboardInterrupt

    def choose(self) -> int | None:
        """Take the policy of the best step, where the monitor has stopped the training; returns that step. Of several
        processes the one that writes knows it."""
        trainer = self._trainer
        if not trainer.main:
            return None
        step = trainer.state.step
        best = step if self._report is None or self._report.best is None else self._report.best.step
        path = checkpoint_path(trainer.checkpoints, best)
        if best == step:
            self._say(f"stopped; the policy is that of step {step}")
        elif not best:
            forget(trainer.actor)
            self._say("stopped; no step was better than the start, so the policy is the start's")
        elif path.is_dir():
            trainer.go_back(path)
            self._say(f"stopped; the policy is that of step {best}, the best one")
        else:
            self._say(f"stopped; {path} is gone, so the policy is that of step {step} and not of {best}, the best one")
            best = step
        return best

    def results(self) -> Mapping[str, Any]:
        """What became of the training."""
        report = self._report
        if self._history:
            write_curves(self._history, self._out / CURVES)
        return {
            "metrics": self._history[-1] if self._history else {},
            "alerts": None if report is None else [alert.model_dump(mode="json") for alert in report.alerts],
            "best": None if report is None or report.best is None else report.best.model_dump(mode="json"),
        }

    def close(self) -> None:
        """Close all files."""
        for log in (self._metrics, self._samples):
            if log is not None:
                log.close()
        self._trainer.close()

    def _worth_keeping(self) -> set[int]:
        """Steps whose checkpoints are kept whatever comes."""
        if self._report is None:
            return set()
        return worth_keeping(self._report, self._trainer.config.monitor.looks_in_a_row)

    def _record(self, metrics: Mapping[str, float]) -> None:
        """Write down and show the figures of a step, and name what goes wrong, once."""
        if self._metrics is None:
            return
        self._metrics.write([metrics])
        self._history.append(dict(metrics))
        self._trainer.accelerator.log(dict(metrics), step=int(metrics["step"]))
        if self._shown % REPEAT == 0:
            self._say(headings())
        self._shown += 1
        self._say(line(metrics))
        for cause in diagnose(self._history, mixed_precision=self._trainer.accelerator.mixed_precision):
            if cause.name not in self._named:
                self._named.add(cause.name)
                self._say(f"warning: {cause.sentence}")

    def _look(self) -> None:
        """Have the monitor look, and do what it asks for."""
        trainer = self._trainer
        trainer.sync()
        decided = [trainer.state]
        if self._samples is not None:
            samples = probe(trainer, self._gold)
            self._samples.write([sample.model_dump(mode="json") for sample in samples])
            self._report = watch(self._out, trainer.config)
            self._show(samples[0])
            if trainer.config.act_on_alerts:
                decided[0], done = react(trainer.state, self._report)
                for one in done if trainer.state.step < trainer.config.steps else ():
                    self._say(one)
        broadcast_object_list(decided)
        (trainer.state,) = decided

    def _show(self, sample: ProbeSample) -> None:
        """A response to read, and the alerts."""
        assert self._report is not None
        text = " ".join(visible(sample.response).split())
        self._say(f"step {sample.step}, a response: {text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}")
        for alert in self._report.alerts:
            self._say(f"alert ({alert.action.replace('_', ' ')}): {alert.reason}")


@torch.no_grad()
def forget(actor: ActorCritic) -> None:
    """Make the policy the reference again, which is what it began as."""
    if actor.reference is not None:
        actor.policy.load_state_dict(actor.reference.state_dict())
        return
    for name, parameter in actor.policy.named_parameters():
        if f"lora_B.{POLICY_ADAPTER}." in name:
            parameter.zero_()


def save_policy(trainer: PpoTrainer, target: Path) -> None:
    """Write the trained policy, whole or not at all."""
    if not trainer.main:
        return
    actor, start = trainer.actor, trainer.plan.start
    only = {"selected_adapters": [POLICY_ADAPTER]} if actor.adapts else {}
    with whole_folder(target) as folder:
        actor.policy.save_pretrained(folder, **only)
        complete_model(folder, start, AutoModelForCausalLM, merge=trainer.config.merge_adapter, settings={})


def _voice(console: Console, main: bool) -> Callable[[str], None]:
    """Prints what the one process that writes has to say."""

    def say(text: str) -> None:
        if main:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say
