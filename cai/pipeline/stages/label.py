"""`label` in a recipe; `certificate` and `force` are options of its command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.constitution import JUDGES_BY
from cai.data.preference_tables import PREFERENCES
from cai.feedback.labelling import STAGE, LabelConfig, load_labelling
from cai.pipeline.contents import dataset_digest
from cai.pipeline.stages.generating import counted
from cai.pipeline.stages.kind import COMPARABLE, MODELS, StageKind, by_config


class LabelStageConfig(LabelConfig):
    """Configuration of `cai label`, with the options about the certificate."""

    certificate: Path | None = None
    """Certificate of the judge: the file, or the run that made it. Default: found among the runs of the recipe."""
    force: bool = False
    """Label even where the certificate cannot tell the judge from chance."""


def _command(settings: Mapping[str, Any], config: Path, out: Path) -> Sequence[str]:
    certificate = settings.get("certificate")
    return [
        *by_config(STAGE)(settings, config, out),
        *(["--certificate", str(certificate)] if certificate else []),
        *(["--force"] if settings.get("force") else []),
    ]


KIND = StageKind(
    name=STAGE,
    config=LabelStageConfig,
    command=_command,
    options=frozenset({"certificate", "force"}),
    output=dataset_digest,
    headlines=lambda run: tuple(
        counted(
            run,
            {"labels": "labels", "ties": "ties", "confidence": "mean confidence", "human_rows": "human rows"},
            tables={PREFERENCES.name: "preferences"},
        )
    ),
    reads={
        "engine.model": MODELS,
        "engine.adapter": MODELS,
        "comparisons": COMPARABLE,
        "certificate": frozenset({"judge-check"}),
    },
    blind=JUDGES_BY,
    check=load_labelling,
    retries=True,
)
