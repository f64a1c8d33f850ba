"""Whatever ends a run, the same command goes on, and the result is that of a run nobody stopped."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cai_process import complete, exported, finish, job, manifest, records, run, same_result, size, start, wait_until
from rich.console import Console

from cai import critique_run
from cai.config import EngineConfig
from cai.critique import CritiqueReviseConfig

PROMPTS = 600


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def words(work: Path) -> list[str]:
    return job(work, PROMPTS)


@pytest.fixture(scope="module")
def whole(work: Path, words: list[str]) -> Path:
    """The run nobody stopped."""
    complete([*words, "--out", "whole"], work)
    assert len(records(work / "whole")) == PROMPTS + 60
    return work / "whole"


def test_20_kills_at_random_points_change_nothing(work: Path, words: list[str], whole: Path) -> None:
    rng = random.Random(20)
    out = work / "killed"
    journal = out / "records.jsonl"
    kept: dict[str, bytes] = {}
    line = size(whole / "records.jsonl") // len(records(whole))
    for _ in range(20):
        target = size(journal) + rng.randrange(1, 12 * line)
        process = start([*words, "--out", "killed"], work)
        wait_until(process, lambda target=target: size(journal) >= target)  # type: ignore[misc]
        process.kill()
        assert finish(process).code == -signal.SIGKILL
        found = journal.read_bytes()
        assert found.startswith(b"".join(kept.values()))
        assert len(records(out)) > len(kept)
        kept = records(out)
    assert len(kept) < len(records(whole))
    complete([*words, "--out", "killed"], work)
    assert journal.read_bytes().startswith(b"".join(kept.values()))
    same_result(out, whole)
    assert manifest(out)["sessions"] == 21


@pytest.mark.parametrize("sign", [".lock", "manifest.json", "constitution.yaml", ".export", "data"])
def test_a_kill_at_each_stage_of_a_run_leaves_a_directory_the_same_command_takes(
    work: Path, words: list[str], whole: Path, sign: str
) -> None:
    out = work / f"stage-{sign}"
    process = start([*words, "--out", str(out)], work)
    wait_until(process, (out / sign).exists)
    process.kill()
    finish(process)
    complete([*words, "--out", str(out)], work)
    same_result(out, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_says_how_to_go_on(
    work: Path, words: list[str], whole: Path, number: signal.Signals
) -> None:
    out = work / f"interrupted {number.name}"
    process = start([*words, "--out", str(out)], work)
    wait_until(process, lambda: size(out / "records.jsonl") > 0)
    process.send_signal(number)
    stopped = finish(process)
    assert stopped.code == 130
    assert "stopped; finished chains are kept. Go on with: cai critique-revise --prompts " in stopped.err
    assert stopped.err.rstrip().endswith(f"--out '{out}'")
    assert manifest(out)["state"] == "stopped"
    assert 0 < manifest(out)["counts"]["finished"] == len(records(out)) < len(records(whole))
    complete([*words, "--out", str(out)], work)
    same_result(out, whole)


def test_sigterm_ends_a_background_job_that_ignores_ctrl_c(work: Path, words: list[str], whole: Path) -> None:
    out = work / "background"
    process = start([*words, "--out", str(out)], work, before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    wait_until(process, lambda: size(out / "records.jsonl") > 0)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 130
    assert manifest(out)["state"] == "stopped"
    complete([*words, "--out", str(out)], work)
    same_result(out, whole)


def test_sigterm_during_the_export_interrupts_the_run(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(critique_run, "export_chains", interrupted)
    options = dict(zip(words[1::2], words[2::2], strict=True))
    config = CritiqueReviseConfig(
        prompts=options["--prompts"],
        helpful_ratio=0,
        rounds=1,
        limit=3,
        engine=EngineConfig(engine="scripted", script=Path(options["--script"])),
    )
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        critique_run.critique_revise(critique_run.load_inputs(config), out, Console(quiet=True))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert manifest(out)["state"] == "stopped"
    assert len(records(out)) == 3


def test_a_second_process_refuses_and_the_first_goes_on(work: Path, words: list[str], whole: Path) -> None:
    out = work / "shared"
    first = start([*words, "--out", str(out)], work)
    wait_until(first, lambda: size(out / "records.jsonl") > 0)
    first.send_signal(signal.SIGSTOP)
    try:
        second = run([*words, "--out", str(out)], work)
        overwriting = run([*words, "--out", str(out), "--overwrite"], work)
    finally:
        first.send_signal(signal.SIGCONT)
    assert (second.code, overwriting.code) == (1, 1)
    refusal = f"error: another process is working on {out}; wait for it, or choose another --out\n"
    assert second.err == overwriting.err == refusal
    assert finish(first).code == 0
    same_result(out, whole)


def stops_and_goes_on(
    words: list[str], out: Path, whole: Path, before: Callable[[], object], after: Callable[[], object], reason: str
) -> None:
    """Check that a run stops for `reason`, keeps what it finished, and goes on once `after` has mended the cause."""
    stopped = run([*words, "--out", str(out)], whole.parent, before)
    assert stopped.code == 1
    assert stopped.err.startswith("error: ")
    assert stopped.err.count("\n") == 1
    assert reason in stopped.err
    assert "run the same command again" in stopped.err
    journal = out / "records.jsonl"
    kept = journal.read_bytes() if journal.exists() else b""
    assert kept == b"" or kept.endswith(b"}\n")
    after()
    complete([*words, "--out", str(out)], whole.parent)
    assert journal.read_bytes().startswith(kept)
    same_result(out, whole)


@pytest.mark.parametrize("limit", [100, 100_000])
def test_a_file_that_may_not_grow_stops_the_run_and_loses_nothing(
    work: Path, words: list[str], whole: Path, limit: int
) -> None:
    assert limit < size(whole / "records.jsonl")

    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    stops_and_goes_on(words, work / f"limit-{limit}", whole, starve, lambda: None, "cannot be written: File too large")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small tmpfs needs root on Linux; RLIMIT_FSIZE stands in for it in another test")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("free", [4096, 250_000], ids=["at once", "later"])
def test_a_full_disk_stops_the_run_and_loses_nothing(
    words: list[str], whole: Path, small_disk: Path, free: int
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (400 * 1024 - free))

    def enlarge() -> None:
        subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)

    stops_and_goes_on(words, small_disk / "run", whole, lambda: None, enlarge, "the disk is full; what is finished is")


def test_a_finished_run_is_left_as_it_is(work: Path, words: list[str], whole: Path) -> None:
    before = (whole / "records.jsonl").read_bytes(), exported(whole)
    complete([*words, "--out", "whole"], work)
    assert ((whole / "records.jsonl").read_bytes(), exported(whole)) == before


def test_a_gap_is_filled_even_where_more_is_finished_than_a_lowered_limit_asks_for(tmp_path: Path) -> None:
    arguments = [*job(tmp_path, 10), "--out", "run"]
    complete(arguments, tmp_path)
    journal = tmp_path / "run" / "records.jsonl"
    before = records(tmp_path / "run")
    journal.write_bytes(b"".join(line for id, line in before.items() if id != "p2"))
    complete([*arguments, "--limit", "5"], tmp_path)
    assert records(tmp_path / "run") == before
