"""Sources of rewards by configuration: found and checked before anything heavy is loaded, then opened."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cai.errors import ConfigError
from cai.train.combination import check_combination
from cai.train.ppo.function_reward import FunctionReward, RewardFunction, find_function
from cai.train.ppo.judge_reward import FoundJudge, JudgeReward, find_judge
from cai.train.ppo.reward_config import RewardSourceConfig
from cai.train.ppo.rewards import MixedRewards, ModelReward, RewardSource
from cai.train.reward_checkpoints import RewardCheckpoints, find_reward_models


@dataclass(frozen=True)
class RewardPart:
    """One source, found and checked."""

    config: RewardSourceConfig
    found: RewardCheckpoints | FoundJudge | RewardFunction

    @property
    def name(self) -> str:
        """What metrics call it."""
        return self.config.called

    @property
    def members(self) -> int:
        """Reward models that it combines."""
        return len(self.found.members) if isinstance(self.found, RewardCheckpoints) else 0

    @property
    def hashes(self) -> Mapping[str, str]:
        """Content hashes of what its scores depend on."""
        if isinstance(self.found, FoundJudge):
            return {
                f"{self.name} constitution": self.found.constitution.sha256,
                f"{self.name} templates": self.found.prompts.sha256,
            }
        return {self.name: self.found.sha256}


@dataclass(frozen=True)
class RewardPlan:
    """One source or more, whose scores are added up by their weights; nothing heavy is loaded yet."""

    parts: tuple[RewardPart, ...]

    @property
    def hashes(self) -> Mapping[str, str]:
        """Content hashes: of each source by its name, of a judge as `NAME constitution` and `NAME templates`."""
        return {name: digest for part in self.parts for name, digest in part.hashes.items()}

    @property
    def only_model(self) -> RewardCheckpoints | None:
        """The reward model or ensemble, where that is the only source."""
        found = self.parts[0].found
        return found if len(self.parts) == 1 and isinstance(found, RewardCheckpoints) else None

    def open(
        self, *, seed: int = 0, device: str = "auto", dtype: str = "auto", batch_size: int | None = None
    ) -> MixedRewards:
        """Load the reward models, open the engines of judges.

        `seed` fixes the principles that judges draw. The others are for reward models; see `RewardCheckpoints.load`. A
        judge's engine has such options of its own.

        Raises:
            EngineError: weights cannot be loaded, a server cannot be reached.
            ConfigError: an option does not fit a judge's engine.
        """

        def opened(part: RewardPart) -> RewardSource:
            if isinstance(part.found, FoundJudge):
                return JudgeReward(part.name, part.found, seed=seed)
            if isinstance(part.found, RewardFunction):
                return FunctionReward(part.name, part.found)
            models = part.found.load(device=device, dtype=dtype, batch_size=batch_size)
            return ModelReward(part.name, part.found.name, models, part.config.ensemble_by, part.config.penalty)

        with ExitStack() as resources:
            sources = []
            for part in self.parts:
                sources.append(opened(part))
                resources.callback(sources[-1].close)
            return MixedRewards(
                sources,
                [part.config.weight for part in self.parts],
                variance_of=max(self.parts, key=lambda part: part.members).name,
                resources=resources.pop_all(),
            )


def find_rewards(configs: Sequence[RewardSourceConfig], *, trust_remote_code: bool = False) -> RewardPlan:
    """Find and check all sources. No weights are loaded and no server is asked; functions are imported.

    Raises:
        ConfigError: there is none, two have one name, a model is no reward model, an ensemble's option is for one
            model, a function cannot be used, a constitution does not serve a judge.
        CaiError: a model, a constitution or a template cannot be read.
    """
    if not configs:
        raise ConfigError("no reward is named: give a reward `model`, a `judge` or a `function`")
    twice = [name for name, number in Counter(config.called for config in configs).items() if number > 1]
    if twice:
        raise ConfigError(f"several rewards are called {', '.join(twice)}; give each a `name` of its own")
    return RewardPlan(tuple(RewardPart(config, _found(config, trust_remote_code)) for config in configs))


def _found(config: RewardSourceConfig, trust_remote_code: bool) -> RewardCheckpoints | FoundJudge | RewardFunction:
    if config.judge is not None:
        return find_judge(config.judge)
    if config.function is not None:
        return find_function(config.function)
    models = find_reward_models(str(config.model), trust_remote_code=trust_remote_code)
    check_combination(config.ensemble_by, len(models.members))
    return models
