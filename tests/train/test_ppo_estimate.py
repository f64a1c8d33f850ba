"""The estimate of a PPO training: by hand, against the tensors of a real one, and against what torch counts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_jobs import job
from ppo_models import KINDS, PLAIN, actor_of, plan, texts_of, trainer, write_function, write_prompts
from processes import Cai
from reward_models import save_ensemble, save_reward_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from cai.engines.decoding import roomy_cache
from cai.train.estimate import EFFICIENCY, shape_of
from cai.train.ppo import estimate
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.estimate import PpoEstimate, PpoMemory, Sizes, estimate_ppo, estimated
from cai.train.ppo.math import CHUNK

GIB = 2**30


def config(**settings: Any) -> PpoConfig:
    return PpoConfig.model_validate({**PLAIN, **settings})


def llama(**changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 130,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }
    return LlamaConfig(**(sizes | changes))


def sizes(asked: PpoConfig, model: Any = None, **changes: Any) -> Sizes:
    given: dict[str, Any] = {
        "shape": shape_of(asked, model or llama(), scores=False),
        "value_rank": asked.lora_r,
        "rewards": (),
        "longest": 20,
        "mean": 10.0,
        "device": "cpu",
        "weight": 4,
        "operand": 4,
    }
    return Sizes(**(given | changes))


def told(asked: PpoConfig, model: Any = None, **changes: Any) -> PpoEstimate:
    return estimated(asked, sizes(asked, model, **changes), 1e9, 1e8)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Of all tensors, those that share their memory once."""
    return sum({one.data_ptr(): one.nbytes for one in tensors}.values())


# Memory, against the tensors of a real training


@pytest.mark.parametrize("kind", KINDS)
def test_weights_gradients_and_moments_are_those_of_a_real_training(kind: Any, tmp_path: Path, tiny: Path) -> None:
    ready = plan(tmp_path, tiny, kind, lora_r=5, total_episodes=8, batch_size=8)
    told = estimate_ppo(ready)
    at_work = trainer(ready, tmp_path)
    actor = at_work.actor
    everything = bytes_of(actor.parameters())
    trained = actor.trained()
    adapters = bytes_of(trained) if actor.adapts else 0
    assert told.parameters == sum(one.numel() for one in AutoModelForCausalLM.from_pretrained(tiny).parameters())
    assert told.trained == sum(one.numel() for one in trained)
    assert told.memory.adapters * GIB == pytest.approx(adapters)
    assert told.memory.weights * GIB == pytest.approx(everything - adapters)
    at_work.step()
    optimizer = at_work._optimizer.optimizer
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert told.memory.optimizer * GIB == pytest.approx(bytes_of(moments))
    assert told.memory.gradients * GIB == pytest.approx(bytes_of(trained))


@pytest.mark.parametrize("tied", [False, True])
def test_a_value_model_has_no_output_layer(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    n = sum(one.numel() for one in AutoModelForCausalLM.from_config(model).parameters())
    body = n if tied else n - 130 * 96
    whole = told(config(use_peft=False), model)
    assert whole.trained == n + body + 97
    assert whole.memory.weights * GIB == pytest.approx(4 * (2 * n + body + 97))
    # Mixed: copies of the matrices of policy and values, which are the look-up's where the output layer is tied.
    matrices = n - (0 if tied else 130 * 96) - (2 * 4 + 1) * 96
    mixed = told(config(use_peft=False), model, operand=2)
    assert (mixed.memory.weights - whole.memory.weights) * GIB == pytest.approx(2 * (2 * matrices - 130 * 96))
    # Values that are read off the policy have no model, and so no copies either.
    shared, halved = (told(config(use_peft=False, shared_trunk=True), model, operand=bytes_) for bytes_ in (4, 2))
    assert shared.memory.weights * GIB == pytest.approx(4 * (2 * n + 97))
    assert (halved.memory.weights - shared.memory.weights) * GIB == pytest.approx(2 * matrices)
    assert mixed.memory.gradients == whole.memory.gradients


def test_reward_models_are_counted_one_by_one_and_gold_too(tmp_path: Path, tiny: Path) -> None:
    save_ensemble(tmp_path / "three", 3)
    save_reward_model(tmp_path / "gold", intermediate_size=128)
    rewards = [{"model": str(tmp_path / "three")}, {"function": write_function(tmp_path / "rewards.py")}]
    told = estimate_ppo(plan(tmp_path / "run", tiny, rewards=rewards, gold={"model": str(tmp_path / "gold")}))
    member, gold = (
        sum(
            one.numel() for one in AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).parameters()
        )
        for folder in (tmp_path / "three" / "member-0" / "model", tmp_path / "gold")
    )
    assert gold > member
    assert told.memory.rewards * GIB == pytest.approx(4 * (3 * member + gold))


def test_the_values_adapter_has_the_rank_of_the_reward_model(tmp_path: Path, tiny: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=3, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    get_peft_model(base, lora).save_pretrained(tmp_path / "rm")
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "rm")
    ready = plan(tmp_path / "run", tiny, rewards=[{"model": str(tmp_path / "rm")}], lora_r=7)
    assert ready.values.checkpoint is not None
    assert estimate_ppo(ready).trained == sum(one.numel() for one in actor_of(ready).trained())


def test_activations_logits_and_cache_by_hand() -> None:
    asked = config(per_device_train_batch_size=3, rollout_batch_size=5, batch_size=8, response_length=12)
    memory = told(asked).memory
    cache = torch.zeros(5, 2, 32, 16).nbytes * 2 * 4  # rows, key heads, tokens, width; keys and values; layers
    assert memory.cache * GIB == pytest.approx(cache)
    logits = torch.zeros(3, 12, 130).nbytes
    assert 2 * 3 > 5
    assert memory.logits * GIB == pytest.approx(2 * logits + 3 * 2 * logits)
    double = told(config(per_device_train_batch_size=6, batch_size=8)).memory
    assert double.activations == pytest.approx(
        2 * told(config(per_device_train_batch_size=3, batch_size=8)).memory.activations
    )
    assert told(config(per_device_train_batch_size=100, batch_size=8)).memory.activations == pytest.approx(
        8 / 6 * double.activations
    )
    large = told(config(per_device_train_batch_size=1, rollout_batch_size=8), llama(vocab_size=100_000)).memory
    assert large.logits * GIB == pytest.approx(8 * 12 * 100_000 * 4 + 3 * 4 * CHUNK)
    less = told(config(gradient_checkpointing=True)).memory.activations
    assert less < told(config()).memory.activations / 2
    assert memory.total == pytest.approx(sum(getattr(memory, name) for name in PpoMemory.model_fields))


def test_the_cache_is_the_one_that_writing_makes(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    cache = roomy_cache(model.config, 9 + 12)
    model(input_ids=torch.full((4, 9), 40), past_key_values=cache, use_cache=True)
    seen = sum(room.nbytes for layer in cache.layers for room in (layer._key_room, layer._value_room))
    asked = config(batch_size=4, rollout_batch_size=4, response_length=12)
    assert told(asked, model.config, longest=9).memory.cache * GIB == pytest.approx(seen)


# Time


def counted(actor: Any, role: Any, width: int, length: int, *, learns: bool) -> int:
    """Operations of one role on 4 episodes of one length, as torch counts them."""
    texts = texts_of([[40] * width] * 4, [[50] * length] * 4)
    with torch.set_grad_enabled(learns), FlopCounterMode(display=False) as counter:
        read = actor(role, texts)
        if learns:
            sum(each.sum() for each in (read.logprobs, read.values) if each is not None).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(kind: Any, tmp_path: Path, tiny: Path) -> None:
    ready = plan(tmp_path, tiny, kind, batch_size=4, total_episodes=12, response_length=10, num_ppo_epochs=3)
    actor = actor_of(ready)
    reading = sum(counted(actor, role, 20, 10, learns=False) for role in ("reference", *actor.learners))
    updating = 3 * sum(counted(actor, role, 20, 10, learns=True) for role in actor.learners)
    shape = shape_of(ready.config, ready.start.config, scores=False)
    found = estimated(ready.config, sizes(ready.config, ready.start.config, shape=shape, mean=20.0), 1e9, 1e8)
    # The head of the values is counted at tokens of the prompts too, where it has no part.
    assert found.reading * 1e9 * EFFICIENCY == pytest.approx(reading, rel=1e-3)
    assert found.updating * 1e9 * EFFICIENCY == pytest.approx(updating, rel=0.05)
    written = counted(actor, "policy", 20, 10, learns=False)
    assert found.writing * 1e8 * EFFICIENCY == pytest.approx(written, rel=1e-3)
    assert found.seconds == pytest.approx(3 * (found.writing + found.reading + found.updating))
    assert (found.steps, found.episodes, found.tokens) == (3, 4, 40)


def test_what_a_step_takes_by_hand() -> None:
    # 8 episodes of 10 + 12 tokens. Matrices of a layer: 96·96 twice, 96·32 twice, 96·256 three times.
    body = 4 * (2 * 96 * 96 + 2 * 96 * 32 + 3 * 96 * 256)
    output = 130 * 96
    tokens, responses = 8 * 22, 8 * 12
    found = told(config(use_peft=False, num_ppo_epochs=2))
    forward = 2 * body * tokens
    assert found.writing == pytest.approx((forward + 2 * output * responses) / (1e8 * EFFICIENCY))
    assert found.reading == pytest.approx((3 * forward + 4 * output * responses) / (1e9 * EFFICIENCY))
    assert found.updating == pytest.approx(2 * (6 * forward + 6 * output * responses) / (1e9 * EFFICIENCY))
    reward = shape_of(config(), llama(num_labels=1), scores=True)
    judged = told(config(use_peft=False, num_ppo_epochs=2), rewards=(reward, reward))
    assert judged.reading - found.reading == pytest.approx(2 * 2 * (body + 96) * tokens / (1e9 * EFFICIENCY))
    assert (judged.writing, judged.updating) == (found.writing, found.updating)


def test_a_plan_is_estimated_by_rates_for_reading_and_for_writing(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def rate(*what: Any) -> float:
        asked.append(what)
        return 1e9 / len(asked)

    monkeypatch.setattr(estimate, "measured_flops", rate)
    prompts = tmp_path / "prompts.jsonl"
    ready = plan(tmp_path, tiny, prompts=[{"path": str(write_prompts(prompts, 6))}], rollout_batch_size=5)
    found = estimate_ppo(ready)
    lengths = [len(prompt.ids) for prompt in ready.prompts]
    given = sizes(ready.config, ready.start.config, longest=max(lengths), mean=sum(lengths) / 6)
    assert found == estimated(ready.config, given, 1e9, 5e8)
    mixed = estimate_ppo(plan(tmp_path / "mixed", tiny, bf16=True, rollout_batch_size=500))
    assert mixed.memory.weights == found.memory.weights / 2
    assert mixed.memory.adapters == found.memory.adapters
    assert asked == [
        ("cpu", torch.float32, 32), ("cpu", torch.float32, 32, 5),
        ("cpu", torch.bfloat16, 32), ("cpu", torch.bfloat16, 32, 8),
    ]  # fmt: skip


def test_the_command_prints_the_estimate_and_stops(tmp_path: Path, tiny: Path, cai: Cai, monkeypatch: Any) -> None:
    def read(*_: object, **__: object) -> None:
        pytest.fail("weights are read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    done = cai(*job(tmp_path, tiny, tmp_path / "run", "--estimate"))
    assert done.code == 0, done.err
    assert not (tmp_path / "run").exists()
    said = " ".join(done.out.split())
    assert "6 of 4 episodes, each at most 24 new tokens" in said
    for part in ("weights", "adapters", "reward models", "gradients", "optimizer", "activations", "logits", "cache"):
        assert f"{part} 0.00 GiB" in said
    assert "All of this is estimated: expect the truth within a factor of two" in said
    assert "Without judges, reward functions, looks of the monitor and loading." in said
