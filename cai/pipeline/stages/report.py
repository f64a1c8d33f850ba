"""`report` in a recipe: the page of the whole pipeline, which is made anew whenever anything was done."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cai.config import StrictModel
from cai.data.files import file_sha256
from cai.pipeline.stages.kind import StageKind

_STAGE = "report"


class ReportStageConfig(StrictModel):
    """The options of `cai report`."""

    runs: tuple[str, ...] = ()
    """Runs to put on the page. Default: all of this pipeline."""
    title: str | None = None
    """Of the page. Default: Constitutional AI: report."""
    transcripts: Annotated[int, Field(ge=0)] = 200
    """Transcripts to show at most."""


def _command(settings: Mapping[str, Any], config: Path, out: Path) -> Sequence[str]:
    del config
    title, transcripts = settings.get("title"), settings.get("transcripts")
    return [
        _STAGE,
        *(settings.get("runs") or [str(out.parent)]),
        *("--out", str(out)),
        *(["--title", title] if title else []),
        *(["--transcripts", str(transcripts)] if transcripts is not None else []),
    ]


KIND = StageKind(
    name=_STAGE,
    config=ReportStageConfig,
    command=_command,
    output=file_sha256,
    headlines=lambda _: (),
    suffix=".html",
    reads_all=True,
)
