"""PPO on a CUDA device: `pytest -m gpu`."""

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from accelerate.state import AcceleratorState  # noqa: E402
from ppo_models import KINDS, Kind, plan  # noqa: E402
from rich.console import Console  # noqa: E402
from training_rows import furthest, metrics, weights  # noqa: E402

from cai.train.ppo.run import train_ppo  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def train(tiny: Path, out: Path, kind: Kind, **settings: Any) -> Path:
    """Four steps of 8 episodes."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps device and precision for a whole process
    planned = plan(out.with_name(f"{out.name}-inputs"), tiny, kind, **{"use_cpu": False, "save_steps": 2, **settings})
    train_ppo(planned, out, Console(quiet=True))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_on_cuda_goes_as_on_the_cpu(kind: Kind, tiny: Path, tmp_path: Path) -> None:
    on_cuda, on_cpu = (metrics(train(tiny, tmp_path / str(cpu), kind, use_cpu=cpu)) for cpu in (False, True))
    assert len(on_cuda) == len(on_cpu) == 4
    # Each response draws from its own seed on the CPU, so the first step's are the same; later ones may part.
    for name in ("score", "length", "kl", "entropy", "policy_loss", "value_loss"):
        assert on_cuda[0][name] == pytest.approx(on_cpu[0][name], rel=1e-3, abs=1e-4), name
    assert all(abs(step["first_ratio_error"]) < 1e-4 for step in on_cuda)


def test_bfloat16_on_cuda_reads_what_it_wrote(tiny: Path, tmp_path: Path) -> None:
    steps = metrics(train(tiny, tmp_path / "run", "lora", bf16=True, gradient_checkpointing=True))
    assert all(abs(step["first_ratio_error"]) < 0.1 for step in steps)
    assert steps[-1]["kl"] != 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_cuda_goes_on_from_its_checkpoint(kind: Kind, tiny: Path, tmp_path: Path) -> None:
    whole = train(tiny, tmp_path / "whole", kind)
    halved = train(tiny, tmp_path / "halved", kind)
    # As a process leaves it that is killed after step 2.
    for name in ("model", "checkpoints/checkpoint-4"):
        shutil.rmtree(halved / name)
    (halved / "results.json").unlink()
    train(tiny, halved, kind)
    assert furthest(weights(whole / "model"), weights(halved / "model")) < 1e-5
