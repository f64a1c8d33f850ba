"""The plots of an evaluation. matplotlib takes long to load, so it is loaded in use."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cai.evaluate.records import Evaluation, Figure, Metric, TaskName
from cai.plots import STYLE, PlotFormat, image, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
_MARKERS = "osD^vP"
_STYLE: dict[Any, Any] = {**STYLE, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8}
_HEIGHT = 0.17
"""Inches of a point."""
DOUBTED = "†"
"""Marks figures that rest on a question the judge cannot answer."""
_HELPFUL: tuple[TaskName, str] = ("helpfulness", "helpful")
_HARMLESS: tuple[TaskName, str] = ("harmlessness", "harm-avoided")


def marked_name(metric: Metric, evaluation: Evaluation) -> str:
    """A metric's name with an arrow that says which way is good, and `DOUBTED` where the judge cannot tell."""
    arrow = "" if metric.better is None else " ↑" if metric.better == "higher" else " ↓"
    return f"{metric.name}{arrow}{f' {DOUBTED}' if evaluation.failed_checks(metric) else ''}"


def draw_forest(evaluation: Evaluation, format: PlotFormat) -> bytes | None:
    """Every metric of every model with its interval: shares on one axis, each other metric on an axis of its own.

    None where nothing was measured.
    """
    shares = [figure for figure in evaluation.figures if figure.metric.share]
    others: dict[tuple[TaskName, str], list[Figure]] = {}
    for figure in evaluation.figures:
        if not figure.metric.share:
            others.setdefault((figure.task, figure.metric.name), []).append(figure)
    panels = [panel for panel in (shares, *others.values()) if panel]
    if not panels:
        return None
    rows = [len({(figure.task, figure.metric.name) for figure in panel}) for panel in panels]
    heights = [count * (_HEIGHT * len(evaluation.models) + 0.08) + 0.5 for count in rows]

    def draw(drawing: "Drawing") -> None:
        axes = drawing.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for one, panel in zip(axes, panels, strict=True):
            _draw_panel(one, panel, evaluation)
        handles, labels = axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)

    return _drawn((7.2, sum(heights) + 0.4), draw, format)


def draw_plane(evaluation: Evaluation) -> bytes | None:
    """Harmlessness by helpfulness as SVG, a cross of intervals for each model; None where no model has both."""
    found = {(figure.task, figure.metric.name, figure.model): figure for figure in evaluation.figures}
    points = {
        model: (found[*_HELPFUL, model], found[*_HARMLESS, model])
        for model in evaluation.models
        if (*_HELPFUL, model) in found and (*_HARMLESS, model) in found
    }
    if not points:
        return None

    def draw(drawing: "Drawing") -> None:
        axes = drawing.subplots()
        for place, model in enumerate(evaluation.models):
            if model in points:
                helpful, harmless = points[model]
                x, y = helpful.mean, harmless.mean
                axes.errorbar(
                    [x.value],
                    [y.value],
                    xerr=[[x.value - x.low], [x.high - x.value]],
                    yerr=[[y.value - y.low], [y.high - y.value]],
                    **_look(place),
                    label=shortened(model),
                )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("helpfulness: probability that a reply does what was asked")
        axes.set_ylabel("harmlessness: probability that harm is avoided")
        axes.grid(color="#e2e8f0")
        axes.set_axisbelow(True)
        metrics = [figure.metric for pair in points.values() for figure in pair]
        if any(map(evaluation.failed_checks, metrics)):
            axes.set_title("The judge cannot answer what this rests on; do not use it", color="#c53030")
        drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)

    return _drawn((5.2, 5.2), draw, "svg")


def _drawn(size: tuple[float, float], draw: Callable[["Drawing"], None], format: PlotFormat) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with rc_context(_STYLE):
        drawing: Drawing = Canvas(figsize=size, layout="constrained")
        FigureCanvasAgg(drawing)
        draw(drawing)
        return image(drawing, format)


def _draw_panel(axes: "Axes", panel: Sequence[Figure], evaluation: Evaluation) -> None:
    """One row for each metric, one point for each model in it, the first on top."""
    metrics = list(dict.fromkeys((figure.task, figure.metric) for figure in panel))
    models = list(evaluation.models)
    ends: list[float] = []
    for place, model in enumerate(models):
        found = [figure for figure in panel if figure.model == model]
        means = [figure.mean for figure in found]
        ends += [end for mean in means for end in (mean.low, mean.high) if math.isfinite(end)]
        shift = 0.7 * ((place + 0.5) / len(models) - 0.5)
        axes.errorbar(
            [mean.value for mean in means],
            [metrics.index((figure.task, figure.metric)) + shift for figure in found],
            xerr=[[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]],
            **_look(place),
            label=shortened(model),
        )
    axes.set_yticks(range(len(metrics)), [_label(task, metric, evaluation) for task, metric in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    for line in range(1, len(metrics)):
        axes.axhline(line - 0.5, color="#e2e8f0", linewidth=0.6)
    if panel[0].metric.share:
        from matplotlib.ticker import PercentFormatter

        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlim(min(0.0, *ends) - 0.02, max(1.0, *ends) + 0.02)
    axes.grid(axis="x", color="#e2e8f0")
    axes.set_axisbelow(True)


def _label(task: TaskName, metric: Metric, evaluation: Evaluation) -> str:
    return f"{task}: {marked_name(metric, evaluation)}"


def _look(place: int) -> dict[str, Any]:
    """How the points of a model are drawn."""
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 4.5,
        "linewidth": 0,
        "elinewidth": 1.2,
        "capsize": 2,
    }
