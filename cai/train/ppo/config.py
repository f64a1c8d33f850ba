"""Configuration of `cai train ppo`; names are those of TRL's PPO where it has the same thing."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cai.config import Positive, Share, StrictModel
from cai.data.prompts import PromptSource
from cai.train.config import Count, Rate, TrainConfig
from cai.train.monitor.config import MonitorConfig
from cai.train.ppo.reward_config import RewardSourceConfig
from cai.train.ppo.vllm_config import VllmRolloutConfig, vllm_problems

Discount = Annotated[float, Field(gt=0, le=1)]
Clip = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ProbeConfig(StrictModel):
    """Held-out prompts that the policy answers now and then, for the monitor to look at."""

    every: Positive = 10
    """Steps between two looks, each with a checkpoint; there is one before the first step and one after the last."""
    prompts: Count = 16
    """Held-out prompts; 0 leaves the monitor out."""
    samples: Positive = 4
    """Responses to each of them."""


class PpoConfig(TrainConfig):
    """Proximal policy optimisation (Schulman et al. 2017) against a reward, as in Bai et al. 2022, section 4.1.

    The defaults are those of Huang et al. 2024 (arXiv 2403.17031); those of Bai et al. 2022 are `kl_coef: 0.001`,
    `temperature: 1`.
    """

    prompts: tuple[PromptSource, ...] = (PromptSource(path="red-team"), PromptSource(path="helpful"))
    """Prompts that the policy answers, over and over."""
    rewards: tuple[RewardSourceConfig, ...] = ()
    """What a response is worth: reward models, a judge, functions; several are added up by their weights."""
    gold: RewardSourceConfig | None = None
    """A reward that the policy is *not* trained on, such as a reward model of the other half of the labels. The monitor
    watches whether it still agrees."""

    use_peft: bool = True
    """Train one LoRA adapter for the policy and one for the values on a single frozen base, which is the reference when
    both are off. Without it there are three models in memory: policy, reference and values."""
    shared_trunk: bool = False
    """Read the values off the policy's hidden states by a head, in place of an adapter or a model of their own. An
    update takes half as many passes, over fewer weights. The values' loss then moves the policy as well, and the values
    cannot begin as the reward model."""
    learning_rate: Rate = 3e-6
    adam_epsilon: Clip = 1e-5
    per_device_train_batch_size: Positive = 8
    """Episodes in one forward and backward pass; the result does not depend on it."""

    total_episodes: Positive = 20_000
    """Responses to learn from; whole batches are made of them."""
    batch_size: Positive = 64
    """Episodes of one step, over all processes."""
    num_mini_batches: Positive = 1
    """Parts of a batch, each of which is one optimiser step."""
    num_ppo_epochs: Positive = 4
    """Passes over a batch."""
    vllm: VllmRolloutConfig | None = None
    """A server that writes the responses. Default: this process does."""
    rollout_batch_size: Positive | None = None
    """Episodes that are written, or scored, at a time. Default: 16 on a CPU, 64 on a GPU."""
    response_length: Positive = 128
    """Longest response in tokens."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.7
    """Of the policy, when it writes and when its probabilities are computed."""
    missing_eos_penalty: Rate = 1.0
    """Taken off the score of a response that was cut because it did not end."""

    kl_coef: Rate = 0.05
    """β, the strength of the pull towards the reference."""
    kl_target: Clip | None = None
    """Adapt β so that the KL divergence from the reference comes to so many nats an episode (Ziegler et al. 2019)."""
    kl_horizon: Positive = 10_000
    """Episodes in which β is adapted."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Which estimate of the KL divergence is taken off the rewards; both are logged."""
    gamma: Discount = 1.0
    lam: Share = 0.95
    """λ of generalised advantage estimation (Schulman et al. 2016)."""
    cliprange: Clip = 0.2
    cliprange_value: Clip = 0.2
    vf_coef: Rate = 0.1
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation; Huang et al. 2024 found it harmful."""

    save_steps: Positive = 20
    probe: ProbeConfig = ProbeConfig()
    monitor: MonitorConfig = MonitorConfig()
    act_on_alerts: bool = True
    """Do what the monitor's alerts ask for: lower the learning rate, raise β, stop at the best checkpoint. Otherwise
    they are shown and written down alone."""
    max_failure_share: Share = 0.1
    """Training stops when a greater share of a batch could not be scored."""

    IDLE_KEYS: ClassVar[frozenset[str]] = TrainConfig.IDLE_KEYS | {"rollout_batch_size", "max_failure_share", "vllm"}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.lora_dropout:
            problems.append("lora_dropout must be 0: PPO compares a token's probabilities, and dropout moves them")
        if self.batch_size % self.num_mini_batches:
            problems.append(
                f"num_mini_batches ({self.num_mini_batches}) does not divide batch_size ({self.batch_size}); the "
                f"nearest that do: {_divisors_near(self.num_mini_batches, self.batch_size)}"
            )
        if self.total_episodes < self.batch_size:
            problems.append(
                f"total_episodes ({self.total_episodes}) are fewer than the batch_size of {self.batch_size}"
            )
        if self.vllm is not None:
            problems += vllm_problems(use_peft=self.use_peft, temperature=self.temperature)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def steps(self) -> int:
        """Batches of the whole training."""
        return self.total_episodes // self.batch_size

    def rows(self, device: str) -> int:
        """Episodes that are written, or scored, at a time on a device of this type."""
        return self.rollout_batch_size or (16 if device == "cpu" else 64)


def _divisors_near(number: int, whole: int) -> str:
    """The greatest divisor of `whole` below `number` and the least one above it."""
    divisors = [one for one in range(1, whole + 1) if whole % one == 0]
    below = [one for one in divisors if one < number][-1:]
    above = [one for one in divisors if one > number][:1]
    return " and ".join(map(str, below + above))
