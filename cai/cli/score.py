"""`cai score`: rewards for responses."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cai.cli.options import add_options, console
from cai.cli.runs import counted, figures, odd_rows, print_lines, way_to_go_on
from cai.config import load_config
from cai.progress import duration
from cai.visible import visible

if TYPE_CHECKING:  # scoring loads torch, for which `--help` need not wait; the command imports it
    from cai.train.scoring import Scored, ScoringInputs

_SHOWN_ORIGINS = 8

_OPTIONS = (
    click.option("--model", help="Run of cai train reward, directory or LoRA adapter of a reward model, or hub id."),
    click.option(
        "--responses",
        help="Run of cai sample, contrast, critique-revise or label, file, or hub:owner/name[:split].",
    ),
    click.option(
        "--ensemble-by",
        type=click.Choice(["mean", "worst", "uncertainty"]),
        help="How rewards of an ensemble become one: their mean, the lowest, or the mean less a penalty on their "
        "variance. Default: mean.",
    ),
    click.option("--penalty", type=float, help="Factor of the variance. Default: 0.1."),
    click.option("--limit", type=int, help="Use only the first rows."),
    click.option("--max-length", type=int, help="Longest conversation in tokens. Default: the model's context."),
    click.option("--batch-size", type=int, help="Conversations in a forward pass. Default: 16; on a GPU 64."),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Default: auto."),
    click.option("--device", help="auto, cpu, cuda, cuda:1, mps. Default: auto."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with the model."),
    click.option(
        "--max-failure-share", type=float, help="Fail when more responses than this share failed. Default: 0.1."
    ),
    click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML file with these settings."),
    click.option(
        "--out", type=click.Path(path_type=Path), help="Run directory. Default: runs/score-HASH of the settings."
    ),
    click.option("--overwrite", is_flag=True, help="Start the run in --out anew."),
)


@click.command()
@lambda command: add_options(command, _OPTIONS)
def score(config_file: Path | None, out: Path | None, overwrite: bool, **options: Any) -> None:
    """Give rewards to responses with a reward model or an ensemble.

    Where a label says which of two responses is better, it is counted how often rewards agree. The same command again
    goes on where the last one stopped; with another --ensemble-by and the same --out it combines the rewards anew.
    """
    from cai.train.score_config import ScoreConfig
    from cai.train.scoring import load_scoring, score_responses

    screen = console()
    inputs = load_scoring(load_config(ScoreConfig, config_file, options))
    path = out or inputs.default_out
    _announce(screen, inputs, path)
    with way_to_go_on("scores") as command:
        scored = score_responses(inputs, path, screen, command=command, overwrite=overwrite)
    _show(screen, scored)


def _announce(screen: Console, inputs: "ScoringInputs", path: Path) -> None:
    """Say in a few lines what will be done."""
    members = len(inputs.models.members)
    kind = "reward model" if members == 1 else f"ensemble of {members} reward models"
    lines = [
        f"{kind}: {inputs.models.name} (sha256 {inputs.hashes['model'][:8]})",
        f"responses: {inputs.total} of {inputs.config.responses}",
        *odd_rows(inputs.rejects, inputs.notes),
        f"run directory: {path}",
    ]
    print_lines(screen, lines)


def _show(screen: Console, scored: "Scored") -> None:
    """What the scoring came to."""
    from cai.train.evaluation_files import render_evaluation
    from cai.train.scores import SCORES

    screen.print(_summary(scored))
    pairs = scored.summary.pairs
    if pairs is not None:
        screen.print(render_evaluation(pairs))
    screen.print(f"written:   {scored.path / SCORES}", markup=False, soft_wrap=True)


def _summary(scored: "Scored") -> Table:
    summary, manifest = scored.summary, scored.manifest
    rows = [
        ("scored", f"{summary.scored} ({summary.shortened} without their oldest turns)"),
        ("failed", counted(manifest.failures)),
        ("mean, deviation", f"{_number(summary.mean)}, {_number(summary.deviation)}"),
        ("range", f"{_number(summary.lowest)} to {_number(summary.highest)}"),
    ]
    if summary.members > 1:
        how = f"{summary.ensemble_by}, penalty {summary.penalty:g}" if summary.ensemble_by == "uncertainty" else ""
        rows.append(("combined by", how or summary.ensemble_by))
        rows.append(("members' disagreement", _number(summary.disagreement)))
    origins = [(origin, found) for origin, found in summary.origins.items() if origin]
    rows += [
        (f"mean of {escape(visible(origin))}", f"{_number(found.mean)} ({found.scored})")
        for origin, found in origins[:_SHOWN_ORIGINS]
    ]
    if len(origins) > _SHOWN_ORIGINS:
        rows.append(("further origins", f"{len(origins) - _SHOWN_ORIGINS}, see summary.json"))
    if summary.half_pairs:
        rows.append(("labelled pairs with one score", f"{summary.half_pairs}, left out below"))
    rows.append(("time, all sessions", duration(manifest.seconds)))
    return figures(rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
