"""`rank` in a recipe; its command has options and no configuration file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.evaluate.ranking import RankConfig
from cai.evaluate.ranking_output import REPORT, read_ranking
from cai.pipeline.contents import json_digest
from cai.pipeline.stages.kind import StageKind, interval
from cai.pipeline_records import Headline

_STAGE = "rank"
_RUNS = frozenset({"label", "export", "import"})


def _command(settings: Mapping[str, Any], config: Path, out: Path) -> Sequence[str]:
    del config
    words = [_STAGE, *settings.get("runs", ()), "--out", str(out), "--overwrite"]
    words += [word for name in ("helpful", "harmless") for run in settings.get(name, ()) for word in (f"--{name}", run)]
    for name in ("baseline", "seed"):
        if settings.get(name) is not None:
            words += [f"--{name}", str(settings[name])]
    return words


def _headlines(run: Path) -> Iterator[Headline]:
    for axis in read_ranking(run).axes:
        for one in axis.policies:
            yield interval(f"{axis.name}: rating of {one.policy}", one.rating, share=False)


KIND = StageKind(
    name=_STAGE,
    config=RankConfig,
    command=_command,
    output=lambda run: json_digest(run / REPORT, ("path",)),
    headlines=lambda run: tuple(_headlines(run)),
    reads={"runs": _RUNS, "helpful": _RUNS, "harmless": _RUNS},
)
