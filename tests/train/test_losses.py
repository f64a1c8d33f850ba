"""Losses on soft labels: values by hand, gradients by finite differences, and what they must be symmetric in."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cai.train.losses import dpo_log_odds, soft_cross_entropy, weighted_mean


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOG_ODDS = numbers(-3.0, -0.5, 0.0, 0.2, 1.0, 4.0)
LABELS = numbers(0.0, 0.3, 0.5, 0.9, 0.75, 1.0)


def test_the_loss_is_the_cross_entropy_by_hand() -> None:
    even, likely, wrong = soft_cross_entropy(numbers(0.0, math.log(3), math.log(3)), numbers(0.8, 0.75, 0.25)).tolist()
    assert even == pytest.approx(math.log(2))  # σ(0) is a half, whatever the label
    # σ(ln 3) = 3/4
    assert likely == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert wrong == pytest.approx(-(0.25 * math.log(0.75) + 0.75 * math.log(0.25)))


def test_the_loss_is_least_where_the_model_says_what_the_label_says() -> None:
    label = 0.7
    best = math.log(label / (1 - label))
    below, at, above = soft_cross_entropy(numbers(best - 0.1, best, best + 0.1), numbers(label, label, label)).tolist()
    assert at < below
    assert at < above
    assert at == pytest.approx(-(label * math.log(label) + (1 - label) * math.log(1 - label)))  # the label's entropy


def test_hard_labels_give_the_usual_losses() -> None:
    ones, zeros = torch.ones_like(LOG_ODDS), torch.zeros_like(LOG_ODDS)
    torch.testing.assert_close(soft_cross_entropy(LOG_ODDS, ones), -logsigmoid(LOG_ODDS))
    torch.testing.assert_close(soft_cross_entropy(LOG_ODDS, zeros), -logsigmoid(-LOG_ODDS))


def test_the_gradient_is_what_the_model_says_less_what_the_label_says() -> None:
    log_odds = LOG_ODDS.clone().requires_grad_()
    soft_cross_entropy(log_odds, LABELS).sum().backward()
    expected = [1 / (1 + math.exp(-h)) - p for h, p in zip(LOG_ODDS.tolist(), LABELS.tolist(), strict=True)]
    assert log_odds.grad is not None
    assert log_odds.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert log_odds.grad[2] == 0  # a tie at log-odds 0 is met


def test_gradients_equal_finite_differences() -> None:
    assert torch.autograd.gradcheck(soft_cross_entropy, (LOG_ODDS.clone().requires_grad_(), LABELS))
    logps = [numbers(-3.0, -40.0).requires_grad_(), numbers(-5.0, -2.5).requires_grad_()]
    reference = numbers(-4.0, -38.0), numbers(-4.5, -3.0)
    assert torch.autograd.gradcheck(
        lambda chosen, rejected: weighted_mean(
            soft_cross_entropy(dpo_log_odds(chosen, rejected, *reference, 0.3), numbers(0.9, 0.2)), numbers(0.5, 1.5)
        ),
        logps,
    )


def test_swapping_the_sides_with_their_label_changes_nothing() -> None:
    torch.testing.assert_close(soft_cross_entropy(LOG_ODDS, LABELS), soft_cross_entropy(-LOG_ODDS, 1 - LABELS))
    chosen, rejected, ref_chosen, ref_rejected = numbers(-3.0), numbers(-5.0), numbers(-4.0), numbers(-4.5)
    there = dpo_log_odds(chosen, rejected, ref_chosen, ref_rejected, 0.1)
    back = dpo_log_odds(rejected, chosen, ref_rejected, ref_chosen, 0.1)
    torch.testing.assert_close(there, -back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_odds_stay_finite(dtype: torch.dtype) -> None:
    log_odds = torch.tensor([1e4, 1e4, -1e4, -1e4, 1e4], dtype=dtype, requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.25], dtype=dtype)
    losses = soft_cross_entropy(log_odds, labels)
    assert losses.tolist() == pytest.approx([0, 1e4, 1e4, 0, 7500])
    losses.sum().backward()
    assert log_odds.grad is not None
    assert log_odds.grad.tolist() == pytest.approx([0, 1, -1, 0, 0.75])


def test_log_odds_of_dpo_by_hand() -> None:
    # ln π/π_ref is 2 for the chosen response and -0.5 for the rejected one.
    found = dpo_log_odds(numbers(-10.0), numbers(-7.5), numbers(-12.0), numbers(-7.0), beta=0.2)
    assert found.tolist() == pytest.approx([0.2 * 2.5])


def test_a_policy_that_is_its_reference_has_even_odds() -> None:
    logps = numbers(-10.0), numbers(-7.5)
    assert dpo_log_odds(*logps, *logps, 0.2).tolist() == [0]


def test_weights_are_factors_and_the_batch_does_not_normalise_them() -> None:
    assert float(weighted_mean(numbers(1.0, 2.0, 6.0), numbers(0.5, 2.0, 0.0))) == pytest.approx((0.5 + 4) / 3)
    heavy = weighted_mean(numbers(1.0, 2.0), numbers(4.0, 4.0))
    assert float(heavy) == pytest.approx(6)  # as heavy as four such batches
