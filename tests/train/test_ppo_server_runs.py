"""A trainer whose responses a server writes: it has the policy as it is, at every step and every look."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ppo_models import length_of, plan, trainer
from vllm_stub import VllmStub, written

from cai.train.ppo.plan import PpoPlan
from cai.train.ppo.trainer import PpoTrainer
from cai.train.ppo.watch import probe


@pytest.fixture
def stub() -> Iterator[VllmStub]:
    with VllmStub(None) as found:
        found.context = 512
        yield found


def served(plan: PpoPlan, folder: Path, stub: VllmStub) -> PpoTrainer:
    """A trainer whose server knows the policy as it is at any time, as one would that loads its adapter."""
    made = trainer(plan, folder, length_of)
    stub.actor = made.actor
    return made


def test_the_server_gets_the_policy_before_it_writes_for_a_step_or_a_look(
    tmp_path: Path, tiny: Path, stub: VllmStub
) -> None:
    probed = {"prompts": 4, "samples": 1}
    planned = plan(tmp_path, tiny, vllm={"base_url": stub.url}, response_length=8, learning_rate=0.01, probe=probed)
    made = served(planned, tmp_path, stub)
    made.sync()
    seen = probe(made, None)
    first = made.step()
    made.sync()
    probe(made, None)
    made.step()
    made.close()
    steps = [name.rsplit("-", 1)[0] for kind, name in stub.lora if kind == "load"]
    assert steps == ["policy-0", "policy-1"]  # once for each state of the weights, whoever asks first
    before, after = stub.weights
    assert any(not before[name].equal(after[name]) for name in before)
    asked = {tuple(prompt.ids) for prompt in planned.held}
    answers = {planned.start.tokenizer.decode(written(list(ids))[:-1]).strip() for ids in asked}
    assert {sample.response for sample in seen} == answers
    assert all(sample.ended for sample in seen)
    assert first["eos_rate"] == 1
    assert first["length"] == 3
    assert first["kl"] == 0


def test_a_training_of_all_weights_is_not_for_a_server(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ValueError, match="is given the policy as a LoRA adapter"):
        plan(tmp_path, tiny, "full", vllm={"base_url": "http://127.0.0.1:1/v1"})
