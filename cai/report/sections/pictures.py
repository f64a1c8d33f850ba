"""The plots that a run has drawn."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cai.evaluate.output import FOREST, PLANE
from cai.report.blocks import Picture
from cai.report.collecting import Run

_CAPTIONS: Mapping[str, str] = {
    FOREST: "The figures of all models, with their intervals.",
    PLANE: "Helpfulness and harmlessness of each model, with intervals: up and to the right is better at both.",
}


def pictures(run: Run) -> Iterator[Picture]:
    """All SVGs that the manifest names and that are there."""
    for name in run.manifest.other_files:
        if name.endswith(".svg") and (svg := run.bytes(Path(name).name)) is not None:
            yield Picture(svg, _CAPTIONS.get(name, f"{name} of {run.name}."))
