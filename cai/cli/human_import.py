"""`cai import`: human preferences, and others, from elsewhere."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from cai.cli.human_options import show_published, tables_options
from cai.cli.options import add_options, console, overrides
from cai.cli.runs import SHOWN_REJECTS, counted, print_lines, way_to_go_on
from cai.config import load_config
from cai.human.columns import Meaning, PairColumns

if TYPE_CHECKING:  # the stage loads more than `--help` needs; the commands import it
    from cai.human.importing import ImportInputs

CommandT = TypeVar("CommandT", bound=Callable[..., object])

_RANGE = (
    click.option("--skip", type=int, help="Pass over the first comparisons. Default: 0."),
    click.option("--limit", type=int, help="Use only so many comparisons."),
)


def _import_options(command: CommandT) -> CommandT:
    return tables_options(add_options(command, _RANGE))


def _meanings(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, str] | None:
    """`VALUE=a|b|tie` options as the config's `columns.map`."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, meaning = value.rpartition("=")
        if not (name and equals and meaning in get_args(Meaning)):
            raise click.BadParameter(f"{value!r} must be written VALUE=a, VALUE=b or VALUE=tie")
        if name.strip() in found:
            raise click.BadParameter(f"the value {name!r} stands twice")
        found[name.strip()] = meaning
    return found or None


@click.group("import")
def import_() -> None:
    """Write preferences from elsewhere as data to train on.

    SOURCE is a file (.jsonl, .json, .csv, each also with .gz, or .parquet), or hub:owner/name[@config][:split]. Rows
    that cannot be used are counted with their reasons, and listed in rejects.jsonl of the run.
    """


@import_.command("hh-rlhf")
@click.argument("path", metavar="SOURCE")
@_import_options
def hh_rlhf(**options: Any) -> None:
    """Import `chosen` and `rejected` transcripts as people chose between them."""
    _run("hh-rlhf", options)


@import_.command()
@click.argument("path", metavar="SOURCE")
@click.option("--prompt", "--prompt-column", "prompt", metavar="COLUMN", help="Default: found by its name.")
@click.option("--chosen", metavar="COLUMN", help="The better response. Default: chosen.")
@click.option("--rejected", metavar="COLUMN", help="The other response. Default: rejected.")
@click.option("--response-a", metavar="COLUMN", help="One response, where --preference says which is better.")
@click.option("--response-b", metavar="COLUMN", help="The other.")
@click.option("--preference", metavar="COLUMN", help="Says which of the two is better.")
@click.option(
    "--map",
    multiple=True,
    callback=_meanings,
    metavar="VALUE=a|b|tie",
    help="What a value of --preference stands for; repeat it. Known: a, b, response_a, …, model_b, tie.",
)
@click.option("--annotator", metavar="COLUMN", help="Who chose; several people's rows about a pair become votes.")
@click.option("--p-chosen", metavar="COLUMN", help="Probability that --chosen is better. Default: 1.")
@click.option("--id", metavar="COLUMN", help="Id of the pair. Default: id, where there is one.")
@_import_options
def pairs(**options: Any) -> None:
    """Import pairs of responses from any table, by its columns."""
    _run("pairs", options)


@import_.command("label-studio")
@click.argument("path", metavar="FILE")
@click.option(
    "--prompt", "--prompt-column", "prompt", metavar="KEY", help="Key of a task's data. Default: by its name."
)
@click.option("--response-a", metavar="KEY", help="Key of the left response. Default: response_a.")
@click.option("--response-b", metavar="KEY", help="Key of the right response. Default: response_b.")
@click.option("--slight", type=float, help="What `slightly better` counts as. Default: 0.75.")
@_import_options
def label_studio(**options: Any) -> None:
    """Import a JSON export of Label Studio with Pairwise results, or tasks that `cai export` wrote.

    Cancelled annotations, drafts and predictions are no votes; they are counted.
    """
    _run("label-studio", options)


@import_.command("llm-swarm")
@click.argument("path", metavar="SOURCE")
@_import_options
def llm_swarm(**options: Any) -> None:
    """Import `chosen` and `rejected` conversations of an llm-swarm data set.

    Nobody has compared these: a model's revision stands as better than its draft, and rows say `source: revision`.
    """
    _run("llm-swarm", options)


def _run(format_: str, options: dict[str, Any]) -> None:
    from cai.human.importing import ImportConfig, import_preferences, load_import

    config_file, out, overwrite = (options.pop(name) for name in ("config_file", "out", "overwrite"))
    given = overrides(options, {"columns": PairColumns})
    screen = console()
    inputs = load_import(load_config(ImportConfig, config_file, {**given, "format": format_}))
    path: Path = out or inputs.default_out
    print_lines(screen, [*_found(inputs), f"run directory: {path}"])
    with way_to_go_on("labels") as command:
        published = import_preferences(inputs, path, command=command, overwrite=overwrite)
    counts = published.counts
    show_published(
        screen,
        published,
        [
            ("people with a name", f"{counts.annotators}"),
            ("rows", f"{counts.rows_read}"),
            ("rejected", counted(counts.rejects)),
            ("without a vote", counted(counts.no_votes)),
            ("comparisons", f"{counts.unvoted} without a vote, {counts.passed_over} behind skip and limit"),
        ],
    )


def _found(inputs: "ImportInputs") -> list[str]:
    """What a source holds, with examples of each reason for which rows are rejected."""
    config = inputs.config
    lines = [f"{config.format}: {len(inputs.labels)} comparisons with votes of {config.path}"]
    for reason in dict.fromkeys(reject.reason for reject in inputs.rejects):
        found = [reject for reject in inputs.rejects if reject.reason == reason]
        lines += [f"not used: {reject}" for reject in found[:SHOWN_REJECTS]]
        if len(found) > SHOWN_REJECTS:
            lines.append(f"not used: {len(found)} rows in all for {reason}")
    lines += [f"note: {number} rows are used in part ({reason})" for reason, number in inputs.notes.items()]
    if config.format == "llm-swarm":
        lines.append("note: nobody has compared these; a model's revision stands as better than its draft")
    return lines
