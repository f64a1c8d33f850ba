"""What the last edit of a recipe or a constitution touched, and which figures moved."""

from collections.abc import Iterator

from cai.pipeline_records import Changes, StageChange
from cai.report.blocks import Block, Chapter, Paragraph, Part, TableBlock
from cai.report.collecting import Collected
from cai.report.wording import NOTHING


def changes_chapter(collected: Collected) -> Chapter | None:
    """The changes of all pipelines that were run more than once."""
    parts = [
        Part(pipeline.recipe, tuple(_blocks(pipeline.changes)))
        for pipeline in collected.pipelines
        if pipeline.changes is not None and not pipeline.changes.first
    ]
    return Chapter("changes", "What the last change moved", tuple(parts)) if parts else None


def _blocks(changes: Changes) -> Iterator[Block]:
    edited = {one.id: one for stage in changes.stages for one in stage.principles}
    if edited:
        said = [
            f"{one.id} was {one.kind}" + (f" ({', '.join(one.parts)})" if one.parts else "") for one in edited.values()
        ]
        yield Paragraph(f"Principles: {'; '.join(said)}.")
    yield TableBlock(
        ("stage", "what was done", "because of", "records taken over", "result"), tuple(map(_stage, changes.stages))
    )
    moved = tuple(
        (stage.name, figure.name, figure.before or NOTHING, figure.after or NOTHING)
        for stage in changes.stages
        for figure in stage.moved
    )
    if moved:
        yield TableBlock(("stage", "figure", "before", "after"), moved)
    else:
        yield Paragraph("No figure moved.")


def _stage(stage: StageChange) -> tuple[str, ...]:
    result = "the same" if stage.same_result else "another"
    done = "taken from an earlier run" if stage.outcome == "skipped" and stage.touched else stage.outcome
    return stage.name, done, ", ".join(stage.why) or NOTHING, f"{stage.carried:,}", result
