"""A ranking for people: tables on the screen and in Markdown, and the files of its run directory."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from cai.data.card_parts import escaped
from cai.data.text_tables import TitledTable, bullets, on_screen
from cai.evaluate.ranking import STAGE, RankInputs
from cai.evaluate.ranking_drawing import FIGURES, PLANE, RATINGS, WINS, draw_figures
from cai.evaluate.ranking_records import Axis, Ranking
from cai.journal import read_document, write_file
from cai.rundir import RunDir
from cai.stage import sigterm_interrupts
from cai.statistics import Mean, percent

REPORT, PAGE = "ranking.json", "ranking.md"
RANKING_FILES = (REPORT, PAGE, *FIGURES)

_NOTHING = "–"


def write_ranking(
    inputs: RankInputs, ranking: Ranking, out: Path, *, command: Sequence[str] = (), overwrite: bool = False
) -> tuple[str, ...]:
    """Write ranking.json, ranking.md and the plots into a run directory, in place of an earlier ranking of these runs.

    Gives the names of the files.

    Raises:
        RunDirError: `out` holds another run or cannot be written.
    """
    with (
        sigterm_interrupts(),
        RunDir.open(
            out,
            stage=STAGE,
            config=inputs.config.model_dump(mode="json"),
            inputs={},  # the runs may have grown since; their hashes stand in ranking.json
            seed=inputs.config.seed,
            command=command,
            free_keys=inputs.config.free_keys,
            other_files=RANKING_FILES,
            keeps_records=False,
            overwrite=overwrite,
        ) as run,
        run.stopped_if_it_fails(),
    ):
        figures = draw_figures(ranking)
        for name, content in figures.items():
            write_file(run.path / name, content)
        run.write_text(PAGE, ranking_page(ranking))
        run.write_text(REPORT, ranking.model_dump_json(indent=2) + "\n")
        run.manifest.counts = {
            "comparisons": sum(axis.comparisons for axis in ranking.axes),
            "policies": len({one.policy for axis in ranking.axes for one in axis.policies}),
        }
        run.save("finished")
    return (REPORT, PAGE, *figures)


def read_ranking(path: Path) -> Ranking:
    """Read the ranking of a run of `cai rank`, or of a file of it.

    Raises:
        DataError: there is none, or it is broken.
    """
    return read_document(path / REPORT if path.is_dir() else path, Ranking, "a run of `cai rank`")


def render_ranking(ranking: Ranking) -> Table:
    """The tables for a terminal, and the sentences below them."""
    page = Table.grid()
    for axis in ranking.axes:
        page.add_row(on_screen(ranking_tables(axis, ranking.baseline), ranking_sentences(axis)))
    return page


def ranking_page(ranking: Ranking) -> str:
    """The ranking in Markdown."""
    parts = [
        "# Ranking\n\n"
        "Policies by labelled comparisons of their replies, made with `cai rank`: Bradley-Terry ratings in Elo points "
        "(173.7 for each nat). Intervals are of 95%, by a bootstrap over prompts; those of win rates at equal length "
        "by a sandwich estimate. `ranking.json` has all figures.\n"
    ]
    if ranking.warnings:
        parts.append("".join(f"- **{escaped(warning)}**\n" for warning in ranking.warnings))
    drawn = [RATINGS, WINS, *([PLANE] if ranking.plane else [])]
    parts += [f"![{name}]({name}.svg)\n" for name in drawn]
    for axis in ranking.axes:
        parts += [table.markdown for table in ranking_tables(axis, ranking.baseline)]
        if notes := bullets(ranking_sentences(axis)):
            parts.append(notes)
    return "\n".join(parts)


def elo(mean: Mean) -> str:
    """A rating and its interval in words."""
    return f"{_points(mean.value)} ({_points(mean.low)} to {_points(mean.high)})"


def _points(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:+.0f}" if round(value) else "0"


def ranking_tables(axis: Axis, baseline: str | None) -> Iterator[TitledTable]:
    """Ratings, pairs and runs of an axis."""
    before = "" if axis.name == "all" else f"{axis.name}: "
    against = "the mean" if baseline is None else baseline
    several = axis.groups > 1
    yield TitledTable(
        f"{before}ratings, Elo points against {against}",
        ("policy", "rating", "win rate", "comparisons", "prompts", *(["group"] if several else [])),
        tuple(
            (
                one.policy,
                elo(one.rating),
                percent(one.win_rate),
                f"{one.comparisons}",
                f"{one.prompts}",
                *([f"{one.group + 1}"] if several else []),
            )
            for one in axis.policies
        ),
    )
    yield TitledTable(
        f"{before}pairs",
        ("pair", "comparisons", "the first one wins", "by ratings", "at equal length", "Elo difference", "is longer"),
        tuple(
            (
                f"{one.first}, {one.second}",
                f"{one.comparisons}",
                percent(one.win_rate),
                f"{one.expected:.1%}",
                _NOTHING if one.length_controlled is None else percent(one.length_controlled),
                elo(one.difference),
                f"{one.longer:.1%}",
            )
            for one in axis.pairs
        ),
    )
    yield TitledTable(
        f"{before}runs",
        ("run", "labels", "used", "within one policy", "not used", "certificate"),
        tuple(
            (
                run.path,
                "of people" if run.judge is None else f"of {run.judge}",
                f"{run.used} of {run.comparisons}",
                f"{run.within_policy}",
                ", ".join(f"{count} {reason}" for reason, count in {**run.rejects, **run.unlabelled}.items()) or "0",
                _NOTHING if run.certificate is None else run.certificate,
            )
            for run in axis.runs
        ),
    )


def ranking_sentences(axis: Axis) -> Iterator[str]:
    """What has to be known of the figures of an axis."""
    yield from axis.notes
    yield from length_sentences(axis)


def length_sentences(axis: Axis) -> Iterator[str]:
    """What length has to do with the labels of an axis."""
    length = axis.length
    if length.reason is not None:
        yield f"No win rates at equal length: {length.reason}."
    if length.effect is not None:
        yield (
            "A reply that is longer by far moves the log-odds of a win by "
            f"{length.effect.value:+.2f} ({length.effect.low:+.2f} to {length.effect.high:+.2f})."
        )
