"""The order of the rows: permutations by seed and epoch, batches of like length; and the tensors of the labels."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from cai.train.batches import BatchOrder, LabelledCollator

ROWS = 1003
SIZE = 8


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    draw = random.Random(5)
    return [round(draw.lognormvariate(4, 1)) + 1 for _ in range(ROWS)]


def order(epoch: int = 0, *, size: int = SIZE, seed: int = 3, lengths: Sequence[int] | None = None) -> list[int]:
    sampler = BatchOrder(ROWS, size, seed, lengths)
    sampler.set_epoch(epoch)
    assert len(sampler) == ROWS
    return list(sampler)


def batches(rows: Sequence[int], size: int = SIZE) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def padding(rows: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens of padding where each batch is as wide as its longest row."""
    return sum(max(lengths[row] for row in batch) - lengths[own] for batch in batches(rows) for own in batch)


@pytest.mark.parametrize("grouped", [False, True])
def test_each_epoch_is_another_permutation(grouped: bool, lengths: list[int]) -> None:
    by_length = lengths if grouped else None
    epochs = [order(epoch, lengths=by_length) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    composed = [{frozenset(batch) for batch in batches(epoch)} for epoch in epochs]
    assert len(composed[0] & composed[1]) < 5  # not the same batches in another order


@pytest.mark.parametrize("grouped", [False, True])
def test_seed_and_epoch_alone_give_the_order(grouped: bool, lengths: list[int]) -> None:
    by_length = lengths if grouped else None
    torch.manual_seed(1)
    first = order(1, lengths=by_length)
    torch.manual_seed(2)
    assert order(1, lengths=by_length) == first
    assert order(1, lengths=by_length, seed=4) != first


def test_going_through_an_epoch_twice_gives_the_same_order(lengths: list[int]) -> None:
    sampler = BatchOrder(ROWS, SIZE, 3, lengths)
    sampler.set_epoch(2)
    assert list(sampler) == list(sampler) == order(2, lengths=lengths)


def test_batches_of_like_length_have_much_less_padding(lengths: list[int]) -> None:
    drawn = padding(order(), lengths)
    assert padding(order(lengths=lengths), lengths) < 0.15 * drawn


def test_no_batch_stands_where_its_length_puts_it(lengths: list[int]) -> None:
    widths = [max(lengths[row] for row in batch) for batch in batches(order(lengths=lengths))[:-1]]
    rises = sum(later > earlier for earlier, later in pairwise(widths))
    assert 0.35 < rises / (len(widths) - 1) < 0.65  # as often up as down


@pytest.mark.parametrize("rows", [ROWS, 96])
@pytest.mark.parametrize("same", [True, False])
def test_rows_have_other_companions_in_each_epoch(rows: int, same: bool, lengths: list[int]) -> None:
    """Also where all rows would fit into one pool, and where all are of one length."""
    sampler = BatchOrder(rows, SIZE, 3, [7] * rows if same else lengths[:rows])
    composed = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        composed.append({frozenset(batch) for batch in batches(list(sampler))})
    assert len(composed[0] & composed[1]) < 3


def test_the_incomplete_batch_is_the_last_one(lengths: list[int]) -> None:
    found = batches(order(lengths=lengths))
    assert [len(batch) for batch in found] == [SIZE] * (ROWS // SIZE) + [ROWS % SIZE]
    for batch in found:  # every batch but that one is a run of neighbours of one sorted pool
        assert [lengths[row] for row in batch] == sorted((lengths[row] for row in batch), reverse=True)


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    assert sorted(BatchOrder(3, 8, 0, [5, 1, 9])) == [0, 1, 2]
    assert list(BatchOrder(3, 8, 0, [5, 1, 9])) == [2, 0, 1]  # the longest first
    assert list(BatchOrder(1, 8, 0, None)) == [0]


def test_exactly_whole_batches_leave_none_incomplete() -> None:
    found = list(BatchOrder(64, 8, 0, list(range(64))))  # four pools of two batches
    assert sorted(found) == list(range(64))
    assert all(batch == sorted(batch, reverse=True) for batch in batches(found))


def test_labels_join_the_tensors_of_a_pair() -> None:
    collate = LabelledCollator(DataCollatorForPreference(pad_token_id=9))
    batch = collate(
        [
            {"chosen_ids": [1, 2, 3], "rejected_ids": [4], "p_chosen": 0.25, "weight": 1.5},
            {"chosen_ids": [5], "rejected_ids": [6, 7], "p_chosen": 1.0, "weight": 0.5},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [5, 9, 9], [4, 9, 9], [6, 7, 9]]  # the chosen ones first
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert batch["p_chosen"].tolist() == [0.25, 1.0]
    assert batch["weight"].tolist() == [1.5, 0.5]
    assert batch["p_chosen"].dtype == batch["weight"].dtype == torch.float32
    assert sorted(batch) == ["attention_mask", "input_ids", "p_chosen", "weight"]


def test_whole_numbers_as_labels_become_floats() -> None:
    rows = [{"chosen_ids": [1], "rejected_ids": [2], "p_chosen": 1, "weight": 1}]
    batch = LabelledCollator(DataCollatorForPreference(pad_token_id=9))(rows)
    assert batch["p_chosen"].dtype == torch.float32
