"""Chains out: parquet tables in the columns that TRL reads, and the card that `datasets.load_dataset` opens them by.

Safe at any byte: the card names every file, and the name of a file holds a hash of its content, so the files of two
exports stand side by side. An export (1) writes all of itself into `.export/` of the run directory, (2) moves the
parquet files into `data/`, where no card names them yet, (3) replaces README.md by one rename, (4) deletes the files
that the new card does not name. Whoever opens the directory by its card sees the old export until step 3 and the new
one from then on, wherever the process dies; what it leaves behind goes with the next export.
"""

import errno
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cai.data.card import CardFacts, ExportCounts, SplitFile, render_card
from cai.data.parquet import ParquetFile
from cai.data.tables import (
    LLM_SWARM,
    PAIRS,
    SFT,
    TABLES,
    PairState,
    Requests,
    Row,
    SftRow,
    Table,
    pair_row,
    pair_state,
    sft_rows,
    split_of,
    swarm_row,
    swarm_split,
)
from cai.errors import RunDirError
from cai.records import RevisionChain

_OURS = re.compile(r"(?:sft|pairs|llm_swarm)-\w+-[0-9a-f]{12}\.parquet")


def export_chains(
    chains: Iterable[RevisionChain],
    out: Path,
    *,
    requests: Requests,
    test_share: float,
    seed: int,
    card: CardFacts,
) -> ExportCounts:
    """Write `data/*.parquet` and README.md of the run directory `out`, in place of an earlier export.

    Reads `chains` once; memory does not grow with their number. The tables are those of `cai.data.tables`. About
    `test_share` of the prompts go to the test splits. `requests` words the principles for the table `llm_swarm`.
    One process at a time may export to `out`: the run directory's lock sees to it.

    Raises:
        RunDirError: the disk is full, `out` cannot be written, or a chain names a principle that `requests` lacks.
    """
    staging = out / ".export"
    files = _Files(staging)
    tally = _Tally()
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        for chain in chains:
            rows = sft_rows(chain)
            state = pair_state(chain)
            tally.add(chain, rows, state)
            side = split_of(chain.prompt, test_share, seed)
            for row in rows:
                files.add(SFT, side, row)
            if state == "pair":
                files.add(PAIRS, side, pair_row(chain))
            half = swarm_split(chain.prompt, test_share, seed)
            if state == "pair" or (state == "identical" and half.endswith("_sft")):
                files.add(LLM_SWARM, half, swarm_row(chain, requests))
        counts = tally.counts(files.finish())
        _write_synced(staging / "README.md", render_card(card, counts, test_share=test_share, seed=seed))
        _publish(staging, out, counts.files)
    except OSError as error:
        raise _write_error(out, error) from None
    finally:
        files.abandon()
        shutil.rmtree(staging, ignore_errors=True)
    return counts


class _Files:
    """The files of all splits that have rows; `datasets` cannot load a split without."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[Table, str], ParquetFile] = {}

    def add(self, table: Table, split: str, row: Row) -> None:
        key = (table, split)
        if key not in self._open:
            self._open[key] = ParquetFile(self._folder / f"{table.name}-{split}.parquet", table.row)
        self._open[key].add(row, row.chars)

    def finish(self) -> list[SplitFile]:
        """Complete all files under their final names, in the order of the tables."""
        found = []
        for table in TABLES:
            for split in table.splits:
                if file := self._open.get((table, split)):
                    name = f"{table.name}-{split}-{file.finish()[:12]}.parquet"
                    file.path.rename(self._folder / name)
                    found.append(SplitFile(table=table.name, split=split, path=f"data/{name}", rows=file.rows))
        return found

    def abandon(self) -> None:
        for file in self._open.values():
            file.abandon()


class _Tally:
    """Counts of chains and of what they gave."""

    def __init__(self) -> None:
        self._chains = self._helpful = self._empty = self._cut = 0
        self._states: Counter[PairState] = Counter()
        self._principles: Counter[str] = Counter()

    def add(self, chain: RevisionChain, rows: Sequence[SftRow], state: PairState) -> None:
        helpful = chain.prompt.kind == "helpful"
        replies = 1 if helpful else len(chain.revisions)
        self._chains += 1
        self._helpful += helpful
        self._empty += replies - len(rows)
        self._cut += sum(row.finish_reason == "length" for row in rows)
        self._principles.update(round_.principle_id for round_ in chain.rounds)
        if not helpful:
            self._states[state] += 1

    def counts(self, files: Sequence[SplitFile]) -> ExportCounts:
        return ExportCounts(
            chains=self._chains,
            helpful=self._helpful,
            unrevised=self._states["unrevised"],
            identical_pairs=self._states["identical"],
            empty_pairs=self._states["empty"],
            empty_replies=self._empty,
            cut_replies=self._cut,
            principles=dict(self._principles),
            files=tuple(files),
        )


def _publish(staging: Path, out: Path, files: Sequence[SplitFile]) -> None:
    data = out / "data"
    data.mkdir(exist_ok=True)
    for file in files:
        (staging / Path(file.path).name).replace(out / file.path)
    _sync_folder(data)
    (staging / "README.md").replace(out / "README.md")
    _sync_folder(out)
    named = {Path(file.path).name for file in files}
    for path in data.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Put renames in a folder on disk, so that they cannot overtake one another in a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_error(out: Path, error: OSError) -> RunDirError:
    kept = "an export made before is still as it was"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunDirError(f"the disk is full, {out} cannot be exported; free some space and run it again ({kept})")
    return RunDirError(f"{out} cannot be exported: {error.strerror or error} ({kept})")
