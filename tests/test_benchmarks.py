"""The benchmarks run, at sizes that say nothing about speed, and print one JSON document."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(FOLDER / script), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def report(script: str, *options: str) -> dict[str, Any]:
    done = run(script, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Answers that name their seed, so that every reply differs."""
    path = tmp_path / "script.yaml"
    path.write_text("answers:\n- say: Reply {seed} to a request.\nconcurrency: 3\n")
    return path


def test_overhead_counts_every_call_of_stage_and_bare_loop(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    found = report("overhead.py", "--prompts", "20", "--rounds", "2", "--folder", str(tmp_path), "--out", str(out))
    # A draft, two critiques and two revisions for each prompt.
    calls = {name: found[name]["calls"] for name in ("tenth", "stage", "bare", "resume")}
    assert calls == {"tenth": 10, "stage": 100, "bare": 100, "resume": 0}
    assert found["stage_ms_per_call"] == pytest.approx(1000 * found["stage"]["wall_s"] / 100, abs=0.006)
    assert found["within_target"] == (found["stage_ms_per_call"] <= found["target_ms_per_call"])
    assert json.loads(out.read_text()) == found
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_generation_gives_every_arm_the_same_requests_and_each_place_in_turn(script: Path) -> None:
    found = report("generation.py", "--engine", "scripted", "--script", str(script), "--prompts", "4", "--rounds", "2")
    assert found["workload"]["calls"] == 4 * 5
    assert [timing["calls"] for timing in found["timings"]] == [20] * 9
    usages = [timing["usage"] for timing in found["timings"]]
    assert usages == [usages[0]] * 9
    assert found["same_replies"] is True
    places = {(timing["arm"], timing["place"]) for timing in found["timings"]}
    assert places == {(arm, place) for arm in ("stage", "bound", "passes") for place in (1, 2, 3)}


def test_generation_ratios_are_those_of_the_same_repeat(script: Path) -> None:
    found = report("generation.py", "--engine", "scripted", "--script", str(script), "--prompts", "2", "--repeats", "2")
    seconds = {(timing["repeat"], timing["arm"]): timing["chains_per_s"] for timing in found["timings"]}
    for other in ("bound", "passes"):
        expected = [seconds[repeat, "stage"] / seconds[repeat, other] for repeat in (1, 2)]
        assert found[f"stage_to_{other}"]["each"] == pytest.approx(expected, abs=1e-3)


def test_generation_counts_chains_that_fail_and_serves_their_requests_in_every_arm(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text('answers:\n- {when: "(?i)rewrite|revis", fail: server_error}\n- say: Reply {seed}.\n')
    found = report("generation.py", "--engine", "scripted", "--script", str(script), "--prompts", "3", "--repeats", "1")
    assert found["workload"]["failed_chains"] == 3
    assert found["workload"]["calls"] == 9
    assert [(timing["calls"], timing["failed"]) for timing in found["timings"]] == [(6, 3)] * 3


def test_generation_names_no_path_of_a_model_directory(tmp_path: Path) -> None:
    from tiny_model import save_tiny_model

    model = save_tiny_model(tmp_path / "tiny", context=32_768)
    found = report(
        "generation.py",
        "--model",
        str(model),
        "--prompts",
        "2",
        "--few-shot",
        "0",
        "--max-tokens",
        "4",
        "--repeats",
        "1",
    )
    assert found["engine"]["model"] == "tiny"
    assert found["engine"]["seeded"] is True
    assert found["same_replies"] is True
    assert str(tmp_path) not in json.dumps(found)


def test_wrong_options_are_one_line_of_error(script: Path) -> None:
    done = run("generation.py", "--engine", "scripted", "--script", str(script), "--temperature", "-1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "temperature" in done.stderr
    assert "Traceback" not in done.stderr


def test_gpu_says_why_it_runs_nothing_without_a_device() -> None:
    found = report("gpu.py")
    assert found["skipped"] == "torch finds no CUDA device"
    assert found["checks"] == []


def test_gpu_checks_hold_on_a_cpu() -> None:
    found = report("gpu.py", "--device", "cpu", "--small")
    assert [check["name"] for check in found["checks"] if not check["passed"]] == []
    kinds = {check["name"].split(" (")[0] for check in found["checks"]}
    assert "greedy replies equal a plain generate" in kinds
    assert "prefix reuse does not change replies" in kinds
    assert found["speed"]["tokens"] == 4 * 8
