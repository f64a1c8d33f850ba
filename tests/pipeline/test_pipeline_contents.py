"""Hashes change with what would be read, and with nothing else."""

import json
import os
from pathlib import Path

import pytest

from cai.pipeline.contents import FileHashes, dataset_digest, files_digest, json_digest


def run(folder: Path, records: list[dict[str, object]]) -> Path:
    folder.mkdir()
    manifest = {
        "stage": "sample",
        "state": "finished",
        "config": {},
        "inputs": {},
        "seed": 0,
        "created": folder.name,
        "updated": folder.name,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def record(number: int, **more: object) -> dict[str, object]:
    usage = {"prompt_tokens": number, "cached_tokens": 0, "completion_tokens": 1}
    base = {"id": f"p{number}", "index": number, "draft": {"text": "Hello", "usage": usage}}
    return {**base, "constitution_sha256": "one", "templates_sha256": "two", **more}


def test_costs_provenance_and_the_order_of_completion_do_not_count(tmp_path: Path) -> None:
    one = run(tmp_path / "one", [record(0), record(1)])
    costly = {"text": "Hello", "usage": {"prompt_tokens": 9, "cached_tokens": 9, "completion_tokens": 9}}
    two = run(
        tmp_path / "two", [record(1, constitution_sha256="three"), record(0, draft=costly, templates_sha256="four")]
    )
    assert dataset_digest(one) == dataset_digest(two)


@pytest.mark.parametrize(
    "records",
    [
        [record(0)],
        [record(0), record(1), record(1)],
        [record(0), record(1, draft={"text": "Hello!"})],
        [record(0), record(1, index=2)],
    ],
)
def test_everything_else_counts(records: list[dict[str, object]], tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", [record(0), record(1)]), run(tmp_path / "other", records)
    assert dataset_digest(one) != dataset_digest(other)


def test_comparisons_beside_the_records_count(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", [record(0)]), run(tmp_path / "two", [record(0)])
    (two / "comparisons.jsonl").write_text('{"id": "a"}\n', encoding="utf-8")
    assert dataset_digest(one) != dataset_digest(two)


def test_files_count_with_their_names_and_cards_do_not(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"1")
    (tmp_path / "model" / "README.md").write_text("made today", encoding="utf-8")
    first = files_digest(tmp_path, ["model", "missing"])
    (tmp_path / "model" / "README.md").write_text("made yesterday", encoding="utf-8")
    (tmp_path / "log").write_text("other", encoding="utf-8")
    assert files_digest(tmp_path, ["model", "missing"]) == first
    (tmp_path / "model" / "weights").rename(tmp_path / "model" / "heavier")
    second = files_digest(tmp_path, ["model"])
    (tmp_path / "model" / "heavier").write_bytes(b"2")
    assert len({first, second, files_digest(tmp_path, ["model"])}) == 3


def test_keys_of_a_json_file_are_left_out_at_any_depth(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text('{"grade": "pass", "figures": [{"n": 3, "seconds": 1}]}', encoding="utf-8")
    two.write_text('{"figures": [{"seconds": 2, "n": 3}], "grade": "pass"}', encoding="utf-8")
    assert json_digest(one, ["seconds"]) == json_digest(two, ["seconds"])
    assert json_digest(one, []) != json_digest(two, [])


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return path.read_text(encoding="utf-8")

    monkeypatch.setattr("cai.pipeline.contents.file_sha256", noted)
    folder, cache = tmp_path / "data", tmp_path / "hashes.json"
    folder.mkdir()
    (folder / "a").write_text("1", encoding="utf-8")
    (folder / "b").write_text("1", encoding="utf-8")
    hashes = FileHashes(cache)
    first = hashes.of(folder)
    hashes.save()
    assert FileHashes(cache).of(folder) == first
    assert read == ["a", "b"]

    (folder / "b").write_text("2", encoding="utf-8")
    os.utime(folder / "b", ns=(1, 1))
    second = FileHashes(cache).of(folder)
    assert read == ["a", "b", "b"]
    assert second != first
    (folder / "b").rename(folder / "c")
    assert FileHashes(cache).of(folder) not in (first, second)

    cache.write_text("not JSON", encoding="utf-8")
    assert FileHashes(cache).of(folder / "a") == "1"
