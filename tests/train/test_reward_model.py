"""Reward models: what they give to conversations, how an ensemble's rewards become one, what is refused."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain_samples import turns
from peft import LoraConfig, TaskType, get_peft_model
from reward_models import change_json, plain_reward, save_ensemble, save_reward_model, written
from safetensors.torch import load_file, save_file
from tiny_model import byte_tokenizer, save_tiny_model
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from cai.errors import CaiError, ConfigError, EngineError
from cai.records import Message
from cai.train.combination import combine
from cai.train.reward_checkpoints import find_reward_models, load_reward_models
from cai.train.reward_model import RewardEnsemble

Conversation = tuple[Message, ...]


def conversations(number: int) -> list[Conversation]:
    """Of one or two exchanges and very different lengths."""
    draw = random.Random("conversations")
    return [
        turns(
            *(" ".join(draw.choices(["ash", "birch", "oak"], k=draw.randint(1, 5))) for _ in range(2 + place % 2 * 2))
        )
        for place in range(number)
    ]


def load(folder: Path, **settings: Any) -> RewardEnsemble:
    return load_reward_models(folder, **{"device": "cpu", "dtype": "float32", **settings})


def rewards(folder: Path, asked: Sequence[Conversation], **settings: Any) -> Any:
    return load(folder, **settings).score(asked).rewards


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("rewards") / "model")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_reward_is_the_heads_output_at_the_last_token_whatever_the_batch(model: Path, batch_size: int) -> None:
    asked = conversations(7)
    expected = [[plain_reward(model, messages)] for messages in asked]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(rewards(model, asked, batch_size=batch_size), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("declared", ["<|end|>", None])
def test_a_model_that_pads_with_its_end_token_is_read_at_the_end_of_the_turn(tmp_path: Path, declared: Any) -> None:
    folder = save_reward_model(tmp_path / "model", pad_token_id=1 if declared else None)
    change_json(folder / "tokenizer_config.json", pad_token=declared)
    asked = conversations(5)
    expected = [[plain_reward(folder, messages)] for messages in asked]
    np.testing.assert_allclose(rewards(folder, asked), expected, rtol=1e-5, atol=1e-5)


def test_no_token_to_pad_with_is_refused(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "model")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|pad|>", "<|nothing|>"))
    change_json(folder / "tokenizer_config.json", pad_token="<|end|>", unk_token=None)
    with pytest.raises(ConfigError, match="no token to pad with but its end token"):
        find_reward_models(folder)


def test_the_offset_of_the_config_is_taken_off(tmp_path: Path, model: Path) -> None:
    same = save_reward_model(tmp_path / "model", offset=2.5)
    asked = conversations(3)
    np.testing.assert_allclose(rewards(same, asked), rewards(model, asked) - 2.5, rtol=1e-6)
    assert find_reward_models(same).sha256 != find_reward_models(model).sha256


@pytest.mark.parametrize("offset", ["much", True, float("nan")])
def test_an_offset_that_is_no_finite_number_is_refused(tmp_path: Path, offset: Any) -> None:
    folder = save_reward_model(tmp_path / "model")
    change_json(folder / "config.json", reward_offset=offset)
    with pytest.raises(ConfigError, match=r"config.json: reward_offset is .*; it must be a finite number"):
        find_reward_models(folder)


def test_close_rewards_are_told_apart_in_bfloat16(model: Path) -> None:
    asked = conversations(8)
    found = torch.tensor(rewards(model, asked, dtype="bfloat16")[:, 0])
    assert (found.bfloat16().double() != found).all()
    np.testing.assert_allclose(found, [plain_reward(model, messages) for messages in asked], atol=0.5)


def test_the_members_of_an_ensemble_are_columns_in_their_order(tmp_path: Path) -> None:
    out = save_ensemble(tmp_path / "run", 3)
    asked = conversations(4)
    columns = [rewards(out / f"member-{number}" / "model", asked)[:, 0] for number in range(3)]
    np.testing.assert_allclose(rewards(out, asked), np.stack(columns, axis=1), rtol=1e-6)


def test_a_run_without_one_of_its_members_is_refused(tmp_path: Path) -> None:
    out = save_ensemble(tmp_path / "run", 2)
    (out / "member-1" / "model").rename(out / "elsewhere")
    with pytest.raises(EngineError, match=r"holds no trained model member-1/model; run its `cai train` command again"):
        find_reward_models(out)


def test_a_long_conversation_loses_its_oldest_turns_and_never_its_response(model: Path) -> None:
    long = turns("old question", "old answer", "question", "r" * 60)
    response_alone_too_long = turns("question", "r" * 128)
    assert (
        len(byte_tokenizer()(written(long))["input_ids"]) > 90 >= len(byte_tokenizer()(written(long[2:]))["input_ids"])
    )
    found = load(model, max_length=90).score([turns("a", "b"), response_alone_too_long, long])
    assert found.reasons == (None, "too_long", None)
    assert found.shortened == (False, False, True)
    assert np.isnan(found.rewards[1]).all()
    np.testing.assert_allclose(
        found.rewards[[0, 2], 0], [plain_reward(model, turns("a", "b")), plain_reward(model, long[2:])], rtol=1e-5
    )


def test_the_context_is_the_models_own_where_no_length_is_asked_for(model: Path) -> None:
    fits = turns("q", "r" * 122)
    assert len(byte_tokenizer()(written(fits))["input_ids"]) == 127
    found = load(model).score([fits, turns("q", "r" * 124)])
    assert found.reasons == (None, "too_long")


def test_no_conversation_gives_no_rewards(model: Path) -> None:
    assert load(model).score([]).rewards.shape == (0, 1)


def test_rewards_that_are_not_finite_are_marked_for_all_members(tmp_path: Path) -> None:
    out = save_ensemble(tmp_path / "run", 2)
    file = out / "member-1" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"][0, 0] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})
    found = load(out).score([turns("q", "r")])
    assert found.reasons == ("not_finite",)
    assert np.isnan(found.rewards).all()


def save_adapter(folder: Path, base: Path, task: TaskType = TaskType.SEQ_CLS, **settings: Any) -> Any:
    """Save a LoRA adapter with random weights and the tokenizer; returns the model with the adapter on it."""
    torch.manual_seed(5)
    kind = LlamaForSequenceClassification if task == TaskType.SEQ_CLS else LlamaForCausalLM
    start = kind.from_pretrained(base, **({"num_labels": 1} if task == TaskType.SEQ_CLS else {}))
    model = get_peft_model(start, LoraConfig(r=2, target_modules="all-linear", task_type=task, **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def test_an_adapter_of_a_reward_model_is_put_on_the_base_that_it_names(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    adapted = save_adapter(tmp_path / "adapter", base, modules_to_save=["score"])
    asked = conversations(4)
    expected = []
    for messages in asked:
        ids = byte_tokenizer()(written(messages), return_tensors="pt")["input_ids"]
        hidden = adapted.base_model.model.model(input_ids=ids).last_hidden_state[:, -1]
        expected.append(adapted.base_model.model.score(hidden)[0].tolist())
    np.testing.assert_allclose(rewards(tmp_path / "adapter", asked), expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "adapter" / "config.json").write_text((base / "config.json").read_text())
    change_json(tmp_path / "adapter" / "config.json", id2label={"0": "REWARD"}, reward_offset=-1.0)
    np.testing.assert_allclose(rewards(tmp_path / "adapter", asked), np.array(expected) + 1, rtol=1e-4, atol=1e-4)


def adapter_of_a_language_model(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "adapter", save_tiny_model(tmp_path / "base"), TaskType.CAUSAL_LM)
    return tmp_path / "adapter"


def adapter_with_two_labels(tmp_path: Path) -> Path:
    base = save_tiny_model(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, modules_to_save=["score"])
    (tmp_path / "adapter" / "config.json").write_text((base / "config.json").read_text())
    return tmp_path / "adapter"


def adapter_without_a_head(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "adapter", save_tiny_model(tmp_path / "base"), modules_to_save=["score"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {name: weight for name, weight in load_file(file).items() if "score" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    return tmp_path / "adapter"


def without_a_head(tmp_path: Path) -> Path:
    folder = save_reward_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def padded_beyond_its_vocabulary(tmp_path: Path) -> Path:
    folder = save_reward_model(tmp_path / "model", vocab_size=250, pad_token_id=0)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|further|>"})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (save_tiny_model, "is no reward model: its config.json names LlamaForCausalLM with 2 labels"),
        (
            lambda path: save_reward_model(path / "model", labels=3),
            "names LlamaForSequenceClassification with 3 labels, where",
        ),
        (
            lambda path: save_reward_model(path / "model", chat=False),
            r"has no chat template, .* put the one that it was trained with into .*model as chat_template.jinja",
        ),
        (adapter_of_a_language_model, "is no reward model: its adapter is for the task CAUSAL_LM, not SEQ_CLS"),
        (adapter_with_two_labels, "is no reward model: it has 2 outputs, not one"),
        (adapter_without_a_head, "has no trained weights for score.weight, so its rewards would be random"),
        (without_a_head, "has no trained weights for score.weight, so its rewards would be random"),
        (padded_beyond_its_vocabulary, r"the token to pad with, <\|further\|>, has no embedding"),
        (lambda path: path / "nowhere", "there is no model directory .*nowhere"),
    ],
)
def test_what_is_no_sound_reward_model_is_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(CaiError, match=message):
        load(make(tmp_path))


def test_a_length_beyond_the_context_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_length 129 is more than the context of .*, which is 128 tokens"):
        find_reward_models(model, max_length=129)
    assert find_reward_models(model, max_length=128).chat.max_len == 128


def test_combinations_by_hand() -> None:
    members = np.array([[1.0, 3.0], [2.0, 2.0], [0.0, -4.0], [np.nan, np.nan]])
    np.testing.assert_allclose(combine(members, "mean"), [2, 2, -2, np.nan])
    np.testing.assert_allclose(combine(members, "worst"), [1, 2, -4, np.nan])
    # Variances, divided by two members: 1, 0, 4.
    np.testing.assert_allclose(combine(members, "uncertainty", 0.5), [1.5, 2, -4, np.nan])
    np.testing.assert_allclose(combine(members, "uncertainty"), [1.9, 2, -2.4, np.nan])


@pytest.mark.parametrize("how", ["worst", "uncertainty"])
def test_one_model_has_nothing_to_combine(how: Any) -> None:
    np.testing.assert_array_equal(combine(np.array([[1.0], [2.0]]), "mean"), [1, 2])
    with pytest.raises(ConfigError, match=f"ensemble_by: {how} is for an ensemble, and this is one reward model"):
        combine(np.array([[1.0], [2.0]]), how)
