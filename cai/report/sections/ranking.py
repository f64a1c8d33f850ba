"""Ratings of policies by comparisons: Elo with intervals, win rates, and what length has to do with them."""

from collections.abc import Iterator

from cai.evaluate.ranking_output import REPORT, elo, length_sentences, ranking_tables
from cai.evaluate.ranking_records import Axis, Ranking
from cai.report.blocks import Block, Chapter, Folded, Note, Paragraph, Part, TableBlock
from cai.report.collecting import Collected, Run
from cai.report.sections.pictures import pictures


def ranking_chapter(collected: Collected) -> Chapter | None:
    """All rankings.

    Raises:
        RunDirError: a ranking cannot be read.
    """
    found = list(_rankings(collected))
    blocks: list[Block] = []
    for run, ranking in found:
        blocks.append(Part(run.name, tuple(_about(run, ranking))))
        blocks += [
            Part(f"By {axis.name} comparisons: {run.name}", tuple(_axis(axis, ranking.baseline)))
            for axis in ranking.axes
        ]
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


def _axis(axis: Axis, baseline: str | None) -> Iterator[Block]:
    yield Paragraph(f"{axis.comparisons:,} comparisons of {axis.prompts:,} prompts.")
    for note in axis.notes:
        yield Note("doubt", note)
    ratings, pairs, runs = (TableBlock(table.head, table.rows) for table in ranking_tables(axis, baseline))
    yield from (ratings, pairs) if axis.pairs else (ratings,)
    yield from map(Paragraph, length_sentences(axis))
    yield Folded("Runs that were counted", (runs,))
