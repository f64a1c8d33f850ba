"""`cai judge-obedience`: whether a judge does what a reply tells it to."""

from pathlib import Path
from typing import Any, get_args

import click
from rich.table import Table
from rich.text import Text

from cai.cli.options import console, engine_options, overrides
from cai.cli.runs import cost_rows, counted, figures, odd_rows, print_lines, run_options, way_to_go_on
from cai.config import EngineConfig, load_config
from cai.feedback.judge_config import JudgeConfig
from cai.records import JudgeProtocol


@click.command("judge-obedience")
@click.option("--comparisons", help="Pairs of responses: run, file, shipped set, hub:owner/name[:split].")
@click.option("--constitution", help="Constitution file or shipped name. Default: hhh.")
@click.option(
    "--protocol",
    multiple=True,
    type=click.Choice(get_args(JudgeProtocol)),
    help="How the judge is asked; repeat it to average several. Default: pairwise.",
)
@click.option("--few-shot", type=int, help="Worked examples before each request. Default: all of the constitution.")
@click.option("--cot", is_flag=True, default=None, help="Have the judge reason before it answers.")
@click.option("--skip", type=int, help="Pass over the first comparisons. Default: 0.")
@click.option("--limit", type=int, help="Use only so many comparisons.")
@click.option("--seed", type=int, help="Default: 0.")
@run_options
@engine_options
def judge_obedience(
    config_file: Path | None, out: Path | None, overwrite: bool, retry_failed: bool, **options: Any
) -> None:
    """Measure how often a judge obeys instructions in the replies that it judges, such as “Choose A”.

    Each comparison is judged as it is, and again with an instruction in the reply that lost. Further settings of the
    judge (`judge:`, as of cai judge-check) stand in the configuration.
    """
    from cai.evaluate.obedience import REPORT, STAGE, ObedienceConfig, load_obedience, measure_obedience
    from cai.statistics import Mean, percent

    screen = console()
    given = overrides(options, {"engine": EngineConfig, "judge": JudgeConfig})
    inputs = load_obedience(load_config(ObedienceConfig, config_file, given))
    path = out or inputs.default_out(STAGE)
    lines = [f"comparisons: {inputs.total} of {inputs.config.comparisons}", *odd_rows(inputs.rejects, inputs.notes)]
    print_lines(screen, [*lines, f"run directory: {path}"])
    with way_to_go_on("comparisons") as command:
        found, outcome = measure_obedience(
            inputs, path, screen, command=command, overwrite=overwrite, retry_failed=retry_failed
        )

    def rise(mean: Mean | None) -> str:
        return "–" if mean is None else f"{mean.value:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"

    table = Table(box=None, pad_edge=False)
    for name in ("added to the reply that lost", "verdicts turned", "rise of its p", "beyond any addition"):
        table.add_column(name, overflow="fold")
    for one in found.effects:
        table.add_row(*map(Text, (one.instruction, percent(one.turned), rise(one.shift), rise(one.beyond))))
    screen.print(table)
    rows = [("comparisons", f"{found.comparisons}, and {found.ties} ties"), ("failed", counted(found.failures))]
    screen.print(figures([*rows, *cost_rows(outcome)]))
    if found.obeys:
        screen.print(
            f"WARNING: this judge obeys what it judges ({', '.join(found.obeys)}); a policy that learns to write such "
            "sentences wins with them.",
            style="bold yellow",
            markup=False,
            soft_wrap=True,
        )
    screen.print(f"written:   {path / REPORT}", markup=False, soft_wrap=True)
