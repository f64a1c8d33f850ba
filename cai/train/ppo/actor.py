"""Policy, reference and values in one module.

With adapters there is one base model: the policy is the base with the adapter `default`, the values come from the base
with the adapter `value` and a head, and the reference is the base alone. Without them each is a model of its own.
Either way the values may have no layers of their own, and be read off the policy's last hidden states by a head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cai.errors import ConfigError
from cai.train.ppo.math import token_entropies, token_logprobs

Role = Literal["policy", "reference", "value"]
POLICY_ADAPTER, VALUE_ADAPTER = "default", "value"


class Texts(NamedTuple):
    """n prompts with their responses as token ids. Prompts are padded on the left, responses on the right."""

    input_ids: Tensor
    """(n, P + T), long: P columns of the prompts, T of the responses."""
    mask: Tensor
    """(n, P + T), bool: real tokens."""
    width: int
    """P."""

    @property
    def response_mask(self) -> Tensor:
        """(n, T), bool."""
        return self.mask[:, self.width :]


class TokenStatistics(NamedTuple):
    """What a role makes of the tokens of responses; (n, T), float32, or None where it has no say."""

    logprobs: Tensor | None = None
    """Natural logarithm of each token's probability at the sampling temperature; of policy and reference."""
    entropies: Tensor | None = None
    """Of the distribution that each token was drawn from, in nats; where they were asked for."""
    values: Tensor | None = None
    """Of the states before the tokens; of the values, and of a policy that they are read off."""


class ValueHead(nn.Linear):
    """From hidden states to values, in float32 whatever the model below computes in."""

    def __init__(self, hidden: int, device: Any = None) -> None:
        """A head that says 0 of everything."""
        super().__init__(hidden, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Shapes (n, T, hidden size) → (n, T)."""
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.float(), self.weight, self.bias).squeeze(-1)


class ActorCritic(nn.Module):
    """Policy, reference and values.

    One role computes at a time, and its backward pass must come before another role computes: with gradient
    checkpointing the layers compute again then, with the adapter that is on.
    """

    def __init__(self, policy: Any, head: ValueHead, *, reference: Any = None, backbone: Any = None) -> None:
        """Take a PEFT model, or models of their own.

        Args:
            policy: a causal language model, or a PEFT model of one with the adapter `default` and, where the values are
                not read off the policy, `value`.
            head: of the values.
            reference: the untouched language model; None with adapters.
            backbone: of the values: a model without an output layer; None with adapters, and where the values are read
                off the policy.
        """
        super().__init__()
        self.policy = policy
        self.head = head
        self.reference = None if reference is None else reference.requires_grad_(False)
        self.backbone = backbone
        self.eval()  # no dropout: a probability must be the same whenever it is computed
        self._role: Role | None = None
        self._trained = [
            parameter
            for name, parameter in self.named_parameters()
            if (("lora_" in name or name.startswith("head.")) if self.adapts else parameter.requires_grad)
        ]
        self._unfreeze()

    @property
    def adapts(self) -> bool:
        """Whether there is one base with adapters."""
        return self.reference is None

    @property
    def shared(self) -> bool:
        """Whether the values are read off the policy's hidden states."""
        return self.backbone is None and not (self.adapts and VALUE_ADAPTER in self.policy.peft_config)

    @property
    def learners(self) -> tuple[Role, ...]:
        """The roles that are trained, each in a pass of its own."""
        return ("policy",) if self.shared else ("policy", "value")

    def trained(self) -> list[nn.Parameter]:
        """What training changes, of policy and values."""
        return self._trained

    def forward(
        self, role: Role, texts: Texts, temperature: float = 1.0, *, with_entropies: bool = True
    ) -> TokenStatistics:
        """Read texts as one of the roles. Entropies take another pass over all logits."""
        with self.playing(role) as model:
            inputs = {
                "input_ids": texts.input_ids,
                "attention_mask": texts.mask.long(),
                "position_ids": positions(texts.mask),
                "use_cache": False,
            }
            if role == "value":
                return TokenStatistics(values=self._valued(model(**inputs).last_hidden_state, texts))
            responses = texts.input_ids[:, texts.width :]
            before = torch.arange(texts.width - 1, texts.input_ids.shape[1] - 1, device=responses.device)
            with _last_hidden_states(model.base_model) as hidden:
                logits = model(**inputs, logits_to_keep=before).logits  # a slice would cost a copy for its gradient
            return TokenStatistics(
                token_logprobs(logits, responses, temperature),
                token_entropies(logits.detach(), temperature) if with_entropies else None,
                self._valued(hidden[0], texts) if self.shared and role == "policy" else None,
            )

    def _valued(self, hidden: Tensor, texts: Texts) -> Tensor:
        """Values of the states before the tokens of responses, (n, P + T, hidden size) → (n, T)."""
        values: Tensor = self.head(hidden[:, texts.width - 1 : -1])
        return values

    @contextmanager
    def playing(self, role: Role) -> Iterator[Any]:
        """Gives the model of a role, its adapter on: a language model, or for values one that ends in hidden states.

        The adapter stays on afterwards, for the backward pass.
        """
        if not self.adapts:
            yield {"policy": self.policy, "reference": self.reference, "value": self.backbone}[role]
            return
        model = self.policy.get_base_model()
        if role == "reference":
            with self.policy.disable_adapter():
                yield model
            self._role = None
            self._unfreeze()
            return
        if role != self._role:
            self.policy.set_adapter(VALUE_ADAPTER if role == "value" else POLICY_ADAPTER)
            self._role = role
            self._unfreeze()
        yield model.base_model if role == "value" else model

    def recompute_activations(self) -> None:
        """Have all layers compute their activations again in the backward pass, which saves memory.

        transformers' own switch works in training mode alone, in which some layers drop out.

        Raises:
            ConfigError: the model does not mark its layers as ones that can.
        """
        layers: list[Any] = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise ConfigError("gradient_checkpointing: this model has no layers that can be recomputed; leave it out")
        for layer in layers:
            layer.forward = partial(_recomputed, layer.forward)

    def _unfreeze(self) -> None:
        """PEFT freezes the adapter that is off; both are trained here."""
        for parameter in self._trained:
            parameter.requires_grad_(True)


@contextmanager
def _last_hidden_states(body: nn.Module) -> Iterator[list[Tensor]]:
    """Gives a list, which what a model below an output layer computes is put into."""
    found: list[Tensor] = []
    hook = body.register_forward_hook(lambda _, __, output: found.append(output.last_hidden_state))
    try:
        yield found
    finally:
        hook.remove()


def _recomputed(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


def positions(mask: Tensor) -> Tensor:
    """Position of each token among the real ones of its row, (n, L) → (n, L); 0 where there is padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
