"""What an edit moved: which stages it touched, which principles, and which figures are not what they were."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cai.constitution import diff_constitutions, load_constitution
from cai.pipeline.planning import differing
from cai.pipeline_records import (
    Changes,
    Headline,
    Moved,
    Outcome,
    PipelineState,
    PrincipleTouched,
    StageChange,
    StageRun,
)

FROZEN = "constitution.yaml"
"""The constitution of a run, as it was."""


def find_changes(out: Path, state: PipelineState, outcomes: Mapping[str, Outcome]) -> Changes:
    """What the stages in `outcomes` came to, against the whole run before."""
    complete = {run.name: run for run in state.complete}
    runs = [(run, outcomes[run.name]) for run in state.stages if run.name in outcomes]
    return Changes(
        recipe=state.recipe,
        first=not complete,
        stages=tuple(_change(out, run, complete.get(run.name), outcome) for run, outcome in runs),
    )


def _change(out: Path, run: StageRun, before: StageRun | None, outcome: Outcome) -> StageChange:
    why: tuple[str, ...] = ()
    principles: tuple[PrincipleTouched, ...] = ()
    if before is not None:
        why = differing(before.ingredients, run.ingredients)
        if any(name.rpartition(".")[2] == "constitution" for name in why):
            principles = _principles(out / before.path, out / run.path)
    return StageChange(
        name=run.name,
        stage=run.stage,
        outcome=outcome,
        why=why,
        principles=principles,
        carried=run.carried if outcome != "skipped" else 0,
        same_result=before is not None and before.output == run.output,
        before=None if before is None else before.path,
        after=run.path,
        moved=() if before is None else _moved(before.headlines, run.headlines),
    )


def _principles(before: Path, after: Path) -> tuple[PrincipleTouched, ...]:
    """How the constitutions differ that two runs worked by, where both kept theirs."""
    if not all((run / FROZEN).is_file() for run in (before, after)):
        return ()
    found = diff_constitutions(load_constitution(str(before / FROZEN)), load_constitution(str(after / FROZEN)))
    return tuple(PrincipleTouched(id=one.id, kind=one.kind, parts=one.parts) for one in found)


def _moved(before: Sequence[Headline], after: Sequence[Headline]) -> tuple[Moved, ...]:
    old, new = ({headline.name: headline for headline in side} for side in (before, after))
    return tuple(
        Moved(
            name=name,
            before=old[name].text if name in old else None,
            after=new[name].text if name in new else None,
            difference=_difference(old.get(name), new.get(name)),
        )
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    )


def _difference(before: Headline | None, after: Headline | None) -> float | None:
    if before is None or after is None or before.value is None or after.value is None:
        return None
    return after.value - before.value
