"""What a PPO training will do, and what is refused before anything heavy is loaded."""

import json
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_models import plan, write_function, write_prompts
from pydantic import ValidationError
from reward_models import change_json, save_reward_model
from tiny_model import byte_tokenizer, save_tiny_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from cai.errors import ConfigError, EngineError
from cai.train.lifecycle import versions
from cai.train.models import stop_tokens
from cai.train.ppo.config import PpoConfig


@pytest.fixture(autouse=True)
def nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may load weights."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded")

    for kind in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel):
        monkeypatch.setattr(kind, "from_pretrained", load)


def test_ppo_loads_none_of_the_libraries_that_it_can_do_without() -> None:
    """They would take 100 MiB for as long as it trains."""
    heavy = ("trl", "datasets", "pandas", "pyarrow", "openai", "matplotlib")
    code = (
        f"import sys, cai.train.ppo.run, cai.train.ppo.plan; print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_versions_of_a_run_do_without_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == "trl":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    assert versions()["trl"] == installed("trl")
    monkeypatch.setattr(metadata, "version", version)
    assert versions().keys() == {"cai", "torch", "transformers", "peft", "accelerate"}
    assert versions()["torch"] == torch.__version__


def test_prompts_are_split_by_the_seed_and_counted(tmp_path: Path, tiny: Path) -> None:
    found = plan(tmp_path, tiny, probe={"prompts": 6}, seed=3)
    assert len(found.held) == 6
    assert len(found.prompts) == 14
    assert not {prompt.id for prompt in found.held} & {prompt.id for prompt in found.prompts}
    assert found.row_counts == {"train": 14, "held": 6, "rejected_rows": 0}
    again, other = (plan(tmp_path, tiny, probe={"prompts": 6}, seed=seed) for seed in (3, 4))
    assert again.held == found.held
    assert other.held != found.held
    tokenizer = byte_tokenizer()
    for prompt in found.prompts:
        written = f"<|user|>{prompt.messages[0].content}<|end|><|assistant|>"
        assert list(prompt.ids) == tokenizer(written)["input_ids"]


def test_several_sources_are_one_set_and_each_is_hashed(tmp_path: Path, tiny: Path) -> None:
    sources = [{"path": str(write_prompts(tmp_path / f"{number}.jsonl", number))} for number in (4, 7)]
    found = plan(tmp_path / "run", tiny, prompts=sources)
    assert len(found.prompts) == 7  # the first four are in both
    assert found.row_counts["rejected_rows"] == 4
    before = found.hashes
    assert {"model", "chat template", "prompts 1", "prompts 2", "reward reward"} == before.keys()
    write_prompts(tmp_path / "7.jsonl", 8)
    changed = plan(tmp_path / "run", tiny, prompts=sources)
    assert [name for name in before if before[name] != changed.hashes[name]] == ["prompts 2"]
    assert changed.default_out() != found.default_out()
    given = plan(tmp_path / "run", tiny, prompts=sources, rollout_batch_size=3, save_steps=7)
    assert given.default_out() == changed.default_out()


def talk(length: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "o" * 30},
        {"role": "assistant", "content": "r" * 30},
        {"role": "user", "content": "q" * length},
    ]


def test_prompts_that_leave_no_room_are_shortened_or_left_out_and_counted(tmp_path: Path, tiny: Path) -> None:
    """A conversation of three turns has six marks and an opening: 7 tokens more than its letters, and one turn 3."""
    path = tmp_path / "talks.jsonl"
    lengths = [3, 4, 67, 68]  # 70 and 71 tokens; alone 70 and 71
    path.write_text("".join(json.dumps({"messages": talk(length)}) + "\n" for length in lengths))
    found = plan(tmp_path / "run", tiny, prompts=[{"path": str(path)}], max_length=80, response_length=10)
    assert sorted(len(prompt.ids) for prompt in found.prompts) == [7, 70, 70]
    assert found.counts == {"shortened": 2, "too_long": 1}
    assert found.row_counts["too_long"] == 1
    with pytest.raises(
        ConfigError, match=r"0 prompts can be used, 4 are too_long, and the monitor holds 0 back; .* greater max_length"
    ):
        plan(tmp_path / "run", tiny, prompts=[{"path": str(path)}], max_length=15, response_length=10)


def test_rows_that_are_no_prompts_are_rejected_with_their_place(tmp_path: Path, tiny: Path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", 3)
    path.write_text(path.read_text() + '{"prompt": ""}\n')
    found = plan(tmp_path / "run", tiny, prompts=[{"path": str(path)}])
    assert len(found.prompts) == 3
    assert found.row_counts["rejected_rows"] == 1


def test_what_a_user_should_know_is_noted(tmp_path: Path, tiny: Path) -> None:
    no_gold = "no gold reward, so the monitor cannot see whether the reward is being gamed; --gold names one"
    values = "the values start at 0: the reward is not a single reward model"
    assert plan(tmp_path, tiny).notes == (values,)
    assert plan(tmp_path, tiny, probe={"prompts": 2}).notes == (values, no_gold)
    gold = {"model": str(save_reward_model(tmp_path / "gold"))}
    found = plan(tmp_path, tiny, probe={"prompts": 2}, gold=gold)
    assert found.notes == (values,)
    assert "gold gold" in found.hashes


def pads_with_its_end(tmp_path: Path) -> Path:
    model = save_tiny_model(tmp_path / "model")
    change_json(model / "tokenizer_config.json", pad_token="<|end|>")
    return model


def test_padding_is_never_the_end_token(tmp_path: Path) -> None:
    found = plan(tmp_path / "run", pads_with_its_end(tmp_path))
    tokenizer = found.start.tokenizer
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id not in stop_tokens(found.start.weights.base, tokenizer)


def without_padding(tmp_path: Path) -> Path:
    model = pads_with_its_end(tmp_path)
    text = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(text.replace("<|pad|>", "<|nothing|>"))
    change_json(model / "tokenizer_config.json", unk_token=None)
    return model


def stops_at_nothing_that_is_written(tmp_path: Path) -> Path:
    model = save_tiny_model(tmp_path / "model")
    change_json(model / "tokenizer_config.json", eos_token="<|system|>")
    change_json(model / "generation_config.json", eos_token_id=2)
    return model


@pytest.mark.parametrize(
    ("make", "settings", "kind", "message"),
    [
        (None, {"rewards": []}, ConfigError, "PPO needs a reward; name a reward model with --reward"),
        (None, {"rewards": [{"model": "nowhere/at/all"}]}, EngineError, "there is no model directory nowhere/at/all"),
        (None, {"gold": {"model": "nowhere/at/all"}}, EngineError, "there is no model directory nowhere/at/all"),
        (None, {"report_to": ["slate"]}, ConfigError, "report_to: slate is not installed; pip install slate"),
        (None, {"response_length": 512}, ConfigError, "response_length 512 leaves no room .* in max_length 512"),
        (
            None,
            {"response_length": 100, "max_length": 100},
            ConfigError,
            "response_length 100 leaves no room for a prompt in max_length 100",
        ),
        (None, {"max_length": 513}, ConfigError, r"max_length 513 is more than the context of .*, which is 512 tokens"),
        (
            None,
            {"probe": {"prompts": 20}},
            ConfigError,
            "20 prompts can be used, and the monitor holds 20 back; give more prompts",
        ),
        (lambda path: save_tiny_model(path / "model", chat=False), {}, ConfigError, "has no chat template"),
        (without_padding, {}, ConfigError, "no token to pad with but its end token"),
        (stops_at_nothing_that_is_written, {}, ConfigError, "the trained model would never stop"),
        (lambda path: path / "nowhere", {}, EngineError, "there is no model directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_anything_heavy(
    tmp_path: Path, tiny: Path, make: Any, settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        plan(tmp_path / "run", tiny if make is None else make(tmp_path), **settings)


def test_all_is_well_at_the_limits(tmp_path: Path, tiny: Path) -> None:
    assert len(plan(tmp_path, tiny, probe={"prompts": 19}).prompts) == 1
    assert plan(tmp_path, tiny, response_length=480).prompts


# The configuration.


def nearest(number: int, whole: int) -> str:
    """By trying all numbers outwards."""
    below = next((one for one in range(number - 1, 0, -1) if not whole % one), None)
    above = next((one for one in range(number + 1, whole + 1) if not whole % one), None)
    return " and ".join(str(one) for one in (below, above) if one is not None)


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        (
            {"lora_dropout": 0.1},
            ["lora_dropout must be 0: PPO compares a token's probabilities, and dropout moves them"],
        ),
        (
            {"batch_size": 64, "num_mini_batches": 5},
            ["num_mini_batches (5) does not divide batch_size (64); the nearest that do: 4 and 8"],
        ),
        (
            {"batch_size": 12, "num_mini_batches": 7},
            ["num_mini_batches (7) does not divide batch_size (12); the nearest that do: 6 and 12"],
        ),
        (
            {"batch_size": 16, "num_mini_batches": 20},
            ["num_mini_batches (20) does not divide batch_size (16); the nearest that do: 16"],
        ),
        ({"batch_size": 64, "total_episodes": 63}, ["total_episodes (63) are fewer than the batch_size of 64"]),
        (
            {"batch_size": 7, "num_mini_batches": 2, "total_episodes": 5, "lora_dropout": 0.5},
            [
                "lora_dropout must be 0: PPO compares a token's probabilities, and dropout moves them",
                "num_mini_batches (2) does not divide batch_size (7); the nearest that do: 1 and 7",
                "total_episodes (5) are fewer than the batch_size of 7",
            ],
        ),
    ],
)
def test_all_problems_of_a_configuration_are_told_at_once(settings: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        PpoConfig.model_validate(settings)
    (found,) = error.value.errors()
    assert found["msg"] == "Value error, " + "; ".join(problems)


def test_the_nearest_divisors_are_those_of_a_search() -> None:
    draw = random.Random(0)
    for _ in range(200):
        whole, number = draw.randint(1, 96), draw.randint(1, 120)
        if whole % number == 0:
            PpoConfig(batch_size=whole, num_mini_batches=number)
            continue
        with pytest.raises(ValidationError, match=rf"the nearest that do: {nearest(number, whole)} "):
            PpoConfig(batch_size=whole, num_mini_batches=number)


@pytest.mark.parametrize(
    "settings",
    [
        *({name: 0} for name in ("temperature", "cliprange", "cliprange_value", "gamma", "kl_target", "batch_size")),
        {"temperature": float("inf")},
        {"gamma": 1.01},
        {"lam": 1.01},
        {"kl_coef": -0.1},
        {"kl_estimator": "k2"},
        {"max_failure_share": 1.01},
        {"response_length": 0},
        {"top_p": 0.9},
    ],
)
def test_values_out_of_range_and_unknown_keys_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        PpoConfig.model_validate(settings)


def test_whole_batches_are_made_of_the_episodes() -> None:
    assert PpoConfig(total_episodes=199, batch_size=50).steps == 3
    assert PpoConfig(lam=1, gamma=1).lam == 1


def test_a_run_is_found_again_with_other_servers_of_judges_and_another_tolerance(tmp_path: Path, tiny: Path) -> None:
    def found(port: int, share: float = 0.1, **engine: Any) -> Path:
        at = {"engine": "openai", "model": "judge", "base_url": [f"http://localhost:{port}/v1"], **engine}
        judge = {"judge": {"engine": at}}
        rewards = [{"function": write_function(tmp_path / "rewards.py")}, judge]
        return plan(tmp_path, tiny, rewards=rewards, gold=judge, max_failure_share=share).default_out()

    assert found(8001, share=0.5, timeout=5.0) == found(8000)
    assert found(8000, model="another") != found(8000)
