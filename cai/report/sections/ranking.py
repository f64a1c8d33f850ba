"""Ratings of policies by comparisons: Elo with intervals, win rates, and what length has to do with them."""

from collections.abc import Iterator

from cai.evaluate.ranking_output import REPORT, elo
from cai.evaluate.ranking_records import Axis, PolicyPair, PolicyRating, Ranking
from cai.report.blocks import Block, Chapter, Folded, Note, Paragraph, Part, TableBlock
from cai.report.collecting import Collected, Run
from cai.report.sections.pictures import pictures
from cai.report.wording import NOTHING, reasons, share


def ranking_chapter(collected: Collected) -> Chapter | None:
    """All rankings.

    Raises:
        RunDirError: a ranking cannot be read.
    """
    found = list(_rankings(collected))
    blocks: list[Block] = []
    for run, ranking in found:
        blocks.append(Part(run.name, tuple(_about(run, ranking))))
        blocks += [Part(f"By {axis.name} comparisons: {run.name}", tuple(_axis(axis))) for axis in ranking.axes]
    return Chapter("ranking", "Ranking of policies", tuple(blocks)) if blocks else None


def ranking_headlines(collected: Collected) -> Iterator[tuple[str, str]]:
    """The ratings of each axis in one line."""
    for run, ranking in _rankings(collected):
        for axis in ranking.axes:
            ratings = "; ".join(f"{one.policy} {elo(one.rating)}" for one in axis.policies)
            yield f"Elo by {axis.name} comparisons ({run.name})", ratings


def _rankings(collected: Collected) -> Iterator[tuple[Run, Ranking]]:
    for run in collected.of("rank"):
        if (ranking := run.result(REPORT, Ranking)) is not None:
            yield run, ranking


def _about(run: Run, ranking: Ranking) -> Iterator[Block]:
    for warning in ranking.warnings:
        yield Note("doubt", warning)
    zero = "the mean of the policies that are linked" if ranking.baseline is None else ranking.baseline
    yield Paragraph(
        f"Elo points, 400 for odds of ten to one; 0 is {zero}. Intervals are of 95%, by a bootstrap over prompts."
    )
    yield from pictures(run)


def _axis(axis: Axis) -> Iterator[Block]:
    yield Paragraph(f"{axis.comparisons:,} comparisons of {axis.prompts:,} prompts.")
    for note in axis.notes:
        yield Note("doubt", note)
    yield TableBlock(
        ("policy", "Elo", "win rate", "comparisons", "prompts", "group"), tuple(map(_rating, axis.policies))
    )
    if axis.pairs:
        head = (
            "policies",
            "win rate of the first",
            "by the ratings",
            "were both equally long",
            "Elo difference",
            "longer",
        )
        yield TableBlock((*head, "comparisons"), tuple(map(_pair, axis.pairs)))
    runs = tuple(
        (
            one.path,
            one.judge or one.labels,
            one.certificate or NOTHING,
            f"{one.used:,} of {one.comparisons:,}",
            reasons({**one.rejects, **one.unlabelled}),
        )
        for one in axis.runs
    )
    yield Folded("Runs that were counted", (TableBlock(("run", "labels by", "certificate", "used", "not used"), runs),))


def _rating(one: PolicyRating) -> tuple[str, ...]:
    counts = (f"{one.comparisons:,}", f"{one.prompts:,}", f"{one.group + 1}")
    return (one.policy, elo(one.rating), share(one.win_rate), *counts)


def _pair(one: PolicyPair) -> tuple[str, ...]:
    return (
        f"{one.first} against {one.second}",
        share(one.win_rate),
        f"{one.expected:.1%}",
        share(one.length_controlled),
        elo(one.difference),
        f"{one.longer:.1%}",
        f"{one.comparisons:,}",
    )
