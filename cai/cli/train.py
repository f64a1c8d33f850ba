"""`cai train`: SFT, reward models, DPO and PPO from feedback."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console

from cai.cli.options import add_options, console
from cai.cli.ppo import ppo
from cai.cli.runs import figures, odd_rows, print_lines, way_to_go_on
from cai.cli.training_options import RUN_OPTIONS, START_OPTIONS, STEP_OPTIONS, TRL_OPTIONS
from cai.config import load_config
from cai.engines.weights import TRAINED
from cai.progress import duration

if TYPE_CHECKING:  # training loads torch, for which `--help` need not wait; commands import it
    from cai.train.lifecycle import TrainedModel
    from cai.train.plan import Plan

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


_COLLAPSE_OPTIONS = (
    click.option("--collapse-prompts", type=int, help="Held-out prompts of the collapse check; 0: none. Default: 32."),
)

_PREFERENCE_OPTIONS = (
    click.option(
        "--data",
        multiple=True,
        help="Pairs: run of cai label, export or import, file, hub:owner/name[:split]; repeat it.",
    ),
    click.option(
        "--weighted",
        multiple=True,
        nargs=2,
        type=(str, float),
        metavar="SOURCE WEIGHT",
        help="Pairs whose loss counts so many times; repeat it.",
    ),
    click.option("--eval-data", multiple=True, help="Held-out pairs, in place of --test-share; repeat it."),
)

_DEMONSTRATION_OPTIONS = (
    click.option(
        "--data", multiple=True, help="Conversations: run of cai critique-revise, file, hub:owner/name; repeat it."
    ),
    click.option("--rounds", type=click.Choice(["all", "last"]), help="Revisions of runs to learn from. Default: all."),
    click.option(
        "--mix",
        multiple=True,
        nargs=2,
        type=(str, float),
        metavar="SOURCE RATIO",
        help="So many rows of SOURCE for each row of --data; repeat it.",
    ),
    click.option("--eval-data", multiple=True, help="Held-out conversations, in place of --test-share; repeat it."),
)


def _train_options(*further: Callable[[CommandT], CommandT]) -> Callable[[CommandT], CommandT]:
    return lambda command: add_options(command, (*further, *START_OPTIONS, *TRL_OPTIONS, *STEP_OPTIONS, *RUN_OPTIONS))


@click.group()
def train() -> None:
    """Train on feedback: fine-tune, fit reward models, optimise on preferences or on rewards.

    Arguments have the names that they have in TRL and transformers. For several GPUs or machines:
    accelerate launch --config_file recipes/accelerate/NAME.yaml -m cai train …
    """


@train.command()
@_train_options(
    *_DEMONSTRATION_OPTIONS,
    click.option(
        "--assistant-only-loss/--last-reply-only",
        default=None,
        help="Learn from all turns of the assistant, or from the last. Default: all, where the template allows it.",
    ),
    click.option("--packing", is_flag=True, default=None, help="Several conversations in one row."),
    *_COLLAPSE_OPTIONS,
)
def sft(rounds: str | None, **options: Any) -> None:
    """Fine-tune a language model on conversations, such as the revisions of a critique-revise run."""
    from cai.train.config import SftConfig
    from cai.train.plan import plan_sft
    from cai.train.policy import train_sft

    if rounds is not None and not options["data"]:
        raise click.UsageError("--rounds speaks of --data; in a --config file, set `rounds` at the source")
    _check_added(options, "mix", "ratio")
    run = {} if rounds is None else {"rounds": rounds}
    options["data"] = [{"path": path, **run} for path in options["data"]]
    options["data"] += [{"path": path, "ratio": ratio} for path, ratio in options.pop("mix")]
    _run("sft", SftConfig, plan_sft, train_sft, options)


@train.command()
@_train_options(
    *_PREFERENCE_OPTIONS,
    click.option("--ensemble", type=int, help="Reward models to train, of different seeds. Default: 1."),
    click.option("--center-rewards-coefficient", type=float, help="Penalty on a pair's summed rewards. Default: 0."),
    click.option("--reference", help="Conversations whose mean reward becomes 0. Default: from the training pairs."),
)
def reward(reference: str | None, **options: Any) -> None:
    """Train a reward model on pairs with soft labels, and measure it on held-out pairs."""
    from cai.train.config import RewardConfig
    from cai.train.plan import plan_reward
    from cai.train.reward import train_reward

    options["reference"] = None if reference is None else {"path": reference}
    _weighted(options)
    _run("reward", RewardConfig, plan_reward, train_reward, options)


@train.command()
@_train_options(
    *_PREFERENCE_OPTIONS,
    click.option("--beta", type=float, help="Pull towards the start. Default: 0.1."),
    click.option("--loss-type", help="soft, or one of TRL's losses by name. Default: soft."),
    *_COLLAPSE_OPTIONS,
)
def dpo(**options: Any) -> None:
    """Optimise a language model on pairs with soft labels, without a reward model."""
    from cai.train.config import DpoConfig
    from cai.train.plan import plan_dpo
    from cai.train.policy import train_dpo

    _weighted(options)
    _run("dpo", DpoConfig, plan_dpo, train_dpo, options)


train.add_command(ppo)


def _check_added(options: Mapping[str, Any], name: str, key: str) -> None:
    """Refuse sources of the option `name` where they would take the place of a file's, whose `key` says the same."""
    if options[name] and options["config_file"] and not options["data"]:
        raise click.UsageError(
            f"--{name} adds to --data; add the source to `data` of the --config file, with its `{key}`, or give --data "
            "too, which takes the place of the file's"
        )


def _weighted(options: dict[str, Any]) -> None:
    _check_added(options, "weighted", "weight")
    options["data"] = [{"path": path} for path in options["data"]]
    options["data"] += [{"path": path, "weight": weight} for path, weight in options.pop("weighted")]


def _run(
    kind: str,
    config_model: Any,
    make_plan: Callable[[Any], "Plan[Any, Any]"],
    train_by: Callable[..., "TrainedModel | None"],
    options: dict[str, Any],
) -> None:
    config_file, out = options.pop("config_file"), options.pop("out")
    overwrite, estimate = options.pop("overwrite"), options.pop("estimate")
    if (prompts := options.pop("collapse_prompts", None)) is not None:
        options["collapse"] = {"prompts": prompts}
    options["eval_data"] = [{"path": path} for path in options["eval_data"]]
    given = {name: value for name, value in options.items() if value not in (None, (), [])}
    config = load_config(config_model, config_file, given)
    screen = console()
    screen.print("reading and encoding the data …")
    plan = make_plan(config)
    path: Path = out or plan.default_out()
    _announce(screen, plan, path)
    if estimate:
        from cai.train.estimate import estimate_plan, render_estimate

        screen.print(render_estimate(estimate_plan(plan)))
        return
    with way_to_go_on("steps") as command:
        trained = train_by(plan, path, screen, command=command, overwrite=overwrite)
    if trained is not None:
        _show(screen, kind, trained)


def _announce(screen: Console, plan: "Plan[Any, Any]", path: Path) -> None:
    """Say in a few lines what will be done."""
    rows, counts = plan.rows, plan.counts
    lines = [f"start: {plan.start.name} (sha256 {plan.start.sha256[:8]})"]
    lines += [f"data: {source.used} rows of {source.path}" for source in rows.sources]
    for source in rows.sources:
        if source.missing:
            lines.append(f"note: {source.path} has {source.missing} rows fewer than its ratio asks for")
    if rows.duplicates:
        lines.append(f"note: {rows.duplicates} rows say the same as an earlier one; they count as often as they stand")
    held_out = f"{len(plan.test.items)}" if plan.test.items else "none, so nothing is measured on rows of its kind"
    lines += [f"train on {len(plan.train.items)} rows, held out: {held_out}"]
    lines += odd_rows(rows.rejects, {})
    left_out = {**rows.left_out, **{name: number for name, number in counts.items() if name != "shortened"}}
    if any(left_out.values()):
        lines.append("left out: " + ", ".join(f"{number} {name}" for name, number in left_out.items() if number))
    if counts.get("shortened"):
        lines.append(f"note: {counts['shortened']} rows lost their oldest turns to fit into max_length")
    lines += [f"note: {note}" for note in plan.notes]
    print_lines(screen, [*lines, f"run directory: {path}"])


def _show(screen: Console, kind: str, trained: "TrainedModel") -> None:
    """What the training came to."""
    from cai.train.collapse import CollapseCheck, render_collapse
    from cai.train.evaluation import RewardEvaluation
    from cai.train.evaluation_files import render_evaluation

    results: Mapping[str, Any] = trained.results
    if results.get("evaluation"):
        screen.print(render_evaluation(RewardEvaluation.model_validate(results["evaluation"])))
    if results.get("collapse"):
        screen.print(render_collapse(CollapseCheck.model_validate(results["collapse"])))
    manifest = trained.manifest
    screen.print(figures([("time, all sessions", duration(manifest.seconds))]))
    model = trained.path / TRAINED
    screen.print(f"written:   {model if model.is_dir() else trained.path}", markup=False, soft_wrap=True)
    following = "cai score --model" if kind == "reward" else "cai critique-revise --model"
    screen.print(f"use it:    {following} {trained.path}", markup=False, soft_wrap=True)
