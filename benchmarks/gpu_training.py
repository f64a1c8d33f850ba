"""The training checks of `gpu.py`: each kind of training, whole and as a LoRA adapter, and what it wrote loaded back.

What is loaded back is asked for what training was to teach: the right response is likelier than it was at the start
(SFT), by more than the wrong one (DPO), or has the higher reward. That is computed by plain calls of transformers and
PEFT, so it holds only if the files have the trained weights.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import Check
from rich.console import Console

from cai.config import load_config

ROWS = 64
ASKED = 8
"""Rows that the loaded model is asked about."""
SETTINGS: dict[str, dict[str, object]] = {
    "whole, gradient checkpointing": {"learning_rate": 3e-4, "gradient_checkpointing": True},
    "LoRA": {"learning_rate": 3e-3, "use_peft": True},
}


def check_trainings(model: str, device: str, folder: Path) -> Iterator[Check]:
    """Train each kind in each way from `model`, a directory or hub id; files go into `folder`."""
    if missing := [name for name in ("trl", "peft", "datasets") if importlib.util.find_spec(name) is None]:
        yield Check(name="training", passed=True, seen=f"not run: {', '.join(missing)} is not installed", seconds=0)
        return
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows()), encoding="utf-8")
    for way, settings in SETTINGS.items():
        for kind in ("sft", "reward", "dpo"):
            out = folder / f"{kind}-{'lora' if 'use_peft' in settings else 'whole'}"
            yield _check(kind, way, {"model": model, "use_cpu": device == "cpu", **settings}, data, out, device)


def rows() -> list[dict[str, Any]]:
    """Pairs with a plain difference, of unlike lengths."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {number}: {'and ' * (number % 9)}why?"}],
            "chosen": [{"role": "assistant", "content": f"Gladly, here is answer {number}."}],
            "rejected": [{"role": "assistant", "content": f"No. Never, not even {number}!"}],
        }
        for number in range(ROWS)
    ]


def _check(kind: str, way: str, settings: dict[str, object], data: Path, out: Path, device: str) -> Check:
    import torch

    from cai.train import config, plan, policy, reward

    parts: dict[str, tuple[Any, Any, Any]] = {
        "sft": (config.SftConfig, plan.plan_sft, policy.train_sft),
        "reward": (config.RewardConfig, plan.plan_reward, reward.train_reward),
        "dpo": (config.DpoConfig, plan.plan_dpo, policy.train_dpo),
    }
    kind_config, make_plan, train = parts[kind]
    if kind == "sft":
        data = _demonstrations(data)
    if kind != "reward":
        settings = {**settings, "collapse": {"prompts": 0}}
    settings = {**settings, "data": [{"path": str(data)}], "max_steps": 16, "logging_steps": 4, "max_length": 256}
    began = time.perf_counter()
    planned = make_plan(load_config(kind_config, None, {**settings, "report_to": ["none"]}))
    train(planned, out, Console(stderr=True, force_terminal=False))
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    with torch.inference_mode():
        learned = _MEASURES[kind](planned.start.name, out / "model", device)
    peak = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most" if device != "cpu" else ""
    return Check(
        name=f"{kind} trains, saves and loads back ({way})",
        passed=losses[-1] < losses[0] and learned > 0,
        seen=f"loss {losses[0]:.3f} → {losses[-1]:.3f}; loaded back it has learned {learned:+.3f}{peak}",
        seconds=round(time.perf_counter() - began, 2),
    )


def _demonstrations(data: Path) -> Path:
    path = data.with_name("demonstrations.jsonl")
    found = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({"prompt": row["prompt"], "completion": row["chosen"]}) for row in found]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _likelier(start: str, trained: Path, device: str) -> float:
    """How much likelier right responses have become, in nats for each."""
    before, after = (_logprobs(model, device, "chosen") for model in (start, trained))
    return after - before


def _preferred(start: str, trained: Path, device: str) -> float:
    """How much likelier they have become than wrong ones."""
    wrong = [_logprobs(model, device, "rejected") for model in (start, trained)]
    return _likelier(start, trained, device) - (wrong[1] - wrong[0])


def _rewarded(start: str, trained: Path, device: str) -> float:
    """The reward of right responses less that of wrong ones."""
    from transformers import AutoModelForSequenceClassification

    del start
    model, tokenizer = _loaded(AutoModelForSequenceClassification, trained, device, num_labels=1)
    rewards = [
        [
            float(model(**_encoded(tokenizer, [*row["prompt"], *row[side]], device)).logits)
            for side in ("chosen", "rejected")
        ]
        for row in rows()[:ASKED]
    ]
    return sum(right - wrong for right, wrong in rewards) / ASKED


_MEASURES: dict[str, Callable[[str, Path, str], float]] = {"sft": _likelier, "reward": _rewarded, "dpo": _preferred}


def _logprobs(name: str | Path, device: str, side: str) -> float:
    """Mean log-probability of a response of the first rows, by a plain forward pass."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = _loaded(AutoModelForCausalLM, name, device)
    total = 0.0
    for row in rows()[:ASKED]:
        opened = _encoded(tokenizer, row["prompt"], device, add_generation_prompt=True)["input_ids"].shape[1]
        inputs = _encoded(tokenizer, [*row["prompt"], *row[side]], device)
        logprobs = model(**inputs).logits[0, :-1].float().log_softmax(-1)
        chosen = logprobs.gather(1, inputs["input_ids"][0, 1:, None])
        total += float(chosen[opened - 1 :].sum())
    return total / ASKED


def _loaded(kind: Any, name: str | Path, device: str, **settings: Any) -> tuple[Any, Any]:
    """A model in float32, an adapter on its base, and the tokenizer."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    adapter = Path(name) / "adapter_config.json"
    base = json.loads(adapter.read_bytes())["base_model_name_or_path"] if adapter.is_file() else name
    model = kind.from_pretrained(base, dtype="float32", **settings)
    if adapter.is_file():
        model = PeftModel.from_pretrained(model, str(name))
    return model.to(device).eval(), AutoTokenizer.from_pretrained(name)


def _encoded(tokenizer: Any, messages: list[dict[str, str]], device: str, **how: bool) -> Any:
    return tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True, **how).to(device)
