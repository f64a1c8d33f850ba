"""Comparisons in: a run's directory, any file of `files.py`; every row that is not used counted with its reason."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from cai.config import StrictModel
from cai.data.chains import read_chains
from cai.data.comparison_rows import COLUMNS, GOLD, chain_comparison, row_comparison
from cai.data.files import COMPARISON_SETS, Row, file_sha256, find_file, read_rows
from cai.data.rows import Reject, RowNote, RowTally, SeenIds, SourceScan, ignore, used_rows
from cai.errors import DataError, RunDirError
from cai.records import Comparison, Side
from cai.rundir import read_manifest

SAMPLED = "comparisons.jsonl"
"""The file of a run of `cai sample` or `cai contrast` that holds its comparisons."""
_RUNS = "`cai sample`, `cai contrast` or `cai critique-revise`"


class ComparisonInput(StrictModel):
    """Where comparisons are read from."""

    path: str
    """The directory of a run of `cai sample`, `cai contrast` or `cai critique-revise`, a file (.jsonl, .json, .csv,
    each also with .gz, or .parquet), the name of a shipped set, or `hub:owner/name[@config][:split]`."""
    column: str | None = None
    """The column that holds the prompt. Default: found by its name, see `formats.PROMPT_COLUMNS`."""
    gold_column: str | None = None
    """The column that names the better of `response_a` and `response_b`. Default: `gold`, where there is one."""
    require_gold: bool = False
    """Use only comparisons that say which response is the better one."""


class ComparisonScan(SourceScan):
    """What a source of comparisons holds."""

    comparisons: int
    gold: Mapping[Side, int]
    """Comparisons by the side that is the better one, for those that say so."""


def read_comparisons(
    source: ComparisonInput,
    *,
    on_reject: Callable[[Reject], None],
    on_note: Callable[[RowNote], None] = ignore,
) -> Iterator[Comparison]:
    """Read the comparisons of a source one at a time, in order; every other row goes to `on_reject`.

    A critique-revise run gives the draft and the last revision of each chain, which no label puts in order.

    Raises:
        DataError: at the first comparison or a later one: the source cannot be read, has no rows, or only rejected
            ones. `scan_comparisons` finds this out before any work.
        RunDirError: the records of a run are broken.
    """
    file = _file(source)
    if file is None and not source.path.startswith("hub:"):
        chains = enumerate(read_chains(Path(source.path)), start=1)
        yield from used_rows(
            source.path,
            (Row(number, chain) for number, chain in chains),
            partial(chain_comparison, require_gold=source.require_gold),
            on_reject=on_reject,
            on_note=on_note,
            seen=SeenIds(),
        )
        return
    gold = GOLD if source.gold_column is None else source.gold_column
    yield from used_rows(
        source.path,
        read_rows(source.path if file is None else str(file), source.column, further=(*COLUMNS, gold)),
        partial(
            row_comparison,
            column=source.column,
            gold_column=source.gold_column,
            require_gold=source.require_gold,
            source=source.path,
        ),
        on_reject=on_reject,
        on_note=on_note,
        seen=SeenIds(),
    )


def scan_comparisons(source: ComparisonInput, *, on_reject: Callable[[Reject], None] = ignore) -> ComparisonScan:
    """Read a source once from end to end and count what it holds, so that faults show before any work.

    Raises:
        DataError, RunDirError: as `read_comparisons` does.
    """
    number = 0
    gold: Counter[Side] = Counter()
    content = hashlib.sha256()
    tally = RowTally(on_reject)
    file = _file(source)
    for comparison in read_comparisons(source, on_reject=tally.reject, on_note=tally.note):
        number += 1
        if comparison.gold is not None:
            gold[comparison.gold] += 1
        if file is None:
            content.update(comparison.model_dump_json().encode() + b"\n")
    return ComparisonScan(
        source=source.path,
        sha256=content.hexdigest() if file is None else file_sha256(file),
        total=number + tally.rejects.total(),
        comparisons=number,
        gold=dict(gold),
        rejects=dict(tally.rejects),
        notes=dict(tally.notes),
    )


def _file(source: ComparisonInput) -> Path | None:
    """The file that holds the comparisons; None for a hub data set and for the directory of a critique-revise run.

    Raises:
        DataError: there is no such file, and the directory is of another kind.
    """
    path = Path(source.path)
    if source.path.startswith("hub:"):
        return None
    if not path.is_dir():
        return find_file(source.path, COMPARISON_SETS)
    if (path / SAMPLED).is_file():
        return path / SAMPLED
    try:
        stage = read_manifest(path).stage
    except RunDirError as error:
        raise DataError(f"{error}; name a file, or the directory of a run of {_RUNS}") from None
    if stage in ("sample", "contrast"):
        raise DataError(f"{path} has no {SAMPLED} yet; run its `cai {stage}` command again until it is finished")
    if stage != "critique-revise":
        raise DataError(f"{path} is a run of `cai {stage}`, which holds no comparisons; name one of {_RUNS}, or a file")
    return None
