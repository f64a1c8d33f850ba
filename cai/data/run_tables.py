"""The tables that a finished run has exported, found by its manifest."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cai.data.dataset import SplitFile
from cai.errors import DataError, RunDirError
from cai.rundir import Manifest, read_manifest

_FILES = TypeAdapter(tuple[SplitFile, ...])


def run_table(run: Path, tables: Mapping[str, str]) -> Mapping[str, Path]:
    """The parquet files of a finished run's table by split; `tables` names the table for each stage that has it.

    A split without rows has no file, and at least one split has rows.

    Raises:
        DataError: the directory is no run of these stages; the run is not finished, or what it exported is not there
            (the message says which command to run again); the table has no rows.
    """
    known = " or ".join(f"`cai {stage}`" for stage in tables)
    try:
        manifest = read_manifest(run)
    except RunDirError as error:
        raise DataError(f"{error}; name a file, or the directory of a run of {known}") from None
    if manifest.stage not in tables:
        raise DataError(
            f"{run} is a run of `cai {manifest.stage}`, which has nothing of this kind to train on; name a run of "
            f"{known}, or a file"
        )
    again = f"`{shlex.join(manifest.command) or f'cai {manifest.stage}'}`"
    if manifest.state == "failed":
        raise DataError(
            f"{run} failed for more of its records than it allows; run {again} again with --retry-failed, or with a "
            "larger --max-failure-share"
        )
    if manifest.state != "finished":
        raise DataError(f"{run} is not finished; run {again} again until it is")
    name = tables[manifest.stage]
    files = {file.split: run / file.path for file in _exported(run, manifest, again) if file.table == name}
    if not files:
        raise DataError(f"{run} has no rows in its table `{name}`; its README.md counts what was left out")
    for path in files.values():
        if not path.is_file():
            raise DataError(f"{path} is missing; run {again} again, which writes it anew")
    return files


def _exported(run: Path, manifest: Manifest, again: str) -> tuple[SplitFile, ...]:
    try:
        return _FILES.validate_python(manifest.export["counts"]["files"])
    except (KeyError, TypeError, ValidationError):
        raise DataError(f"{run} has no exported data set; run {again} again, which writes it") from None
