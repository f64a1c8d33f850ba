"""The evaluation of a reward model on disk and on the screen."""

import math
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cai.journal import write_file
from cai.plots import PlotFormat, reliability_diagram, shortened
from cai.statistics import Mean, percent
from cai.train.evaluation import RewardEvaluation, SourceEvaluation
from cai.visible import visible

EVALUATION_FILES = ("evaluation.json", "reliability.svg", "reliability.png")

_NOTHING = "does not apply"


def write_evaluation(evaluation: RewardEvaluation, out: Path) -> None:
    """Write evaluation.json, reliability.svg and reliability.png into the folder `out`, each replaced whole.

    The diagram is of all sources together.

    Raises:
        RunDirError: a file cannot be written.
    """
    contents: tuple[str | bytes, ...] = (
        evaluation.model_dump_json(indent=2) + "\n",
        draw_evaluation(evaluation, "svg"),
        draw_evaluation(evaluation, "png"),
    )
    for name, content in zip(EVALUATION_FILES, contents, strict=True):
        write_file(out / name, content)


def draw_evaluation(evaluation: RewardEvaluation, format: PlotFormat) -> bytes:
    """The reliability diagram of all pairs; accuracy and expected correctness differ where labels are soft."""
    overall = evaluation.sources[0]
    accuracy = "" if overall.accuracy is None else f"accuracy {percent(overall.accuracy)}, "
    title = f"reward model on {shortened(evaluation.name)}\n{accuracy}ECE {overall.ece:.3f}"
    return reliability_diagram(overall.reliability, format, title=title, measure="expected correctness")


def render_evaluation(evaluation: RewardEvaluation) -> Table:
    """The evaluation as a table with a column for each source; below it what people reach, where that is known."""
    caption = None if evaluation.human_ceiling is None else f"human ceiling: {evaluation.human_ceiling}"
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("labels", no_wrap=True)
    columns = [list(_rows(evaluation, source)) for source in evaluation.sources]
    for source in evaluation.sources:
        table.add_column(Text(visible(source.source)), overflow="fold")
    for cells in zip(*columns, strict=True):
        table.add_row(cells[0][0], *(Text(text) for _, text in cells))
    return table


def _rows(evaluation: RewardEvaluation, source: SourceEvaluation) -> Iterator[tuple[str, str]]:
    yield "pairs", f"{source.pairs:,} of {source.prompts:,} prompts"
    yield "ties", f"{source.label_ties:,} of labels, {source.reward_ties:,} of rewards"
    yield "accuracy", _share(source.accuracy)
    yield f"above chance, {evaluation.chance:.0%}", _judged(source.accuracy, evaluation.chance)
    yield "the longer one wins", _share(source.longer_wins)
    yield "better than that by", _share(source.gain)
    yield "above length", _judged(source.gain, 0.0)
    yield "prefers the longer one", _share(source.longer_agreement)
    correlation = source.length_correlation
    yield "correlation with length", _NOTHING if correlation is None else f"{correlation:+.2f}"
    yield "mean margin", _NOTHING if source.margin is None else _number(source.margin)
    yield "log loss", _number(source.log_loss)
    yield "  equal rewards", f"{evaluation.chance_log_loss:.3f}"
    yield "  least possible", f"{source.label_entropy:.3f}"
    yield "calibration error", f"{source.ece:.3f}"


def _share(mean: Mean | None) -> str:
    return _NOTHING if mean is None else percent(mean)


def _number(mean: Mean) -> str:
    if math.isinf(mean.high):
        return f"{mean.value:.3f} (no interval)"
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def _judged(mean: Mean | None, line: float) -> str:
    """On which side of `line` the interval lies."""
    if mean is None:
        return _NOTHING
    return "yes" if mean.low > line else "no, below" if mean.high < line else "not clearly"
