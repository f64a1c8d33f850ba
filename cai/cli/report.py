"""`cai report`: any number of runs on one page."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The page.",
)
@click.option("--title", help="Title of the page. Default: Constitutional AI: report.")
@click.option(
    "--transcripts", type=click.IntRange(min=0), default=200, show_default=True, help="Transcripts to show at most."
)
def report(runs: tuple[Path, ...], out: Path, title: str | None, transcripts: int) -> None:
    """Put runs on one page: what was done by which principles, what came of it, and what it took.

    RUN is a run directory of any stage, finished or not, the directory of a `cai run`, or a folder of either. The page
    is one file without any reference to the network, for a browser, a phone or paper.
    """
    from cai.report.report import TITLE, write_report

    write_report(runs, out, title=TITLE if title is None else title, transcripts=transcripts)
    click.echo(out)
