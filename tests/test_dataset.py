"""Data sets out, whatever their tables: column types, text files beside them, and what stays when writing fails."""

import errno
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from cai.data.card_parts import header
from cai.data.dataset import DatasetCounts, DatasetWriter, Row, Table
from cai.errors import RunDirError

datasets.disable_progress_bars()


class Measure(Row):
    """A measured thing."""

    name: str
    """What it is."""
    value: float
    """How much."""
    spread: float | None
    """How far off."""
    sure: bool
    """Whether it is certain."""
    checked: bool | None
    """Whether it was checked."""

    @property
    def chars(self) -> int:
        return len(self.name)


MEASURES = Table("measures", Measure, ("train", "test"))
OTHERS = Table("others", Measure, ("train",))
A = Measure(name="a", value=0.1 + 0.2, spread=None, sure=True, checked=None)
B = Measure(name="b", value=-3.0, spread=1e-12, sure=False, checked=True)


def write(out: Path, *rows: Measure, texts: tuple[str, ...] = (), lines: tuple[str, ...] = ()) -> DatasetCounts:
    with DatasetWriter(out, (MEASURES, OTHERS), texts) as dataset:
        for row in rows:
            dataset.add(MEASURES, "train", row)
        for line in lines:
            dataset.write_line(texts[0], line)
        counts = DatasetCounts(files=dataset.finish())
        dataset.publish(header("measures", (MEASURES, OTHERS), counts, ()))
    return counts


def names(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*")}


def test_floats_and_truth_values_come_back_as_they_were(tmp_path: Path) -> None:
    counts = write(tmp_path, A, B)
    [file] = counts.files
    table = pq.read_table(tmp_path / file.path)
    assert [str(field.type) for field in table.schema] == ["string", "double", "double", "bool", "bool"]
    assert table.to_pylist() == [A.model_dump(), B.model_dump()]
    loaded = datasets.load_dataset(str(tmp_path), "measures", cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].to_list() == [A.model_dump(), B.model_dump()]


def test_a_column_of_nulls_keeps_its_type(tmp_path: Path) -> None:
    [file] = write(tmp_path, A).files
    assert str(pq.read_schema(tmp_path / file.path).field("checked").type) == "bool"


def test_a_text_file_is_there_even_without_lines_and_a_later_one_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, A, texts=("notes.jsonl",))
    assert (tmp_path / "notes.jsonl").read_bytes() == b""
    write(tmp_path, A, texts=("notes.jsonl",), lines=("eins", "zwei ü"))
    assert (tmp_path / "notes.jsonl").read_text(encoding="utf-8") == "eins\nzwei ü\n"
    assert {name for name in names(tmp_path) if "/" not in name} == {"data", "README.md", "notes.jsonl"}


def test_only_files_of_these_tables_are_cleaned_away(tmp_path: Path) -> None:
    write(tmp_path, A)
    [old] = [name for name in names(tmp_path) if name.endswith("parquet")]
    other = "data/foreign-train-0123456789ab.parquet"
    (tmp_path / other).touch()
    [new] = write(tmp_path, B).files
    assert {name for name in names(tmp_path) if name.endswith("parquet")} == {new.path, other}
    assert old != new.path


@pytest.mark.parametrize("broken", ["fsync", "publish"])
def test_what_was_not_published_leaves_the_former_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    write(tmp_path, A, texts=("notes.jsonl",), lines=("old",))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path) if (tmp_path / name).is_file()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (DatasetWriter, "publish")), full)
    with pytest.raises(RunDirError, match="cannot be written: the disk is full; what is finished is kept: free some"):
        write(tmp_path, A, B, texts=("notes.jsonl",), lines=("new",))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path) if (tmp_path / name).is_file()} == before
