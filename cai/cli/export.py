"""`cai export`: ratings out of a rating directory."""

from pathlib import Path
from typing import Any

import click

from cai.cli.human_options import show_published, tables_options
from cai.cli.options import console, overrides
from cai.cli.runs import print_lines, way_to_go_on
from cai.config import load_config


@click.command()
@click.argument("ratings", metavar="RATING_DIR")
@click.option("--slight", type=float, help="What a slight preference counts as. Default: 0.75.")
@click.option("--leave-out", multiple=True, metavar="RATER", help="Leave a rater's ratings out; repeat it.")
@tables_options
def export(config_file: Path | None, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Write the ratings of a directory of `cai rate` as preference data to train on.

    At any time, also while people rate: what has been confirmed on the page so far is written. The same command again
    replaces it with what stands then.
    """
    from cai.human.exporting import ExportConfig, export_ratings, load_export

    screen = console()
    inputs = load_export(load_config(ExportConfig, config_file, overrides(options, {})))
    path = out or inputs.default_out
    left_out = [f"{rater.name} ({rater.ratings} ratings)" for rater in inputs.raters if rater.left_out]
    lines = [
        f"ratings: {len(inputs.ratings)} of {len(inputs.raters)} raters, and {len(inputs.checks)} attention checks",
        *([f"left out: {', '.join(left_out)}"] if left_out else []),
        f"run directory: {path}",
    ]
    print_lines(screen, lines)
    with way_to_go_on("labels") as command:
        published = export_ratings(inputs, path, command=command, overwrite=overwrite)
    counts = published.counts
    show_published(
        screen,
        published,
        [
            ("without a label", f"{counts.unvoted} with both bad or skips alone, {counts.unrated} not rated"),
        ],
    )
    for warning in counts.warnings:
        screen.print(f"WARNING: {warning}", style="bold yellow", markup=False, soft_wrap=True)
