"""AI labels beside human labels: what `cai compare` wrote, as its own page says it."""

from collections.abc import Iterator

from cai.compare.records import PathComparison
from cai.compare.report import FigureBlock, report, verdict
from cai.report.blocks import Block, Chapter, Part, Picture
from cai.report.collecting import Collected, Run

_COMPARISON = "comparison.json"  # `cai.compare.run` has the name too, but loads torch


def paths_chapter(collected: Collected) -> Chapter | None:
    """All comparisons of the two paths.

    Raises:
        RunDirError: a comparison cannot be read.
    """
    parts: list[Part] = []
    for run, comparison in _comparisons(collected):
        for section in report(comparison):
            blocks = (_block(run, block) if isinstance(block, FigureBlock) else block for block in section.blocks)
            parts.append(Part(f"{section.title}: {run.name}", tuple(block for block in blocks if block is not None)))
    return Chapter("paths", "AI against human labels", tuple(parts)) if parts else None


def path_headlines(collected: Collected) -> Iterator[tuple[str, str]]:
    """Which labels make the better reward model."""
    for run, comparison in _comparisons(collected):
        yield f"AI against human labels ({run.name})", verdict(comparison)


def _comparisons(collected: Collected) -> Iterator[tuple[Run, PathComparison]]:
    for run in collected.of("compare"):
        if (comparison := run.result(_COMPARISON, PathComparison)) is not None:
            yield run, comparison


def _block(run: Run, figure: FigureBlock) -> Block | None:
    svg = run.bytes(figure.name)
    return None if svg is None else Picture(svg, figure.caption)
