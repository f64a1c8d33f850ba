"""The demo recipe as a user runs it, on the embedded model: killed in each stage, it goes on to its end."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from cai_process import CAI, records
from filelock import FileLock
from small_recipe import state

from cai.pipeline.recipe import load_recipe
from cai.pipeline_records import StageRun

pytestmark = [pytest.mark.recipe, pytest.mark.timeout(3600)]

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml"
AT_ONCE = {"import", "rank", "report"}
"""Kinds of stages that are over before anything of them could be waited for."""
RECORDS, METRICS = "records.jsonl", "metrics.jsonl"


class Work:
    """`cai run` on the recipe, as a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.txt"
        self.out = folder / "runs" / "demo"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*CAI, "run", str(RECIPE)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "120"},
            )

    def kill_in(self, stage: str) -> StageRun:
        """Kill it when the stage has done a part of its work."""
        while (run := self._at_work(stage)) is None:
            assert self.process.poll() is None, f"ended before {stage} was killed:\n{self.log.read_text()}"
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        if (self.out / run.path).is_dir():
            with FileLock(self.out / run.path / ".lock"):  # the process of the stage ends as well
                pass
        return run

    def _at_work(self, stage: str) -> StageRun | None:
        run = state(self.out).run(stage) if (self.out / "pipeline.json").exists() else None
        if run is None:
            return None
        traces = [path for name in (RECORDS, METRICS) for path in (self.out / run.path).rglob(name)]
        return run if run.stage in AT_ONCE or any(path.stat().st_size > 0 for path in traces) else None


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that were written to their end."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_killed_in_each_stage_it_comes_to_its_end(tmp_path: Path) -> None:
    stages = [stage.name for stage in load_recipe(RECIPE).stages]
    kept: dict[Path, list[bytes]] = {}
    for stage in stages:
        work = Work(tmp_path)
        run = work.kill_in(stage)
        assert run.state == "running"
        path = work.out / run.path / RECORDS
        if path.is_file():
            kept[path] = whole_lines(path)
    last = Work(tmp_path)
    assert last.process.wait() == 0, last.log.read_text()

    output, out = last.log.read_text(), last.out
    assert "Traceback" not in output
    done = {run.name: run for run in state(out).stages}
    assert list(done) == stages
    for name, run in done.items():
        assert run.state == "finished"
        if run.stage not in AT_ONCE:
            assert output.count(f"{name}: {run.stage} in ") == 1
            assert output.count(f"{name}: {run.stage} goes on in ") == 1
            manifest = json.loads((out / run.path / "manifest.json").read_bytes())
            assert (manifest["state"], manifest["sessions"]) == ("finished", 2)
            assert manifest["failures"].keys() <= {"off_option"}  # which a small judge's answers may be
        for metrics in (out / run.path).rglob(METRICS):
            steps = [row["step"] for row in map(json.loads, whole_lines(metrics)) if "loss" in row]
            assert steps == sorted(set(steps))
    for path, lines in kept.items():
        assert set(lines) <= set(records(path.parent).values())
    assert (out / done["page"].path).read_text(encoding="utf-8").startswith("<!doctype html>")

    again = Work(tmp_path)
    assert again.process.wait() == 0
    assert "nothing to do" in again.log.read_text().removeprefix(output)
