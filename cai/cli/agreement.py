"""`cai agreement`: how raters agree with one another, and judges with them."""

from pathlib import Path

import click

from cai.cli.options import console
from cai.errors import ConfigError


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--ai", "labels", multiple=True, metavar="RUN_OR_FILE", help="Labels of a judge; repeat it for several.")
@click.option("--comparisons", multiple=True, help="What was rated, for sources that do not hold it.")
@click.option("--seed", type=int, default=0, help="Of the bootstraps. Default: 0.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report. Default: SOURCE, the first one.")
def agreement(
    sources: tuple[str, ...], labels: tuple[str, ...], comparisons: tuple[str, ...], seed: int, out: Path | None
) -> None:
    """Measure the agreement of raters with one another, and of judges with them.

    SOURCE is a directory of cai rate, a run of cai export, or a .jsonl file of ratings. Writes agreement.json,
    agreement.svg and agreement.md.
    """
    from cai.human.agreement_files import AGREEMENT_FILES, refuse_inputs, render_agreement, write_agreement
    from cai.human.agreement_report import measure
    from cai.human.agreement_sources import read_comparison_source, read_judge_source, read_rating_source

    folder = _folder(sources[0]) if out is None else out
    refuse_inputs(folder, (*sources, *labels, *comparisons))
    rated = [read_rating_source(path) for path in dict.fromkeys(sources)]
    ids = {rating.comparison_id for source in rated for rating in source.ratings if rating.check is None}
    report = measure(
        rated,
        [read_judge_source(path, ids) for path in dict.fromkeys(labels)],
        [read_comparison_source(path) for path in dict.fromkeys(comparisons)],
        seed=seed,
    )
    screen = console()
    screen.print(render_agreement(report))
    write_agreement(report, folder)
    files = ", ".join(str(folder / name) for name in AGREEMENT_FILES)
    screen.print(f"written:   {files}", markup=False, soft_wrap=True)


def _folder(source: str) -> Path:
    """Where the report goes that has no --out."""
    if not Path(source).is_dir():
        raise ConfigError(f"{source} is no directory to put the report into; name one with --out")
    return Path(source)
