"""The responses to one prompt → the pairs of them that a judge compares.

Responses that say the same tell a judge nothing, so they are dropped first, each against those kept before it:
- exact duplicates are equal once every run of white space is one space;
- near duplicates have a `similarity` of `NEAR` or more. Two replies of 100 words that differ in one word of the middle
  share 95 of their 98 word triples, which is a similarity of 0.94. In a short reply one word counts for more, so `Yes,
  it is safe.` and `No, it is not safe.` are no duplicates.

The cost of n distinct responses is that of n² / 2 intersections of small sets.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeVar

from cai.errors import ConfigError
from cai.records import Comparison, Prompt, Response, stable_seed

Pairing = Literal["all", "random", "similar-length", "best-of-n"]
"""`all` pairs; one `random` pair; one random pair of `similar-length`; the response with the best score against a
random other one (`best-of-n`)."""
Dropped = Literal["empty", "exact_duplicate", "near_duplicate"]
Unpaired = Literal["too_few", "lengths_differ"]

NEAR = 0.8
"""Similarity from which one of two responses is dropped."""

MAX_LENGTH_RATIO = 2.0
"""`similar-length` takes no pair whose longer response has more than this times the characters of the shorter one."""

ItemT = TypeVar("ItemT")

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Pairs:
    """What became of the responses to one prompt."""

    comparisons: tuple[Comparison, ...]
    dropped: Mapping[Dropped, int]
    """Responses that are in no pair, by reason."""
    unpaired: Unpaired | None
    """Why there is no comparison: fewer than two responses are left, or `similar-length` excludes all pairs."""


def choose_pairs(
    prompt: Prompt,
    responses: Sequence[Response],
    pairing: Pairing,
    *,
    seed: int,
    scores: Sequence[float] | None = None,
) -> Pairs:
    """Pair the responses to `prompt`; the ids are `PROMPT_ID/I-J`, with positions in `responses` from 1, I before J.

    The choice and which of two responses is `a` are drawn from `seed` and the ids, so the same input gives the same
    pairs. `scores` holds a number for each response, of which the greatest is the best.

    Raises:
        ConfigError: `best-of-n` without scores.
    """
    if pairing == "best-of-n" and scores is None:
        raise ConfigError("the pairing best-of-n needs a score of each response; choose all, random or similar-length")
    kept, dropped = distinct(responses)
    pairs = list(combinations(kept, 2))
    unpaired: Unpaired | None = None if pairs else "too_few"
    if pairs and pairing == "best-of-n" and scores is not None:
        best = max(scores[place] for place in kept)
        first = _drawn([place for place in kept if scores[place] == best], seed, "best", prompt.id)
        pairs = [pair for pair in pairs if first in pair]
    elif pairing == "similar-length":
        pairs = [(one, other) for one, other in pairs if _similar_length(responses[one].text, responses[other].text)]
        unpaired = unpaired or (None if pairs else "lengths_differ")
    if pairs and pairing != "all":
        pairs = [_drawn(pairs, seed, "pair", prompt.id)]
    comparisons = tuple(_comparison(prompt, responses, pair, seed) for pair in pairs)
    return Pairs(comparisons, dropped, unpaired)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the sets of word triples of two texts, in [0, 1].

    Words are runs of letters and digits, in lower case; a text of fewer than three words is one piece, one without
    words is itself. Text in a script without spaces has long words, so fewer near duplicates are found there.
    """
    return _jaccard(_triples(one), _triples(other))


def distinct(responses: Sequence[Response]) -> tuple[list[int], Mapping[Dropped, int]]:
    """Positions of the responses that say something of their own, and the numbers of the others by reason."""
    kept: dict[int, frozenset[tuple[str, ...]]] = {}
    texts: set[str] = set()
    dropped: Counter[Dropped] = Counter()
    for place, response in enumerate(responses):
        text = " ".join(response.text.split())
        if not text:
            dropped["empty"] += 1
            continue
        if text in texts:
            dropped["exact_duplicate"] += 1
            continue
        texts.add(text)
        triples = _triples(text)
        if any(_jaccard(triples, known) >= NEAR for known in kept.values()):
            dropped["near_duplicate"] += 1
        else:
            kept[place] = triples
    return list(kept), dict(dropped)


def _similar_length(one: str, other: str) -> bool:
    return max(len(one), len(other)) <= MAX_LENGTH_RATIO * min(len(one), len(other))


def _comparison(prompt: Prompt, responses: Sequence[Response], pair: tuple[int, int], seed: int) -> Comparison:
    id_ = f"{prompt.id}/{pair[0] + 1}-{pair[1] + 1}"
    a, b = (responses[place] for place in _drawn([pair, pair[::-1]], seed, "sides", id_))
    return Comparison(id=id_, prompt=prompt, a=a, b=b, source="sampled")


def _drawn(items: Sequence[ItemT], *seed_parts: str | int) -> ItemT:
    return items[stable_seed(*seed_parts) % len(items)]


def _triples(text: str) -> frozenset[tuple[str, ...]]:
    words = tuple(_WORD.findall(text.lower())) or (text,)
    return frozenset(zip(words, words[1:], words[2:], strict=False)) or frozenset([words])


def _jaccard(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
