"""A PPO training that was killed or interrupted ends like one that was not, with what the monitor did to it."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cai_process import manifest, wait_until
from ppo_jobs import STEPS, figures, job, results, samples, without_drawings
from processes import Cai, complete, start
from training_rows import furthest, metrics, weights

pytestmark = pytest.mark.enable_socket  # the processes are forked through a Unix socket

ACTING = """\
monitor: {steps_in_a_row: 1, looks_in_a_row: 1, clip_fraction: 0.0, kl_limit: 0.0}
"""
"""At each look after the start, β is raised and the learning rate lowered."""


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    without_drawings(monkeypatch)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "acting.yaml").write_text(ACTING)
    return folder


KINDS = {"lora": (), "full": ("--full", "--learning-rate", 0.003), "shared": ("--shared-trunk",)}


@pytest.fixture(scope="module")
def words(work: Path, tiny: Path) -> Callable[..., list[str]]:
    """The command of a run in which the monitor acts."""

    def of(kind: str, out: Path, *more: object) -> list[str]:
        return job(work, tiny, out, "--config", work / "acting.yaml", *KINDS[kind], *more)

    return of


@pytest.fixture(scope="module")
def whole(work: Path, words: Callable[..., list[str]]) -> Callable[[str], Path]:
    """Runs that nothing interrupted."""

    def made(kind: str) -> Path:
        out = work / f"whole-{kind}"
        if not out.exists():
            complete(words(kind, out), work / f"log-{kind}")
        return out

    return made


def same_run(one: Path, other: Path) -> None:
    """Check that two runs have the same weights, bit by bit, and wrote down the same but for times and speeds."""
    assert furthest(weights(one / "model"), weights(other / "model")) == 0
    assert figures(one) == figures(other)
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    assert (one / "monitor.json").read_bytes() == (other / "monitor.json").read_bytes()
    for run in (one, other):
        assert [line["step"] for line in metrics(run)] == [*range(1, STEPS + 1)]
        assert [sample["step"] for sample in samples(run)] == [0] * 6 + [3] * 6 + [6] * 6
    outcomes = [{**results(run), "metrics": {}} for run in (one, other)]
    assert outcomes[0] == outcomes[1]


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_killed_again_and_again_ends_like_one_that_was_not(
    kind: str, work: Path, words: Callable[..., list[str]], whole: Callable[[str], Path]
) -> None:
    out = work / f"killed-{kind}"
    draw = random.Random(f"kill {kind}")
    # Once before there is a checkpoint, and at two later steps.
    for step in (1, *sorted(draw.sample(range(2, STEPS), 2))):
        process = start(words(kind, out), work / "log")
        wait_until(process, lambda least=step: lines(out / "metrics.jsonl") >= least)  # type: ignore[misc]
        os.kill(process.pid, signal.SIGKILL)
        assert process.finish().code == -signal.SIGKILL
        assert not (out / "model").exists()
    done = complete(words(kind, out), work / "log")
    assert "going on from checkpoint-" in done.out
    assert manifest(out)["sessions"] == 4
    same_run(out, whole(kind))
    # What the monitor did at the look of step 3 holds for the steps after it, and not for those before.
    lowered = [line["learning_rate"] / (1 - (line["step"] - 1) / STEPS) for line in metrics(out)]
    full = 0.003 if kind == "full" else 0.01
    assert lowered == pytest.approx([full] * 3 + [full / 2] * 3)
    assert [line["kl_coef"] for line in metrics(out)] == pytest.approx([0.05] * 3 + [0.075] * 3)


def test_torn_and_damaged_checkpoints(
    work: Path, words: Callable[..., list[str]], whole: Callable[[str], Path], cai: Cai
) -> None:
    out = work / "torn"
    shutil.copytree(whole("lora"), out)
    shutil.rmtree(out / "model")
    (out / "results.json").unlink()
    checkpoints = out / "checkpoints"
    (checkpoints / "checkpoint-6" / "whole").unlink()  # the mark is written last
    os.truncate(checkpoints / "checkpoint-6" / "trained.safetensors", 1000)
    last = checkpoints / "checkpoint-4"
    shutil.copytree(last, work / "sound")
    for name in ("trained.safetensors", "optimizer.safetensors", "state.json"):
        os.truncate(last / name, (last / name).stat().st_size // 2)
        failed = cai(*words("lora", out))
        assert failed.code == 1
        assert failed.err.startswith(f"error: {last} is damaged (")
        assert failed.err.endswith("); remove it, and the same command goes on from the one before\n")
        assert failed.err.count("\n") == 1
        shutil.copy(work / "sound" / name, last / name)
    assert manifest(out)["state"] == "stopped"
    assert not (checkpoints / "checkpoint-6").exists()
    done = cai(*words("lora", out))
    assert done.code == 0, done.err
    assert "going on from checkpoint-4\n" in done.out
    same_run(out, whole("lora"))


@pytest.mark.usefixtures("no_drawings")
def test_a_torn_checkpoint_is_named_and_a_training_without_a_whole_one_begins_again(
    work: Path, words: Callable[..., list[str]], whole: Callable[[str], Path], cai: Cai
) -> None:
    out = work / "early"
    shutil.copytree(whole("lora"), out)
    for path in (out / "model", out / "checkpoints" / "checkpoint-4"):
        shutil.rmtree(path)
    for mark in (out / "checkpoints").glob("*/whole"):
        mark.unlink()
    (out / "results.json").unlink()
    torn = sorted(path.name for path in (out / "checkpoints").iterdir())
    done = cai(*words("lora", out))
    assert done.code == 0, done.err
    for name in torn:
        assert f"{name} is torn, the process died while it was written; removed\n" in done.out
    assert "going on" not in done.out
    same_run(out, whole("lora"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_training_ends_after_its_step_with_a_checkpoint(
    number: signal.Signals, work: Path, words: Callable[..., list[str]], whole: Callable[[str], Path]
) -> None:
    out = work / f"interrupted {number.name}"
    process = start(words("lora", out, "--save-steps", 1000), work / "log")
    wait_until(process, lambda: lines(out / "metrics.jsonl") > 0)
    os.kill(process.pid, number)
    stopped = process.finish()
    assert stopped.code == 130
    assert "stopping after this step, with a checkpoint; again: stop at once\n" in stopped.out
    assert "stopped; finished steps are kept. Go on with: cai train ppo --model " in stopped.err
    assert f"--out '{out}'" in stopped.err
    assert manifest(out)["state"] == "stopped"
    step = metrics(out)[-1]["step"]
    assert 1 <= step < STEPS
    assert (out / "checkpoints" / f"checkpoint-{step:.0f}" / "whole").exists()
    done = complete(words("lora", out, "--save-steps", 1000), work / "log")
    assert f"going on from checkpoint-{step:.0f}\n" in done.out
    same_run(out, whole("lora"))


@pytest.mark.usefixtures("no_drawings")
def test_a_torn_line_is_made_anew_and_a_broken_one_is_named(
    work: Path, words: Callable[..., list[str]], whole: Callable[[str], Path], cai: Cai
) -> None:
    out = work / "lines"
    shutil.copytree(whole("lora"), out)
    shutil.rmtree(out / "model")
    (out / "results.json").unlink()
    shutil.rmtree(out / "checkpoints" / "checkpoint-6")
    for name in ("metrics.jsonl", "samples.jsonl"):
        os.truncate(out / name, (out / name).stat().st_size - 40)
    sound = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(sound.replace('"episodes": 8,', '"episodes": 8",'))
    failed = cai(*words("lora", out))
    assert failed.err == f"error: {out}/metrics.jsonl:2: broken line; remove it, and the same command goes on\n"
    (out / "metrics.jsonl").write_text(sound)
    done = cai(*words("lora", out))
    assert done.code == 0, done.err
    same_run(out, whole("lora"))
