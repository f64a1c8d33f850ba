"""What the stages that keep records have in common."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cai.pipeline.stages.kind import number
from cai.pipeline_records import Headline
from cai.rundir import read_manifest


def counted(run: Path, names: Mapping[str, str], *, tables: Mapping[str, str] = {}) -> Iterator[Headline]:
    """Counts of a run's export by their keys, rows of its tables, and how many records failed; all with their names."""
    manifest = read_manifest(run)
    counts: Mapping[str, Any] = manifest.export.get("counts", {})
    for key, name in names.items():
        value = counts.get(key)
        yield number(name, value, ".3f" if isinstance(value, float) else "")
    for table, name in tables.items():
        yield number(name, sum(file["rows"] for file in counts.get("files", ()) if file["table"] == table))
    yield number("failed", sum(manifest.failures.values()))
