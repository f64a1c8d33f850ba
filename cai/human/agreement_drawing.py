"""An agreement report as small multiples: raters together, each of them, where they look first, judges beside them.

matplotlib takes long to load, so it is loaded in use.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cai.human.agreement_report import AgreementReport
from cai.plots import STYLE, PlotFormat, image, shortened
from cai.statistics import CHANCE, Mean
from cai.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_RATERS = 20
"""More raters than these are not drawn; those with the most ratings are."""

_LEAST_ROWS = 6
"""Of a panel."""
_BLUE, _ORANGE, _GREY, _RED = "#2b6cb0", "#c05621", "#718096", "#c53030"
_STYLE: dict[Any, Any] = {**STYLE, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 7.5}

Line = tuple[str, Mean | None, str]
"""A name, its figure and the colour of it."""


def draw_agreement(report: AgreementReport, format: PlotFormat) -> bytes:
    """Draw a report; the same report gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    raters = min(MAX_RATERS, max(1, len(report.raters)))
    rows = max(raters, len(_judge_lines(report)), _LEAST_ROWS)
    with rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; agreement.md has it.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure = Figure(figsize=(9.4, 2.0 + 0.24 * (rows + max(_LEAST_ROWS, raters))), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, report, max(_LEAST_ROWS, raters), rows)
        return image(figure, format)


def _draw(figure: "Figure", report: AgreementReport, upper: int, lower: int) -> None:
    together, each, first, judges = figure.subplots(2, 2, height_ratios=(upper, lower)).flat
    people = report.people
    _lines(
        together,
        "raters with one another",
        [
            ("same side", people.sides.mean, _BLUE),
            ("same of four steps", people.steps.mean, _BLUE),
            ("κ of sides", people.kappa.mean, _ORANGE),
            ("weighted κ of steps", people.weighted_kappa.mean, _ORANGE),
            ("α of sides", people.alpha_sides.mean, _ORANGE),
            ("α of steps", people.alpha_steps.mean, _ORANGE),
        ],
        "share (blue), coefficient (orange)",
    )
    shown = sorted(report.raters, key=lambda one: -one.ratings)[:MAX_RATERS]
    left_out = f", {len(shown)} of {len(report.raters)}" if len(shown) < len(report.raters) else ""
    _lines(
        each,
        f"each rater with the majority of others{left_out}",
        [(one.rater, one.with_others.mean, _RED if "disagrees" in one.flags else _BLUE) for one in shown],
        "share of votes; dotted: same side of any two; red: flagged",
        at=None if people.sides.mean is None else people.sides.mean.value,
    )
    _lines(
        first,
        f"response that stood first{left_out}",
        [(one.rater, one.first, _RED if "position" in one.flags else _BLUE) for one in shown],
        "share of preferences; red: flagged",
        at=CHANCE,
    )
    _lines(judges, "judges and people", _judge_lines(report), "share", at=CHANCE)


def _judge_lines(report: AgreementReport) -> list[Line]:
    lines: list[Line] = []
    for number, judge in enumerate(report.judges, 1):
        name = "judge" if len(report.judges) == 1 else f"judge {number}"
        lines += [
            (f"{name} {judge.model}, majority", judge.accuracy.mean, _BLUE),
            ("  people, majority of others", judge.people_with_majority.mean, _GREY),
            (f"  {name}, single votes", judge.votes.mean, _BLUE),
            (f"  {name}, votes of several", judge.judge_with_people.mean, _BLUE),
            ("  people with people there", judge.people_with_people.mean, _GREY),
        ]
    return lines


def _lines(axes: "Axes", title: str, lines: Sequence[Line], label: str, *, at: float | None = None) -> None:
    """Points with their intervals, the first on top; what was not measured has its name only."""
    axes.set_title(title, loc="left")
    if not any(mean is not None for _, mean, _ in lines):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=_GREY, transform=axes.transAxes)
        return
    lowest = 0.0
    for place, (_, mean, colour) in enumerate(lines):
        if mean is not None:
            bars = np.array([[max(0.0, mean.value - mean.low)], [max(0.0, mean.high - mean.value)]])
            axes.errorbar([mean.value], [place], xerr=bars, color=colour, marker="o", markersize=4, capsize=2)
            lowest = min(lowest, mean.low)
    if at is not None:
        axes.axvline(at, color=_GREY, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(lines)), [_name(name) for name, _, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(max(-1.05, lowest - 0.05), 1.05)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#e2e8f0")
    axes.set_axisbelow(True)


def _name(name: str) -> str:
    """A name that can be drawn, on one line."""
    return shortened(visible(" ".join(name.split())))
