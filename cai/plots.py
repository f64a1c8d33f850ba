"""How plots look, and the reliability diagram. matplotlib takes long to load, so it is loaded in use."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from cai.statistics import BINS, ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PlotFormat = Literal["png", "svg"]

_BLUE, _GREY = "#2b6cb0", "#718096"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.parse_math": False,  # a `$` in a name is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "cai",  # the ids within the file are random without it
}
"""matplotlib's settings for all plots."""


def reliability_diagram(bins: Sequence[ReliabilityBin], format: PlotFormat, *, title: str, measure: str) -> bytes:
    """Draw accuracy by confidence over a histogram of the confidences; the same arguments give the same bytes.

    On the diagonal an answer is as often right as it is sure. Bars at the points are their 95% intervals. `measure` is
    what the accuracy is called on its axis.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 5.0), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, bins, measure)
        figure.suptitle(title, fontsize=10)
        return image(figure, format)


def image(figure: "Figure", format: PlotFormat) -> bytes:
    """A figure as a file, which is the same for the same figure."""
    file = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    figure.savefig(file, format=format, dpi=150, metadata=metadata)
    return file.getvalue()


def shortened(name: str) -> str:
    """The end of a long name, which for a path is the part that tells."""
    return name if len(name) <= 30 else "…" + name[-29:]


def _draw(figure: "Figure", bins: Sequence[ReliabilityBin], measure: str) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_accuracy(upper, bins, measure)
    lows, counts = [bin_.low for bin_ in bins], [bin_.count for bin_ in bins]
    bars = lower.bar(lows, counts, 0.5 / BINS, align="edge", color=_BLUE, edgecolor="white")
    lower.bar_label(bars, padding=1, fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8, columnspacing=1.2)
    lower.set_ylabel("count")
    lower.margins(y=0.25)
    lower.set_yticks([])
    lower.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    lower.set_xlim(0.49, 1.01)
    lower.set_xlabel("confidence, max(p, 1 − p)")


def _draw_accuracy(axes: "Axes", bins: Sequence[ReliabilityBin], measure: str) -> None:
    overall = sum(bin_.count * bin_.accuracy.value for bin_ in bins) / sum(bin_.count for bin_ in bins)
    x, y = [bin_.confidence for bin_ in bins], [bin_.accuracy.value for bin_ in bins]
    down = [bin_.accuracy.value - bin_.accuracy.low for bin_ in bins]
    up = [bin_.accuracy.high - bin_.accuracy.value for bin_ in bins]
    axes.plot([0.5, 1], [0.5, 1], color=_GREY, linestyle="--", linewidth=1, label="as sure as right")
    axes.axhline(overall, color=_GREY, linestyle=":", linewidth=1, label="mean of all")
    axes.errorbar(
        x,
        y,
        yerr=[down, up],
        color=_BLUE,
        marker="o",
        markersize=5,
        linewidth=1,
        elinewidth=1,
        capsize=2,
        label="bin, 95% interval",
    )
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel(measure)
    axes.grid(axis="y", color="#e2e8f0")
    axes.set_axisbelow(True)
