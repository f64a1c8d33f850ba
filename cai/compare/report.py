"""What a comparison says, as sections of plain text, tables and figures; `page` puts them into HTML and Markdown."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cai.compare.config import NAMES, SIDES, LabelSide
from cai.compare.drawing import COST, CROSS, EFFICIENCY
from cai.compare.records import Cell, Costs, Figure, PathComparison, SideFacts, SizePoint, Spread
from cai.evaluate.ranking_output import ranking_sentences, ranking_tables
from cai.statistics import Mean, percent

_Shown = Callable[[float], str]
"""Writes a number."""
_NOTHING = "–"
_NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class TableBlock:
    """A table; the first column names its rows."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class FigureBlock:
    """A plot, by the name of its file."""

    name: str
    caption: str


Block = Paragraph | TableBlock | FigureBlock


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it. Nothing in it is escaped yet."""

    title: str
    blocks: tuple[Block, ...]


def report(comparison: PathComparison) -> tuple[Section, ...]:
    """All sections; the first is the page's own."""
    parts = {
        "AI labels beside human labels": _summary(comparison),
        "Comparisons": _data(comparison),
        "Agreement of the labels": _agreement(comparison),
        "Reward models: trained on, tested on": _cross(comparison),
        "Label efficiency": _efficiency(comparison),
        "Cost": _cost(comparison),
        "Policies": _policies(comparison),
        "How to read this": _method(comparison),
    }
    sections = (Section(title, tuple(blocks)) for title, blocks in parts.items())
    return tuple(section for section in sections if section.blocks)


def cross_rows(comparison: PathComparison) -> Iterator[tuple[str, ...]]:
    """The cross table: trained on, tested on, accuracy, its seeds, log loss, its seeds, calibration error."""
    for labels in comparison.held_out:
        for side in SIDES:
            cell = comparison.cell(side, labels.tested_on)
            if cell is not None:
                yield _cell(cell)
        yield "the longer one wins", NAMES[labels.tested_on], _share(labels.longer_wins), *([_NOTHING] * 4)


CROSS_HEAD = ("trained on", "tested on", "accuracy", "over seeds", "log loss", "over seeds", "calibration error")


def verdict(comparison: PathComparison) -> str:
    """The difference of the two paths on the human held-out labels, in a sentence."""
    human = comparison.labels("human")
    if human is None or human.gap is None:
        return "The human held-out labels do not say which path is better."
    gap = human.gap
    if gap.low > 0:
        said = "human labels make the better reward model"
    elif gap.high < 0:
        said = "AI labels make the better reward model"
    else:
        said = "these data do not tell the two apart"
    return (
        "On human held-out labels, training on human labels rather than on AI labels changes accuracy by "
        f"{_points(gap)}: {said}."
    )


def _summary(comparison: PathComparison) -> Iterator[Block]:
    facts, share = comparison.matching, comparison.agreement.agreement
    agreed = "" if share is None else f" They agree in {percent(share)} of the {facts.matched:,} comparisons of both."
    yield Paragraph(
        f"{facts.ai.path} (AI) beside {facts.human.path} (human): both have labelled the same responses to the same "
        f"prompts.{agreed}"
    )
    cells = {side: comparison.cell(side, "human") for side in SIDES}
    trained = [
        f"{percent(cell.accuracy.mean)} when trained on {NAMES[side]} labels"
        for side, cell in cells.items()
        if cell is not None and cell.accuracy is not None
    ]
    yield Paragraph(
        f"Reward models from {comparison.start}, {facts.train:,} labels each, are right about "
        f"{facts.held_out:,} held-out human labels in {' and in '.join(trained)}. {verdict(comparison)}"
    )


def _data(comparison: PathComparison) -> Iterator[Block]:
    facts = comparison.matching
    sides = {"AI": facts.ai, "human": facts.human, **({} if facts.test is None else {"test": facts.test})}
    rows = [_side_row(name, side) for name, side in sides.items()]
    yield TableBlock(
        ("labels", "source", "rows", "given by", "not used", "averaged", "comparisons", "prompts", "alone"),
        tuple(rows),
    )
    yield Paragraph(
        f"{facts.matched:,} comparisons of {facts.matched_prompts:,} prompts have a label of each side: the same "
        "conversation and the same two responses, whichever is chosen. Rows that only one side has are counted as "
        "alone and left out, so that both reward models learn from the same comparisons."
    )
    left = [f"{number:,} {reason}" for reason, number in facts.unfit.items()]
    if facts.in_test:
        left.append(f"{facts.in_test:,} with a prompt of the test")
    yield Paragraph(
        f"Trained on: {facts.train:,} comparisons of {facts.train_prompts:,} prompts. Held out: {facts.held_out:,} of "
        f"{facts.held_out_prompts:,} other prompts, {facts.held_out_ai:,} of them with an AI label. Left out of both: "
        f"{', '.join(left) or 'none'}. {facts.shortened:,} lost their oldest turns to fit."
    )


def _side_row(name: str, side: SideFacts) -> tuple[str, ...]:
    unused = [f"{number:,} {reason}" for reason, number in {**side.rejects, **side.left_out}.items() if number]
    marks = ", ".join(f"{number:,} {mark}" for mark, number in side.marks.items())
    numbers = (side.merged, side.comparisons, side.prompts)
    return (
        name,
        f"{side.path} (sha256 {side.sha256[:12]})",
        f"{side.rows:,}",
        marks,
        ", ".join(unused) or "none",
        *(f"{number:,}" for number in numbers),
        f"{side.alone:,}" if name != "test" else _NOTHING,
    )


def _agreement(comparison: PathComparison) -> Iterator[Block]:
    found = comparison.agreement
    yield TableBlock(
        ("figure", "value"),
        (
            ("comparisons", f"{found.comparisons:,} of {found.prompts:,} prompts"),
            ("both prefer the same response", _share(found.agreement)),
            (
                "ties",
                f"{found.ai_ties:,} of AI labels (agree by half), {found.human_ties:,} of human labels (left out)",
            ),
            ("AI labels prefer the longer one", _share(found.ai_longer)),
            ("human labels prefer the longer one", _share(found.human_longer)),
        ),
    )


def _cross(comparison: PathComparison) -> Iterator[Block]:
    yield TableBlock(CROSS_HEAD, tuple(cross_rows(comparison)))
    yield FigureBlock(CROSS, "Accuracy by training and test; bars are intervals over prompts, dashes single seeds.")
    for labels in comparison.held_out:
        name = NAMES[labels.tested_on]
        gap = _NOTHING if labels.gap is None else _points(labels.gap)
        yield Paragraph(
            f"Tested on {name} labels: {labels.pairs:,} pairs of {labels.prompts:,} prompts, {labels.ties:,} ties. "
            f"Trained on human labels minus trained on AI labels: {gap}. The least log loss on these labels is "
            f"{labels.label_entropy:.3f}, that of equal rewards {math.log(2):.3f}."
        )
        if labels.human_ceiling is not None:
            yield Paragraph(f"Human ceiling: {labels.human_ceiling}.")
    if comparison.labels("ai") is None:
        yield Paragraph("No held-out comparison has an AI label, so nothing is tested on AI labels.")


def _cell(cell: Cell) -> tuple[str, ...]:
    accuracy = (_NOTHING, _NOTHING) if cell.accuracy is None else _figure(cell.accuracy, _percent)
    return (
        f"{cell.labels:,} {NAMES[cell.trained_on]} labels",
        NAMES[cell.tested_on],
        *accuracy,
        *_figure(cell.log_loss, _decimal),
        _spread(cell.ece),
    )


def _efficiency(comparison: PathComparison) -> Iterator[Block]:
    by_size: dict[int, dict[LabelSide, SizePoint]] = {}
    for point in comparison.efficiency:
        by_size.setdefault(point.labels, {})[point.trained_on] = point
    if len(by_size) < 2:
        yield Paragraph("Only all labels were trained on, as `sizes` asked for nothing else; so there is no curve.")
        return
    rows = []
    for size, points in sorted(by_size.items()):
        cells = [text for side in SIDES for text in _figure(points[side].accuracy, _percent)]
        rows.append((f"{size:,}", *cells))
    yield TableBlock(("labels", "AI labels", "over seeds", "human labels", "over seeds"), tuple(rows))
    yield FigureBlock(EFFICIENCY, "Accuracy on human held-out labels by the number of labels, on a logarithmic axis.")
    yield Paragraph(
        "Accuracy on the human held-out labels. A larger set of comparisons contains the smaller ones, and both sides "
        "learn from the same comparisons at each size."
    )


def _cost(comparison: PathComparison) -> Iterator[Block]:
    costs = comparison.costs
    yield TableBlock(("labels", "what one took", "what one cost"), tuple(_cost_row(costs, side) for side in SIDES))
    if costs.currency is None:
        yield Paragraph("No price was stated, so nothing is said of cost; `prices` in the configuration states them.")
        return
    yield Paragraph("Costs follow from the prices that were stated and from what is known of the labels; see `prices`.")
    for side in SIDES:
        if costs.of(side) is None:
            yield Paragraph(f"No price was stated for {NAMES[side]} labels.")
    rows = [
        (NAMES[point.trained_on], f"{point.labels:,}", _money(point.cost, costs.currency), _share(point.accuracy.mean))
        for point in comparison.efficiency
        if point.cost is not None
    ]
    yield TableBlock(("labels", "number", "cost", "accuracy on human labels"), tuple(rows))
    if any(point.cost for point in comparison.efficiency):
        yield FigureBlock(COST, f"Accuracy on human held-out labels by the cost of the labels in {costs.currency}.")


def _cost_row(costs: Costs, side: LabelSide) -> tuple[str, str, str]:
    took = _NOT_KNOWN
    if side == "ai" and costs.ai is not None:
        ai = costs.ai
        took = (
            f"{ai.prompt_tokens:,.1f} prompt tokens ({ai.cached_tokens:,.1f} cached), {ai.completion_tokens:,.1f} "
            f"written, {ai.seconds:.2f} s; {ai.labels:,} labels of {ai.model}"
        )
    if side == "human" and costs.human is not None:
        human = costs.human
        took = (
            f"{human.seconds:.1f} s (a rating {human.median_seconds:.1f} s in the median); {human.ratings:,} ratings "
            f"of {human.raters:,} raters, {human.labels:,} labels"
        )
    price, currency = costs.of(side), costs.currency
    return NAMES[side], took, "no price stated" if price is None or currency is None else _money(price, currency)


def _policies(comparison: PathComparison) -> Iterator[Block]:
    """Nothing where no ranking was named."""
    ranking = comparison.ranking
    if ranking is None:
        return
    yield from map(Paragraph, ranking.warnings)
    for axis in ranking.axes:
        for table in ranking_tables(axis, ranking.baseline):
            yield Paragraph(f"{table.title[:1].upper()}{table.title[1:]}:")
            yield TableBlock(table.head, table.rows)
        yield from map(Paragraph, ranking_sentences(axis))


def _method(comparison: PathComparison) -> Iterator[Block]:
    seeds = ", ".join(map(str, comparison.seeds))
    yield Paragraph(
        f"Every reward model starts from {comparison.start} (sha256 {comparison.start_sha256[:12]}) with the same "
        f"settings; {len(comparison.seeds)} for each set of labels, with seeds {seeds}, the same for both sides. "
        "Labels are soft. manifest.json has the configuration and versions, models/ the models, pairs/ what they "
        "learned from, and comparison.json all figures."
    )
    yield Paragraph(
        "Intervals are of 95%, by a bootstrap that draws whole prompts: they say what other prompts would change. What "
        "other seeds would change stands apart, as least to greatest value and standard deviation over the seeds. The "
        "calibration error has no interval, as resampling raises it; its range is over seeds. An accuracy leaves out "
        "labels of 0.5 and counts equal rewards half; 50% is chance."
    )
    yield Paragraph(
        "Agreement with held-out human labels is what is measured, and raters disagree with one another too; what "
        "policies make of these reward models is another question."
    )


def _figure(figure: Figure, shown: _Shown) -> tuple[str, str]:
    """The mean with its interval, and the spread of the seeds."""
    seeds = figure.seeds
    if seeds.deviation is None:
        return _interval(figure.mean, shown), "one seed"
    return (
        _interval(figure.mean, shown),
        f"{shown(seeds.low)} to {shown(seeds.high)}, deviation {shown(seeds.deviation)}",
    )


def _spread(seeds: Spread) -> str:
    """The mean, and the range over seeds where there are several."""
    return f"{seeds.mean:.3f}" + ("" if seeds.deviation is None else f" ({seeds.low:.3f} to {seeds.high:.3f})")


def _interval(mean: Mean, shown: _Shown) -> str:
    if math.isinf(mean.high):
        return f"{shown(mean.value)} (no interval)"
    return f"{shown(mean.value)} ({shown(mean.low)} to {shown(mean.high)})"


def _share(mean: Mean | None) -> str:
    return _NOTHING if mean is None else percent(mean)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _decimal(value: float) -> str:
    return f"{value:.3f}"


def _points(gap: Mean) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"


def _money(value: float | None, currency: str) -> str:
    if value is None:
        return _NOTHING
    return f"{value:,.2f} {currency}" if value >= 1 else f"{value:.4g} {currency}"
