import errno
import gc
import os
import resource
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chain_samples import chain, export, many, round_, rows

from cai.data import parquet
from cai.errors import RunDirError
from cai.records import RevisionChain


class Snapshots:
    """Copies a folder before every file operation in it: what a killed process would leave there."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.copies: list[Path] = []
        sys.addaudithook(self._hook)  # stays for good; idle without a folder

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        folder = self.folder
        if folder is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        if not (isinstance(args[0], str | os.PathLike) and str(folder) in os.fspath(args[0])):
            return
        self.folder = None  # the copy is not watched
        self.copies.append(folder.with_name(f"copy-{len(self.copies)}"))
        shutil.copytree(folder, self.copies[-1])
        self.folder = folder


@pytest.fixture(scope="module")
def snapshots() -> Snapshots:
    return Snapshots()


def test_a_kill_between_any_two_file_operations_leaves_the_old_export_or_the_new_one(
    tmp_path: Path, snapshots: Snapshots
) -> None:
    run = tmp_path / "run"
    export(run, many(3), test_share=0.5)
    old = {table: rows(run, table) for table in ("sft", "pairs", "llm_swarm")}
    snapshots.folder, snapshots.copies = run, []
    export(run, many(9), test_share=0.5)
    snapshots.folder = None
    new = {table: rows(run, table) for table in ("sft", "pairs", "llm_swarm")}
    states = [{table: rows(copy, table) for table in old} for copy in snapshots.copies]
    assert all(state in (old, new) for state in states)
    assert states[0] == old
    assert states[-1] == new
    assert len(states) > 20
    for copy in snapshots.copies:
        export(copy, many(9), test_share=0.5)
        assert {table: rows(copy, table) for table in new} == new
        assert sorted(path.relative_to(copy) for path in copy.rglob("*")) == sorted(
            path.relative_to(run) for path in run.rglob("*")
        )


def test_an_interrupted_export_leaves_the_old_one_and_no_rubbish(tmp_path: Path) -> None:
    export(tmp_path, many(3))
    before = sorted(tmp_path.rglob("*"))

    def interrupted() -> Iterator[RevisionChain]:
        yield from many(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, interrupted())
    assert sorted(tmp_path.rglob("*")) == before
    assert len(rows(tmp_path, "sft")) == 3


def test_a_full_disk_is_one_clear_error_and_the_old_export_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path, many(3))
    before = sorted(tmp_path.rglob("*"))

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirError, match=r"the disk is full; what is finished is kept: free some space"):
        export(tmp_path, many(5))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_write_that_fails_half_way_is_one_clear_error_and_the_old_export_stays(tmp_path: Path) -> None:
    export(tmp_path, many(3))
    before = sorted(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the kernel refuses to write further
    try:
        with pytest.raises(RunDirError, match="cannot be written: File too large"):
            export(tmp_path, many(4000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()  # a half-open writer would complain here
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder", encoding="utf-8")
    with pytest.raises(RunDirError, match="cannot be written: File exists"):
        export(tmp_path, many(1))


def test_chains_are_let_go_as_they_are_read(tmp_path: Path) -> None:
    alive: list[weakref.ref[RevisionChain]] = []
    most = 0

    def watched() -> Iterator[RevisionChain]:
        nonlocal most
        for n in range(50):
            made = chain(f"n{n}", round_("harm", "Bad.", f"No {n}."))
            alive.append(weakref.ref(made))
            most = max(most, sum(ref() is not None for ref in alive))
            yield made
            del made

    export(tmp_path, watched())
    assert most <= 2
    assert len(rows(tmp_path, "sft")) == 50


@pytest.mark.parametrize(
    ("name", "limit"), [("MAX_ROWS", 4), ("MAX_CHARS", 4 * len("Question 0?" + "No, not 0."))], ids=["rows", "chars"]
)
def test_rows_are_written_in_groups_so_that_few_wait_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(parquet, name, limit)
    export(tmp_path, many(10))
    [path] = (tmp_path / "data").glob("sft-train-*.parquet")
    meta = pq.read_metadata(path)
    assert [meta.row_group(n).num_rows for n in range(meta.num_row_groups)] == [4, 4, 2]
    assert [row["id"] for row in rows(tmp_path, "sft")] == [f"n{n}/1" for n in range(10)]
    assert [row["messages"][-1]["content"] for row in rows(tmp_path, "sft")] == [f"No, not {n}." for n in range(10)]
