"""Which rows go into a batch, in which order, and how they become tensors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

LABEL_COLUMNS = ("p_chosen", "weight")
"""Columns of a pair beside its token ids."""

_POOL = 50
"""Batches whose rows are sorted by length together. More save little padding and leave less to chance."""
_POOLS = 4
"""Least number of pools: of one alone, each epoch would have the same batches."""


class BatchOrder(Sampler[int]):
    """The order of the training rows in each epoch, given by seed and epoch alone, so that a resumed run goes on in it.

    With lengths, rows of like length stand together: the rows are shuffled, cut into pools, each pool is sorted by
    length and cut into batches of `batch_size` rows, and the batches are shuffled. `batch_size` is that of a whole
    optimiser step over all processes, so that the batches do not depend on how a step is divided.
    """

    def __init__(self, rows: int, batch_size: int, seed: int, lengths: Sequence[int] | None) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._lengths = lengths
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the beginning of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order: list[int] = torch.randperm(self._rows, generator=generator).tolist()
        if self._lengths is None:
            return iter(order)
        lengths, size = self._lengths, self._batch_size
        width = size * max(1, min(_POOL, self._rows // (_POOLS * size)))
        pools = [order[start : start + width] for start in range(0, self._rows, width)]
        sorted_rows = [row for pool in pools for row in sorted(pool, key=lambda row: -lengths[row])]
        batches = [sorted_rows[start : start + size] for start in range(0, self._rows, size)]
        last = [batches.pop()] if len(batches[-1]) < size else []  # an incomplete batch stays at the end
        shuffled = [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
        return iter([row for batch in [*shuffled, *last] for row in batch])


@dataclass(frozen=True)
class LabelledCollator:
    """Adds the labels of pairs to what TRL's collator makes of their token ids."""

    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate(examples))
        for column in LABEL_COLUMNS:
            batch[column] = torch.tensor([example[column] for example in examples], dtype=torch.float32)
        return batch
