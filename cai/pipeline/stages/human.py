"""What an export of ratings and an import of human data have in common."""

from collections.abc import Sequence
from pathlib import Path

from cai.human.preference_run import LabelCounts
from cai.pipeline.stages.kind import number
from cai.pipeline_records import Headline
from cai.rundir import read_manifest


def headlines(run: Path) -> Sequence[Headline]:
    """How many labels there are, and how sure."""
    figures = LabelCounts.model_validate(read_manifest(run).export["counts"]["figures"])
    return (
        number("labels", figures.labels),
        number("ties", figures.ties),
        number("mean confidence", figures.confidence, ".3f"),
    )
