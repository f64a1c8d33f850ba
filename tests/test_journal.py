"""Journals and replaced files: whole lines and whole files, whatever refuses to be written."""

import os
import resource
from pathlib import Path

import pytest

from cai.errors import RunDirError
from cai.journal import Journal, read_lines, replace_file, whole_folder, write_error
from cai.records import StageRecord


def note(id: str) -> StageRecord:
    return StageRecord(id=id, index=0)


def names(path: Path) -> set[str]:
    return {found.name for found in path.iterdir()}


def test_a_record_that_does_not_fit_leaves_no_half_line(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(tmp_path / "records.jsonl")
    journal.write(note("a"))
    before = (tmp_path / "records.jsonl").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(RunDirError, match=r"records\.jsonl cannot be written: File too large; what is finished"):
            journal.write(note("b"))
        assert (tmp_path / "records.jsonl").read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.write(note("c"))  # another record that was in flight
    journal.close()
    assert [record.id for record in read_lines(tmp_path / "records.jsonl", StageRecord)] == ["a", "c"]


def test_a_full_device_is_named_as_such() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    message = str(write_error(Path("out/records.jsonl"), caught.value))
    assert message == (
        "out/records.jsonl cannot be written: the disk is full; what is finished is kept: "
        "free some space and run the same command again"
    )


def test_a_replaced_file_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, "old")

    def refuse(_: int) -> None:
        assert path.read_text() == "old"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("old", {"file"})
    monkeypatch.undo()
    replace_file(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("new", {"file"})


def test_a_folder_takes_its_name_when_all_of_it_is_written(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with whole_folder(target) as folder:
        folder.mkdir()
        (folder / "first").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["first"]

    def fail() -> None:
        with whole_folder(target) as folder:
            folder.mkdir()
            (folder / "second").write_text("2")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [path.name for path in target.iterdir()] == ["first"]
    with whole_folder(target) as folder:
        assert not folder.exists()  # what the failed try wrote is gone
        folder.mkdir()
        (folder / "third").write_text("3")
    assert [path.name for path in target.iterdir()] == ["third"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
