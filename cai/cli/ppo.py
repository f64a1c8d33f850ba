"""`cai train ppo`: reinforcement learning against a reward."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from cai.cli.options import add_options, console
from cai.cli.runs import figures, odd_rows, print_lines, way_to_go_on
from cai.cli.training_options import RUN_OPTIONS, START_OPTIONS, STEP_OPTIONS
from cai.config import load_config
from cai.engines.weights import TRAINED
from cai.journal import read_document
from cai.progress import duration

if TYPE_CHECKING:  # training loads torch, for which `--help` need not wait; the command imports it
    from cai.train.lifecycle import TrainedModel
    from cai.train.ppo.plan import PpoPlan

_OPTIONS = (
    click.option("--prompts", multiple=True, help="File, shipped set or hub:owner/name; repeat it. Default: shipped."),
    click.option(
        "--reward", multiple=True, help="Reward model: run of cai train reward, directory or hub id; repeat it."
    ),
    click.option(
        "--weighted-reward",
        multiple=True,
        nargs=2,
        type=(str, float),
        metavar="MODEL WEIGHT",
        help="A reward model whose rewards count so many times; repeat it.",
    ),
    click.option("--reward-function", multiple=True, help="Python function, FILE.py:NAME or module:NAME; repeat it."),
    click.option("--gold", help="Reward model that is watched and not trained on."),
    click.option("--use-peft/--full", default=None, help="LoRA adapters, or whole models. Default: adapters."),
    click.option("--shared-trunk", is_flag=True, default=None, help="Read the values off the policy: faster, smaller."),
    click.option("--learning-rate", type=float, help="Default: 3e-6."),
    click.option("--total-episodes", type=int, help="Responses to learn from. Default: 20000."),
    click.option("--batch-size", type=int, help="Episodes of a step. Default: 64."),
    click.option("--num-mini-batches", type=int, help="Default: 1."),
    click.option("--num-ppo-epochs", type=int, help="Default: 4."),
    click.option("--rollout-batch-size", type=int, help="Episodes written at a time. Default: 16; on a GPU 64."),
    click.option("--vllm", help="Address of a vLLM server that writes the responses."),
    click.option("--response-length", type=int, help="Longest response in tokens. Default: 128."),
    click.option("--temperature", type=float, help="Default: 0.7."),
    click.option("--missing-eos-penalty", type=float, help="Taken off where a response was cut. Default: 1."),
    click.option("--kl-coef", type=float, help="Pull towards the start. Default: 0.05."),
    click.option("--kl-target", type=float, help="Adapt the pull to so many nats a response."),
    click.option("--kl-estimator", type=click.Choice(["k1", "k3"]), help="Default: k1."),
    click.option("--gamma", type=float, help="Default: 1."),
    click.option("--lam", type=float, help="Default: 0.95."),
    click.option("--cliprange", type=float, help="Default: 0.2."),
    click.option("--cliprange-value", type=float, help="Default: 0.2."),
    click.option("--vf-coef", type=float, help="Default: 0.1."),
    click.option("--whiten-rewards", is_flag=True, default=None, help="Divide rewards by their deviation."),
    click.option("--probe-every", type=int, help="Steps between looks of the monitor. Default: 10."),
    click.option("--probe-prompts", type=int, help="Held-out prompts it looks at; 0: no monitor. Default: 16."),
    click.option("--probe-samples", type=int, help="Responses to each. Default: 4."),
    click.option("--only-warn", is_flag=True, default=None, help="Show the monitor's alerts, and do not act on them."),
    click.option("--save-steps", type=int, help="Steps between checkpoints. Default: 20."),
)


@click.command()
@lambda command: add_options(command, (*_OPTIONS, *START_OPTIONS, *STEP_OPTIONS, *RUN_OPTIONS))
def ppo(
    prompts: tuple[str, ...],
    reward: tuple[str, ...],
    weighted_reward: tuple[tuple[str, float], ...],
    reward_function: tuple[str, ...],
    gold: str | None,
    vllm: str | None,
    config_file: Path | None,
    out: Path | None,
    overwrite: bool,
    estimate: bool,
    **options: Any,
) -> None:
    """Optimise a language model on rewards by PPO, watched for reward hacking.

    Arguments have the names that they have in TRL. Judges as rewards are named in a --config file.
    """
    from cai.train.ppo.config import PpoConfig
    from cai.train.ppo.plan import plan_ppo
    from cai.train.ppo.run import train_ppo

    probe = {name: options.pop(f"probe_{name}") for name in ("every", "prompts", "samples")}
    only_warn = options.pop("only_warn")
    sources: list[dict[str, Any]] = [{"model": name} for name in reward]
    sources += [{"model": name, "weight": weight} for name, weight in weighted_reward]
    sources += [{"function": name} for name in reward_function]
    given = {name: value for name, value in options.items() if value not in (None, ())}
    given |= {
        "probe": {name: value for name, value in probe.items() if value is not None},
        "prompts": [{"path": path} for path in prompts] or None,
        "rewards": sources or None,
        "gold": None if gold is None else {"model": gold},
        "vllm": None if vllm is None else {"base_url": vllm},
        "act_on_alerts": False if only_warn else None,
    }
    config = load_config(PpoConfig, config_file, given)
    screen = console()
    screen.print("reading the prompts and the rewards …")
    plan = plan_ppo(config)
    path = out or plan.default_out()
    _announce(screen, plan, path)
    if estimate:
        from cai.train.ppo.estimate import estimate_ppo, render_estimate

        screen.print(render_estimate(estimate_ppo(plan)))
        return
    with way_to_go_on("steps") as command:
        trained = train_ppo(plan, path, screen, command=command, overwrite=overwrite)
    if trained is not None:
        _show(screen, trained)


def _announce(screen: Console, plan: "PpoPlan", path: Path) -> None:
    """Say in a few lines what will be done."""
    config = plan.config
    lines = [f"start: {plan.start.name} (sha256 {plan.start.sha256[:8]})"]
    lines += [f"{name} (sha256 {sha256[:8]})" for name, sha256 in plan.reward_hashes.items()]
    lines += [f"prompts: {len(plan.prompts)} to learn from, {len(plan.held)} for the monitor"]
    lines += odd_rows(plan.rejects, {})
    lines += [f"note: {number} prompts: {reason.replace('_', ' ')}" for reason, number in plan.counts.items()]
    lines += [f"{config.steps} steps of {config.batch_size} episodes"]
    lines += [f"note: {note}" for note in plan.notes]
    print_lines(screen, [*lines, f"run directory: {path}"])


def _show(screen: Console, trained: "TrainedModel") -> None:
    """What the training came to."""
    from cai.train.monitor.files import REPORT
    from cai.train.monitor.page import render_report
    from cai.train.monitor.records import MonitorReport

    report = trained.path / REPORT
    if report.is_file():
        screen.print(render_report(read_document(report, MonitorReport, "a run of `cai train ppo`")))
    screen.print(figures([("time, all sessions", duration(trained.manifest.seconds))]))
    screen.print(f"written:   {trained.path / TRAINED}", markup=False, soft_wrap=True)
    screen.print(f"use it:    cai critique-revise --model {trained.path}", markup=False, soft_wrap=True)
