"""What goes wrong in a PPO run is named: on planted histories, and in runs that are broken on purpose."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_models import Kind, length_of, plan, trainer
from torch import nn

from cai.engines.decoding import RowSampler
from cai.train.ppo import rollout
from cai.train.ppo.diagnosis import diagnose
from cai.train.ppo.trainer import PpoTrainer

HEALTHY = {"kl": 0.2, "first_ratio_error": 1e-6, "score_std": 0.4, "surprise_gap": 0.02}


def history(**columns: Sequence[float | None]) -> list[dict[str, float | None]]:
    """Steps of a healthy run but for these columns; the latest step is the last one."""
    length = max(map(len, columns.values()))
    padded = {name: [HEALTHY[name]] * (length - len(column)) + list(column) for name, column in columns.items()}
    return [
        {"step": place + 1.0, **HEALTHY, **{name: column[place] for name, column in padded.items()}}
        for place in range(length)
    ]


def names(entries: Sequence[Any], mixed_precision: str = "no") -> list[str]:
    return [cause.name for cause in diagnose(entries, mixed_precision=mixed_precision)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"kl": [-0.06] * 5}, ["negative_kl"]),
        ({"kl": [-0.06] * 4}, []),
        ({"kl": [-1.0] * 4 + [-0.04]}, []),
        ({"kl": [-1.0, -1.0, 0.01, -1.0, -1.0]}, []),
        ({"kl": [3.0] + [-0.06] * 5}, ["negative_kl"]),
        ({"kl": [-0.06] * 5 + [0.2]}, []),
        ({"kl": [-0.06] * 4 + [None]}, []),
        ({"first_ratio_error": [0.002]}, ["ratio"]),
        ({"first_ratio_error": [0.002, 1e-6]}, []),
        ({"first_ratio_error": [0.0009]}, []),
        ({"first_ratio_error": [None]}, []),
        ({"score_std": [0.0] * 3}, ["constant_reward"]),
        ({"score_std": [0.0] * 2}, []),
        ({"score_std": [0.0, 0.0, 1e-9]}, []),
        ({"score_std": [0.0, 0.0, float("nan")]}, []),
        ({"surprise_gap": [0.2, 0.3] * 5}, ["surprise"]),
        ({"surprise_gap": [-0.2, -0.3] * 5}, ["surprise"]),
        ({"surprise_gap": [0.2, 0.3] * 4 + [0.2]}, []),
        ({"surprise_gap": [0.09] * 10}, []),
        ({"surprise_gap": [0.2, 0.3] * 4 + [0.2, None]}, []),
        ({"surprise_gap": [0.9, -0.4] * 5}, []),
        ({"surprise_gap": [0.2, 0.3] * 5 + [0.0]}, ["surprise"]),
        ({"surprise_gap": [0.2, 0.3] * 5 + [-0.9]}, []),
        ({"kl": [-1.0] * 5, "first_ratio_error": [0.5]}, ["negative_kl", "ratio"]),
        ({"kl": [-0.2, 0.1, -0.1, 0.3, -0.2, 0.1, 0.4, -0.1]}, []),
    ],
)  # fmt: skip
def test_planted_histories(columns: dict[str, Any], expected: list[str]) -> None:
    assert names(history(**columns)) == expected


def test_a_healthy_history_has_no_causes_from_its_first_step_on() -> None:
    entries = history(kl=[0.0, 0.01, 0.05, 0.2, 0.4, 0.8, 1.0, 1.2])
    assert all(names(entries[: length + 1]) == [] for length in range(8))


def test_rounding_explains_more_in_bfloat16() -> None:
    assert names(history(first_ratio_error=[0.04]), "bf16") == []
    assert names(history(first_ratio_error=[0.06]), "bf16") == ["ratio"]


def test_the_sentences_say_what_was_seen_and_what_may_cause_it() -> None:
    entries = history(kl=[-0.5] * 4 + [-0.75], first_ratio_error=[0.25], score_std=[0.0] * 3)
    negative, ratio, constant = (cause.sentence for cause in diagnose(entries, mixed_precision="no"))
    assert "negative for 5 steps (-0.750 nats an episode)" in negative
    assert "top-k, top-p or another temperature" in negative
    assert "before the first update of step 5 the ratio" in ratio
    assert "off 1 by 0.25 on average" in ratio
    assert "dropout that is on" in ratio
    assert "all responses of 3 steps had the same score" in constant
    assert "`cai score`" in constant


# Runs that are broken on purpose.


def causes(made: PpoTrainer, steps: int) -> set[str]:
    """All that is named in so many steps."""
    entries: list[Any] = []
    found: set[str] = set()
    for _ in range(steps):
        entries.append(json.loads(json.dumps(made.step())))
        found.update(names(entries))
    return found


def still(
    folder: Path, model: Path, score: Callable[[int, str], float] = length_of, kind: Kind = "lora", **settings: Any
) -> PpoTrainer:
    """A training in which no weights move."""
    return trainer(plan(folder, model, kind, total_episodes=1000, learning_rate=0.0, **settings), folder, score)


class Sampler(RowSampler):
    """Draws from something else than the policy at its temperature."""

    change: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return super().__call__(input_ids, type(self).change(scores))


def broken(change: Callable[[torch.Tensor], torch.Tensor]) -> type[Sampler]:
    return type("Broken", (Sampler,), {"change": staticmethod(change)})


def moved(made: PpoTrainer, size: float) -> PpoTrainer:
    """The policy somewhat away from its reference."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, parameter in made.actor.named_parameters():
            if "lora_B.default" in name:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return made


def test_a_policy_that_writes_by_itself_is_healthy(tmp_path: Path, tiny: Path) -> None:
    made = moved(still(tmp_path, tiny), 0.05)
    assert causes(made, 6) == set()
    assert made.step()["kl"] > 0.1


def flatter(scores: torch.Tensor) -> torch.Tensor:
    """As at a temperature of 3."""
    return scores / 3


def top_k_1(scores: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(scores < scores.max(-1, keepdim=True).values, float("-inf"))


@pytest.mark.parametrize(("change", "factor"), [(flatter, 1.5), (top_k_1, 0.7)])
def test_tokens_of_another_distribution_give_a_negative_kl(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, change: Any, factor: float
) -> None:
    """A policy that is surer than its reference, or less sure."""
    found = []
    for sampler in (RowSampler, broken(change)):
        monkeypatch.setattr(rollout, "RowSampler", sampler)
        made = still(tmp_path, tiny, kind="full")
        with torch.no_grad():
            made.actor.policy.lm_head.weight *= factor
        found.append(causes(made, 6))
    assert found == [set(), {"negative_kl"}]


@pytest.mark.parametrize(("change", "said"), [(flatter, "a higher temperature"), (top_k_1, "top-k")])
def test_tokens_of_another_distribution_are_named_where_the_policy_is_still_its_reference(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    """Their KL is 0 whoever has drawn them."""
    sentences = []
    for sampler in (RowSampler, broken(change)):
        monkeypatch.setattr(rollout, "RowSampler", sampler)
        made = still(tmp_path, tiny)
        entries: list[Any] = [made.step() for _ in range(10)]
        assert all(entry["kl"] == 0 for entry in entries)
        sentences.append([cause.sentence for cause in diagnose(entries, mixed_precision="no")])
    assert sentences[0] == []
    (sentence,) = sentences[1]
    assert said in sentence


def test_tokens_of_older_weights_give_a_negative_kl(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = moved(still(tmp_path, tiny), 0.05)
    playing = made.actor.playing
    monkeypatch.setattr(
        "cai.train.ppo.trainer.write_responses",
        lambda actor, *rest, **named: rollout.write_responses(_Older(actor, playing), *rest, **named),
    )
    assert causes(made, 6) == {"negative_kl"}


class _Older:
    """An actor that writes as its reference does."""

    def __init__(self, actor: Any, playing: Any) -> None:
        self.parameters = actor.parameters
        self.playing = lambda _: playing("reference")


def test_a_ratio_off_one_is_named(tmp_path: Path, tiny: Path) -> None:
    made = still(tmp_path, tiny)
    assert causes(made, 1) == set()
    dropped = nn.Dropout(0.5)
    norm = made.actor.policy.get_base_model().model.norm
    norm.register_forward_hook(lambda _module, _inputs, output: dropped(output))
    assert causes(made, 1) == {"ratio"}


def test_a_constant_reward_is_named(tmp_path: Path, tiny: Path) -> None:
    assert causes(still(tmp_path, tiny, lambda *_: 0.5, missing_eos_penalty=0.0), 3) == {"constant_reward"}
