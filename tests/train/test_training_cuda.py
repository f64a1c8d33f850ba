"""Training on a CUDA device: `pytest -m gpu`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from rich.console import Console  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from cai.config import load_config  # noqa: E402
from cai.train.config import DpoConfig, RewardConfig, SftConfig  # noqa: E402
from cai.train.plan import plan_dpo, plan_reward, plan_sft  # noqa: E402
from cai.train.policy import train_dpo, train_sft  # noqa: E402
from cai.train.reward import train_reward  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

PARTS: Mapping[str, tuple[Any, Any, Any]] = {
    "sft": (SftConfig, plan_sft, train_sft),
    "reward": (RewardConfig, plan_reward, train_reward),
    "dpo": (DpoConfig, plan_dpo, train_dpo),
}


def train(kind: str, tiny: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Train for an epoch of 6 steps on planted rows; returns the trained weights."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {n}{'?' * (n % 5)}", "chosen": f"Yes, {n} it is.", "rejected": f"No, not {n}!"}
        for n in range(24)
    ]
    if kind == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if kind != "reward":
        settings["collapse"] = {"prompts": 0}
    data = out.with_suffix(".jsonl")
    data.write_text("\n".join(map(json.dumps, rows)))
    config, plan, work = PARTS[kind]
    given = {
        "model": str(tiny),
        "data": [{"path": str(data)}],
        "test_share": 0,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": ["none"],
        "logging_steps": 1,
        "bf16": False,
        **settings,
    }
    work(plan(load_config(config, None, given)), out, Console(quiet=True))
    (file,) = (out / "model").glob("*model.safetensors")
    found: dict[str, Any] = load_file(file)
    return found


def losses(out: Path) -> list[float]:
    logged = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in logged if "loss" in entry]


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Greatest difference of two models' weights."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize("kind", PARTS)
def test_training_on_cuda_goes_as_on_the_cpu(kind: str, tiny: Path, tmp_path: Path) -> None:
    train(kind, tiny, tmp_path / "cuda")
    train(kind, tiny, tmp_path / "cpu", use_cpu=True)
    on_cuda, on_cpu = losses(tmp_path / "cuda"), losses(tmp_path / "cpu")
    assert len(on_cuda) == 6
    # The sums' orders differ, and AdamW's first steps divide small differences of gradients by small gradients.
    assert on_cuda == pytest.approx(on_cpu, rel=5e-3)


@pytest.mark.parametrize("kind", PARTS)
def test_gradient_checkpointing_on_cuda_changes_nothing(kind: str, tiny: Path, tmp_path: Path) -> None:
    plain = train(kind, tiny, tmp_path / "plain")
    recomputed = train(kind, tiny, tmp_path / "recomputed", gradient_checkpointing=True)
    assert distance(plain, recomputed) < 1e-3
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "recomputed"), rel=1e-4)


@pytest.mark.parametrize("kind", PARTS)
def test_bfloat16_on_cuda_learns_like_float32_and_keeps_weights_in_float32(
    kind: str, tiny: Path, tmp_path: Path
) -> None:
    whole = train(kind, tiny, tmp_path / "whole", bf16=False)
    half = train(kind, tiny, tmp_path / "half", bf16=True)
    assert {weight.dtype for weight in half.values()} == {torch.float32}
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole"), rel=0.1)
    assert distance(whole, half) > 0


@pytest.mark.parametrize("kind", PARTS)
def test_an_adapter_learns_on_cuda_with_checkpointing_and_bfloat16(kind: str, tiny: Path, tmp_path: Path) -> None:
    settings = {"use_peft": True, "gradient_checkpointing": True, "bf16": True, "learning_rate": 1e-2}
    found = train(kind, tiny, tmp_path / "run", **settings)
    learned = [name for name, weight in found.items() if "lora_B" in name and bool(weight.any())]
    assert len(learned) == len([name for name in found if "lora_B" in name]) == 2 * 7  # all linear layers of two blocks
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize("kind", PARTS)
def test_a_run_on_cuda_goes_on_from_its_checkpoint(kind: str, tiny: Path, tmp_path: Path) -> None:
    whole = train(kind, tiny, tmp_path / "whole", save_steps=3)
    train(kind, tiny, tmp_path / "halved", save_steps=3)
    # As a process leaves it that is killed after step 3.
    for name in ("model", "checkpoints/checkpoint-6"):
        shutil.rmtree(tmp_path / "halved" / name)
    for name in ("results.json", "held_out.json"):
        (tmp_path / "halved" / name).unlink(missing_ok=True)
    written = (tmp_path / "halved/checkpoints/checkpoint-3/whole").stat().st_mtime_ns
    again = train(kind, tiny, tmp_path / "halved", save_steps=3)
    assert (tmp_path / "halved/checkpoints/checkpoint-3/whole").stat().st_mtime_ns == written
    assert distance(whole, again) < 1e-5
