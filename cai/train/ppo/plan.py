"""What a PPO training will do: everything read and checked before any weights are loaded."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import ClassVar

from accelerate.tracking import get_available_trackers

from cai.data.prompts import read_prompts, scan_prompts
from cai.data.rows import Reject, SeenIds
from cai.errors import ConfigError
from cai.records import Message
from cai.rundir import run_path
from cai.train.encoding import Encoding
from cai.train.models import Start, find_start
from cai.train.ppo.config import PpoConfig
from cai.train.ppo.loading import ValueStart, find_value_start
from cai.train.ppo.reward_plan import RewardPlan, find_rewards


@dataclass(frozen=True)
class EncodedPrompt:
    """One conversation for the policy to answer."""

    id: str
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    """Its tokens, with the opening of the answer."""


@dataclass(frozen=True)
class PpoPlan:
    """A PPO training whose inputs are sound."""

    config: PpoConfig
    start: Start
    prompts: tuple[EncodedPrompt, ...]
    """To learn from."""
    held: tuple[EncodedPrompt, ...]
    """For the monitor alone."""
    rewards: RewardPlan
    gold: RewardPlan | None
    values: ValueStart
    inputs: Mapping[str, str]
    """Content hashes of the prompts."""
    counts: Mapping[str, int]
    """Prompts that were shortened to fit, and those that were left out, by reason."""
    rejects: tuple[Reject, ...]
    notes: tuple[str, ...]
    """What the user should know before it starts."""

    kind: ClassVar[str] = "ppo"

    @property
    def row_counts(self) -> Mapping[str, int]:
        """Prompts that are used, and those that are not, by reason."""
        return {
            "train": len(self.prompts),
            "held": len(self.held),
            "rejected_rows": len(self.rejects),
            **self.counts,
        }

    @property
    def hashes(self) -> Mapping[str, str]:
        """Content hash of each input."""
        template = sha256(self.start.tokenizer.chat_template.encode()).hexdigest()
        return {"model": self.start.sha256, "chat template": template, **self.inputs, **self.reward_hashes}

    @property
    def reward_hashes(self) -> Mapping[str, str]:
        """Content hashes of `reward NAME` and `gold NAME`."""
        sources = (("reward", self.rewards), ("gold", self.gold))
        return {
            f"{role} {name}": value for role, plan in sources if plan is not None for name, value in plan.hashes.items()
        }

    def default_out(self) -> Path:
        """`runs/train-ppo-HASH`: the same command finds its run again, another configuration gets its own."""
        return run_path("train-ppo", self.config, self.hashes)


def plan_ppo(config: PpoConfig) -> PpoPlan:
    """Read and check all that `cai train ppo` needs.

    Raises:
        ConfigError, DataError, EngineError: an input is wrong; nothing was loaded or written.
    """
    if not config.rewards:
        raise ConfigError("PPO needs a reward; name a reward model with --reward, or a function with --reward-function")
    check_trackers(config)
    rewards = find_rewards(config.rewards, trust_remote_code=config.trust_remote_code)
    gold = None
    if config.gold is not None:
        gold = find_rewards([config.gold], trust_remote_code=config.trust_remote_code)
    start = find_start(config, generates=True)
    if config.response_length >= start.max_length:
        raise ConfigError(
            f"response_length {config.response_length} leaves no room for a prompt in max_length {start.max_length}"
        )
    rejects: list[Reject] = []
    seen = SeenIds()
    encoding = Encoding(start.chat, start.max_length - config.response_length)
    found: list[EncodedPrompt] = []
    inputs = {}
    for number, source in enumerate(config.prompts, 1):
        inputs[f"prompts {number}"] = scan_prompts(source, kind="red_team").sha256
        for prompt in read_prompts(source, kind="red_team", on_reject=rejects.append, seen=seen):
            ids = encoding.prompt(prompt.messages)
            if ids is not None:
                found.append(EncodedPrompt(prompt.id, prompt.messages, tuple(ids)))
    Random(config.seed).shuffle(found)
    held, prompts = found[: config.probe.prompts], found[config.probe.prompts :]
    counts = Counter({name: number for name, number in encoding.counts.items() if number})
    if not prompts:
        left_out = "".join(f", {number} are {name}" for name, number in counts.items() if name != "shortened")
        raise ConfigError(
            f"{len(found)} prompts can be used{left_out}, and the monitor holds {config.probe.prompts} back; give more "
            "prompts, a greater max_length, or a lower probe.prompts"
        )
    values = find_value_start(start, config, rewards.only_model, config.rewards[0].weight)
    notes = [values.note]
    if config.gold is None and config.probe.prompts:
        notes.append("no gold reward, so the monitor cannot see whether the reward is being gamed; --gold names one")
    return PpoPlan(
        config=config,
        start=start,
        prompts=tuple(prompts),
        held=tuple(held),
        rewards=rewards,
        gold=gold,
        values=values,
        inputs=inputs,
        counts=counts,
        rejects=tuple(rejects),
        notes=tuple(notes),
    )


def check_trackers(config: PpoConfig) -> None:
    """Check that all trackers are installed.

    Raises:
        ConfigError: one is not.
    """
    known = {name.value for name in get_available_trackers()}
    for name in config.report_to:
        if name != "none" and name not in known:
            raise ConfigError(f"report_to: {name} is not installed; pip install {name}, or --report-to none")
