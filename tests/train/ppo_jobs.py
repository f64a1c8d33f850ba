"""Commands of small PPO trainings, and what they leave behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_models import write_prompts
from safetensors.torch import load_file
from training_rows import metrics

from cai.train.monitor import files
from cai.train.ppo import run

REWARDS = """\
def length(prompts, responses):
    return [len(text.encode()) / 10 for text in responses]

def letters(prompts, responses):
    return [sum(letter in "aeiou" for letter in text) - len(prompt[-1]["content"]) / 100
            for prompt, text in zip(prompts, responses)]
"""
STEPS = 6
COMMON: tuple[object, ...] = (
    "--use-cpu", "--no-bf16", "--report-to", "none", "--max-length", 128, "--response-length", 6, "--temperature", 1,
    "--batch-size", 4, "--total-episodes", 4 * STEPS, "--num-ppo-epochs", 2, "--num-mini-batches", 2,
    "--learning-rate", 0.01, "--probe-every", 3, "--probe-prompts", 3, "--probe-samples", 2, "--save-steps", 2,
)  # fmt: skip
"""Six steps of four short episodes, with three looks."""
OF_SESSIONS = ("tokens_per_second", "seconds_rollout", "seconds_update")
"""Figures that differ from one session to the next."""


def job(folder: Path, model: Path, out: Path, *more: object, reward: str = "length") -> list[str]:
    """The words of a training; prompts and reward functions are written into `folder`. Of an option that stands twice
    the last one counts."""
    prompts, rewards = folder / "prompts.jsonl", folder / "rewards.py"
    if not prompts.exists():
        write_prompts(prompts, 12)
        rewards.write_text(REWARDS)
    paths = ("--model", model, "--prompts", prompts, "--out", out)
    source = ("--reward-function", f"{rewards}:{reward}") if reward else ()
    return [str(word) for word in ("train", "ppo", *paths, *source, *COMMON, *more)]


def figures(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times and speeds."""
    return [{name: value for name, value in line.items() if name not in OF_SESSIONS} for line in metrics(out)]


def samples(out: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl."""
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def policy_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The policy's weights in a checkpoint, by the names that they have in the folder of the model."""
    found = {}
    for name, tensor in load_file(checkpoint / "trained.safetensors").items():
        if name.startswith("policy.") and ".value." not in name:
            found[name.removeprefix("policy.").replace(".default.", ".")] = tensor
    assert found
    return found


def without_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw takes longer than to train."""
    monkeypatch.setattr(run, "write_curves", lambda *_: None)
    monkeypatch.setattr(files, "draw_report", lambda *_: "")
