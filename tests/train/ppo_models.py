"""Small PPO trainings: plans and trainers by settings, rewards of one's own, policies with something to tell apart."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from reward_models import change_json
from tiny_model import byte_tokenizer, save_tiny_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from cai.records import Message
from cai.train.ppo.actor import ActorCritic, Role, Texts, TokenStatistics
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.loading import load_actor_critic
from cai.train.ppo.plan import PpoPlan, plan_ppo
from cai.train.ppo.rewards import Scored
from cai.train.ppo.rollout import padded, read_responses
from cai.train.ppo.trainer import PpoTrainer

Kind = Literal["lora", "full", "lora, shared", "full, shared"]
"""What is trained, and whether the values are read off the policy."""
KINDS: tuple[Kind, ...] = ("lora", "full", "lora, shared", "full, shared")

PLAIN: Mapping[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": ["none"],
    "probe": {"prompts": 0},
    "batch_size": 8,
    "total_episodes": 32,
    "response_length": 12,
    "temperature": 1.0,
    "learning_rate": 1e-2,
}
"""What these trainings have in common."""
OFTEN = tuple(range(6, 70))
"""Tokens that are made to end a response as well: a quarter of the vocabulary, so that some end and some are cut."""


def write_prompts(path: Path, number: int = 20) -> Path:
    """Questions of very different lengths."""
    rows = ({"prompt": f"question {place} {'x' * (place * 7 % 23)}"} for place in range(number))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_function(path: Path) -> str:
    path.write_text("def reward(prompts, responses):\n    return [float(len(text)) for text in responses]\n")
    return f"{path}:reward"


def config(folder: Path, model: Path, kind: Kind = "lora", **settings: Any) -> PpoConfig:
    """With prompts and a reward function in `folder`, where the settings have no others."""
    folder.mkdir(exist_ok=True)
    given = {
        **PLAIN,
        "model": str(model),
        "use_peft": kind.startswith("lora"),
        "shared_trunk": kind.endswith("shared"),
        **settings,
    }
    if "prompts" not in given:
        given["prompts"] = [{"path": str(write_prompts(folder / "prompts.jsonl"))}]
    if "rewards" not in given:
        given["rewards"] = [{"function": write_function(folder / "rewards.py")}]
    return PpoConfig.model_validate(given)


def plan(folder: Path, model: Path, kind: Kind = "lora", **settings: Any) -> PpoPlan:
    return plan_ppo(config(folder, model, kind, **settings))


def ends_often(folder: Path, **settings: Any) -> Path:
    """A model that stops at any token of `OFTEN`, as its generation_config.json says."""
    model = save_tiny_model(folder, **settings)
    change_json(model / "generation_config.json", eos_token_id=[1, *OFTEN])
    return model


def save_gpt2(folder: Path, dropout: float = 0.1) -> Path:
    """A model whose output depends on absolute positions, and which has dropout in all places."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    GPT2LMHeadModel(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def actor_of(plan: PpoPlan, *, stirred: bool = False) -> ActorCritic:
    """All roles; `stirred` ones are no longer what they began as, each in its own way."""
    torch.manual_seed(1)
    actor = load_actor_critic(plan.start, plan.config, plan.values)
    if stirred:
        stir(actor)
    return actor


def stir(actor: ActorCritic) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in actor.trained():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def some_texts(number: int = 8, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts and responses of very different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(length: int) -> list[int]:
        return torch.randint(6, 262, (length,), generator=generator).tolist()

    return [drawn(2 + place * 5 % 17) for place in range(number)], [
        drawn(1 + place * 3 % 10) for place in range(number)
    ]


def texts_of(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Texts:
    return padded(prompts, responses, 0, torch.device("cpu"))


def read(actor: ActorCritic, role: Role, texts: Texts, temperature: float = 1.0, batch_size: int = 8) -> Tensor:
    """What a role makes of each token of responses, (n, T), 0 where there is none, wherever values are read off."""
    values = role == "value"
    found = read_responses(actor, reader(actor, role), texts, temperature=temperature, batch_size=batch_size)
    return found[-1 if values else 0]


def ask(actor: ActorCritic, role: Role, texts: Texts, temperature: float = 1.0) -> Tensor:
    """The same with gradients, of padding too."""
    found: TokenStatistics = actor(reader(actor, role), texts, temperature)
    tensor = found.values if role == "value" else found.logprobs
    assert tensor is not None
    return tensor


def reader(actor: ActorCritic, role: Role) -> Role:
    """The role in whose pass a role is read."""
    return "policy" if role == "value" and actor.shared else role


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


class GivenReward:
    """A reward source that asks a function of the test's."""

    name = "given"
    details: Mapping[str, Any] = {}

    def __init__(self, score: Callable[[int, str], float | str]) -> None:
        """`score` takes place and text of a response, and gives its score or the reason why there is none."""
        self._score = score

    def score(self, prompts: Sequence[tuple[Message, ...]], responses: Sequence[str]) -> Scored:
        found = [self._score(place, text) for place, text in enumerate(responses)]
        assert len(prompts) == len(found)
        scores = np.array([np.nan if isinstance(one, str) else one for one in found])
        return Scored(scores, tuple(one if isinstance(one, str) else None for one in found), {"given": scores})

    def close(self) -> None:
        """Nothing to free."""


def length_of(_: int, text: str) -> float:
    return len(text) / 10


def trainer(plan: PpoPlan, folder: Path, score: Callable[[int, str], float | str] = length_of) -> PpoTrainer:
    """With checkpoints below `folder`; new weights are the same each time."""
    torch.manual_seed(3)
    return PpoTrainer(plan, GivenReward(score), folder / "checkpoints")
