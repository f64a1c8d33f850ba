"""A packed prefix trie: many token sequences in one row, in which every shared prefix stands once.

The tokens of the trie are laid out in preorder. A token then is an ancestor of exactly those that follow it up to the
end of its subtree, so one number a token describes the whole attention mask: token i sees token j when
j ≤ i < end of j's subtree. Positions are depths in the trie. A causal language model that reads this row computes for
every token what it would compute for it in its own sequence alone. This is the tree attention of SpecInfer (Miao et al.
2024), there over drafts of one reply, here over whole requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cai.engines.chat import common_length


@dataclass(frozen=True)
class PrefixTrie:
    """T tokens in preorder."""

    tokens: list[int]
    """Token ids, (T)."""
    depths: list[int]
    """Place of each token within its sequences, (T)."""
    ends: list[int]
    """Where the subtree of each token ends, exclusive, (T)."""
    slots: list[list[int]]
    """For each sequence the place in the trie of each of its tokens."""
    added: list[int]
    """How many tokens each sequence has added to those of the sequences before it; they sum to T."""


def prefix_trie(sequences: Sequence[Sequence[int]]) -> PrefixTrie:
    """Lay out `sequences`, each of which shares what it has in common with the one before it.

    In an order of `nearest_first` every shared prefix stands once. In any other order some stand twice, which costs
    time but changes no result.
    """
    tokens: list[int] = []
    depths: list[int] = []
    ends: list[int] = []
    slots: list[list[int]] = []
    added: list[int] = []
    path: list[int] = []
    previous: Sequence[int] = ()
    for sequence in sequences:
        shared = common_length(previous, sequence)
        start = len(tokens)
        for slot in path[shared:]:
            ends[slot] = start
        tokens += sequence[shared:]
        depths += range(shared, len(sequence))
        ends += [0] * (len(sequence) - shared)  # set when the path leaves the token
        path = path[:shared] + list(range(start, len(tokens)))
        slots.append(path)
        added.append(len(sequence) - shared)
        previous = sequence
    for slot in path:
        ends[slot] = len(tokens)
    return PrefixTrie(tokens, depths, ends, slots, added)


def nearest_first(sequences: Sequence[Sequence[int]]) -> list[int]:
    """An order of indices in which the trie is in preorder: the first sequence, then by what is shared with it."""
    first = sequences[0]
    return sorted(range(len(sequences)), key=lambda n: (-common_length(first, sequences[n]), sequences[n]))


def tree_mask(ends: Sequence[int], known: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Additive attention mask of a trie of T tokens, of which the first `known` are in the cache already.

    Args:
        ends: `PrefixTrie.ends`, (T).
        known: P.
        dtype: the model's.
        device: the model's.

    Returns:
        (1, 1, T − P, T): 0 where the row's token sees the column's, the least finite number elsewhere.
    """
    column = torch.arange(len(ends), device=device)
    row = column[known:, None]
    seen = (column <= row) & (row < torch.tensor(ends, device=device))
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)[None, None]
