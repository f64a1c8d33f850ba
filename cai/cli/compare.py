"""`cai compare`: the AI path beside the human path."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cai.cli.options import add_options, console
from cai.cli.runs import odd_rows, print_lines, way_to_go_on
from cai.config import load_config
from cai.progress import duration
from cai.visible import visible

if TYPE_CHECKING:  # it loads torch, for which `--help` need not wait; the command imports it
    from cai.compare.run import Compared, ComparePlan

_OPTIONS = (
    click.option("--ai", help="AI labels: run of cai label or contrast, file, or hub:owner/name[:split]."),
    click.option("--human", help="Human labels of the same comparisons: run of an export or import, file, or hub:…"),
    click.option("--test", help="Human labels to measure on, in place of held-out prompts of the two sources."),
    click.option("--test-share", type=float, help="Share of the prompts that are held out. Default: 0.2."),
    click.option(
        "--ranking",
        type=click.Path(path_type=Path),
        help="Run of cai rank over policies that learned from either side, to be shown beside.",
    ),
    click.option("--seeds", type=int, help="Reward models for each set of labels. Default: 3."),
    click.option("--seed", type=int, help="Fixes the held-out prompts and the subsets. Default: 0."),
    click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings."),
    click.option(
        "--out", type=click.Path(path_type=Path), help="Run directory. Default: runs/compare-HASH of the settings."
    ),
    click.option("--overwrite", is_flag=True, help="Start the run in --out anew."),
)


@click.command()
@lambda command: add_options(command, _OPTIONS)
def compare(config_file: Path | None, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Compare AI labels with human labels: reward models trained on each, what labels are worth and what they cost.

    Sizes of subsets, prices and the training (`reward:`, by the names of cai train reward) stand in the configuration;
    see recipes/compare.yaml. The same command again goes on where the last one stopped.
    """
    from cai.compare.config import CompareConfig
    from cai.compare.run import compare_paths, plan_comparison

    given = {name: {"path": path} for name in ("ai", "human", "test") if (path := options.pop(name)) is not None}
    config = load_config(CompareConfig, config_file, {**options, **given})
    screen = console()
    screen.print("reading and matching the labels …")
    plan = plan_comparison(config)
    path = out or plan.default_out
    _announce(screen, plan, path)
    with way_to_go_on("models") as command:
        compared = compare_paths(plan, path, screen, command=command, overwrite=overwrite)
    _show(screen, compared)


def _announce(screen: Console, plan: "ComparePlan", path: Path) -> None:
    """Say in a few lines what will be done."""
    facts, config = plan.pairs.facts, plan.config
    lines = [
        f"start: {plan.start.name} (sha256 {plan.start.sha256[:8]})",
        *(f"{side.comparisons} comparisons of {side.path}, {side.alone} alone" for side in (facts.ai, facts.human)),
        f"matched: {facts.matched} of {facts.matched_prompts} prompts; train on {facts.train}, held out: "
        f"{facts.held_out} of {facts.held_out_prompts} prompts",
        *odd_rows(plan.pairs.rejects, {}),
    ]
    left_out = {**facts.unfit, **({"in_test": facts.in_test} if facts.in_test else {})}
    if left_out:
        lines.append("left out: " + ", ".join(f"{number} {reason}" for reason, number in left_out.items()))
    sizes = ", ".join(map(str, plan.sizes))
    lines.append(f"{len(plan.models)} reward models: 2 sides, {sizes} labels, {config.seeds} seeds")
    print_lines(screen, [*lines, f"run directory: {path}"])


def _show(screen: Console, compared: "Compared") -> None:
    """What the comparison came to."""
    from cai.compare.report import CROSS_HEAD, cross_rows, verdict
    from cai.compare.run import PAGE

    table = Table(box=None, pad_edge=False)
    for name in CROSS_HEAD:
        table.add_column(name)
    for row in cross_rows(compared.comparison):
        table.add_row(*(Text(visible(cell)) for cell in row))
    screen.print(table)
    print_lines(screen, [verdict(compared.comparison), f"time, all sessions: {duration(compared.manifest.seconds)}"])
    screen.print(f"written:   {compared.path / PAGE}", markup=False, soft_wrap=True)
