"""TRL's trainers with soft labels: on hard ones they are TRL's own, figures are those by hand, the order is ours."""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from tiny_model import byte_tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig

from cai.train.batches import LABEL_COLUMNS, BatchOrder
from cai.train.trainers import PlainSftTrainer, SoftDpoTrainer, SoftRewardTrainer

PAD = 0
VOCABULARY = 40
BETA = 0.3


class EncodedDpoTrainer(DPOTrainer):
    """TRL's own, without its preparation of the rows, which these do not need."""

    def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
        return dataset


def architecture(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=1,
        **more,
    )


def language_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(architecture())


def reward_model() -> Any:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(architecture(num_labels=1))


def shaken(model: Any) -> Any:
    """The model with its weights moved a little, always in the same way."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.05 * torch.randn(weights.shape, generator=generator)
    return model


def drawn_rows(number: int, *, hard: bool = False) -> list[dict[str, Any]]:
    """Pairs of random tokens; their weights tell them apart."""
    draw = random.Random(2)

    def tokens(most: int) -> list[int]:
        return draw.choices(range(2, VOCABULARY), k=draw.randint(1, most))

    rows = []
    for place in range(number):
        prompt, chosen, rejected = tokens(8), tokens(6), tokens(6)
        labels = {"p_chosen": 1.0, "weight": 1.0} if hard else {"p_chosen": draw.random(), "weight": 1 + place / 100}
        length = len(prompt) + max(len(chosen), len(rejected))
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "length": length, **labels})
    return rows


def scored_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as a reward model reads them: each response after its prompt."""
    return [
        {
            **{name: row[name] for name in ("length", *LABEL_COLUMNS)},
            "chosen_ids": row["prompt_ids"] + row["chosen_ids"],
            "rejected_ids": row["prompt_ids"] + row["rejected_ids"],
        }
        for row in rows
    ]


def arguments(kind: Any, folder: Path, **more: Any) -> Any:
    given = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_length": None,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return kind(**{**given, **more})


def trained_by(trainer: Any, kind: Any, folder: Path, model: Any, rows: Sequence[Any], **more: Any) -> Any:
    """A trainer; `more` are TRL's arguments, and those of our trainers by their own names."""
    own = {name: more.pop(name) for name in ("group_by_length", "pad_token_id", "soft") if name in more}
    return trainer(
        model=model,
        args=arguments(kind, folder, **more),
        train_dataset=datasets.Dataset.from_list(list(rows)),
        processing_class=byte_tokenizer(),
        **own,
    )


def soft_reward(folder: Path, rows: Sequence[Any], **more: Any) -> Any:
    own = {"group_by_length": True, "pad_token_id": PAD, **more}
    return trained_by(SoftRewardTrainer, RewardConfig, folder, reward_model(), scored_rows(rows), **own)


def soft_dpo(folder: Path, rows: Sequence[Any], **more: Any) -> Any:
    own = {"group_by_length": True, "pad_token_id": PAD, "soft": True, "beta": BETA, **more}
    return trained_by(SoftDpoTrainer, DPOConfig, folder, language_model(), rows, precompute_ref_log_probs=True, **own)


def batch_of(trainer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return dict(trainer.data_collator([dict(row) for row in rows]))


def without_labels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in LABEL_COLUMNS} for row in rows]


def assert_same_gradients(one: Any, other: Any) -> None:
    compared = 0
    for (name, ours), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: name + text
        )
        compared += bool(ours.grad.abs().max() > 1e-4)
    assert compared > 10  # there are gradients to compare


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("coefficient", [None, 0.05])
def test_on_hard_labels_a_reward_model_is_trained_as_by_trl(tmp_path: Path, coefficient: float | None) -> None:
    rows = drawn_rows(6, hard=True)
    ours = soft_reward(tmp_path / "ours", rows, center_rewards_coefficient=coefficient)
    theirs = trained_by(
        RewardTrainer,
        RewardConfig,
        tmp_path / "theirs",
        reward_model(),
        without_labels(scored_rows(rows)),
        center_rewards_coefficient=coefficient,
    )
    own = ours.compute_loss(ours.model, batch_of(ours, scored_rows(rows)))
    trl = theirs.compute_loss(theirs.model, batch_of(theirs, without_labels(scored_rows(rows))))
    assert own.item() == pytest.approx(trl.item(), abs=1e-6)
    own.backward()
    trl.backward()
    assert_same_gradients(ours.model, theirs.model)


def test_on_hard_labels_dpo_is_trained_as_by_trl(tmp_path: Path) -> None:
    rows = drawn_rows(6, hard=True)
    ours = soft_dpo(tmp_path / "ours", rows)
    theirs = trained_by(
        EncodedDpoTrainer,
        DPOConfig,
        tmp_path / "theirs",
        language_model(),
        without_labels(rows),
        precompute_ref_log_probs=True,
        beta=BETA,
        loss_type=["sigmoid"],
    )
    shaken(ours.model), shaken(theirs.model)
    own = ours.compute_loss(ours.model, batch_of(ours, list(ours.train_dataset)))
    trl = theirs.compute_loss(theirs.model, batch_of(theirs, list(theirs.train_dataset)))
    assert own.item() == pytest.approx(trl.item(), abs=1e-6)
    assert abs(own.item() - 0.6931) > 0.01  # the policy is no longer its reference
    own.backward()
    trl.backward()
    assert_same_gradients(ours.model, theirs.model)


def test_without_soft_labels_dpo_is_trls_own(tmp_path: Path) -> None:
    rows = without_labels(drawn_rows(4, hard=True))
    ours = soft_dpo(tmp_path / "ours", rows, soft=False, loss_type=["ipo"])
    theirs = trained_by(
        EncodedDpoTrainer,
        DPOConfig,
        tmp_path / "theirs",
        language_model(),
        rows,
        precompute_ref_log_probs=True,
        beta=BETA,
        loss_type=["ipo"],
    )
    shaken(ours.model), shaken(theirs.model)
    own, trl = (one.compute_loss(one.model, batch_of(one, list(one.train_dataset))).item() for one in (ours, theirs))
    assert own == pytest.approx(trl, abs=1e-6)


def response_logps(model: Any, row: Mapping[str, Any], side: str) -> float:
    """Log-probability of a response by a forward pass of its own, without padding."""
    prompt, response = row["prompt_ids"], row[side]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    logps = torch.log_softmax(logits.double(), dim=-1)
    return float(sum(logps[len(prompt) + n - 1, token] for n, token in enumerate(response)))


def test_the_references_log_probabilities_are_those_of_a_plain_forward_pass(tmp_path: Path) -> None:
    rows = drawn_rows(9)
    trainer = soft_dpo(tmp_path, rows, per_device_train_batch_size=4)
    model = language_model()
    for row, found in zip(rows, trainer.train_dataset, strict=True):
        assert found["ref_chosen_logps"] == pytest.approx(response_logps(model, row, "chosen_ids"), abs=1e-4)
        assert found["ref_rejected_logps"] == pytest.approx(response_logps(model, row, "rejected_ids"), abs=1e-4)


def test_soft_labels_and_weights_reach_the_loss_of_dpo(tmp_path: Path) -> None:
    rows = drawn_rows(5)
    trainer = soft_dpo(tmp_path, rows)
    policy = shaken(copy.deepcopy(language_model()))
    shaken(trainer.model)
    reference = language_model()
    losses = []
    for row in rows:
        ratios = [response_logps(policy, row, side) - response_logps(reference, row, side) for side in SIDES]
        h = torch.tensor(BETA * (ratios[0] - ratios[1]), dtype=torch.float64)
        p = row["p_chosen"]
        entropy = -p * torch.log(torch.sigmoid(h)) - (1 - p) * torch.log(torch.sigmoid(-h))
        losses.append(row["weight"] * float(entropy))
    found = trainer.compute_loss(trainer.model, batch_of(trainer, list(trainer.train_dataset)))
    assert found.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


SIDES = ("chosen_ids", "rejected_ids")


def figures(trainer: Any, model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """The loss and what is logged, in evaluation."""
    trainer.model.eval()
    loss = trainer.compute_loss(model, batch).item()
    logs: dict[str, float] = {}
    trainer.log(logs)
    return loss, {name.removeprefix("eval_"): value for name, value in logs.items() if name != "epoch"}


CHOSEN = torch.tensor([2.0, 1.0, 3.0, 0.5, 0.0, -1.0])
REJECTED = torch.tensor([1.0, 4.0, 0.0, 0.5, 0.0, 2.0])
P_CHOSEN = torch.tensor([0.9, 0.8, 0.5, 0.7, 0.2, 0.1])
"""Right; wrong; a label tie; two reward ties; right, as the label prefers the rejected one."""
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 1.0, 1.0, 0.5])


def by_hand() -> float:
    h = CHOSEN - REJECTED
    p = torch.sigmoid(h)
    return float((WEIGHTS * (-P_CHOSEN * p.log() - (1 - P_CHOSEN) * (1 - p).log())).mean())


def test_figures_of_a_reward_model_by_hand(tmp_path: Path) -> None:
    def model(**inputs: Any) -> Any:
        assert set(inputs) == {"input_ids", "attention_mask", "use_cache"}
        return SimpleNamespace(logits=torch.cat([CHOSEN, REJECTED]).unsqueeze(-1))

    def batch() -> dict[str, Any]:
        ids = torch.ones(12, 3, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": ids, "p_chosen": P_CHOSEN, "weight": WEIGHTS}

    trainer = soft_reward(tmp_path / "plain", drawn_rows(2))
    loss, logged = figures(trainer, model, batch())
    assert loss == pytest.approx(by_hand(), rel=1e-5)
    assert logged == {
        "accuracy": pytest.approx((1 + 0 + 0.5 + 0.5 + 1) / 5),
        "margin": pytest.approx((1 - 3 + 3 + 0 + 0 - 3) / 6),
        "mean_reward": pytest.approx((5.5 + 7.5) / 12),
        "num_tokens": 0,  # of training
    }
    centred = soft_reward(tmp_path / "centred", drawn_rows(2), center_rewards_coefficient=0.1)
    penalty = (1.0 * 3**2 + 0.5 * 5**2 + 2.0 * 3**2 + 1.0 * 1**2 + 0 + 0.5 * 1**2) / 6
    assert figures(centred, model, batch())[0] == pytest.approx(by_hand() + 0.1 * penalty, rel=1e-5)


def test_a_batch_of_label_ties_has_no_accuracy(tmp_path: Path) -> None:
    trainer = soft_reward(tmp_path, drawn_rows(2))
    ids = torch.ones(4, 3, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": ids, "p_chosen": torch.full((2,), 0.5), "weight": torch.ones(2)}
    _, logged = figures(trainer, lambda **_: SimpleNamespace(logits=torch.arange(4.0).unsqueeze(-1)), batch)
    assert sorted(logged) == ["margin", "mean_reward", "num_tokens"]


def test_figures_of_dpo_by_hand(tmp_path: Path) -> None:
    """With log-probabilities of the reference that are not 0, and the odds of the reward model's test."""
    ref_chosen, ref_rejected = torch.arange(6.0) - 9, torch.arange(6.0) / 2 - 7

    def model(**inputs: Any) -> Any:
        assert set(inputs) == {"input_ids", "attention_mask", "labels", "use_cache", "fused_lm_head"}
        assert inputs["labels"].tolist() == [[-100, 5, 6]] * 12  # of the response alone
        logps = torch.cat([CHOSEN / BETA + ref_chosen, REJECTED / BETA + ref_rejected])
        return SimpleNamespace(log_probs=torch.stack([0.25 * logps, 0.75 * logps], dim=1))

    batch = {
        "input_ids": torch.tensor([[4, 5, 6]] * 12),
        "attention_mask": torch.ones(12, 3, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1, 1]] * 12),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
        "p_chosen": P_CHOSEN,
        "weight": WEIGHTS,
    }
    loss, logged = figures(soft_dpo(tmp_path, drawn_rows(2)), model, batch)
    assert loss == pytest.approx(by_hand(), rel=1e-5)
    assert logged == {
        "rewards/chosen": pytest.approx(5.5 / 6, rel=1e-5),
        "rewards/rejected": pytest.approx(7.5 / 6, rel=1e-5),
        "rewards/margins": pytest.approx(-2 / 6, rel=1e-5),
        "rewards/accuracies": pytest.approx(0.6),
        "logps/chosen": pytest.approx(5.5 / 6 / BETA - 6.5, rel=1e-5),
        "logps/rejected": pytest.approx(7.5 / 6 / BETA - 5.75, rel=1e-5),
        "num_tokens": 0,
    }


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_rows_come_in_the_order_of_their_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, grouped: bool
) -> None:
    rows = drawn_rows(21)
    make = soft_reward if kind == "reward" else soft_dpo
    trainer = make(
        tmp_path,
        rows,
        group_by_length=grouped,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_train_epochs=2,
    )
    came: list[float] = []
    compute = trainer.compute_loss

    def noted(model: Any, inputs: dict[str, Any], **more: Any) -> Any:
        came.extend(inputs["weight"].tolist())
        return compute(model, inputs, **more)

    monkeypatch.setattr(trainer, "compute_loss", noted)
    trainer.train()
    sampler = BatchOrder(21, 8, 3, [row["length"] for row in rows] if grouped else None)
    expected = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        expected += [rows[place]["weight"] for place in sampler]
    assert came == pytest.approx(expected)
    assert came[:21] != came[21:]


def test_the_order_does_not_depend_on_how_a_step_is_divided(tmp_path: Path) -> None:
    rows = drawn_rows(50)
    orders = [
        list(
            soft_reward(
                tmp_path, rows, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size
            )._get_train_sampler()
        )
        for size in (1, 2, 8)
    ]
    assert orders[0] == orders[1] == orders[2]


def test_tokens_are_counted_in_training(tmp_path: Path) -> None:
    rows = drawn_rows(6)
    trainer = soft_reward(tmp_path, rows, per_device_train_batch_size=3, num_train_epochs=1, logging_steps=1)
    trainer.train()
    tokens = sum(len(row[side]) for row in scored_rows(rows) for side in SIDES)
    assert trainer.state.log_history[-2]["num_tokens"] == tokens


def test_sft_learns_from_labels_alone(tmp_path: Path) -> None:
    rows = []
    for row in drawn_rows(4):
        ids = row["prompt_ids"] + row["chosen_ids"]
        labels = [-100] * len(row["prompt_ids"]) + row["chosen_ids"]
        rows.append({"input_ids": ids, "labels": labels, "length": len(ids)})
    trainer = trained_by(
        PlainSftTrainer,
        SFTConfig,
        tmp_path,
        language_model(),
        rows,
        group_by_length=True,
        packing=False,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        logging_steps=1,
    )
    trainer.train()
    model = language_model()
    losses = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        losses += cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="none")[
            torch.tensor(row["labels"][1:]) != -100
        ].tolist()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_no_card_of_trls_own_is_written(tmp_path: Path) -> None:
    trainer = soft_reward(tmp_path, drawn_rows(2), max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()
    assert not list(tmp_path.rglob("README.md"))
