"""A comparison that was killed or interrupted ends like one that was not."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from cai_process import Finished, manifest, wait_until
from compare_jobs import REWARD, comparisons, labelled, write_rows

pytestmark = pytest.mark.enable_socket  # the processes are forked through a Unix socket


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Sources and a configuration of two models of 30 steps each."""
    folder = tmp_path_factory.mktemp("resume")
    rows = list(comparisons(60))
    write_rows(folder / "human.jsonl", labelled(rows, lambda _: True))
    write_rows(folder / "ai.jsonl", labelled(rows, lambda n: n % 3 > 0, source="ai"))
    reward = {**REWARD, "model": str(tiny), "max_steps": 30, "per_device_train_batch_size": 4, "save_steps": 5}
    settings = {"reward": reward, "sizes": [], "seeds": 1}
    (folder / "compare.yaml").write_text(json.dumps(settings))
    return folder


def job(work: Path, out: Path) -> list[str]:
    sources = ("--ai", str(work / "ai.jsonl"), "--human", str(work / "human.jsonl"))
    return ["compare", *sources, "--config", str(work / "compare.yaml"), "--out", str(out)]


@pytest.fixture(scope="module")
def whole(work: Path) -> Path:
    """A run that nothing interrupted."""
    processes.complete(job(work, work / "whole"), work / "log-whole")
    return work / "whole"


def stopped(work: Path, out: Path, sign: Callable[[], bool], number: signal.Signals) -> Finished:
    process = processes.start(job(work, out), work / f"log-{out.name}")
    wait_until(process, sign)  # type: ignore[arg-type]
    os.kill(process.pid, number)
    return process.finish()


def same(one: Path, other: Path) -> None:
    for name in ("comparison.json", "comparison.md", "comparison.html", "cross.svg"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def written(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("models/*/model/*")}


def test_a_comparison_killed_amid_its_second_model_ends_like_one_that_was_not(work: Path, whole: Path) -> None:
    out = work / "killed"
    done = stopped(work, out, lambda: any(out.glob("models/human-*/checkpoints/checkpoint-10/whole")), signal.SIGKILL)
    assert done.code == -signal.SIGKILL
    assert not (out / "comparison.json").exists()
    first = written(out)
    (trained,) = {path.parent.parent.name for path in first}
    assert trained.startswith("ai-")
    again = processes.complete(job(work, out), work / "log-killed")
    assert f"model 1 of 2: {trained} is trained\n" in again.out
    assert "going on from checkpoint-" in again.out
    assert first.items() <= written(out).items(), "the finished model was not trained again"
    assert (manifest(out)["state"], manifest(out)["sessions"]) == ("finished", 2)
    same(out, whole)


def test_an_interrupted_comparison_says_how_to_go_on(work: Path, whole: Path) -> None:
    out = work / "interrupted"
    done = stopped(work, out, lambda: any(out.glob("models/ai-*/metrics.jsonl")), signal.SIGINT)
    assert done.code == 130
    assert "stopped; finished models are kept. Go on with: cai compare --ai " in done.err
    assert f"--out {out}" in done.err
    assert manifest(out)["state"] == "stopped"
    processes.complete(job(work, out), work / "log-interrupted")
    same(out, whole)
