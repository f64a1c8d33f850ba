"""Choices read from lists of the most likely tokens, which is all that most servers show of a model's probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai.engines.choices import goes_on, natural_log, over_spellings, spelled_choice

LEAD_IN_TOKENS = 3
"""Tokens that may stand before the choice, such as ` **(`."""


@dataclass(frozen=True)
class Position:
    """One token of a reply."""

    text: str
    top: tuple[tuple[str, float], ...]
    """The most likely tokens at this place, as text and natural logarithm of the probability."""


def tokens_to_read(unsent: str) -> int:
    """How many tokens of a reply are asked for, where `unsent` is a prefill that the model may still have to write.

    A word is taken for two tokens.
    """
    return LEAD_IN_TOKENS + 1 + 2 * len(unsent.split())


def read_choices(positions: Sequence[Position], unsent: str, choices: Sequence[str]) -> tuple[tuple[float, ...], float]:
    """Read how likely each choice is at the first position that is not mere lead-in.

    Signs without letters (white space, brackets, quotation marks, asterisks) are lead-in, and so is what the model
    writes of `unsent`, a prefill that it was not given, or of its last words. A choice has the sum over its listed
    spellings. One without any gets the highest probability that it can have: it is not above the least listed token,
    nor above what the list leaves of 1. A choice that begins with another one, as 10 does with 1, gets none, since
    many vocabularies have no token for it. Where no choice is listed, nothing is known of any, and all have
    probability 0.

    Returns:
        The natural logarithm of each choice's probability, and the probability in [0, 1] that is not listed for any.
    """
    position = _deciding(positions, unsent, choices)
    top = position.top if position else ()
    spellings: list[list[float]] = [[] for _ in choices]
    for text, logprob in top:
        index = spelled_choice(text, choices)
        if index is not None:
            spellings[index].append(logprob)
    logprobs, off_mass = over_spellings(spellings)
    if any(spellings):
        listed = [math.exp(logprob) for _, logprob in top]
        bound = natural_log(min(*listed, 1.0 - math.fsum(listed)))
        logprobs = tuple(
            known if found or goes_on(choice, choices) else bound
            for choice, known, found in zip(choices, logprobs, spellings, strict=True)
        )
    return logprobs, off_mass


def _deciding(positions: Sequence[Position], unsent: str, choices: Sequence[str]) -> Position | None:
    """The first position that is not lead-in; None where there is no such."""
    words = unsent.split()
    ends = [_letters("".join(words[first:])) for first in range(len(words))]
    written = ""
    for position in positions:
        written += _letters(position.text)
        if spelled_choice(position.text, choices) is not None:
            return position
        if written and not any(end.startswith(written) for end in ends):
            return position
    return None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()
