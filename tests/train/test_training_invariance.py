"""What must not change the trained weights does not, and what theory says of labels, weights and rates happens."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from training_rows import KINDS, conversations, furthest, logged, pairs, train, weights, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from cai.train.config import RewardConfig
from cai.train.models import find_start, load_reward_model

pytestmark = pytest.mark.usefixtures("no_curves")

SGD: Mapping[str, Any] = {"trainer": {"optim": "sgd"}, "max_grad_norm": 1e9}
"""Plain steps along the gradient, so that its size shows in the weights; AdamW hides a constant factor."""
ADAM: Mapping[str, Any] = {"trainer": {"adam_epsilon": 1e-4}}
"""With the usual epsilon, rounding in a gradient of almost nothing moves a weight by a whole step."""
LABELLED = ("reward", "dpo")
MARGIN = {"reward": "margin", "dpo": "rewards/margins"}
ACCURACY = {"reward": "accuracy", "dpo": "rewards/accuracies"}


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of 20 rows for each kind of training."""
    folder = tmp_path_factory.mktemp("rows")
    preferences = write_rows(folder / "pairs.jsonl", pairs(20))
    demonstrations = write_rows(folder / "conversations.jsonl", conversations(20))
    return {"sft": demonstrations, "reward": preferences, "dpo": preferences}


def logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found


class ByHand:
    """Log-odds of a pair by transformers alone, one conversation at a time and without padding."""

    def __init__(self, model: Path, reference: Path, beta: float = 0.1) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model, self.reference, self.beta = model, reference, beta

    def ids(self, prompt: str, reply: str) -> tuple[list[int], int]:
        """Token ids of the conversation, and at which of them the reply begins."""
        opened = f"<|user|>{prompt}<|end|><|assistant|>"
        ids = self.tokenizer(f"{opened}{reply}<|end|>").input_ids
        return ids, len(self.tokenizer(opened).input_ids)

    def reward(self, pairs: Sequence[Mapping[str, Any]]) -> list[float]:
        """Differences of the rewards of chosen and rejected."""
        model = AutoModelForSequenceClassification.from_pretrained(self.model)
        rewards = [
            [float(logits(model, self.ids(pair["prompt"], pair[side])[0])) for side in ("chosen", "rejected")]
            for pair in pairs
        ]
        return [chosen - rejected for chosen, rejected in rewards]

    def dpo(self, pairs: Sequence[Mapping[str, Any]]) -> list[float]:
        """DPO's implicit differences of rewards (Rafailov et al. 2023, equation 5)."""
        after, before = (
            [
                self._log_probability(model, pair["prompt"], pair["chosen"])
                - self._log_probability(model, pair["prompt"], pair["rejected"])
                for pair in pairs
            ]
            for model in map(AutoModelForCausalLM.from_pretrained, (self.model, self.reference))
        )
        return [self.beta * (one - other) for one, other in zip(after, before, strict=True)]

    def _log_probability(self, model: Any, prompt: str, reply: str) -> float:
        ids, begin = self.ids(prompt, reply)
        found = torch.log_softmax(logits(model, ids), dim=-1)
        return sum(float(found[place - 1, ids[place]]) for place in range(begin, len(ids)))


def cross_entropy(p: float, log_odds: float) -> float:
    said = 1 / (1 + math.exp(-log_odds))
    return -p * math.log(said) - (1 - p) * math.log(1 - said)


@pytest.mark.parametrize("optimiser", [SGD, ADAM], ids=["sgd", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_eight_equals_eight_batches_of_one(
    kind: str, optimiser: Mapping[str, Any], tmp_path: Path, tiny: Path, rows: dict[str, Path]
) -> None:
    for name, size, accumulation in (("whole", 8, 1), ("ones", 1, 8), ("pairs", 2, 4)):
        train(
            kind,
            tmp_path / name,
            model=tiny,
            data=rows[kind],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **optimiser,
        )
    whole, ones, two = (weights(tmp_path / name / "model") for name in ("whole", "ones", "pairs"))
    if kind != "reward":
        assert furthest(whole, weights(tiny)) > 1e-3
    assert furthest(whole, ones) < 1e-5
    assert furthest(whole, two) < 1e-5
    assert logged(tmp_path / "whole", "loss") == pytest.approx(logged(tmp_path / "ones", "loss"), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_grouping_by_length_changes_the_order_alone(
    kind: str, tmp_path: Path, tiny: Path, rows: dict[str, Path]
) -> None:
    tokens = []
    for grouped in (True, False):
        alike: dict[str, Any] = {"model": tiny, "data": rows[kind], "group_by_length": grouped}
        # All rows in one step, where their order is nothing; then in steps of two.
        train(kind, tmp_path / f"once {grouped}", per_device_train_batch_size=20, num_train_epochs=2, **alike, **SGD)
        train(kind, tmp_path / f"steps {grouped}", per_device_train_batch_size=2, **alike)
        so_far = [0.0, *logged(tmp_path / f"steps {grouped}", "num_tokens")]
        tokens.append([after - before for before, after in pairwise(so_far)])
    assert furthest(weights(tmp_path / "once True" / "model"), weights(tmp_path / "once False" / "model")) < 1e-5
    assert len(tokens[0]) == len(tokens[1]) == 10
    assert sum(tokens[0]) == sum(tokens[1])
    assert sorted(tokens[0]) != sorted(tokens[1])


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_learning_rate_of_zero_leaves_every_bit_as_it_was(
    kind: str, tmp_path: Path, tiny: Path, rows: dict[str, Path]
) -> None:
    train(kind, tmp_path / "run", model=tiny, data=rows[kind], learning_rate=0, weight_decay=0.1)
    assert furthest(weights(tmp_path / "run" / "model"), weights(tiny)) == 0


def test_a_learning_rate_of_zero_leaves_a_reward_model_with_the_head_of_its_seed(
    tmp_path: Path, tiny: Path, rows: dict[str, Path]
) -> None:
    for seed in (3, 4):
        train("reward", tmp_path / f"{seed}", model=tiny, data=rows["reward"], learning_rate=0, seed=seed)
    config = RewardConfig(model=str(tiny), max_length=256)
    set_seed(3)
    fresh = load_reward_model(find_start(config, generates=False), config, torch.float32).state_dict()
    trained = weights(tmp_path / "3" / "model")
    assert furthest(trained, fresh) == 0
    body = weights(tiny)
    assert all(trained[name].equal(body[name]) for name in trained if name != "score.weight")
    assert not trained["score.weight"].equal(weights(tmp_path / "4" / "model")["score.weight"])


@pytest.mark.parametrize("kind", LABELLED)
def test_a_pair_the_other_way_round_with_the_other_probability_is_the_same_pair(
    kind: str, tmp_path: Path, tiny: Path
) -> None:
    straight = list(pairs(12))
    turned = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"], "p_chosen": 1 - row["p_chosen"]}
        for row in straight
    ]
    for name, one in (("straight", straight), ("turned", turned)):
        data = write_rows(tmp_path / f"{name}.jsonl", one)
        train(kind, tmp_path / name, model=tiny, data=data, per_device_train_batch_size=4, **SGD)
    one, other = (weights(tmp_path / name / "model") for name in ("straight", "turned"))
    assert furthest(one, other) < 1e-5


@pytest.mark.parametrize("kind", LABELLED)
def test_opposite_labels_train_opposite_margins_on_held_out_pairs(kind: str, tmp_path: Path, tiny: Path) -> None:
    held = write_rows(tmp_path / "held.jsonl", pairs(24, seed=1, p_chosen=1.0))
    margins = []
    for p in (0.95, 0.05):
        data = write_rows(tmp_path / f"{p}.jsonl", pairs(96, p_chosen=p))
        out = tmp_path / f"run {p}"
        train(kind, out, model=tiny, data=data, eval_data=held, learning_rate=5e-3, num_train_epochs=2)
        margins.append(logged(out, f"eval_{MARGIN[kind]}")[-1])
    assert margins[0] > 0.5
    assert margins[1] < -0.5


def test_dpo_has_no_gradient_at_its_start_where_no_response_is_the_better_one(tmp_path: Path, tiny: Path) -> None:
    # One step: what rounding leaves of a gradient, a second one would enlarge.
    steps: dict[str, Any] = {"model": tiny, "learning_rate": 1.0, "max_steps": 1, **SGD}
    for p in (0.5, 0.6):
        data = write_rows(tmp_path / f"{p}.jsonl", pairs(16, p_chosen=p))
        train("dpo", tmp_path / f"run {p}", data=data, **steps)
    assert logged(tmp_path / "run 0.5", "loss") == pytest.approx([math.log(2)], abs=1e-5)
    moved = [furthest(weights(tmp_path / f"run {p}" / "model"), weights(tiny)) for p in (0.5, 0.6)]
    assert moved[0] < 1e-5
    assert moved[1] > 1e-2


def test_a_reward_model_learns_equal_rewards_where_no_response_is_the_better_one(tmp_path: Path, tiny: Path) -> None:
    rows = list(pairs(32, p_chosen=0.5))
    data = write_rows(tmp_path / "ties.jsonl", rows)
    sizes = []
    for name, epochs in (("before", 0.01), ("after", 30)):
        rate = 0 if name == "before" else 3e-3
        train("reward", tmp_path / name, model=tiny, data=data, learning_rate=rate, num_train_epochs=epochs)
        sizes.append(max(map(abs, ByHand(tmp_path / name / "model", tiny).reward(rows))))
    assert sizes[0] > 0.5
    assert sizes[1] < 0.1 * sizes[0]


@pytest.mark.parametrize("kind", LABELLED)
def test_the_loss_is_the_one_computed_by_hand_from_labels_and_weights(kind: str, tmp_path: Path, tiny: Path) -> None:
    rows = {name: list(pairs(count, seed=count)) for name, count in (("a", 6), ("b", 9), ("c", 5), ("d", 7))}
    files = {name: str(write_rows(tmp_path / f"{name}.jsonl", found)) for name, found in rows.items()}
    out = tmp_path / "run"
    train(
        kind,
        out,
        model=tiny,
        data=[{"path": files["a"], "weight": 2}, {"path": files["b"], "weight": 1e-3}],
        eval_data=[{"path": files["c"], "weight": 3}, {"path": files["d"], "weight": 0.5}],
        per_device_train_batch_size=5,
        per_device_eval_batch_size=5,
        learning_rate=1e-3,
        num_train_epochs=2,
    )
    by_hand = ByHand(out / "model", tiny)
    held = [*rows["c"], *rows["d"]]
    log_odds = getattr(by_hand, kind)(held)
    mean = (5 * 3 + 7 * 0.5) / 12
    factors = [3 / mean] * 5 + [0.5 / mean] * 7
    losses = [cross_entropy(row["p_chosen"], odds) for row, odds in zip(held, log_odds, strict=True)]
    expected = sum(factor * loss for factor, loss in zip(factors, losses, strict=True)) / 12
    assert expected != pytest.approx(sum(losses) / 12, rel=1e-2)
    assert logged(out, "eval_loss")[-1] == pytest.approx(expected, rel=1e-4)
    right = [(odds > 0) == (row["p_chosen"] > 0.5) for row, odds in zip(held, log_odds, strict=True)]
    batches = [right[start : start + 5] for start in range(0, 12, 5)]
    accuracy = sum(sum(batch) / len(batch) for batch in batches) / 3
    assert logged(out, f"eval_{ACCURACY[kind]}")[-1] == pytest.approx(accuracy)
    margins = [sum(log_odds[start : start + 5]) / len(log_odds[start : start + 5]) for start in range(0, 12, 5)]
    assert logged(out, f"eval_{MARGIN[kind]}")[-1] == pytest.approx(sum(margins) / 3, rel=1e-3, abs=1e-5)


def test_a_source_of_small_weight_teaches_next_to_nothing(tmp_path: Path, tiny: Path) -> None:
    for_first = str(write_rows(tmp_path / "for.jsonl", pairs(32, p_chosen=1.0)))
    against = str(write_rows(tmp_path / "against.jsonl", pairs(32, p_chosen=0.0)))
    held = write_rows(tmp_path / "held.jsonl", pairs(24, seed=1, p_chosen=1.0))
    margins = []
    for place, (one, other) in enumerate(((2.0, 1e-6), (1e-6, 2.0))):
        train(
            "reward",
            tmp_path / f"{place}",
            model=tiny,
            data=[{"path": for_first, "weight": one}, {"path": against, "weight": other}],
            eval_data=held,
            learning_rate=1e-2,
            num_train_epochs=2,
        )
        margins.append(logged(tmp_path / f"{place}", "eval_margin")[-1])
    assert margins[0] > 0.5
    assert margins[1] < -0.5
