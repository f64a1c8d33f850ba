"""Policy, reference and values of PPO on one small model, by adapters."""

from pathlib import Path
from typing import Any


def adapted_actor(model: Path | str, *, rank: int = 4, std: float = 0.0, seed: int = 0) -> Any:
    """An `ActorCritic` on a saved model; the weights B of its policy's adapter are drawn from N(0, std²)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from cai.train.ppo.actor import ActorCritic, ValueHead

    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype="float32"), lora)
    policy.add_adapter("value", lora)
    actor = ActorCritic(policy, ValueHead(policy.config.hidden_size))
    redraw(actor, std, seed)
    return actor


def redraw(actor: Any, std: float, seed: int) -> None:
    """Draw the weights B of the policy's adapter anew: from N(0, std²), each matrix from a generator of its own."""
    import torch

    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(actor.policy.named_parameters())):
            if "lora_B.default" in name:
                generator = torch.Generator().manual_seed(1000 * seed + number)
                weight.copy_(std * torch.randn(weight.shape, generator=generator))
