"""Sources of rewards for tests of PPO, and what is scored by them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chain_samples import turns

from cai.records import Message
from cai.train.ppo.reward_config import RewardSourceConfig
from cai.train.ppo.reward_plan import find_rewards
from cai.train.ppo.rewards import MixedRewards, Scored

PROMPTS = [turns("What burns?"), turns("Hello.", "Hi.", "And ash?"), turns("Oak or elm?")]
REPLIES = ["Birch.", "It is what is left.", "Oak."]


def opened(*sources: dict[str, Any]) -> MixedRewards:
    plan = find_rewards([RewardSourceConfig.model_validate(source) for source in sources])
    return plan.open(device="cpu", dtype="float32", batch_size=2)


def scores(
    *sources: dict[str, Any],
    prompts: Sequence[tuple[Message, ...]] = tuple(PROMPTS),
    replies: Sequence[str] = tuple(REPLIES),
) -> Scored:
    rewards = opened(*sources)
    found = rewards.score(prompts, replies)
    rewards.close()
    return found


def function(folder: Path, body: str, name: str = "reward", head: str = "") -> str:
    """A file with a reward function of that body; returns its place."""
    file = folder / "rewards.py"
    file.write_text(f"{head}\ndef {name}(prompts, responses):\n    {body}\n", encoding="utf-8")
    return f"{file}:{name}"


def lengths(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"function": function(folder, "return [len(response) for response in responses]"), **settings}
