"""Reading what a stage has finished, be its run finished or not."""

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from cai.errors import ConfigError, RunDirError
from cai.records import RevisionChain, StageResult
from cai.rundir import read_records

ResultT = TypeVar("ResultT", bound=StageResult)


def read_results(run: Path, model: type[ResultT], stage: str) -> Iterator[ResultT]:
    """Read the finished records of a stage in the order of the run's input, one at a time, without a torn last line.

    Raises:
        RunDirError: `run` has no records.jsonl, or a line within it is broken or no `model`.
    """
    if not (run / "records.jsonl").is_file():
        raise RunDirError(f"{run} is not the directory of a {stage} run: it has no records.jsonl")
    return read_records(run, model)


def read_chains(run: Path) -> Iterator[RevisionChain]:
    """Read the finished chains of a critique-revise run; see `read_results`."""
    return read_results(run, RevisionChain, "critique-revise")


def has_torn_line(run: Path) -> bool:
    """Whether the last line of records.jsonl is half-written: the run is at work on it, or was killed there."""
    with (run / "records.jsonl").open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def find_result(results: Iterable[ResultT], id: str, run: Path, noun: str) -> ResultT:
    """Find the record of this id among the `results` of `run`, or the only one whose id starts with it.

    `noun` is what a record is called in the messages.

    Raises:
        ConfigError: no record has such an id (the nearest are named), or several do.
        RunDirError: as `read_results`.
    """
    ids: list[str] = []
    found: list[ResultT] = []
    for result in results:
        if result.id == id:
            return result
        ids.append(result.id)
        if result.id.startswith(id) and len(found) < 4:
            found.append(result)
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(result.id for result in found[:3]) + (", …" if len(found) > 3 else "")
        raise ConfigError(f"several {noun}s of {run} have an id that starts with {id!r} ({several}); give more of it")
    near = difflib.get_close_matches(id, ids, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"its first ids are {', '.join(ids[:3]) or 'none yet'}"
    raise ConfigError(f"{run} has no finished {noun} with the id {id!r}; {hint}")
