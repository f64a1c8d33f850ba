"""The curves of a training as one SVG. matplotlib takes long to load, so it is loaded in use."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cai.journal import write_file
from cai.plots import STYLE, image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
FEW = 40
"""Points up to which each of a training curve's is marked; a curve of one point would not be seen otherwise."""

_PANEL = (3.125, 2.1)
"""Inches; three panels make 900 pixels."""
_BLUE, _ORANGE = "#2b6cb0", "#c05621"
_STYLE: dict[Any, Any] = {**STYLE, "font.size": 9, "axes.titlesize": 9, "axes.formatter.limits": (-3, 4)}
_NO_CURVES = ("step", "epoch", "flos", "total_flos", "num_tokens", "num_input_tokens_seen")
_TOTALS = "train_runtime"
"""Stands in the entry of the log's end, which sums the run up."""
_RANKS = {"loss": -1, "learning_rate": 1, "grad_norm": 2}
"""Places of quantities; the others stand between them as they come."""


class Curve(NamedTuple):
    """One quantity over the steps."""

    steps: list[float]
    values: list[float]


class Panel(NamedTuple):
    """A quantity on the training batches and on the held-out rows; either may be empty."""

    name: str
    train: Curve
    eval: Curve


def panels(log: Sequence[Mapping[str, float]]) -> list[Panel]:
    """Sort a trainer's `log_history` into quantities: loss first, learning rate and gradient norm last.

    Left out are run totals, speeds and counts of work done.
    """
    found: dict[str, Panel] = {}
    for entry in log:
        if _TOTALS in entry:
            continue
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if name in _NO_CURVES or name.endswith(("runtime", "_per_second", "_time")):
                continue
            panel = found.setdefault(name, Panel(name, Curve([], []), Curve([], [])))
            curve = panel.train if name == key else panel.eval
            curve.steps.append(entry["step"])
            curve.values.append(value)
    return sorted(found.values(), key=lambda panel: _RANKS.get(panel.name, 0))


def write_curves(log: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw a trainer's `log_history` as an SVG, one small panel a quantity; the same log gives the same bytes.

    Raises:
        RunDirError: it cannot be written.
    """
    write_file(path, _drawn(panels(log)))


def _drawn(found: Sequence[Panel]) -> bytes:
    from matplotlib import rc_context

    with rc_context(_STYLE):
        return image(_figure(found), "svg")


def _figure(found: Sequence[Panel]) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = max(1, math.ceil(len(found) / COLUMNS))
    width, height = _PANEL
    figure = Figure(figsize=(COLUMNS * width, rows * height + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    if not found:
        figure.text(0.5, 0.5, "nothing was logged", ha="center")
        return figure
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, found, strict=False):
        _draw(axes, panel)
    lines = [Line2D([], [], color=_BLUE), Line2D([], [], color=_ORANGE, marker="o", markersize=3.5)]
    figure.legend(lines, ["training", "held out"], loc="outside upper left", ncols=2, frameon=False)
    figure.supxlabel("step", fontsize=9)
    return figure


def _draw(axes: "Axes", panel: Panel) -> None:
    few = "." if len(panel.train.steps) <= FEW else ""
    axes.plot(*panel.train, color=_BLUE, linewidth=1.2, marker=few, markersize=5)
    axes.locator_params(axis="x", integer=True)
    axes.plot(*panel.eval, color=_ORANGE, linewidth=1, marker="o", markersize=3.5)
    # A line has a gap where a value is not finite; the title says so.
    lost = sum(not math.isfinite(value) for curve in (panel.train, panel.eval) for value in curve.values)
    axes.set_title(f"{panel.name} ({lost} not finite)" if lost else panel.name, loc="left")
    axes.grid(axis="y", color="#e2e8f0")
    axes.set_axisbelow(True)
