"""A report as small multiples: scores against the distance from the start, and what responses are like, by step.

matplotlib takes long to load, so it is loaded in use.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cai.plots import STYLE, PlotFormat, image
from cai.train.monitor.measures import MEASURES
from cai.train.monitor.overoptimisation import gold_rl
from cai.train.monitor.phrases import PHRASES
from cai.train.monitor.records import Look, MonitorReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Page

_PANEL = (3.125, 2.5)
"""Inches; three panels make 900 pixels."""
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY, _RED = "#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#718096", "#c53030"
_STYLE: dict[Any, Any] = {**STYLE, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 7.5}
_CURVE_POINTS = 200
_CROWD = 3
"""Curves in a panel from which on their intervals would hide one another."""

_PANELS: Mapping[str, tuple[str, ...]] = {
    "length": ("longer", "shorter", "length_pays", "length_gain"),
    "phrases": (*PHRASES, "phrases"),
    "variety": ("distinct_2", "repetition"),
    "perplexity": ("perplexity",),
    "kl": ("kl", "kl_negative"),
}
"""Checks whose looks are marked in a panel."""


def draw_report(report: MonitorReport, format: PlotFormat) -> bytes:
    """Draw a report; the same report gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        width, height = _PANEL
        page = Figure(figsize=(3 * width, 2 * height + 0.4), layout="constrained")
        FigureCanvasAgg(page)
        _draw(page, report)
        return image(page, format)


def _draw(page: "Page", report: MonitorReport) -> None:
    from matplotlib.lines import Line2D

    scores, length, phrases, variety, perplexity, kl = page.subplots(2, 3).flat
    looks = report.looks
    _draw_scores(scores, report)
    _draw_figures(length, looks, {"length": _BLUE}, f"length in {report.length_unit}", "length")
    colours = dict(zip(PHRASES, (_BLUE, _GREY, _ORANGE, _PURPLE), strict=True))
    _draw_figures(phrases, looks, colours, "share of responses with words of", "phrases")
    _draw_figures(variety, looks, {"distinct_2": _BLUE, "repetition": _ORANGE}, "variety", "variety")
    known = [(look.step, look.perplexity) for look in looks if look.perplexity is not None]
    _draw_line(perplexity, known, "perplexity under the reference", looks, "perplexity")
    distances = [(look.step, look.kl) for look in looks if look.kl is not None]
    _draw_line(kl, distances if len(distances) > 1 else [], "KL from the reference, nats", looks, "kl")
    for axes in (phrases, variety):
        if axes.has_data():
            axes.set_ylim(-0.03, 1.03)
    limits = {check.name: check.threshold for check in report.checks}
    for axes, name in ((length, "longer"), (length, "shorter"), (variety, "distinct_2")):
        _draw_limit(axes, limits.get(name))
    _draw_limit(perplexity, math.exp(limits["perplexity"]) if "perplexity" in limits else None)
    lines = [
        Line2D([], [], color=_RED, marker="s", markersize=5, linestyle=""),
        Line2D([], [], color=_RED, linewidth=1, linestyle="--"),
    ]
    labels = ["clearly beyond what is tolerated at this look", "tolerated"]
    page.legend(lines, labels, loc="outside upper left", ncols=2, frameon=False)


def _draw_limit(axes: "Axes", limit: float | None) -> None:
    if limit is not None and axes.has_data():
        axes.axhline(limit, color=_RED, linewidth=1, linestyle="--")


def _draw_scores(axes: "Axes", report: MonitorReport) -> None:
    """Proxy and gold, both less their value at the start, over √KL, or over the step where that is not known."""
    looks = [look for look in report.looks if {"score", "gold"} & look.figures.keys()]
    by_distance = sum(look.distance is not None for look in looks) > 1
    axes.set_title("scores since the start", loc="left")
    axes.set_xlabel("√KL" if by_distance else "step")
    for name, colour in (("score", _BLUE), ("gold", _ORANGE)):
        points = [
            (look.distance if by_distance else look.step, look.figures[name].change, look.step)
            for look in looks
            if name in look.figures
        ]
        known = [(x, change) for x, change, step in points if x is not None and (change is not None or step == 0)]
        xs = [x for x, _ in known]
        ys = [0.0 if change is None else change.value for _, change in known]
        down = [0.0 if change is None else _width(change.value - change.low) for _, change in known]
        up = [0.0 if change is None else _width(change.high - change.value) for _, change in known]
        if xs:
            fitted = by_distance and name == "gold" and report.fit is not None
            axes.errorbar(
                xs,
                ys,
                yerr=[down, up],
                color=colour,
                marker="o",
                markersize=3.5,
                linewidth=0 if fitted else 1,
                elinewidth=0.8,
                label="proxy" if name == "score" else "gold",
            )
    if not axes.has_data():
        _say_nothing(axes)
        return
    fit = report.fit
    if fit is not None and by_distance:
        end = max(look.distance or 0.0 for look in looks)
        d = np.linspace(0, end, _CURVE_POINTS)
        axes.plot(d, gold_rl(d, fit.alpha, fit.beta), color=_ORANGE, linewidth=1, linestyle="--", label="gold, fitted")
        if fit.peak is not None and fit.peak <= end:
            axes.axvline(fit.peak, color=_GREY, linewidth=1, linestyle=":", label="its peak")
    axes.legend(loc="upper left", facecolor="white", edgecolor="none")  # curves begin at 0 and spread to the right
    _mark(axes, [(look.distance if by_distance else look.step, look) for look in looks], ("gold_falls",))
    _finish(axes)


def _draw_figures(axes: "Axes", looks: Sequence[Look], names: Mapping[str, str], title: str, panel: str) -> None:
    """Means by step, with intervals where there are few curves."""
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    for name, colour in names.items():
        means = [(look.step, look.figures[name].mean) for look in looks if name in look.figures]
        if means:
            bars = [
                [_width(mean.value - mean.low) for _, mean in means],
                [_width(mean.high - mean.value) for _, mean in means],
            ]
            axes.errorbar(
                [step for step, _ in means],
                [mean.value for _, mean in means],
                yerr=bars if len(names) < _CROWD else None,
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1,
                elinewidth=0.8,
                label=name if name in PHRASES else MEASURES[name].title,
            )
    if not axes.has_data():
        _say_nothing(axes)
        return
    if len(names) > 1:
        axes.legend(facecolor="white", edgecolor="none")
    _mark(axes, [(look.step, look) for look in looks], _PANELS[panel])
    _finish(axes)


def _draw_line(
    axes: "Axes", points: Sequence[tuple[int, float]], title: str, looks: Sequence[Look], panel: str
) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    if not points:
        _say_nothing(axes)
        return
    axes.plot(*zip(*points, strict=True), color=_BLUE, marker="o", markersize=3, linewidth=1)
    _mark(axes, [(look.step, look) for look in looks], _PANELS[panel])
    _finish(axes)


def _mark(axes: "Axes", places: Sequence[tuple[float | None, Look]], checks: Sequence[str]) -> None:
    """Squares on the upper edge over looks at which one of the checks is beyond."""
    xs = [x for x, look in places if x is not None and set(checks) & set(look.beyond)]
    if xs:
        edge = axes.get_xaxis_transform()
        axes.plot(xs, [1.0] * len(xs), "s", color=_RED, markersize=5, clip_on=False, transform=edge)


def _width(width: float) -> float:
    """Half of an interval; one without an end is not drawn."""
    return max(0.0, width) if np.isfinite(width) else 0.0


def _finish(axes: "Axes") -> None:
    axes.grid(axis="y", color="#e2e8f0")
    axes.set_axisbelow(True)


def _say_nothing(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=_GREY, transform=axes.transAxes)
