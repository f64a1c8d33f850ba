"""Losses on soft labels: pure functions of tensors.

A label p in [0, 1] is the probability that the chosen response is the better one; 1 is a hard label. Both losses are
the cross-entropy of that label against σ(h), where h is the model's log-odds for the chosen response:

    −p ln σ(h) − (1 − p) ln σ(−h) = −ln σ(h) + (1 − p) h

so the gradient with respect to h is σ(h) − p: it vanishes where the model says what the label says, and at h = 0 for
p = 0.5.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def soft_cross_entropy(log_odds: Tensor, p_chosen: Tensor) -> Tensor:
    """Loss of each pair, in nats. All tensors have shape (n,).

    With `log_odds` r_chosen − r_rejected it is the Bradley–Terry loss of a reward model (Lee et al. 2023, section
    2.2.1; Bai et al. 2022, section 4.1); with those of `dpo_log_odds` it is DPO's.
    """
    return -logsigmoid(log_odds) + (1 - p_chosen) * log_odds


def dpo_log_odds(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, beta: float
) -> Tensor:
    """β [ln π/π_ref (chosen) − ln π/π_ref (rejected)] (Rafailov et al. 2023, equation 7). All tensors have shape (n,).

    The arguments are the summed log-probabilities of each response under the policy and under the reference.
    """
    return beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of weight × loss over the batch, shapes (n,) → ().

    It is not divided by the batch's own weights, whose mean is 1 over the whole training set: then the gradient does
    not depend on how rows are put into batches.
    """
    return torch.mean(weights * losses)
