"""`cai rank`: policies ranked by labelled comparisons of their replies."""

from pathlib import Path

import click

from cai.cli.options import console
from cai.cli.runs import way_to_go_on
from cai.visible import visible


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--helpful", multiple=True, metavar="RUN", help="Labels of helpfulness; repeat it for several runs.")
@click.option("--harmless", multiple=True, metavar="RUN", help="Labels of harmlessness; repeat it for several runs.")
@click.option("--baseline", metavar="NAME", help="The policy whose rating is 0. Default: the mean of all is.")
@click.option("--seed", type=int, default=0, help="Of the bootstraps. Default: 0.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the ranking. Default: runs/rank-HASH.")
@click.option("--overwrite", is_flag=True, help="Start the run in --out anew.")
def rank(
    runs: tuple[str, ...],
    helpful: tuple[str, ...],
    harmless: tuple[str, ...],
    baseline: str | None,
    seed: int,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Rank policies by labelled comparisons of their replies: Elo ratings, win rates, and those at equal length.

    RUN is a run of cai label over cai sample with several policies, or of cai export or cai import with people's votes
    in place of the judge. With --helpful and --harmless each policy has a rating on either axis, drawn as a plane.
    Writes ranking.json, ranking.md and plots.
    """
    from cai.evaluate.ranking import RankConfig, load_ranking, rank as rank_policies
    from cai.evaluate.ranking_output import render_ranking, write_ranking

    screen = console()
    config = RankConfig(runs=runs, helpful=helpful, harmless=harmless, baseline=baseline, seed=seed)
    inputs = load_ranking(config)
    path = out or inputs.default_out
    ranking = rank_policies(inputs)
    with way_to_go_on("files") as command:
        files = write_ranking(inputs, ranking, path, command=command, overwrite=overwrite)
    screen.print(render_ranking(ranking))
    for warning in ranking.warnings:
        screen.print(f"WARNING: {visible(warning)}", style="bold yellow", markup=False, soft_wrap=True)
    screen.print(f"written:   {', '.join(str(path / name) for name in files)}", markup=False, soft_wrap=True)
