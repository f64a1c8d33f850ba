"""The PPO checks of `gpu.py`: a task whose best policy is known is learned, and a model of full size is trained.

The task is to write nothing but the letter a, for a small model that writes single letters. In each way of training it
must come to write it many times as often. The model of full size takes a few steps, at a speed that is printed. What is
asked of both: at the first update of each step the policy that is read is the one that wrote (the probability ratio is
1), which padding, caches or a merged adapter would break; and what was saved is found again.
"""

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from common import Check, in_fresh_process
from rich.console import Console

REWARD = """
def share_of_a(prompts, responses):
    return [text.count("a") / max(1, len(text)) for text in responses]
"""
LEARNED = 0.15
"""Least mean score of the last steps of the task; at the start it is that of one letter in hundreds."""
TASK: dict[str, Any] = {"batch_size": 32, "response_length": 8, "num_mini_batches": 2, "total_episodes": 640}
FULL_SIZE: dict[str, Any] = {"response_length": 16, "learning_rate": 1e-5, "bf16": True, "gradient_checkpointing": True}
FULL_STEPS = 3
LARGEST_RATIO_ERROR = {"float32": 1e-3, "bfloat16": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "LoRA, float32": {"learning_rate": 2e-2, "bf16": False},
    "LoRA, bfloat16": {"learning_rate": 2e-2, "bf16": True, "gradient_checkpointing": True},
    "LoRA, shared trunk": {"learning_rate": 2e-2, "bf16": False, "shared_trunk": True},
    "whole, float32": {"learning_rate": 2e-3, "bf16": False, "use_peft": False},
}


def check_ppo(model: str, letters: str, device: str, episodes: int, folder: Path) -> Iterator[Check]:
    """Train `letters`, a small model, on the task, and `model` on so many episodes a step; files go into `folder`."""
    if importlib.util.find_spec("peft") is None:
        yield Check(name="PPO", passed=True, seen="not run: peft is not installed", seconds=0)
        return
    folder.mkdir()
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    number = max(TASK["batch_size"], episodes)
    prompts = [{"prompt": f"Question {place}: {'and ' * (place % 9)}why?"} for place in range(number)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts), encoding="utf-8")
    # Accelerate keeps one precision for a whole process.
    for way, settings in WAYS.items():
        yield in_fresh_process(_check, way, {"model": letters, **TASK, **settings}, folder, device, LEARNED)
    full = {"model": model, "batch_size": episodes, "total_episodes": FULL_STEPS * episodes, **FULL_SIZE}
    yield in_fresh_process(_check, "full size, LoRA, bfloat16", full, folder, device, None)


def _check(way: str, settings: dict[str, Any], folder: Path, device: str, least: float | None) -> Check:
    import torch

    from cai.config import load_config
    from cai.engines.weights import TRAINED
    from cai.train.models import find_start
    from cai.train.ppo.config import PpoConfig
    from cai.train.ppo.plan import plan_ppo
    from cai.train.ppo.run import train_ppo

    out = folder / way.replace(", ", "-")
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    given = {
        **settings,
        "use_cpu": device == "cpu",
        "prompts": [{"path": str(folder / "prompts.jsonl")}],
        "rewards": [{"function": f"{folder / 'rewards.py'}:share_of_a"}],
        "temperature": 1.0,
        "kl_coef": 0.0,
        "missing_eos_penalty": 0.0,
        "probe": {"prompts": 0},
        "report_to": ["none"],
    }
    train_ppo(plan_ppo(load_config(PpoConfig, None, given)), out, Console(stderr=True, force_terminal=False))
    seconds = time.perf_counter() - began
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = steps[0]["score"], fmean(step["score"] for step in steps[-3:])
    learned = least is None or (first < least / 2 and last >= least)
    off = max(step["first_ratio_error"] for step in steps)
    precision = "bfloat16" if settings["bf16"] else "float32"
    find_start(load_config(PpoConfig, None, {**given, "model": str(out / TRAINED)}), generates=True)
    peak = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most" if device != "cpu" else ""
    return Check(
        name=f"PPO {'trains' if least is None else 'learns'}, saves and is found again ({way})",
        passed=learned and off <= LARGEST_RATIO_ERROR[precision],
        seen=f"score {first:.3f} → {last:.3f}, ratio off by {off:.1e} at most, "
        f"{settings['total_episodes'] / seconds:.1f} episodes/s with loading{peak}",
        seconds=round(seconds, 2),
    )
