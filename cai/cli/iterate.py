"""`cai iterate`: from the failures of one round to the next."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from cai.cli.options import console, overrides, writing_options
from cai.cli.runs import print_lines, way_to_go_on
from cai.config import EngineConfig, SamplingConfig, load_config
from cai.visible import visible

if TYPE_CHECKING:  # the stage loads numpy, for which `--help` need not wait
    from cai.iterate.records import Iteration


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--after", type=click.Path(path_type=Path), help="Run of `cai iterate` of the round before.")
@click.option("--policy", help="Model whose failures count, where an evaluation has several.")
@click.option("--constitution", help="File or shipped name to propose an edit of. Default: what the runs name.")
@click.option("--principles", type=int, help="Principles at most that get more weight. Default: 3.")
@click.option("--threshold", type=float, help="Least probability of a fault in an evaluation. Default: 0.5.")
@click.option("--held-out", type=float, help="Share of an evaluation's items never trained on. Default: 0.2.")
@click.option("--seed", type=int, help="Default: 0.")
@click.option("--templates", type=click.Path(path_type=Path), help="Folder with prompt templates of your own.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run directory. Default: runs/iterate-HASH of the settings."
)
@click.option("--overwrite", is_flag=True, help="Start the run in --out anew.")
@writing_options
@click.pass_context
def iterate(
    context: click.Context,
    /,
    runs: tuple[Path, ...],
    config_file: Path | None,
    out: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Turn failures in runs of red-team and evaluate into prompts and a proposed edit of the constitution.

    Nothing is changed in place. With --model or --engine, that model writes a new principle against the topic that
    failed most, as a proposal; without them, only weights are proposed.
    """
    from cai.cli.constitution import diff
    from cai.iterate.config import IterateConfig
    from cai.iterate.run import CONSTITUTION, DIFF, PROMPTS, iterate as run_iterate, plan_iteration

    screen = console()
    given = overrides(options, {"author": EngineConfig, "sampling": SamplingConfig})
    if not given["author"]:
        del given["author"]
    config = load_config(IterateConfig, config_file, {**given, "runs": runs})
    plan = plan_iteration(config)
    path = out or plan.default_out
    with way_to_go_on("files") as command:
        done = run_iterate(plan, path, command=command, overwrite=overwrite)
    screen.print(_table(done.iteration))
    last = done.iteration.rounds[-1]
    lines = [f"{one.change} {one.principle}: {one.reason}" for one in last.proposals]
    lines += [f"note: {note}" for note in done.iteration.notes]
    lines.append(f"prompts:   {path / PROMPTS}")
    original = done.iteration.constitution
    if original is not None and last.proposals:
        lines.append(f"accept:    patch {original} {path / DIFF}")
    print_lines(screen, lines)
    if original is not None and last.proposals:
        context.invoke(diff, a=original, b=str(path / CONSTITUTION))


def _table(iteration: "Iteration") -> Table:
    from cai.iterate.run import round_head, round_rows

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in round_head(iteration.rounds):
        table.add_column(name)
    for row in round_rows(iteration.rounds):
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table
