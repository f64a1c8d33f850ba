"""A trained reward model, or an ensemble of them, that gives rewards to conversations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cai.statistics import Floats

MEMBER = "member-"
"""Beginning of the names of the folders that the members of an ensemble are in."""


def raw_rewards(
    model: Any, rows: Sequence[Sequence[int]], *, pad_token_id: int, batch_size: int, on_batch: Any = None
) -> Floats:
    """The model's output at the last token of each row of token ids, before any offset; shape (n,).

    Rows are read in the order of their length, longest first, padded on the right.
    """
    found = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = len(rows[batch[0]])
            ids = torch.full((len(batch), width), pad_token_id)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for place, row in enumerate(batch):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
                mask[place, : len(rows[row])] = 1
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            found[batch] = logits.squeeze(-1).float().cpu().numpy()
            if on_batch is not None:
                on_batch(len(batch))
    model.train(was_training)
    return found
