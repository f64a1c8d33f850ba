"""The plots of a ranking. matplotlib takes long to load, so it is loaded in use."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cai.evaluate.ranking_records import Axis, PolicyRating, Ranking
from cai.plots import STYLE, PlotFormat, image, shortened
from cai.statistics import CHANCE, Mean
from cai.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATINGS, WINS, PLANE = "ratings", "win-rates", "plane"
FIGURES = tuple(f"{name}.{format}" for name in (RATINGS, WINS, PLANE) for format in ("svg", "png"))
"""Names of all files that may be drawn."""

_BLUE, _GREY = "#2b6cb0", "#718096"
_STYLE: dict[Any, Any] = {**STYLE, "font.size": 9, "axes.titlesize": 9}
_MARGIN = 0.12
_LEAST_SPAN = 50.0
"""Elo points that an axis shows at least."""


def draw_figures(ranking: Ranking) -> dict[str, bytes]:
    """The files of each plot that there is something to draw for; the same ranking gives the same bytes."""
    found: dict[str, bytes] = {}
    formats: tuple[PlotFormat, ...] = ("svg", "png")
    for format in formats:
        found[f"{RATINGS}.{format}"] = _drawn(ranking.axes, _ratings_size, _draw_ratings, format)
        found[f"{WINS}.{format}"] = _drawn(ranking.axes, _wins_size, _draw_wins, format)
        if points := ranking.plane:
            found[f"{PLANE}.{format}"] = _drawn(
                [points], lambda _: (5.4, 4.6), lambda axes, _: _draw_plane(axes, points, ranking.baseline), format
            )
    return found


def _drawn(
    parts: Sequence[Any],
    size: Callable[[Any], tuple[float, float]],
    draw: Callable[["Axes", Any], None],
    format: PlotFormat,
) -> bytes:
    """A figure with a panel for each part, one below the other."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = [size(part) for part in parts]
    heights = [height for _, height in sizes]
    with rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; ranking.md has it.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure = Figure(figsize=(max(width for width, _ in sizes), sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
        for panel, part in zip(panels, parts, strict=True):
            draw(panel, part)
        return image(figure, format)


def _ratings_size(axis: Axis) -> tuple[float, float]:
    return 6.2, 1.3 + 0.28 * max(3, len(axis.policies))


def _wins_size(axis: Axis) -> tuple[float, float]:
    side = 1.6 + 0.55 * max(3, len(axis.policies))
    return side + 1.2, side


def _draw_ratings(axes: "Axes", axis: Axis) -> None:
    """A point with its interval for each policy, the best on top; an end without a bound is an arrow."""
    _title(axes, axis, "ratings")
    low, high = _limits([one.rating for one in axis.policies])
    for place, one in enumerate(axis.policies):
        _draw_interval(axes, one.rating, place, low, high)
    axes.axvline(0, color=_GREY, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(axis.policies)), [_name(one.policy) for one in axis.policies])
    axes.set_ylim(len(axis.policies) - 0.5, -0.5)
    axes.set_xlim(low, high)
    axes.set_xlabel("Elo points")


def _draw_interval(axes: "Axes", mean: Mean, place: float, low: float, high: float, *, upright: bool = False) -> None:
    """One point and its interval along one axis, within its limits."""
    ends = [(mean.low, low, "v" if upright else "<"), (mean.high, high, "^" if upright else ">")]
    line = [end if math.isfinite(end) else limit for end, limit, _ in ends]
    axes.plot(*_turned(line, [place, place], upright), color=_BLUE, linewidth=1.2)
    for end, limit, arrow in ends:
        if not math.isfinite(end):
            axes.plot(*_turned([limit], [place], upright), arrow, color=_BLUE, markersize=6, clip_on=False)
    axes.plot(*_turned([mean.value], [place], upright), "o", color=_BLUE, markersize=5)


def _turned(along: list[float], across: list[float], upright: bool) -> tuple[list[float], list[float]]:
    return (across, along) if upright else (along, across)


def _draw_wins(axes: "Axes", axis: Axis) -> None:
    """How often the policy of a row wins over that of a column."""
    import numpy as np

    names = [one.policy for one in axis.policies]
    shares = np.full((len(names), len(names)), np.nan)
    for pair in axis.pairs:
        first, second = names.index(pair.first), names.index(pair.second)
        shares[first, second] = pair.win_rate.value
        shares[second, first] = 1 - pair.win_rate.value
    _title(axes, axis, "wins of row over column")
    axes.imshow(shares, cmap="RdBu", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(np.isfinite(shares)), strict=True):
        share = float(shares[row, column])
        colour = "white" if abs(share - CHANCE) > 0.3 else "black"
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), [_name(name) for name in names], rotation=40, ha="right")
    axes.set_yticks(range(len(names)), [_name(name) for name in names])


def _draw_plane(axes: "Axes", points: Sequence[tuple[PolicyRating, PolicyRating]], baseline: str | None) -> None:
    """Helpfulness to the right, harmlessness upwards, as Bai et al. 2022 show it (figure 2)."""
    left, right = _limits([helpful.rating for helpful, _ in points])
    bottom, top = _limits([harmless.rating for _, harmless in points])
    axes.axvline(0, color=_GREY, linestyle=":", linewidth=1)
    axes.axhline(0, color=_GREY, linestyle=":", linewidth=1)
    for helpful, harmless in points:
        _draw_interval(axes, helpful.rating, harmless.rating.value, left, right)
        _draw_interval(axes, harmless.rating, helpful.rating.value, bottom, top, upright=True)
        place = helpful.rating.value, harmless.rating.value
        axes.annotate(_name(helpful.policy), place, xytext=(5, 5), textcoords="offset points", fontsize=8)
    against = "the mean" if baseline is None else _name(baseline)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_xlabel(f"helpfulness, Elo points against {against}")
    axes.set_ylabel(f"harmlessness, Elo points against {against}")
    axes.set_title("helpfulness and harmlessness", loc="left")


def _limits(means: Iterable[Mean]) -> tuple[float, float]:
    """Room for all values and bounded ends."""
    found = [end for mean in means for end in (mean.low, mean.value, mean.high) if math.isfinite(end)]
    low, high = min(found), max(found)
    room = max(_LEAST_SPAN, high - low) * _MARGIN
    return low - room, high + room


def _title(axes: "Axes", axis: Axis, what: str) -> None:
    axes.set_title(what if axis.name == "all" else f"{axis.name}: {what}", loc="left")


def _name(name: str) -> str:
    return shortened(visible(name))
