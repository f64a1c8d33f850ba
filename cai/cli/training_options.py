"""Options that the commands of `cai train` share."""

from pathlib import Path
from typing import Any

import click
import yaml


def _trainer_arguments(
    _context: click.Context, _option: click.Parameter, values: tuple[tuple[str, str], ...]
) -> dict[str, Any] | None:
    """`--trainer NAME VALUE` options as the config's `trainer`; values are read as YAML reads them."""
    try:
        return {name: yaml.safe_load(value) for name, value in values} or None
    except yaml.YAMLError as error:
        raise click.BadParameter(f"is not a YAML value: {error}") from None


START_OPTIONS = (
    click.option(
        "--model", help="Directory, hub id, or run of cai train to start from. Default: SmolLM2-135M-Instruct."
    ),
    click.option("--adapter", type=click.Path(path_type=Path), help="LoRA adapter of that model to start from."),
    click.option("--chat-template", help="chatml, transcript or a Jinja file, for a model without a chat template."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with the model."),
    click.option("--seed", type=int, help="Default: 0."),
    click.option("--lora-r", type=int, help="Default: 16."),
    click.option("--lora-alpha", type=int, help="Default: 32."),
    click.option("--merge-adapter", is_flag=True, default=None, help="Write the trained model whole."),
)
"""What is trained."""

STEP_OPTIONS = (
    click.option(
        "--lr-scheduler-type",
        type=click.Choice(["linear", "cosine", "constant", "constant_with_warmup"]),
        help="Default: linear.",
    ),
    click.option("--warmup-steps", type=float, help="Below 1: share of all steps. Default: 0."),
    click.option("--per-device-train-batch-size", type=int, help="Default: 8."),
    click.option("--weight-decay", type=float, help="Default: 0."),
    click.option("--max-length", type=int, help="Longest conversation in tokens. Default: 1024."),
    click.option("--gradient-checkpointing", is_flag=True, default=None, help="Less memory, a third more time."),
    click.option("--bf16/--no-bf16", default=None, help="Mixed precision. Default: where the hardware has it."),
    click.option("--attn-implementation", help="Such as flash_attention_2."),
    click.option("--use-cpu", is_flag=True, default=None, help="Train on the CPU."),
    click.option("--save-total-limit", type=int, help="Checkpoints that are kept. Default: 2."),
    click.option("--report-to", multiple=True, help="tensorboard, wandb, none; repeat it. Default: tensorboard."),
)
"""How steps are taken and kept."""

TRL_OPTIONS = (
    click.option("--test-share", type=float, help="Share of prompts that are held out. Default: 0.05."),
    click.option("--use-peft", is_flag=True, default=None, help="Train a LoRA adapter."),
    click.option("--lora-dropout", type=float, help="Default: 0."),
    click.option("--learning-rate", type=float, help="Default: 2e-5 (sft), 1e-5 (reward), 1e-6 (dpo)."),
    click.option("--num-train-epochs", type=float, help="Default: 1."),
    click.option("--max-steps", type=int, help="Stop after so many steps."),
    click.option("--per-device-eval-batch-size", type=int, help="Default: 8."),
    click.option("--gradient-accumulation-steps", type=int, help="Default: 1."),
    click.option("--group-by-length/--no-group-by-length", default=None, help="Batches of like length. Default: on."),
    click.option("--logging-steps", type=int, help="Default: 10."),
    click.option("--eval-steps", type=int, help="Steps between evaluations. Default: an epoch."),
    click.option("--save-steps", type=int, help="Steps between checkpoints. Default: 200."),
    click.option(
        "--load-best-model-at-end", is_flag=True, default=None, help="Keep the weights of the best evaluation."
    ),
    click.option("--metric-for-best-model", help="Default: loss."),
    click.option(
        "--trainer",
        multiple=True,
        nargs=2,
        metavar="NAME VALUE",
        callback=_trainer_arguments,
        help="A further argument of TRL's trainer; repeat it.",
    ),
)
"""Of the trainings over TRL's trainers alone."""

RUN_OPTIONS = (
    click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings."),
    click.option("--out", type=click.Path(path_type=Path), help="Run directory. Default: runs/train-KIND-HASH."),
    click.option("--overwrite", is_flag=True, help="Start the run in --out anew."),
    click.option("--estimate", is_flag=True, help="Print memory and time that the training takes, and stop."),
)
"""The run directory."""
