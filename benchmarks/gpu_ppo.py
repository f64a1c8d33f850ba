"""The PPO checks of `gpu.py`: adapters and whole models learn a task that can be seen, at a speed that is printed.

The reward is the length of a response in hundreds of characters, which any model can raise. What is asked: it rises; at
the first update of each step the policy that is read is the one that wrote (the probability ratio is 1), which padding,
caches or a merged adapter would break; and what was saved is found again.
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

STEPS, TOKENS = 12, 16
REWARD = """
def length(prompts, responses):
    return [len(text) / 100 for text in responses]
"""
LARGEST_RATIO_ERROR = {"float32": 1e-3, "bfloat16": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "LoRA, float32": {"learning_rate": 2e-2, "bf16": False},
    "LoRA, bfloat16": {"learning_rate": 2e-2, "bf16": True, "gradient_checkpointing": True},
    "whole, float32": {"learning_rate": 2e-3, "bf16": False, "use_peft": False},
}


def check_ppo(model: str, device: str, episodes: int, folder: Path) -> Iterator[Check]:
    """Train in each way from `model`, a directory or hub id, on so many episodes a step; files go into `folder`."""
    if importlib.util.find_spec("peft") is None:
        yield Check(name="PPO", passed=True, seen="not run: peft is not installed", seconds=0)
        return
    folder.mkdir()
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    prompts = [{"prompt": f"Question {number}: {'and ' * (number % 9)}why?"} for number in range(episodes)]
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts), encoding="utf-8")
    for way, settings in WAYS.items():
        # Accelerate keeps one precision for a whole process.
        given = {
            "model": model,
            "use_cpu": device == "cpu",
            "batch_size": episodes,
            "response_length": TOKENS,
            **settings,
        }
        yield in_fresh_process(_check, way, given, folder, device)


def _check(way: str, settings: dict[str, Any], folder: Path, device: str) -> Check:
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
    episodes = STEPS * settings["batch_size"]
    given = {
        **settings,
        "prompts": [{"path": str(folder / "prompts.jsonl")}],
        "rewards": [{"function": f"{folder / 'rewards.py'}:length"}],
        "total_episodes": episodes,
        "temperature": 1.0,
        "kl_coef": 0.0,
        "lr_scheduler_type": "constant",
        "missing_eos_penalty": 0.0,
        "probe": {"prompts": 0},
        "report_to": ["none"],
    }
    train_ppo(plan_ppo(load_config(PpoConfig, None, given)), out, Console(stderr=True, force_terminal=False))
    seconds = time.perf_counter() - began
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = (fmean(step["score"] for step in part) for part in (steps[:3], steps[-3:]))
    off = max(step["first_ratio_error"] for step in steps)
    precision = "bfloat16" if settings["bf16"] else "float32"
    find_start(load_config(PpoConfig, None, {**given, "model": str(out / TRAINED)}), generates=True)
    peak = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most" if device != "cpu" else ""
    return Check(
        name=f"PPO learns, saves and is found again ({way})",
        passed=last > first and off <= LARGEST_RATIO_ERROR[precision],
        seen=f"score {first:.3f} → {last:.3f}, ratio off by {off:.1e} at most, "
        f"{episodes / seconds:.1f} episodes/s with loading{peak}",
        seconds=round(seconds, 2),
    )
