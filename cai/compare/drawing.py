"""The plots of a comparison. matplotlib takes long to load, so it is loaded in use."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cai.compare.config import NAMES, SIDES, LabelSide
from cai.compare.records import Figure, PathComparison, SizePoint
from cai.plots import STYLE, image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CROSS, EFFICIENCY, COST = "cross.svg", "efficiency.svg", "cost.svg"
FIGURES = (CROSS, EFFICIENCY, COST)

_COLOURS: Mapping[LabelSide, str] = {"ai": "#2b6cb0", "human": "#c05621"}
_MARKERS: Mapping[LabelSide, str] = {"ai": "o", "human": "s"}
_GREY = "#718096"
_SHIFT = 0.02
"""Half the distance of the sides' points on a logarithmic axis, in powers of ten, so that bars are told apart."""
_DECADES = 1000
"""Greatest cost by least cost, from which on the axis names powers of ten alone."""
_STYLE: dict[Any, Any] = {**STYLE, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8}


def draw_figures(comparison: PathComparison) -> dict[str, bytes]:
    """The SVG of each plot that there is something to draw for; the same comparison gives the same bytes."""
    found = {CROSS: _drawn((5.6, 3.4), lambda axes: _draw_cross(axes, comparison))}
    if len({point.labels for point in comparison.efficiency}) > 1:
        found[EFFICIENCY] = _drawn((5.6, 3.4), lambda axes: _draw_efficiency(axes, comparison))
    if any(point.cost for point in comparison.efficiency):
        found[COST] = _drawn((5.6, 3.4), lambda axes: _draw_cost(axes, comparison))
    return found


def _drawn(size: tuple[float, float], draw: Callable[["Axes"], None]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    with rc_context(_STYLE):
        drawing: Drawing = Drawing(figsize=size, layout="constrained")
        FigureCanvasAgg(drawing)
        axes = drawing.subplots()
        draw(axes)
        axes.grid(axis="y", color="#e2e8f0")
        axes.set_axisbelow(True)
        handles, labels = axes.get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return image(drawing, "svg")


def _draw_cross(axes: "Axes", comparison: PathComparison) -> None:
    """Accuracy by what was tested on, a point for each of the two trainings; small points are single seeds."""
    for place, labels in enumerate(comparison.held_out):
        if labels.longer_wins is not None:
            known = "the longer one wins" if place == 0 else ""
            axes.hlines(labels.longer_wins.value, place - 0.35, place + 0.35, _GREY, linestyle="--", label=known)
        for shift, side in zip((-0.15, 0.15), SIDES, strict=True):
            cell = comparison.cell(side, labels.tested_on)
            if cell is not None and cell.accuracy is not None:
                name = f"trained on {NAMES[side]} labels" if place == 0 else None
                _draw_points(axes, [place + shift], [cell.accuracy], side, name)
    axes.axhline(comparison.chance, color=_GREY, linestyle=":", linewidth=1, label="chance")
    axes.set_xticks(range(len(comparison.held_out)))
    axes.set_xticklabels([f"tested on {NAMES[labels.tested_on]} labels" for labels in comparison.held_out])
    axes.set_xlim(-0.5, len(comparison.held_out) - 0.5)
    axes.set_ylabel("accuracy")


def _draw_efficiency(axes: "Axes", comparison: PathComparison) -> None:
    for shift, side in zip((-_SHIFT, _SHIFT), SIDES, strict=True):
        points = [point for point in comparison.efficiency if point.trained_on == side]
        _draw_curve(axes, [point.labels * 10**shift for point in points], points)
    _draw_lines(axes, comparison)
    axes.set_xscale("log")
    sizes = sorted({point.labels for point in comparison.efficiency})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("labels that were learned from")


def _draw_cost(axes: "Axes", comparison: PathComparison) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for side in SIDES:
        points = [point for point in comparison.efficiency if point.trained_on == side and point.cost]
        if points:
            _draw_curve(axes, [point.cost for point in points if point.cost], points)
    _draw_lines(axes, comparison)
    axes.set_xscale("log")
    costs = [point.cost for point in comparison.efficiency if point.cost]
    few = max(costs) < _DECADES * min(costs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,g}"))  # its own writes powers as formulas
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("cost of the labels")


def _draw_curve(axes: "Axes", xs: Sequence[float], points: Sequence[SizePoint]) -> None:
    side = points[0].trained_on
    name = f"{NAMES[side]} labels"
    axes.plot(xs, [point.accuracy.mean.value for point in points], color=_COLOURS[side], linewidth=1.2)
    _draw_points(axes, xs, [point.accuracy for point in points], side, name)


def _draw_points(
    axes: "Axes", xs: Sequence[float], figures: Sequence[Figure], side: LabelSide, name: str | None
) -> None:
    """Means with intervals over prompts, and the single seeds beside them."""
    means = [figure.mean for figure in figures]
    axes.errorbar(
        xs,
        [mean.value for mean in means],
        yerr=[[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]],
        color=_COLOURS[side],
        marker=_MARKERS[side],
        markersize=5.5,
        linewidth=0,
        elinewidth=1.2,
        capsize=3,
        label=name,
    )
    if len(figures[0].seeds.values) > 1:
        for x, figure in zip(xs, figures, strict=True):
            values = figure.seeds.values
            axes.plot([x] * len(values), values, "_", color=_COLOURS[side], markersize=11, alpha=0.6)


def _draw_lines(axes: "Axes", comparison: PathComparison) -> None:
    """What takes no training, on the human held-out labels."""
    labels = comparison.labels("human")
    if labels is not None and labels.longer_wins is not None:
        axes.axhline(labels.longer_wins.value, color=_GREY, linestyle="--", linewidth=1, label="the longer one wins")
    axes.axhline(comparison.chance, color=_GREY, linestyle=":", linewidth=1, label="chance")
    axes.set_ylabel("accuracy on human labels")
