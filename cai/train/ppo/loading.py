"""Loading policy, reference and values; the values begin as the reward model where that can be."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, TaskType, load_peft_weights, set_peft_model_state_dict
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from cai.engines.transformers import first_sentence
from cai.engines.weights import Weights
from cai.errors import EngineError
from cai.train.models import Start, load_policy, lora_config, weights_sha256, with_adapter
from cai.train.ppo.actor import VALUE_ADAPTER, ActorCritic, ValueHead
from cai.train.ppo.config import PpoConfig
from cai.train.precision import weights_dtype
from cai.train.reward_checkpoints import RewardCheckpoint, RewardCheckpoints

_HEAD = "score.weight"
"""End of the name of a reward model's head among its weights."""


@dataclass(frozen=True)
class ValueStart:
    """What the values begin as: nothing (0 everywhere), or a reward model (Huang et al. 2024, detail 7)."""

    checkpoint: RewardCheckpoint | None
    factor: float
    """What the reward model's rewards are multiplied by."""
    note: str
    """For the user."""


def find_value_start(start: Start, config: PpoConfig, rewards: RewardCheckpoints | None, factor: float) -> ValueStart:
    """See whether the values can begin as the reward model; `rewards` is None where the reward is not one model."""

    def nothing(reason: str) -> ValueStart:
        return ValueStart(None, 1.0, f"the values start at 0: {reason}")

    if config.shared_trunk:
        return nothing("they are read off the policy")
    if rewards is None:
        return nothing("the reward is not a single reward model")
    checkpoint = rewards.members[0]
    if len(rewards.members) > 1:
        return nothing("the reward is an ensemble")
    adapter = checkpoint.weights.adapter
    if rewards.chat.tokenizer.get_vocab() != start.tokenizer.get_vocab():
        return nothing(f"{rewards.name} has another tokenizer")
    if config.use_peft:
        if adapter is None:
            return nothing(f"{rewards.name} is a whole model and no adapter of {start.weights.base}")
        if start.weights.adapter is not None:
            return ValueStart(None, 1.0, "what the values start as is known once the start's adapter is merged")
        if not _same_base(checkpoint.weights, start.weights, config):
            return nothing(f"{rewards.name} is an adapter of other weights than the policy's")
    else:
        theirs = AutoConfig.from_pretrained(checkpoint.weights.base, trust_remote_code=config.trust_remote_code)
        if any(getattr(theirs, name, None) != getattr(start.config, name, None) for name in _SIZES):
            return nothing(f"{rewards.name} is of another architecture")
    return ValueStart(checkpoint, factor, f"the values start as the reward model {rewards.name}")


_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


def load_actor_critic(start: Start, config: PpoConfig, values: ValueStart) -> ActorCritic:
    """Load all three roles. The start has no adapter of its own: it is merged into the base before.

    Raises:
        EngineError: weights cannot be loaded.
    """
    policy = load_policy(start, config, weights_dtype(config))
    hidden = start.config.get_text_config().hidden_size
    if config.use_peft:
        actor = _with_adapters(policy, hidden, config, values)
    else:
        reference = load_policy(start, config, weights_dtype(config))
        shared = config.shared_trunk
        backbone, head = (None, ValueHead(hidden)) if shared else _whole_values(start, config, values, hidden)
        actor = ActorCritic(policy, head, reference=reference, backbone=backbone)
    if config.gradient_checkpointing:
        actor.recompute_activations()
    return actor


def _with_adapters(policy: Any, hidden: int, config: PpoConfig, values: ValueStart) -> ActorCritic:
    head = ValueHead(hidden)
    if values.checkpoint is None:
        if not config.shared_trunk:
            policy.add_adapter(VALUE_ADAPTER, lora_config(config, TaskType.CAUSAL_LM))
        return ActorCritic(policy, head)
    adapter = str(values.checkpoint.weights.adapter)
    theirs = LoraConfig.from_pretrained(adapter)
    theirs.task_type, theirs.modules_to_save, theirs.inference_mode = TaskType.CAUSAL_LM, None, False
    policy.add_adapter(VALUE_ADAPTER, theirs)
    weights = load_peft_weights(adapter, device="cpu")
    (name,) = (name for name in weights if name.endswith(_HEAD))
    _set_head(head, weights.pop(name), values)
    set_peft_model_state_dict(policy, weights, adapter_name=VALUE_ADAPTER)
    return ActorCritic(policy, head)


def _whole_values(start: Start, config: PpoConfig, values: ValueStart, hidden: int) -> tuple[Any, ValueHead]:
    """Backbone and head of the values where they are a model of their own."""
    head = ValueHead(hidden)
    loading = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation is not None:
        loading["attn_implementation"] = config.attn_implementation
    weights = start.weights if values.checkpoint is None else values.checkpoint.weights
    try:
        if values.checkpoint is None:
            return AutoModel.from_pretrained(weights.base, **loading), head
        model = AutoModelForSequenceClassification.from_pretrained(weights.base, num_labels=1, **loading)
    except (OSError, ValueError, ImportError) as error:
        raise EngineError(f"the model {weights.base} cannot be loaded: {first_sentence(error)}") from None
    if weights.adapter is not None:
        model = with_adapter(model, weights.adapter).merge_and_unload()
    _set_head(head, model.score.weight.detach(), values)
    return model.base_model, head


def _set_head(head: ValueHead, weight: torch.Tensor, values: ValueStart) -> None:
    assert values.checkpoint is not None
    with torch.no_grad():
        head.weight.copy_(values.factor * weight.float())
        head.bias.fill_(-values.factor * values.checkpoint.offset)


def _same_base(one: Weights, other: Weights, config: PpoConfig) -> bool:
    """Whether two adapters have the same base; weights are read only where the names differ."""
    return one.base == other.base or _base_sha256(one, config) == _base_sha256(other, config)


def _base_sha256(weights: Weights, config: PpoConfig) -> str:
    found = AutoConfig.from_pretrained(weights.base, trust_remote_code=config.trust_remote_code)
    return weights_sha256(Weights(weights.base, None), found)
