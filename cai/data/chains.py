"""Reading the chains of a critique-revise run, finished or not."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from cai.errors import ConfigError, RunDirError
from cai.records import RevisionChain
from cai.rundir import read_records


def read_chains(run: Path) -> Iterator[RevisionChain]:
    """Read the finished chains in the order of the run's input, one at a time. A torn last line is left out.

    Raises:
        RunDirError: `run` has no records.jsonl, or a line within it is broken.
    """
    if not (run / "records.jsonl").is_file():
        raise RunDirError(f"{run} is not the directory of a critique-revise run: it has no records.jsonl")
    return read_records(run, RevisionChain)


def has_torn_line(run: Path) -> bool:
    """Whether the last line of records.jsonl is half-written: the run is at work on it, or was killed there."""
    with (run / "records.jsonl").open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def find_chain(run: Path, id: str) -> RevisionChain:
    """Find the chain of this id, or the only one whose id starts with it.

    Raises:
        ConfigError: no chain has such an id (the nearest are named), or several do.
        RunDirError: as `read_chains`.
    """
    ids: list[str] = []
    found: list[RevisionChain] = []
    for chain in read_chains(run):
        if chain.id == id:
            return chain
        ids.append(chain.id)
        if chain.id.startswith(id) and len(found) < 4:
            found.append(chain)
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(chain.id for chain in found[:3]) + (", …" if len(found) > 3 else "")
        raise ConfigError(f"several chains of {run} have an id that starts with {id!r} ({several}); give more of it")
    near = difflib.get_close_matches(id, ids, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"its first ids are {', '.join(ids[:3]) or 'none yet'}"
    raise ConfigError(f"{run} has no finished chain with the id {id!r}; {hint}")
