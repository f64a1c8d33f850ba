"""The arithmetic of PPO: pure functions of tensors.

Shapes are (n, T): n episodes, which are responses, of at most T tokens each. `mask` (n, T) bool is True for the real
tokens of a response, which come first; all after the last of them is padding. Whatever stands in padding, even NaN, has
no part in the result of a function that takes a mask, and the result is 0 there.

The KL estimators and the losses are element by element and take no mask. Their caller sums over a micro-batch what it
divides by the tokens of the whole mini-batch. A gradient is finite only where what stands in padding is finite too: 0
times NaN is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad
from torch.utils.checkpoint import checkpoint

CHUNK = 2**22
"""Logits that are read at a time: 16 MiB in float32."""
KL_ERROR_LIMIT = 0.2
"""Bound of the relative error that moves an adaptive KL coefficient."""
_TINY = 1e-8
"""Added to a variance that is divided by."""


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature), in float32, shapes (..., V), (...) → (...).

    The temperature, above 0, is that of sampling: else the ratio of the policy to what has sampled is not 1 at the
    first step. Only pieces of the logits are copied; their softmax is computed again for the gradient.
    """

    def read(part: Tensor, chosen: Tensor) -> Tensor:
        scores = log_softmax(part.float() / temperature, dim=-1)
        return scores.gather(-1, chosen[:, None]).squeeze(-1)

    return _in_pieces(read, logits, tokens)


def token_entropies(logits: Tensor, temperature: float) -> Tensor:
    """Entropy of softmax(logits / temperature) in nats, in float32, shapes (..., V) → (...). Memory as above."""

    def read(part: Tensor) -> Tensor:
        # A token ruled out (-inf) adds 0 · ln 0 = 0.
        scores = log_softmax(part.float() / temperature, dim=-1).clamp(min=torch.finfo(torch.float32).min)
        return -(scores.exp() * scores).sum(-1)

    return _in_pieces(read, logits)


def _in_pieces(read: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """`read`, from (N, V) and for each of the others (N,) to (N,), on pieces of `CHUNK` logits, or of one row."""
    if logits.dim() == 1:
        return _in_pieces(read, logits[None], *(other[None] for other in others)).squeeze(0)
    if logits.dim() > 2:  # a flat view of a slice of longer rows would be a copy
        rows = zip(logits.unbind(), *(other.unbind() for other in others), strict=True)
        return torch.stack([_in_pieces(read, *row) for row in rows])
    size = max(1, CHUNK // logits.shape[-1])
    pieces = zip(torch.split(logits, size), *(torch.split(other, size) for other in others), strict=True)
    return torch.cat([checkpoint(read, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ln π − ln π_ref of each sampled token: an unbiased estimate of KL(π‖π_ref) that may be negative.

    This one and the next two are those of Schulman 2020, "Approximating KL divergence", with r = π_ref / π.
    """
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """½ (ln r)²: never negative, of little variance, biased."""
    return (ref_logprobs - logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(r − 1) − ln r: never negative and unbiased."""
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """−kl_coef · kl of each token, plus the response's score at its last one, shapes (n,), (n, T), (n, T) → (n, T).

    Ziegler et al. 2019, section 2.2. A response without tokens has no reward.
    """
    last = mask & ~pad(mask[:, 1:], (0, 1))
    return torch.where(mask, -kl_coef * kl, 0.0) + torch.where(last, scores[:, None], 0.0)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and returns, their sum with the values; all (n, T).

    A_t = δ_t + γ λ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t (Schulman et al. 2016, arXiv 1506.02438, equation 16). The
    last token ends the episode, also where a response was cut: the value after it is 0.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * advantage
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Variance over all real tokens (divided by their number, not by one less), shapes (n, T) → (); NaN if none."""
    count, _, squares = moments(values, mask).unbind()
    return squares / count


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Number of real tokens, their mean, and the sum of their squared deviations from it, shapes (n, T) → (3,)."""
    count = mask.sum().to(values.dtype)
    mean = torch.where(mask, values, 0.0).sum() / count.clamp(min=1)
    return torch.stack([count, mean, torch.where(mask, values - mean, 0.0).square().sum()])


def whiten(values: Tensor, mask: Tensor, *, subtract_mean: bool, gathered: Tensor | None = None) -> Tensor:
    """Bring the real tokens to variance 1, and to mean 0 with `subtract_mean`; else they keep their mean. Shape (n, T).

    Advantages lose their mean. Rewards keep it: it tells whether to go on or to end.

    Args:
        gathered: (p, 3), the `moments` in each of p processes, for mean and variance over them all; those of `values`
            where it is None.
    """
    parts = moments(values, mask)[None] if gathered is None else gathered
    counts, means, squares = parts.unbind(1)
    total = counts.sum()
    mean = (counts * means).sum() / total
    # The variance within the processes and between them (Chan, Golub and LeVeque 1979): no large numbers cancel.
    variance = (squares + counts * (means - mean).square()).sum() / total
    whitened = (values - mean) * torch.rsqrt(variance + _TINY)
    return torch.where(mask, whitened if subtract_mean else whitened + mean, 0.0)


def policy_losses(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """max(−A ρ, −A clip(ρ, 1 ± cliprange)) of each token, with ρ = π / π_old (Schulman et al. 2017, equation 7)."""
    return torch.maximum(*_policy_terms(logprobs, old_logprobs, advantages, cliprange))


def clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """Whether the clipped term is the larger one, so that the token has no gradient; bool (n, T)."""
    plain, bounded = _policy_terms(logprobs, old_logprobs, advantages, cliprange)
    return bounded > plain


def _policy_terms(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    ratio = torch.exp(logprobs - old_logprobs)
    return -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> Tensor:
    """½ max[(V − R)², (clip(V, V_old ± cliprange_value) − R)²] of each token, shape (n, T).

    Not in the PPO paper but in its code, and in that of Ziegler et al. 2019.
    """
    return torch.maximum(*_value_terms(values, old_values, returns, cliprange_value)) / 2


def value_clipped(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> Tensor:
    """Whether the clipped term is the larger one, so that the token has no gradient; bool (n, T)."""
    plain, bounded = _value_terms(values, old_values, returns, cliprange_value)
    return bounded > plain


def _value_terms(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> tuple[Tensor, Tensor]:
    near = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
    return (values - returns).square(), (near - returns).square()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(R − V) / Var(R) over the real tokens: 1 for a perfect V, 0 for a constant; NaN where R is constant."""
    real = returns[mask]
    if len(real) == 0 or real.min() == real.max():
        return float("nan")
    return float(1 - masked_variance(returns - values, mask) / masked_variance(returns, mask))


@dataclass(frozen=True)
class FixedKL:
    """A KL coefficient that stays."""

    coef: float

    def updated(self, kl: float, episodes: int) -> "FixedKL":  # noqa: ARG002
        """Itself."""
        return self


@dataclass(frozen=True)
class AdaptiveKL:
    """A KL coefficient that grows while the KL is above its target, and falls below it (Ziegler et al. 2019, 2.2).

    The paper changes it by a tenth of the error at each update. Here it is episodes / horizon of it, as in the paper's
    code, so that the pace does not depend on the batch size.
    """

    coef: float
    target: float
    """In nats per response, above 0."""
    horizon: int
    """Episodes in which a constant error would change the coefficient by that share of it, were it not compounded."""

    def updated(self, kl: float, episodes: int) -> "AdaptiveKL":
        """The controller after `episodes` more responses.

        `kl` is their mean of the sum over tokens of KL. A NaN makes the coefficient NaN.
        """
        # In this order min and max let NaN through.
        error = min(max(kl / self.target - 1, -KL_ERROR_LIMIT), KL_ERROR_LIMIT)
        return replace(self, coef=self.coef * (1 + error * episodes / self.horizon))
