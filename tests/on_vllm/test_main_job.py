"""The main job on a real vLLM, in process and through a server: the same run directory comes out."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_server import NAME, VllmServer

JOB = ("critique-revise", "--limit", "3", "--rounds", "1", "--few-shot", "1", "--max-tokens", "24", "--out", "run")


@pytest.fixture(scope="module")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    # The CPU build dies of a seeded request whose prompt is read in several pieces.
    found = VllmServer(model, tmp_path_factory.mktemp("server") / "log", "--no-enable-chunked-prefill")
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.kill()


def job(folder: Path, *more: str) -> dict[str, Any]:
    """Run the job and return the manifest, with the records under `records`."""
    done = subprocess.run(
        [sys.executable, "-c", "from cai.cli import main; main()", *JOB, *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_CPU_KVCACHE_SPACE": "2"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads((folder / "run/manifest.json").read_text())
    found["records"] = [json.loads(line) for line in (folder / "run/records.jsonl").read_text().splitlines()]
    return found


def check(found: dict[str, Any], engine: str) -> None:
    assert found["state"] == "finished"
    assert found["counts"]["finished"] == 4
    assert found["engine"]["engine"] == engine
    assert sorted(len(record["rounds"]) for record in found["records"]) == [0, 1, 1, 1]
    assert found["usage"]["cached_tokens"] > 0, "the worked examples are read once"


def test_the_main_job_runs_in_process(tmp_path: Path) -> None:
    check(job(tmp_path, "--engine", "vllm", "--dtype", "float32", "--max-model-len", "2048"), "vllm")


def test_the_main_job_runs_through_a_server(server: VllmServer, tmp_path: Path) -> None:
    found = job(tmp_path, "--engine", "openai", "--base-url", server.url)
    check(found, "openai")
    assert found["engine"]["model"] == NAME
