"""PPO's arithmetic: values by hand, GAE against its definition, gradients, and that padding has no part in anything."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cai.train.ppo import math as ppo
from cai.train.ppo.math import (
    AdaptiveKL,
    FixedKL,
    advantages_and_returns,
    clipped,
    explained_variance,
    kl_k1,
    kl_k2,
    kl_k3,
    masked_variance,
    moments,
    policy_losses,
    token_entropies,
    token_logprobs,
    token_rewards,
    value_clipped,
    value_losses,
    whiten,
)

LENGTHS = (5, 0, 1, 7, 3)
NAN = float("nan")


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values)


def prefixes(lengths: tuple[int, ...], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def log_softmax64(logits: Tensor, temperature: float) -> Any:
    """In numpy and float64."""
    scores = logits.detach().double().numpy() / temperature
    return (
        scores
        - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - scores.max(-1)[..., None]
    )


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """Logits are read two or three rows at a time."""
    monkeypatch.setattr(ppo, "CHUNK", 40)
    return 40


# ---- log-probabilities and entropies ----


@pytest.mark.parametrize(("temperature", "weights"), [(1.0, (1, 2, 5)), (0.5, (1, 4, 25)), (2.0, (1, 2**0.5, 5**0.5))])
def test_logprobs_are_those_of_the_sampling_temperature(temperature: float, weights: tuple[float, ...]) -> None:
    logits = torch.log(torch.tensor([1.0, 2.0, 5.0])).expand(3, 3)
    expected = [math.log(weight / sum(weights)) for weight in weights]
    assert token_logprobs(logits, torch.arange(3), temperature).tolist() == pytest.approx(expected, rel=1e-5)
    surprise = -sum(weight * math.log(weight / sum(weights)) for weight in weights) / sum(weights)
    assert token_entropies(logits, temperature).tolist() == pytest.approx([surprise] * 3, rel=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (8,), (3, 4), (3, 0), (2, 2, 5)])
def test_pieces_of_the_logits_give_what_the_whole_would(shape: tuple[int, ...], small_pieces: int) -> None:
    logits = drawn(*shape, 19, scale=4)
    assert 2 * 19 < small_pieces < 3 * 19
    tokens = torch.randint(19, shape, generator=torch.Generator().manual_seed(1))
    expected = np.take_along_axis(log_softmax64(logits, 0.7), tokens.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(token_logprobs(logits, tokens, 0.7), expected, rtol=1e-5, atol=1e-6)
    entropies = torch.distributions.Categorical(logits=logits / 0.7, validate_args=False).entropy()
    torch.testing.assert_close(token_entropies(logits, 0.7), entropies, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_pieces")
def test_gradients_of_logprobs_and_entropies_in_closed_form() -> None:
    logits = drawn(3, 6, 19).requires_grad_()
    tokens = torch.randint(19, (3, 4), generator=torch.Generator().manual_seed(1))
    upstream = drawn(3, 4, seed=2)
    part = logits[:, 1:5]  # as the logits of responses are cut out of those of whole texts
    logp = log_softmax64(part, 0.7)
    p = np.exp(logp)

    (found,) = torch.autograd.grad(token_logprobs(part, tokens, 0.7), logits, upstream, retain_graph=True)
    expected = (np.eye(19)[tokens] - p) / 0.7 * upstream.numpy()[..., None]
    np.testing.assert_allclose(found[:, 1:5], expected, rtol=1e-4, atol=1e-6)
    assert not found[:, [0, 5]].any()

    (found,) = torch.autograd.grad(token_entropies(part, 0.7), logits, upstream)
    entropy = -(p * logp).sum(-1, keepdims=True)
    expected = -p * (logp + entropy) / 0.7 * upstream.numpy()[..., None]
    np.testing.assert_allclose(found[:, 1:5], expected, rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes the most elements of any new tensor, views left aside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result._is_view():
            self.elements = max(self.elements, result.numel())
        return result


def test_the_logits_are_neither_copied_nor_kept_in_a_second_form(small_pieces: int) -> None:
    logits = drawn(3, 9, 19).bfloat16().requires_grad_()
    part, tokens = logits[:, 1:], torch.zeros(3, 8, dtype=torch.long)
    kept: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved)
    with Largest() as largest, hooks:
        logprobs, entropies = token_logprobs(part, tokens, 0.7), token_entropies(part, 0.7)
    assert largest.elements <= small_pieces
    own = {tensor.untyped_storage().data_ptr() for tensor in (logits, tokens)}
    assert {saved.untyped_storage().data_ptr() for saved in kept} <= own
    (logprobs + entropies).sum().backward()
    assert logits.grad is not None
    assert logits.grad[:, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_read_in_float32(dtype: torch.dtype) -> None:
    logits, tokens = drawn(50, 19, scale=4).to(dtype), torch.arange(50) % 19
    logprobs, entropies = token_logprobs(logits, tokens, 0.7), token_entropies(logits, 0.7)
    assert logprobs.dtype == entropies.dtype == torch.float32
    exact = log_softmax64(logits, 0.7)
    np.testing.assert_allclose(logprobs, exact[np.arange(50), tokens], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropies, -(np.exp(exact) * exact).sum(-1), rtol=1e-5, atol=1e-6)


def test_a_token_that_is_ruled_out_adds_nothing_to_entropy_or_gradient() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]], requires_grad=True)
    entropy = token_entropies(logits, 1.0)
    assert entropy.tolist() == pytest.approx([math.log(2)])
    entropy.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [pytest.approx([0, 0, 0], abs=1e-6)]
    assert token_logprobs(logits, torch.tensor([2]), 1.0).tolist() == pytest.approx([-math.log(2)])


# ---- KL ----


def test_kl_estimators_by_hand() -> None:
    logprobs, ref_logprobs = rows([-1.0, -2.0, -3.0]), rows([-3.0, -1.0, -3.0])  # ln r = -2, 1, 0
    assert kl_k1(logprobs, ref_logprobs).tolist() == [[2, -1, 0]]
    assert kl_k2(logprobs, ref_logprobs).tolist() == [[2, 0.5, 0]]
    assert kl_k3(logprobs, ref_logprobs)[0].tolist() == pytest.approx([math.exp(-2) + 1, math.e - 2, 0])


def test_k1_and_k3_have_the_expectation_of_the_exact_divergence() -> None:
    logprobs, ref_logprobs = torch.log_softmax(drawn(2, 30), -1)
    p, q = logprobs.double().exp().numpy(), ref_logprobs.double().exp().numpy()
    divergence = float((p * np.log(p / q)).sum())
    assert divergence > 0.3
    for estimator in (kl_k1, kl_k3):
        expectation = (logprobs.exp() * estimator(logprobs, ref_logprobs)).sum()
        assert float(expectation) == pytest.approx(divergence, rel=1e-5)
    assert float((logprobs.exp() * kl_k2(logprobs, ref_logprobs)).sum()) != pytest.approx(divergence, rel=1e-2)


def test_k3_is_never_negative_and_exact_near_zero() -> None:
    log_ratio = torch.linspace(-0.02, 0.02, 4001)
    assert (kl_k3(torch.zeros(4001), log_ratio) >= 0).all()
    assert float(kl_k3(torch.tensor(0.0), torch.tensor(0.01))) == pytest.approx(5.01671e-5, rel=1e-4)  # x²/2 + x³/6


# ---- rewards, advantages ----


def test_the_score_is_added_at_the_last_token_and_the_kl_taken_off_at_each() -> None:
    kl = rows([1.0, 2.0, 3.0], [-1.0, NAN, NAN], [NAN, math.inf, NAN], [0.5, 0.5, NAN])
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0, -1.0]), kl, prefixes((3, 1, 0, 2), 3), 0.5)
    torch.testing.assert_close(rewards, rows([-0.5, -1.0, 8.5], [20.5, 0, 0], [0, 0, 0], [-0.25, -1.25, 0]))


def test_advantages_by_hand() -> None:
    mask = prefixes((3, 2), 3)
    rewards, values = rows([1.0, 2.0, 4.0], [0.0, 8.0, NAN]), rows([2.0, 4.0, 8.0], [1.0, 2.0, NAN])
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma=0.5, lam=0.5)
    # First row: δ = 1 + 2 - 2, 2 + 4 - 4, 4 - 8; A = 1 + A₁/4, 2 + A₂/4, -4. Second: δ = 0 + 1 - 1, 8 - 2.
    assert advantages.tolist() == [[1.25, 1, -4], [1.5, 6, 0]]
    assert returns.tolist() == [[3.25, 5, 4], [2.5, 8, 0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (0.99, 0.0), (0.97, 1.0)])
def test_advantages_are_the_weighted_sum_of_later_temporal_differences(gamma: float, lam: float) -> None:
    mask = prefixes(LENGTHS, 7)
    rewards, values = drawn(5, 7), drawn(5, 7, seed=1)
    expected = torch.zeros(5, 7)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            for later in range(t, length):
                after = values[row, later + 1] if later + 1 < length else 0.0
                delta = rewards[row, later] + gamma * after - values[row, later]
                expected[row, t] += (gamma * lam) ** (later - t) * delta
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0), rtol=1e-5, atol=1e-5)


# ---- means, variances, whitening ----


def test_mean_and_variance_are_over_all_real_tokens_and_divided_by_their_number() -> None:
    values, mask = rows([1.0, 2.0, NAN], [6.0, math.inf, NAN]), prefixes((2, 1), 3)
    assert float(masked_variance(values, mask)) == pytest.approx(14 / 3)
    assert moments(values, mask).tolist() == [3, 3, 14]


def test_without_a_token_there_is_no_mean_and_nothing_to_whiten() -> None:
    values, mask = drawn(2, 3), prefixes((0, 0), 3)
    assert math.isnan(masked_variance(values, mask))
    assert moments(values, mask).tolist() == [0, 0, 0]
    assert not whiten(values, mask, subtract_mean=True).any()
    assert not whiten(values, mask, subtract_mean=False).any()


@pytest.mark.parametrize(("subtract_mean", "mean"), [(True, 0.0), (False, 1e3)])
def test_whitened_values_have_variance_1_and_lose_or_keep_their_mean(subtract_mean: bool, mean: float) -> None:
    values, mask = 1e3 + drawn(5, 7, scale=3), prefixes(LENGTHS, 7)
    found = whiten(values, mask, subtract_mean=subtract_mean)
    assert not found[~mask].any()
    real = values[mask].double().numpy()
    assert abs(real.mean() - 1e3) > 0.1  # so that the sample's mean is told from 1000
    expected = (real - real.mean()) / real.std() + (0 if subtract_mean else real.mean())
    np.testing.assert_allclose(found[mask], expected, rtol=1e-6, atol=1e-4)
    assert found[mask].double().mean().item() == pytest.approx(real.mean() if mean else 0, abs=1e-4)
    assert found[mask].double().std(correction=0).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("subtract_mean", [True, False])
def test_whitening_by_the_moments_of_all_processes_is_that_of_all_values(subtract_mean: bool) -> None:
    values, mask = 100 + drawn(5, 7) + 10 * torch.arange(5)[:, None], prefixes(LENGTHS, 7)
    shares = [slice(0, 1), slice(1, 2), slice(2, 5)]  # the second one has no token
    gathered = torch.stack([moments(values[share], mask[share]) for share in shares])
    parts = [whiten(values[share], mask[share], subtract_mean=subtract_mean, gathered=gathered) for share in shares]
    torch.testing.assert_close(
        torch.cat(parts), whiten(values, mask, subtract_mean=subtract_mean), rtol=1e-5, atol=1e-4
    )


def test_values_without_variance_are_whitened_to_their_mean() -> None:
    values, mask = torch.full((2, 3), 0.75), prefixes((2, 1), 3)
    assert not whiten(values, mask, subtract_mean=True).any()
    assert whiten(values, mask, subtract_mean=False).tolist() == [[0.75, 0.75, 0], [0.75, 0, 0]]


# ---- losses ----

# The clip range is 0.2; by column: inside, above and below it with either sign of A, and no advantage.
RATIOS = rows([1.1, 1.5, 1.5, 0.5, 0.5, 1.5])
ADVANTAGES = rows([2.0, 2.0, -2.0, 2.0, -2.0, 0.0])
POLICY_LOSSES = [-2.2, -2.4, 3.0, -1.0, 1.6, 0.0]
POLICY_CLIPPED = [False, True, False, False, True, False]


def test_policy_losses_by_hand() -> None:
    old = torch.full_like(RATIOS, -3.0)
    losses = policy_losses(old + RATIOS.log(), old, ADVANTAGES, 0.2)
    assert losses[0].tolist() == pytest.approx(POLICY_LOSSES, rel=1e-5)
    assert clipped(old + RATIOS.log(), old, ADVANTAGES, 0.2).tolist() == [POLICY_CLIPPED]


def test_a_clipped_token_has_no_gradient_and_the_others_have_theirs() -> None:
    logprobs = RATIOS.log().requires_grad_()
    policy_losses(logprobs, torch.zeros_like(RATIOS), ADVANTAGES, 0.2).sum().backward()
    assert logprobs.grad is not None
    expected = [
        0 if cut else -a * r for a, r, cut in zip(*ADVANTAGES.tolist(), *RATIOS.tolist(), POLICY_CLIPPED, strict=True)
    ]
    assert logprobs.grad[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_before_the_first_step_the_policy_gradient_is_that_of_reinforce() -> None:
    logits, tokens = drawn(2, 3, 5).requires_grad_(), torch.tensor([[0, 1, 2], [3, 4, 0]])
    advantages = drawn(2, 3, seed=1)
    logprobs = token_logprobs(logits, tokens, 1.0)
    losses = policy_losses(logprobs, logprobs.detach(), advantages, 0.2)
    torch.testing.assert_close(losses, -advantages)
    (found,) = torch.autograd.grad(losses.sum(), logits)
    one_hot = torch.nn.functional.one_hot(tokens, 5)
    expected = -advantages[..., None] * (one_hot - torch.softmax(logits, -1))  # -A ∇ ln π
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


# Old value 1, range 0.5; by column: inside, above and below it with the return beyond, within and on the other side.
VALUES = rows([1.2, 2.0, 2.0, 0.0, 0.0, 1.2])
RETURNS = rows([2.0, 3.0, 0.5, -1.0, 1.5, -2.0])
VALUE_LOSSES = [0.32, 1.125, 1.125, 1.125, 1.125, 5.12]
VALUE_CLIPPED = [False, True, False, True, False, False]


def test_value_losses_by_hand() -> None:
    old = torch.ones_like(VALUES)
    assert value_losses(VALUES, old, RETURNS, 0.5)[0].tolist() == pytest.approx(VALUE_LOSSES, rel=1e-5)
    assert value_clipped(VALUES, old, RETURNS, 0.5).tolist() == [VALUE_CLIPPED]


def test_a_clipped_value_has_no_gradient_and_the_others_have_theirs() -> None:
    values = VALUES.clone().requires_grad_()
    value_losses(values, torch.ones_like(VALUES), RETURNS, 0.5).sum().backward()
    assert values.grad is not None
    expected = [
        0 if cut else v - r for v, r, cut in zip(*VALUES.tolist(), *RETURNS.tolist(), VALUE_CLIPPED, strict=True)
    ]
    assert values.grad[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_value_inside_its_range_is_never_called_clipped() -> None:
    """Not by rounding either."""
    old, values, returns = (drawn(1, 5000, seed=seed, scale=scale) for seed, scale in enumerate((0.1, 0.1, 1.0)))
    assert float((values - old).abs().max()) < 0.6
    assert not value_clipped(values, old, returns, 0.6).any()


def test_gradients_of_the_losses_equal_finite_differences() -> None:
    old, advantages = drawn(4, 6, seed=1).double() - 3, drawn(4, 6, seed=2).double()
    logprobs = (old + drawn(4, 6, seed=3, scale=0.3)).requires_grad_()
    assert clipped(logprobs, old, advantages, 0.2).any()
    assert torch.autograd.gradcheck(lambda new: policy_losses(new, old, advantages, 0.2), logprobs)
    values = (old + drawn(4, 6, seed=4, scale=0.5)).requires_grad_()
    assert value_clipped(values, old, old + advantages, 0.3).any()
    assert torch.autograd.gradcheck(lambda new: value_losses(new, old, old + advantages, 0.3), values)


# ---- padding ----

WITH_MASK: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "token_rewards": lambda a, _, mask: token_rewards(torch.arange(5.0), a, mask, 0.1),
    "advantages": lambda a, b, mask: advantages_and_returns(a, b, mask, 0.99, 0.95)[0],
    "returns": lambda a, b, mask: advantages_and_returns(a, b, mask, 0.99, 0.95)[1],
    "masked_variance": lambda a, _, mask: masked_variance(a, mask),
    "moments": lambda a, _, mask: moments(a, mask),
    "whiten": lambda a, _, mask: whiten(a, mask, subtract_mean=True),
    "whiten, mean kept": lambda a, _, mask: whiten(a, mask, subtract_mean=False),
    "explained_variance": lambda a, b, mask: torch.tensor(explained_variance(a, b, mask)),
}


@pytest.mark.parametrize("name", WITH_MASK)
@pytest.mark.parametrize("garbage", [NAN, math.inf, -1e30])
def test_neither_padding_nor_what_stands_in_it_changes_anything(name: str, garbage: float) -> None:
    function, mask = WITH_MASK[name], prefixes(LENGTHS, 7)
    a, b = drawn(5, 7), drawn(5, 7, seed=1)
    clean = function(torch.where(mask, a, 0.0), torch.where(mask, b, 0.0), mask)
    wider = torch.nn.functional.pad(mask, (0, 3))
    wide = [torch.where(wider, torch.nn.functional.pad(values, (0, 3)), garbage) for values in (a, b)]
    found = function(*wide, wider)
    if found.dim() == 2:
        assert not found[:, 7:].any()
        found = found[:, :7]
        assert not found[~mask].any()
    torch.testing.assert_close(found, clean, rtol=1e-6, atol=1e-6)


# ---- explained variance ----


def test_explained_variance_by_hand() -> None:
    mask, returns = prefixes((2, 2), 3), rows([0.0, 2.0, NAN], [4.0, 6.0, NAN])  # variance 5
    assert explained_variance(returns + 3, returns, mask) == 1  # a constant offset is not held against it
    assert explained_variance(torch.ones(2, 3), returns, mask) == 0
    # The errors 1, -1, 1, -1 have variance 1.
    assert explained_variance(returns + rows([1.0, -1.0, 0], [1.0, -1.0, 0]), returns, mask) == pytest.approx(0.8)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_where_returns_do_not_vary_nothing_can_be_explained(length: int) -> None:
    assert math.isnan(explained_variance(drawn(2, 3), torch.full((2, 3), 1000.1), prefixes((length, 0), 3)))


# ---- KL coefficients ----


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 1.0), (6.6, 1.001), (5.4, 0.999), (60.0, 1.002), (0.0, 0.998), (-9.0, 0.998)]
)
def test_the_adaptive_coefficient_moves_by_the_bounded_error(kl: float, expected: float) -> None:
    controller = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000).updated(kl, 100)
    assert controller.coef == pytest.approx(0.2 * expected, rel=1e-9)
    assert (controller.target, controller.horizon) == (6.0, 10_000)


def test_updates_compound() -> None:
    controller = AdaptiveKL(coef=1.0, target=1.0, horizon=100)
    assert controller.updated(1.1, 50).updated(1.1, 50).coef == pytest.approx(1.05**2)
    assert controller.coef == 1


def test_a_kl_that_is_no_number_is_not_taken_for_a_low_one() -> None:
    assert math.isnan(AdaptiveKL(coef=0.2, target=6.0, horizon=10_000).updated(NAN, 100).coef)


def test_a_fixed_coefficient_stays() -> None:
    assert FixedKL(0.05).updated(100.0, 512) == FixedKL(0.05)
