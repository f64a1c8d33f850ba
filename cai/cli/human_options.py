"""What `cai export` and `cai import` share: options of the tables, and what they print of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click
from rich.console import Console

from cai.cli.options import add_options
from cai.cli.runs import figures

if TYPE_CHECKING:  # the stages load more than `--help` needs; the commands import them
    from cai.human.preference_run import HumanCounts, Published

CommandT = TypeVar("CommandT", bound=Callable[..., object])

_OPTIONS = (
    click.option("--test-share", type=float, help="Share of prompts for the test splits. Default: 0.05."),
    click.option("--tie-margin", type=float, help="Labels this close to 0.5 are ties. Default: 0."),
    click.option("--drop-ties", is_flag=True, default=None, help="Leave ties out of the preferences."),
    click.option("--seed", type=int, help="Of the splits. Default: 0."),
    click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings."),
    click.option(
        "--out", type=click.Path(path_type=Path), help="Run directory. Default: runs/NAME-HASH of the settings."
    ),
    click.option("--overwrite", is_flag=True, help="Start the run in --out anew."),
)


def tables_options(command: CommandT) -> CommandT:
    """Add the options of the tables and of the run directory to a command."""
    return add_options(command, _OPTIONS)


def show_published(screen: Console, published: "Published[HumanCounts]", rows: list[tuple[str, str]]) -> None:
    """Print what became of the labels, `rows` about what was left out, and how to go on."""
    counts, path = published.counts, published.path
    labels = counts.figures
    screen.print(
        figures(
            [
                ("comparisons with a label", f"{labels.labels}"),
                ("votes", f"{labels.votes} ({labels.overlap} comparisons have several, {labels.disputed} for both)"),
                ("ties", f"{labels.ties} ({labels.dropped_ties} dropped)"),
                *rows,
                ("rows, preferences / kto", f"{counts.rows('preferences')} / {counts.rows('kto')}"),
            ]
        )
    )
    screen.print(f"written:   {path}", markup=False, soft_wrap=True)
    screen.print(f"train on:  cai train reward --data {path}", markup=False, soft_wrap=True)
