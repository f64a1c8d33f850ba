"""PPO's arithmetic against TRL 1.12.0's PPOTrainer: what we compute from its rollouts is what it computed.

The trainer runs in an environment of its own; docs/adr/0009-ppo-against-trl.md lists where we differ on purpose. There,
a response that ends before the others has one place more than tokens (`padding_mask_p1`), which holds the score. With
that mask our functions have to give TRL's numbers everywhere; with our own, where the two agree by design.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cai.train.ppo.math import (
    advantages_and_returns,
    clipped,
    kl_k1,
    kl_k3,
    policy_losses,
    token_entropies,
    token_logprobs,
    token_rewards,
    value_clipped,
    value_losses,
    whiten,
)

PYTHON = os.environ.get("CAI_TRL_PYTHON")
pytestmark = [
    pytest.mark.trl,
    pytest.mark.skipif(PYTHON is None, reason="CAI_TRL_PYTHON is not set; .ci/trl-env prints what it is to be"),
]

# 16 episodes in two mini-batches of two micro-batches; steps so large that much is clipped.
COMMON = {
    "response_length": 12,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_mini_batches": 2,
    "num_ppo_epochs": 3,
    "learning_rate": 0.01,
    "cliprange": 0.2,
    "cliprange_value": 0.3,
    "vf_coef": 0.1,
}
RUNS: dict[str, dict[str, Any]] = {
    "usual": {"temperature": 0.7, "kl_coef": 0.05, "kl_estimator": "k1", "gamma": 1.0, "lam": 0.95},
    "undiscounted": {"temperature": 1.0, "kl_coef": 0.05, "kl_estimator": "k1", "gamma": 1.0, "lam": 1.0},
    "whitened": {
        "temperature": 1.3,
        "kl_coef": 0.2,
        "kl_estimator": "k3",
        "gamma": 0.9,
        "lam": 0.8,
        "whiten_rewards": True,
        "missing_eos_penalty": 1.0,
    },
}


class Run(NamedTuple):
    """One update of TRL's trainer."""

    settings: dict[str, Any]
    rollout: dict[str, Tensor]
    steps: list[dict[str, Tensor]]
    """Of the micro-batches, in their order."""

    @property
    def mask(self) -> Tensor:
        return ~self.rollout["padding_mask"]

    @property
    def longer_mask(self) -> Tensor:
        return ~self.rollout["padding_mask_p1"]

    @property
    def kl(self) -> Tensor:
        estimator = {"k1": kl_k1, "k3": kl_k3}[self.settings["kl_estimator"]]
        return estimator(self.rollout["logprobs"], self.rollout["ref_logprobs"])

    def rewards(self, mask: Tensor) -> Tensor:
        """By our functions."""
        return token_rewards(self.rollout["scores"], self.kl, mask, self.settings["kl_coef"])

    def statistic(self, name: str, step: int) -> float:
        """By TRL, of a micro-batch."""
        epoch, place = divmod(step, 4)
        return float(self.rollout[name][epoch, place // 2, place % 2])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("trl")
    asked, out = folder / "runs.json", folder / "out.safetensors"
    asked.write_text(json.dumps({name: {**COMMON, **settings} for name, settings in RUNS.items()}))
    driver = Path(__file__).with_name("trl_ppo_driver.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    environment.pop("PYTHONPATH", None)
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, str(driver), str(asked), str(out)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    tensors = load_file(out)
    return {name: _run(name, tensors) for name in RUNS}


def _run(name: str, tensors: dict[str, Tensor]) -> Run:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        run, part, variable = key.split("/")
        if run == name:
            parts.setdefault(part, {})[variable] = tensor
    rollout = parts.pop("rollout")
    return Run({**COMMON, **RUNS[name]}, rollout, [parts[str(step)] for step in range(len(parts))])


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    return runs[request.param]


def micro_batches(run: Run) -> Iterator[tuple[int, dict[str, Tensor], dict[str, Tensor]]]:
    """Number, TRL's variables, and the rows of the rollout."""
    for number, step in enumerate(run.steps):
        rows = {
            name: run.rollout[name][step["micro_batch_inds"]]
            for name in ("logprobs", "values", "advantages", "returns")
        }
        yield (
            number,
            step,
            rows
            | {
                "mask": run.mask[step["micro_batch_inds"]],
                "longer_mask": run.longer_mask[step["micro_batch_inds"]],
            },
        )


def same(ours: Tensor, theirs: Tensor, mask: Tensor | None = None) -> None:
    """That both have the same numbers, where the mask is True."""
    if mask is not None:
        assert mask.any()
        ours, theirs = ours[mask], theirs[mask]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def bessel(mask: Tensor) -> float:
    """TRL divides variances by one less than their number."""
    count = int(mask.sum())
    return ((count - 1) / count) ** 0.5


def test_the_rollouts_have_short_and_full_responses_and_steps_that_clip(run: Run) -> None:
    lengths = run.mask.sum(1)
    assert len(set(lengths.tolist())) > 4
    assert int((lengths == 12).sum()) > 1
    assert len(run.steps) == 12
    assert sum(run.statistic("pg_clipfrac_stats", step) for step in range(12)) > 1
    assert sum(run.statistic("vf_clipfrac_stats", step) for step in range(12)) > 1


def test_logprobs_and_entropies(run: Run) -> None:
    start, temperature = int(run.rollout["context"]) - 1, run.settings["temperature"]
    for number, step, rows in micro_batches(run):
        logits = step["logits"][:, start:-1]
        same(token_logprobs(logits, step["mb_responses"], temperature), step["new_logprobs"], rows["mask"])
        # TRL's mean is over the padding, too.
        entropy = float(token_entropies(logits, temperature).mean())
        assert entropy == pytest.approx(run.statistic("entropy_stats", number), rel=1e-4)


def test_kl(run: Run) -> None:
    assert float(run.kl[run.mask].abs().mean()) > 0.1
    same(run.kl, run.rollout["kl"], run.mask)


def test_rewards(run: Run) -> None:
    theirs = run.rollout["unwhitened"][0] if "whiten_rewards" in run.settings else run.rollout["rewards"]
    same(run.rewards(run.longer_mask), theirs)
    ours = run.rewards(run.mask)
    same(ours.sum(1), theirs.sum(1), run.mask.any(1))
    same(ours, theirs, run.mask & run.mask.all(1, keepdim=True))  # full responses: no place is left for the score


def test_whitened_rewards(runs: dict[str, Run]) -> None:
    run = runs["whitened"]
    rewards, mask = run.rewards(run.longer_mask), run.longer_mask
    mean = rewards[mask].mean()
    ours = mean + (whiten(rewards, mask, subtract_mean=False) - mean) * bessel(mask)
    same(ours, run.rollout["rewards"], mask)
    assert not run.rollout["rewards"][~mask].any()


def test_advantages_and_returns(run: Run) -> None:
    gamma, lam = run.settings["gamma"], run.settings["lam"]
    values = run.rollout["values"]
    advantages, returns = advantages_and_returns(run.rollout["rewards"], values, run.longer_mask, gamma, lam)
    same(advantages, run.rollout["unwhitened"][-1])
    same(returns, run.rollout["returns"])
    if "whiten_rewards" in run.settings:
        return  # the longer mask has part in the mean and variance of the rewards
    ours, our_returns = advantages_and_returns(run.rewards(run.mask), values, run.mask, gamma, lam)
    # With γ = λ = 1 it makes no difference whether the score stands in a place of its own.
    agreeing = run.mask if lam == 1 else run.mask & run.mask.all(1, keepdim=True)
    same(ours, run.rollout["unwhitened"][-1], agreeing)
    same(our_returns, run.rollout["returns"], agreeing)


def test_whitened_advantages(run: Run) -> None:
    ours = whiten(run.rollout["unwhitened"][-1], run.mask, subtract_mean=True)
    same(ours * bessel(run.mask), run.rollout["advantages"])


def test_policy_losses(run: Run) -> None:
    for number, step, rows in micro_batches(run):
        arguments = step["new_logprobs"], rows["logprobs"], rows["advantages"], run.settings["cliprange"]
        losses = policy_losses(*arguments)
        same(losses, step["pg_loss_max"])
        same(losses[rows["mask"]].mean(), step["pg_loss"])
        share = float(clipped(*arguments).float()[rows["mask"]].mean())
        assert share == pytest.approx(run.statistic("pg_clipfrac_stats", number))


def test_value_losses(run: Run) -> None:
    for number, step, rows in micro_batches(run):
        arguments = step["vpred"], rows["values"], rows["returns"], run.settings["cliprange_value"]
        losses = value_losses(*arguments)
        same(2 * losses, step["vf_loss_max"])
        same(losses[rows["longer_mask"]].mean(), step["vf_loss"])
        share = float(value_clipped(*arguments).float()[rows["longer_mask"]].mean())
        assert share == pytest.approx(run.statistic("vf_clipfrac_stats", number))


def test_the_loss_of_a_micro_batch_from_its_logits(run: Run) -> None:
    start, settings = int(run.rollout["context"]) - 1, run.settings
    for _, step, rows in micro_batches(run):
        logprobs = token_logprobs(step["logits"][:, start:-1], step["mb_responses"], settings["temperature"])
        policy = policy_losses(logprobs, rows["logprobs"], rows["advantages"], settings["cliprange"])
        value = value_losses(step["vpred"], rows["values"], rows["returns"], settings["cliprange_value"])
        ours = policy[rows["mask"]].mean() + settings["vf_coef"] * value[rows["longer_mask"]].mean()
        same(ours, step["loss"])


def test_trl_makes_no_step_between_mini_batches(run: Run) -> None:
    """A difference that docs/adr/0009 lists: there are two mini-batches in an epoch."""
    moved = [bool((step["ratio"] - 1).abs().max() > 1e-3) for step in run.steps]
    assert moved == [False] * 4 + [True] * 8
