"""`cai show`: read a run's transcripts."""

import shlex
import sys
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

import click
from rich.console import Console

from cai.constitution import load_constitution
from cai.data.chains import find_chain, has_torn_line, read_chains
from cai.errors import RunDirError
from cai.prompting import Templates
from cai.transcripts import format_chain
from cai.visible import visible


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("id", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=3, show_default=True, help="Chains to show without an ID.")
def show(run: Path, id: str | None, limit: int) -> None:
    """Show transcripts of the run directory RUN, finished or not.

    With an ID, or the beginning of one, shows that chain, else the first ones in the order of the input. Words that a
    revision removed or added are marked, in colours on a terminal, as [-removed-] and {+added+} elsewhere.
    """
    if id is None:
        chains = list(islice(read_chains(run), limit + 1))
        if not chains:
            raise RunDirError(f"{run} has no finished chain yet; failures.jsonl there says what failed")
    else:
        chains = [find_chain(run, id)]
    requests = Templates().requests(load_constitution(str(run / "constitution.yaml")), rounds=1)
    # Model text may hold any character; a terminal that cannot show one must not stop the transcript.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(highlight=False)
    for chain in chains[:limit]:
        console.print(format_chain(chain, requests, console.width))
    if len(chains) > limit:
        other = f"cai show {shlex.quote(str(run))} {shlex.quote(visible(chains[limit].id))}"
        click.echo(f"Shown: the first {limit} in the order of the input. Next: {other}, or a larger --limit.")
    if has_torn_line(run):
        click.echo("Note: the last line of records.jsonl is half-written; it is left out.", err=True)
