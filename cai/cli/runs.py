"""What the commands that make a run share: options about its directory, and what they print of it."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli.options import add_options
from cai.data.dataset import DatasetCounts
from cai.data.rows import Reject
from cai.progress import duration
from cai.rundir import REJECTS
from cai.running import Outcome
from cai.visible import visible

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

SHOWN_REJECTS = 3

_OPTIONS = (
    click.option("--max-failure-share", type=float, help="Fail when more inputs than this share failed. Default: 0.1."),
    click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings."),
    click.option(
        "--out", type=click.Path(path_type=Path), help="Run directory. Default: runs/NAME-HASH of the settings."
    ),
    click.option("--overwrite", is_flag=True, help="Start the run in --out anew."),
    click.option("--retry-failed", is_flag=True, help="Try inputs again that failed before."),
)


def run_options(command: CommandT) -> CommandT:
    """Add the options of a run to a command."""
    return add_options(command, _OPTIONS)


@contextmanager
def way_to_go_on(noun: str) -> Iterator[Sequence[str]]:
    """Give the command line; where the run within is interrupted, print the one that goes on with it."""
    command = ["cai", *sys.argv[1:]]
    try:
        yield command
    except KeyboardInterrupt:
        again = [word for word in command if word != "--overwrite"]
        click.echo(f"\nstopped; finished {noun} are kept. Go on with: {shlex.join(again)}", err=True)
        raise


def print_lines(screen: Console, lines: Sequence[str]) -> None:
    """Print lines that may hold text from outside."""
    for line in lines:
        screen.print(visible(line), markup=False, soft_wrap=True)


def odd_rows(rejects: Sequence[Reject], notes: Mapping[str, int]) -> list[str]:
    """What to tell of input rows that are not used, or only in part."""
    lines = [f"not used: {reject}" for reject in rejects[:SHOWN_REJECTS]]
    if len(rejects) > SHOWN_REJECTS:
        lines.append(f"not used: {len(rejects)} rows in all; {REJECTS} of the run lists them")
    return lines + [f"note: {number} rows are used in part ({reason})" for reason, number in notes.items()]


def counted(reasons: Mapping[str, int]) -> str:
    """A number of failures, and of each reason: `3, 2 timeout, 1 server_error`."""
    return f"{sum(reasons.values())}" + "".join(f", {number} {reason}" for reason, number in reasons.items())


def cost_rows(outcome: Outcome[DatasetCounts]) -> list[tuple[str, str]]:
    """Tokens and time of a run, for `figures`."""
    manifest = outcome.manifest
    usage = manifest.usage
    return [
        (
            "tokens, prompt / written",
            f"{usage.prompt_tokens:,} ({usage.cached_tokens:,} cached) / {usage.completion_tokens:,}",
        ),
        ("time, this session / all", f"{duration(outcome.progress.seconds)} / {duration(manifest.seconds)}"),
    ]


def figures(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values side by side."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows:
        table.add_row(name, Text(value))
    return table
