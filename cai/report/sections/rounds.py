"""Round over round: what failures became new prompts, and which edit of the constitution is proposed."""

from collections.abc import Iterator

from cai.iterate.records import Iteration
from cai.iterate.run import DIFF, ITERATION, round_head, round_rows
from cai.report.blocks import Block, Chapter, Note, Paragraph, Part, TableBlock, Texts
from cai.report.collecting import Collected, Run
from cai.statistics import percent


def rounds_chapter(collected: Collected) -> Chapter | None:
    """All iterations.

    Raises:
        RunDirError: what an iteration found cannot be read.
    """
    found = ((run, run.result(ITERATION, Iteration)) for run in collected.of("iterate"))
    parts = [Part(run.name, tuple(_blocks(run, one))) for run, one in found if one is not None]
    return Chapter("rounds", "Rounds", tuple(parts)) if parts else None


def _blocks(run: Run, iteration: Iteration) -> Iterator[Block]:
    for note in iteration.notes:
        yield Note("doubt", note)
    yield TableBlock(round_head(iteration.rounds), tuple(round_rows(iteration.rounds)))
    if iteration.principles:
        ranks = ((one.principle, one.source, percent(one.failing), f"{one.replies:,}") for one in iteration.principles)
        yield TableBlock(("principle that replies go against", "by", "share of replies", "replies"), tuple(ranks))
    if proposals := iteration.rounds[-1].proposals:
        yield TableBlock(
            ("principle", "proposed", "why"), tuple((one.principle, one.change, one.reason) for one in proposals)
        )
        yield Paragraph("Nothing was changed in place: a person accepts the edit by applying the patch.")
        if (diff := run.bytes(DIFF)) is not None:
            yield Texts(((DIFF, diff.decode(errors="replace")),))
