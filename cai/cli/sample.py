"""`cai sample`: pairs of responses for a judge."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.table import Table

from cai.cli.options import console, overrides, writing_options
from cai.cli.runs import cost_rows, counted, figures, odd_rows, print_lines, run_options, way_to_go_on
from cai.config import load_config
from cai.data.sample_card import COMPARISONS, SampleCounts
from cai.feedback.pairing import Pairing
from cai.feedback.sampling import SampleConfig, SampleInputs, load_sample_inputs, sample_responses
from cai.running import Outcome


def _named_models(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> dict[str, dict[str, str]] | None:
    """`NAME=MODEL` options as the config's `policies`."""
    policies: dict[str, dict[str, str]] = {}
    for value in values:
        name, equals, model = value.partition("=")
        if not (name and equals and model):
            raise click.BadParameter(f"{value!r} must be written NAME=MODEL")
        if name in policies:
            raise click.BadParameter(f"the name {name!r} stands twice")
        policies[name] = {"model": model}
    return policies or None


@click.command()
@click.option("--prompts", help="File, shipped set or hub:owner/name[:split]. Default: red-team.")
@click.option("--prompt-column", help="Column that holds the prompt. Default: found by its name.")
@click.option("--responses", type=int, help="Replies to each prompt from each policy. Default: 2.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    callback=_named_models,
    metavar="NAME=MODEL",
    help="Sample from this model under this name; repeat it for several. A config file can give each an adapter and "
    "whatever else an engine takes. Default: --model is the only one.",
)
@click.option(
    "--pairing",
    type=click.Choice(get_args(Pairing)),
    help="Which pairs of the responses to a prompt are compared. Default: all.",
)
@click.option("--constitution", help="What best-of-n rates by: constitution file or shipped name. Default: hhh.")
@click.option("--limit", type=int, help="Use only the first prompts.")
@click.option("--seed", type=int, help="Default: 0.")
@click.option("--templates", type=click.Path(path_type=Path), help="Folder with prompt templates of your own.")
@click.option("--test-share", type=float, help="Share of prompts for the test split. Default: 0.05.")
@run_options
@writing_options
def sample(config_file: Path | None, out: Path | None, overwrite: bool, retry_failed: bool, **options: Any) -> None:
    """Sample responses to prompts from one model or several, and put them into pairs.

    Responses that say the same are dropped and counted. The same command again goes on where the last one stopped.
    """
    screen = console()
    config = load_config(SampleConfig, config_file, overrides(options))
    inputs = load_sample_inputs(config)
    path = out or inputs.default_out
    _announce(screen, inputs, path)
    with way_to_go_on("samples") as command:
        outcome = sample_responses(
            inputs, path, screen, command=command, overwrite=overwrite, retry_failed=retry_failed
        )
    screen.print(_summary(outcome))
    screen.print(f"have them compared:  cai label --comparisons {shlex.quote(str(path))}", markup=False, soft_wrap=True)


def _announce(screen: Console, inputs: SampleInputs, path: Path) -> None:
    """Say in a few lines what will be done."""
    config = inputs.config
    policies = list(config.engines)
    who = f"the policies {', '.join(policies)}" if len(policies) > 1 else "one policy"
    calls = inputs.samples * config.responses
    line = f"prompts: {inputs.prompts} × {config.responses} responses from {who}; {calls:,} model calls"
    print_lines(screen, [line, *odd_rows(inputs.rejects, inputs.notes), f"run directory: {path}"])


def _summary(outcome: Outcome[SampleCounts]) -> Table:
    counts = outcome.counts
    rows = [
        ("responses", f"{counts.responses} to {counts.prompts} prompts ({counts.cut} cut at max tokens)"),
        ("failed", counted(outcome.manifest.failures)),
        ("left out before pairing", counted(counts.dropped)),
        ("prompts without a comparison", counted(counts.unpaired)),
        ("comparisons", f"{counts.rows(COMPARISONS.name)}"),
        *cost_rows(outcome),
    ]
    return figures(rows)
