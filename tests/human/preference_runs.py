"""Commands in this process, and what their runs hold, for tests of exports and imports."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cai_process import Finished, manifest
from chain_samples import rows

from cai.cli import main

SHORT = (
    "--max-steps", "2", "--max-length", "256", "--no-bf16", "--use-cpu", "--report-to", "none", "--logging-steps", "1",
)  # fmt: skip
"""Options of a training that only shows that it works."""


def cai(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> Finished:
    """Run `cai` with these words, as the command line does."""
    monkeypatch.setattr(sys, "argv", ["cai", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return Finished(end.value.code, *capsys.readouterr())


def train_briefly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, model: Path, data: Path, out: Path
) -> dict[str, Any]:
    """Train by the command line on a run as it is; returns the counts of the training's manifest."""
    further: Sequence[str] = () if kind == "reward" else ("--collapse-prompts", "0")
    words = ("train", kind, "--model", model, "--data", data, "--out", out, *SHORT, *further)
    done = cai(capsys, monkeypatch, *words)
    assert done.code == 0, done.err
    assert manifest(out)["state"] == "finished"
    assert (out / "model" / "model.safetensors").is_file()
    counts: dict[str, Any] = manifest(out)["counts"]
    return counts


def texts(run: Path) -> list[tuple[str, str, str, float]]:
    """Last turn, chosen, rejected and p of each row of `preferences`."""
    return [
        (row["prompt"][-1]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"], row["p_chosen"])
        for row in rows(run, "preferences")
    ]
