"""`cai label` and `cai judge-check`: a judge at work, and what it is worth."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from rich.console import Console
from rich.table import Table

from cai.cli.options import add_options, console, engine_options, overrides
from cai.cli.runs import cost_rows, counted, figures, odd_rows, print_lines, run_options, way_to_go_on
from cai.config import EngineConfig, StrictModel, load_config
from cai.data.preference_card import PreferenceCounts
from cai.data.preferences import PreferencesConfig
from cai.feedback.judge_config import JudgeConfig
from cai.feedback.prompts import Layout
from cai.records import JudgeProtocol
from cai.running import Outcome

if TYPE_CHECKING:  # the stages load numpy, for which `--help` need not wait; commands import them
    from cai.feedback.judging import JudgingInputs

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_SECTIONS: Mapping[str, type[StrictModel]] = {"engine": EngineConfig, "judge": JudgeConfig}

_JUDGE_OPTIONS = (
    click.option("--constitution", help="Constitution file or shipped name. Default: hhh."),
    click.option("--prompt-column", help="Column that holds the prompt. Default: found by its name."),
    click.option("--gold-column", help="Column that names the better response. Default: gold."),
    click.option(
        "--protocol",
        multiple=True,
        type=click.Choice(get_args(JudgeProtocol)),
        help="How the judge is asked; repeat it to average several. Default: pairwise.",
    ),
    click.option(
        "--layout", type=click.Choice(get_args(Layout)), help="Of a pairwise request. Default: principle-last."
    ),
    click.option("--principles", metavar="N|all", help="Principles drawn for each comparison. Default: 1."),
    click.option("--tag", "tags", multiple=True, help="Draw only principles with this tag; repeat it for several."),
    click.option("--few-shot", type=int, help="Worked examples before each request. Default: all of the constitution."),
    click.option("--cot", is_flag=True, default=None, help="Have the judge reason before it answers."),
    click.option("--cot-tokens", type=int, help="Longest reasoning in tokens. Default: 512."),
    click.option("--clamp", nargs=2, type=float, metavar="LOW HIGH", help="Bounds of p. Default: 0.4 0.6 with --cot."),
    click.option("--content-free", is_flag=True, default=None, help="Take off what the judge says about nothing."),
    click.option("--per-token", is_flag=True, default=None, help="Log-likelihoods by length (likelihood)."),
    click.option("--scale", type=float, help="Factor of all log-odds. Default: 1."),
    click.option("--min-option-mass", type=float, help="A judgement fails below it. Default: 0.1."),
    click.option("--sample-verdicts", type=int, help="Written verdicts, for servers without log-probabilities."),
    click.option("--skip", type=int, help="Pass over the first comparisons. Default: 0."),
    click.option("--limit", type=int, help="Use only so many comparisons."),
    click.option("--seed", type=int, help="Default: 0."),
    click.option("--templates", type=click.Path(path_type=Path), help="Folder with prompt templates of your own."),
)


def _judge_options(command: CommandT) -> CommandT:
    return add_options(command, _JUDGE_OPTIONS)


@click.command("judge-check")
@click.option("--comparisons", help="Labelled pairs: file, shipped set, hub:owner/name[:split]. Default: planted.")
@_judge_options
@run_options
@engine_options
def judge_check(
    config_file: Path | None, out: Path | None, overwrite: bool, retry_failed: bool, **options: Any
) -> None:
    """Measure a judge on comparisons whose better response is known, and grade it: pass, weak or fail.

    Do this before you trust its labels: `cai label` with the same judge options shows the certificate.
    """
    from cai.feedback.certificate_files import CERTIFICATE_FILES, render_table
    from cai.feedback.judge_check import JudgeCheckConfig, judge_check as run_judge_check, load_judge_check

    screen = console()
    config = load_config(JudgeCheckConfig, config_file, overrides(options, _SECTIONS))
    inputs = load_judge_check(config)
    path = out or inputs.default_out("judge-check")
    _announce(screen, inputs, path)
    with way_to_go_on("labels") as command:
        certificate, outcome = run_judge_check(
            inputs, path, screen, command=command, overwrite=overwrite, retry_failed=retry_failed
        )
    screen.print(render_table(certificate))
    screen.print(figures(cost_rows(outcome)))
    files = ", ".join(str(outcome.path / name) for name in CERTIFICATE_FILES)
    screen.print(f"written:   {files}", markup=False, soft_wrap=True)


@click.command()
@click.option(
    "--comparisons", help="Pairs: directory of a sample, contrast or critique-revise run, file, hub:owner/name[:split]."
)
@_judge_options
@click.option("--test-share", type=float, help="Share of prompts for the test splits. Default: 0.05.")
@click.option("--tie-margin", type=float, help="Labels this close to 0.5 are ties. Default: 0.")
@click.option("--drop-ties", is_flag=True, default=None, help="Leave ties out of the preferences.")
@click.option("--human", help="Comparisons with human choices to mix in.")
@click.option("--human-column", help="Column of --human that holds the prompt.")
@click.option("--human-gold-column", help="Column of --human that names the better response.")
@click.option("--human-ratio", type=float, help="Human rows for each labelled row. Default: 1.")
@click.option("--certificate", type=click.Path(path_type=Path), help="Certificate of the judge: file, or its run.")
@click.option("--force", is_flag=True, help="Label even where the certificate cannot tell the judge from chance.")
@run_options
@engine_options
def label(
    config_file: Path | None,
    out: Path | None,
    overwrite: bool,
    retry_failed: bool,
    certificate: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Have a judge label pairs of responses with soft preferences; write data to train on.

    Shows the certificate of the judge, which `cai judge-check` with the same judge options makes.
    """
    from cai.feedback.labelling import (
        LabelConfig,
        find_certificate,
        label as run_label,
        load_labelling,
        refuse_chance,
        summary,
    )

    screen = console()
    config = load_config(LabelConfig, config_file, overrides(options, {**_SECTIONS, "export": PreferencesConfig}))
    inputs = load_labelling(config)
    path = out or inputs.default_out("label")
    _announce(screen, inputs, path)
    found = find_certificate(inputs, certificate, path.parent)
    if found is None or found.differences:
        near = f" {found.path} is of another one: {'; '.join(found.differences)}." if found else ""
        screen.print(
            f"WARNING: no certificate of this judge was found.{near} Nothing is known of the worth of its labels; "
            "measure it first: `cai judge-check` with the same judge options.",
            style="bold yellow",
            markup=False,
            soft_wrap=True,
        )
        found = None
    else:
        screen.print(f"certificate: {summary(found.certificate)} ({found.path})", markup=False, soft_wrap=True)
        if not force:
            refuse_chance(found.certificate)
    with way_to_go_on("labels") as command:
        outcome = run_label(
            inputs,
            path,
            screen,
            certificate=found.certificate if found else None,
            command=command,
            overwrite=overwrite,
            retry_failed=retry_failed,
        )
    screen.print(_summary(outcome))
    screen.print(f"train on:  datasets.load_dataset({str(path)!r}, 'preferences')", markup=False, soft_wrap=True)


def _announce(screen: Console, inputs: "JudgingInputs", path: Path) -> None:
    """Say in a few lines what will be done."""
    constitution, judge = inputs.constitution, inputs.config.judge
    lines = [
        f"constitution: {constitution.name} {constitution.version} (sha256 {constitution.sha256[:8]})",
        f"judge: {', '.join(judge.protocol)}, principles for each comparison: {judge.principles}",
        f"comparisons: {inputs.total} of {inputs.config.comparisons}",
        *odd_rows(inputs.rejects, inputs.notes),
        f"run directory: {path}",
    ]
    print_lines(screen, lines)


def _summary(outcome: Outcome[PreferenceCounts]) -> Table:
    manifest, counts = outcome.manifest, outcome.counts
    return figures(
        [
            ("labels", f"{counts.labels}"),
            ("failed", counted(manifest.failures)),
            ("ties", f"{counts.ties} ({counts.dropped_ties} dropped)"),
            ("mean confidence", "–" if counts.confidence is None else f"{counts.confidence:.3f}"),
            ("mass off the options", "–" if counts.off_mass is None else f"{counts.off_mass:.3f}"),
            ("human rows", f"{counts.human_rows} of {counts.human_wanted} wanted"),
            ("rows, preferences / kto", f"{counts.rows('preferences')} / {counts.rows('kto')}"),
            *cost_rows(outcome),
        ]
    )
