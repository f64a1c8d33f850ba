"""The packed prefix trie: a hand-built one, and random ones against what each sequence sees alone."""

import random

import pytest

torch = pytest.importorskip("torch")

from cai.engines.chat import common_length  # noqa: E402
from cai.engines.trie import nearest_first, prefix_trie, tree_mask  # noqa: E402

# Preorder by hand: 1 2 3 | 4 5 (of 1 2 3 4 5) | 6 (of 1 2 6) | 7 8 (of 7 8)
SEQUENCES = [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 6], [7, 8]]


def test_a_trie_by_hand() -> None:
    trie = prefix_trie(SEQUENCES)
    assert trie.tokens == [1, 2, 3, 4, 5, 6, 7, 8]
    assert trie.depths == [0, 1, 2, 3, 4, 2, 0, 1]
    assert trie.ends == [6, 6, 5, 5, 5, 6, 8, 8]
    assert trie.slots == [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 5], [6, 7]]
    assert trie.added == [3, 2, 1, 2]


def test_its_mask_shows_each_token_its_ancestors_and_itself() -> None:
    mask = tree_mask(prefix_trie(SEQUENCES).ends, 0, torch.float32, torch.device("cpu"))
    assert mask.shape == (1, 1, 8, 8)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}


def test_the_mask_of_what_a_cache_does_not_hold_is_the_lower_part() -> None:
    ends = prefix_trie(SEQUENCES).ends
    cpu = torch.device("cpu")
    whole, part = (tree_mask(ends, known, torch.bfloat16, cpu) for known in (0, 3))
    assert part.shape == (1, 1, 5, 8)
    assert part.dtype == torch.bfloat16
    assert torch.equal(part, whole[:, :, 3:])


def test_equal_sequences_and_an_empty_one_add_nothing() -> None:
    trie = prefix_trie([[], [1, 2], [1, 2], [1]])
    assert trie.tokens == [1, 2]
    assert trie.added == [0, 2, 0, 0]
    assert trie.slots == [[], [0, 1], [0, 1], [0]]
    assert trie.ends == [2, 2]


def test_the_nearest_come_first() -> None:
    sequences = [[1, 2, 3], [9], [1, 5], [1, 2, 4], [1, 2, 3, 0], [1, 4]]
    order = [sequences[n] for n in nearest_first(sequences)]
    assert order == [[1, 2, 3], [1, 2, 3, 0], [1, 2, 4], [1, 4], [1, 5], [9]]


def test_random_tries_hold_every_prefix_once_and_show_each_sequence_itself() -> None:
    rng = random.Random(5)
    for _ in range(200):
        sequences = [[rng.randrange(3) for _ in range(rng.randint(1, 6))] for _ in range(rng.randint(1, 9))]
        ordered = [sequences[n] for n in nearest_first(sequences)]
        assert sorted(ordered) == sorted(sequences)
        assert ordered[0] == sequences[0]
        trie = prefix_trie(ordered)
        assert len(trie.tokens) == len({tuple(s[: n + 1]) for s in sequences for n in range(len(s))})
        seen = tree_mask(trie.ends, 0, torch.float32, torch.device("cpu"))[0, 0] == 0
        for sequence, slots in zip(ordered, trie.slots, strict=True):
            assert [trie.tokens[slot] for slot in slots] == sequence
            assert [trie.depths[slot] for slot in slots] == list(range(len(sequence)))
            for depth, slot in enumerate(slots):
                assert seen[slot].nonzero().flatten().tolist() == slots[: depth + 1]


def test_a_trie_of_many_levels_needs_no_recursion() -> None:
    trie = prefix_trie([list(range(length)) for length in range(1, 3000)])
    assert trie.tokens == list(range(2999))
    assert trie.added == [1] * 2999


def test_common_prefix_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_length([1, 2], [1, 2, 3]) == 2
    assert common_length([1], [2]) == 0
