"""`cai critique-revise`: the main job."""

import shlex
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cai.cli.options import console, overrides, writing_options
from cai.cli.runs import cost_rows, counted, figures, odd_rows, print_lines, run_options, way_to_go_on
from cai.config import load_config
from cai.critique import CritiqueReviseConfig
from cai.critique_run import Inputs, critique_revise as run_stage, load_inputs
from cai.data.card import ExportCounts
from cai.data.chains import read_chains
from cai.estimate import estimate_run, probe_size
from cai.progress import duration
from cai.running import Outcome
from cai.transcripts import format_chain

EXAMPLES = 3


@click.command("critique-revise")
@click.option("--constitution", help="Constitution file or shipped name. Default: hhh.")
@click.option("--prompts", help="Red-team prompts: file, shipped set or hub:owner/name[:split]. Default: red-team.")
@click.option("--prompt-column", help="Column that holds the prompt. Default: found by its name.")
@click.option("--helpful", help="Helpful prompts, answered without revision. Default: helpful.")
@click.option("--helpful-ratio", type=float, help="Helpful prompts for each red-team prompt. Default: 0.5.")
@click.option("--rounds", type=int, help="Critiques and revisions of each draft. Default: 4, as in the paper.")
@click.option("--no-critique", "critique", flag_value=False, default=None, help="Revise without a critique.")
@click.option("--stop-when-clean", is_flag=True, default=None, help="End a chain when its critique finds nothing.")
@click.option("--tag", "tags", multiple=True, help="Draw only principles with this tag; repeat it for several.")
@click.option("--few-shot", type=int, help="Worked examples before each request. Default: all of the constitution.")
@click.option("--limit", type=int, help="Use only the first prompts.")
@click.option("--seed", type=int, help="Default: 0.")
@click.option("--templates", type=click.Path(path_type=Path), help="Folder with prompt templates of your own.")
@click.option("--test-share", type=float, help="Share of prompts for the test splits. Default: 0.05.")
@run_options
@click.option("--dry-run", is_flag=True, help="Print calls, tokens and time that the run would take; write nothing.")
@writing_options
def critique_revise(
    config_file: Path | None, out: Path | None, overwrite: bool, retry_failed: bool, dry_run: bool, **options: Any
) -> None:
    """Draft, criticise and revise replies by a constitution; write SFT data and revision pairs.

    Works with no option at all: the shipped constitution and prompts, and a small model that needs no GPU. The same
    command again goes on where the last one stopped.
    """
    screen = console()
    config = load_config(CritiqueReviseConfig, config_file, overrides(options))
    inputs = load_inputs(config)
    _announce(screen, inputs)
    if dry_run:
        _print_estimate(screen, inputs)
        return
    path = out or inputs.default_out
    screen.print(f"run directory: {path}", markup=False, soft_wrap=True)
    with way_to_go_on("chains") as command:
        outcome = run_stage(inputs, path, screen, command=command, overwrite=overwrite, retry_failed=retry_failed)
    _conclude(screen, inputs, outcome)


def _announce(screen: Console, inputs: Inputs) -> None:
    """Say in a few lines what will be done."""
    config, constitution = inputs.config, inputs.constitution
    principles = len(constitution.select("critique", config.tags))
    lines = [
        f"constitution: {constitution.name} {constitution.version} ({principles} principles, "
        f"sha256 {constitution.sha256[:8]})",
        f"prompts: {inputs.red_team} red-team × {config.rounds} rounds, {inputs.helpful} helpful; "
        f"{inputs.calls:,} model calls",
    ]
    print_lines(screen, [*lines, *odd_rows(inputs.rejects, inputs.notes)])


def _print_estimate(screen: Console, inputs: Inputs) -> None:
    """What the run would take."""
    screen.print(f"probe: {probe_size(inputs)} chains of one round; nothing is written")
    found = estimate_run(inputs)
    rows = [
        ("model calls", f"{found.calls:,}"),
        ("tokens read", f"about {found.usage.prompt_tokens:,} ({found.usage.cached_tokens:,} from the cache)"),
        ("tokens written", f"about {found.usage.completion_tokens:,}"),
        ("time", f"at most about {duration(found.seconds)} with {found.concurrency} chains in flight"),
        (
            "measured",
            f"{found.probe_calls} calls, {found.probe_usage.completion_tokens:,} tokens written "
            f"in {duration(found.probe_seconds)}",
        ),
    ]
    if found.probe_failures:
        rows.append(("probe chains failed", counted(found.probe_failures)))
    screen.print(figures(rows))


def _conclude(screen: Console, inputs: Inputs, outcome: Outcome[ExportCounts]) -> None:
    """Print three chains, the figures of the run, and what to do next."""
    requests = inputs.templates.requests(inputs.constitution, inputs.config.rounds)
    revised = (chain for chain in read_chains(outcome.path) if chain.rounds)
    for chain in islice(revised, EXAMPLES):
        screen.print(format_chain(chain, requests, screen.width))
    screen.print(_summary(outcome))
    run = shlex.quote(str(outcome.path))
    screen.print(f"read on:   cai show {run}", markup=False, soft_wrap=True)
    screen.print(f"train on:  datasets.load_dataset({str(outcome.path)!r}, 'sft')", markup=False, soft_wrap=True)


def _summary(outcome: Outcome[ExportCounts]) -> Table:
    counts = outcome.counts
    pairs = counts.rows("pairs")
    revised = counts.chains - counts.helpful - counts.unrevised
    rows = [
        ("chains finished", f"{counts.chains} ({counts.helpful} of them helpful answers)"),
        ("failed", counted(outcome.manifest.failures)),
        ("revisions that changed the draft", f"{pairs} of {revised}"),
        ("SFT rows", f"{counts.rows('sft')} ({counts.cut_replies} cut at max tokens)"),
        ("revision ≻ draft pairs", f"{pairs}"),
        *cost_rows(outcome),
    ]
    return figures(rows)
