"""`cai contrast`: preference pairs by contrasting prompts, without a judge."""

import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cai.cli.options import console, overrides, writing_options
from cai.cli.runs import cost_rows, counted, figures, odd_rows, print_lines, run_options, way_to_go_on
from cai.config import load_config
from cai.data.contrast_card import ContrastCounts
from cai.feedback.contrast import (
    ContrastConfig,
    ContrastInputs,
    contrast as run_contrast,
    load_contrast_inputs,
)
from cai.running import Outcome


@click.command()
@click.option("--prompts", help="File, shipped set or hub:owner/name[:split]. Default: red-team.")
@click.option("--prompt-column", help="Column that holds the prompt. Default: found by its name.")
@click.option("--constitution", help="Constitution file or shipped name. Default: hhh.")
@click.option("--principles", type=int, help="Principles drawn for each prompt, one pair each. Default: 1.")
@click.option("--tag", "tags", multiple=True, help="Draw only principles with this tag; repeat it for several.")
@click.option("--limit", type=int, help="Use only the first prompts.")
@click.option("--seed", type=int, help="Default: 0.")
@click.option("--templates", type=click.Path(path_type=Path), help="Folder with prompt templates of your own.")
@click.option("--test-share", type=float, help="Share of prompts for the test splits. Default: 0.05.")
@run_options
@writing_options
def contrast(config_file: Path | None, out: Path | None, overwrite: bool, retry_failed: bool, **options: Any) -> None:
    """Sample replies that follow a principle and replies that oppose it; write them as preference pairs.

    No judge compares the two: that the first is better is assumed from what was asked. The same command again goes on
    where the last one stopped.
    """
    screen = console()
    config = load_config(ContrastConfig, config_file, overrides(options))
    inputs = load_contrast_inputs(config)
    path = out or inputs.default_out
    _announce(screen, inputs, path)
    with way_to_go_on("pairs") as command:
        outcome = run_contrast(inputs, path, screen, command=command, overwrite=overwrite, retry_failed=retry_failed)
    screen.print(_summary(outcome))
    lines = [
        f"train on:  datasets.load_dataset({str(path)!r}, 'preferences')",
        f"have a judge compare them:  cai label --comparisons {shlex.quote(str(path))}",
    ]
    print_lines(screen, lines)


def _announce(screen: Console, inputs: ContrastInputs, path: Path) -> None:
    """Say in a few lines what will be done."""
    config, constitution = inputs.config, inputs.constitution
    lines = [
        f"constitution: {constitution.name} {constitution.version} (sha256 {constitution.sha256[:8]})",
        f"prompts: {inputs.prompts} × {config.principles} principles; {2 * inputs.pairs:,} model calls",
        *odd_rows(inputs.rejects, inputs.notes),
        f"run directory: {path}",
    ]
    print_lines(screen, lines)


def _summary(outcome: Outcome[ContrastCounts]) -> Table:
    counts = outcome.counts
    rows = [
        ("pairs sampled", f"{counts.pairs} ({counts.cut} with a reply cut at max tokens)"),
        ("failed", counted(outcome.manifest.failures)),
        ("left out, saying the same", counted(counts.dropped)),
        ("rows, preferences / kto", f"{counts.rows('preferences')} / {counts.rows('kto')}"),
        *cost_rows(outcome),
    ]
    return figures(rows)
