"""`cai rate`: people compare responses on a page in their browser."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli.options import console, overrides
from cai.cli.runs import figures, odd_rows, print_lines
from cai.config import load_config
from cai.human.config import RatingConfig
from cai.human.records import Scale

if TYPE_CHECKING:  # starlette and uvicorn, for which `--help` need not wait
    import socket

    from cai.human.page_directory import RateConfig, RatingDirectory
    from cai.human.store import Progress

_RATER = "rater"
"""The one rater where none is named."""


@click.command()
@click.argument("source", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Rating directory. Default: runs/rate-HASH of the settings."
)
@click.option("--prompt-column", help="Column that holds the prompt. Default: found by its name.")
@click.option("--gold-column", help="Column that names the better response; raters never see it.")
@click.option("--constitution", help="Its principles are the raters' guidelines: file or shipped name. Default: hhh.")
@click.option("--scale", type=click.Choice(get_args(Scale)), help="Four answers (clearly, slightly) or two.")
@click.option("--rater", "raters", multiple=True, help="Name of a rater; repeat it for several. Default: rater.")
@click.option("--new-links", is_flag=True, help="Make new links for all raters; the ones made before stop working.")
@click.option("--overlap", type=float, help="Share of comparisons that several raters get. Default: 0.1.")
@click.option("--overlap-raters", type=int, help="How many raters get each of those. Default: 2.")
@click.option("--check-every", type=int, help="One attention check among so many items. 0: none. Default: 20.")
@click.option("--checks", help="Comparisons with known answers for those checks. Default: planted.")
@click.option("--hold-minutes", type=int, help="An item that was left goes to another rater then. Default: 60.")
@click.option("--skip", type=int, help="Pass over the first comparisons. Default: 0.")
@click.option("--limit", type=int, help="Use only so many comparisons.")
@click.option("--seed", type=int, help="Default: 0.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings.")
@click.option("--host", help="Address to listen on. Default: 127.0.0.1, which only this machine reaches.")
@click.option("--port", type=int, help="0: any free one. Default: 8008.")
@click.option("--allow-host", multiple=True, help="Further name of the page, such as a reverse proxy's.")
def rate(config_file: Path | None, out: Path | None, new_links: bool, **options: Any) -> None:
    """Serve a page on which raters compare the responses of SOURCE, one link for each rater, until Ctrl-C.

    SOURCE is the directory of a sample, contrast or critique-revise run, a file, a shipped set,
    hub:owner/name[:split], or a rating directory, to go on with it: an answer that the page has confirmed is kept
    whatever happens. A link is a secret and printed once, since only its hash is kept. It works until --new-links
    replaces it.
    """
    from cai.human.page_directory import RateConfig, open_directory
    from cai.human.serving import listen

    screen = console()
    config = load_config(RateConfig, config_file, overrides(options, {"rating": RatingConfig}))
    with listen(config.host, config.port) as on:
        directory = open_directory(config, out)
        with directory.store as store:
            _serve(screen, directory, config, on, new_links=new_links)
            screen.print(_table(store.progress()))
    print_lines(screen, [f"go on with: cai rate {shlex.quote(str(directory.path))}"])


def _serve(
    screen: Console, directory: "RatingDirectory", config: "RateConfig", on: "socket.socket", *, new_links: bool
) -> None:
    """Print the links, and serve the page until Ctrl-C; on a terminal, with a count that goes along."""
    from cai.human.app import Site, create_app
    from cai.human.serving import Ticker, address_of, is_loopback, names_of, serve

    store, port = directory.store, on.getsockname()[1]
    status = screen.status("")

    def show_count() -> None:
        found = store.progress()
        answered = sum(one.answered for one in found)
        raters = "1 rater" if len(found) == 1 else f"{len(found)} raters"
        status.update(Text(f"{answered:,} answers by {raters}; {directory.total:,} comparisons"))

    def announce() -> None:
        print_lines(screen, ["Ctrl-C stops; answers are kept."])
        if screen.is_terminal:
            status.start()
            ticker.want()

    with Ticker(show_count) as ticker:
        app = create_app(
            store,
            directory.constitution,
            Site(names_of(config.host, config.allow_host), f"cai_rater_{port}"),
            on_change=ticker.want if screen.is_terminal else lambda: None,
            on_error=lambda message: print_lines(screen, [f"error: {message}"]),
        )
        links = _links(directory, config.raters, address_of(config.host, port), new=new_links)
        print_lines(screen, [*_opening(directory), *links])
        if not is_loopback(config.host):
            screen.print(
                "WARNING: the page is plain HTTP, and whoever reads the network reads links and texts; put a reverse "
                "proxy with TLS in front of it, and name it by --allow-host.",
                style="bold yellow",
                markup=False,
                soft_wrap=True,
            )
        try:
            serve(app, on, announce)
        finally:
            status.stop()


def _opening(directory: "RatingDirectory") -> list[str]:
    constitution, config = directory.constitution, directory.store.config
    checks = f"one in {config.check_every} items" if config.check_every else "none"
    return [
        f"comparisons: {directory.total:,} of {directory.store.source}",
        *odd_rows(directory.rejects, directory.notes),
        f"guidelines: {constitution.name} {constitution.version} (sha256 {constitution.sha256[:8]})",
        f"scale: {config.scale}, attention checks: {checks}, "
        f"overlap: {config.overlap:.0%} of the comparisons by {config.overlap_raters} raters",
        f"rating directory: {directory.path}",
    ]


def _links(directory: "RatingDirectory", named: tuple[str, ...], address: str, *, new: bool) -> list[str]:
    """Make links for raters who have none, or for all; a line for each rater."""
    store = directory.store
    known = [one.rater for one in store.progress()]
    everyone = [*known, *(name for name in named if name not in known)] or [_RATER]
    return [
        f"{name}: the link made before still works at {address} (--new-links makes another)"
        if name in known and not new
        else f"{name}: {address}/r/{store.add_rater(name)}"
        for name in everyone
    ]


def _table(progress: "list[Progress]") -> Table:
    rows = []
    for one in progress:
        time = "" if one.median_seconds is None else f", median {one.median_seconds:.1f} s"
        checks = f", attention checks {one.checks - one.checks_failed} of {one.checks} right" if one.checks else ""
        rows.append((one.rater, f"{one.answered:,} answered ({one.skipped:,} skipped){time}{checks}"))
    return figures(rows)
