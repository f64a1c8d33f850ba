"""Choices read from lists of the most likely tokens, which is all that most servers show of a model's probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cai.engines.choices import spelled_choice

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


def read_choices(
    positions: Sequence[Position], prefill: str, choices: Sequence[str]
) -> tuple[tuple[float, ...], float]:
    """Read how likely each choice is at the first position that is not mere lead-in.

    Signs without letters (white space, brackets, quotation marks, asterisks) are lead-in, and so is a repetition of
    `prefill` by a model that starts its reply over. A choice has the sum over its listed spellings. One without any gets the
    highest probability that it can have: it is not above the least listed token, nor above what the list leaves of 1.
    Where no choice is listed, nothing is known of any, and all have probability 0.

    Returns:
        The natural logarithm of each choice's probability, and the probability in [0, 1] that is not listed for any.
    """
    position = _deciding(positions, prefill, choices)
    top = position.top if position else ()
    spellings: list[list[float]] = [[] for _ in choices]
    for text, logprob in top:
        index = spelled_choice(text, choices)
        if index is not None:
            spellings[index].append(logprob)
    logprobs, off_mass = over_spellings(spellings)
    if any(spellings):
        listed = [math.exp(logprob) for _, logprob in top]
        bound = _log(min(*listed, 1.0 - math.fsum(listed)))
        logprobs = tuple(known if found else bound for known, found in zip(logprobs, spellings, strict=True))
    return logprobs, off_mass


def over_spellings(logprobs: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], float]:
    """Sum up each choice's probability over the tokens that spell it, given as natural logarithms.

    Returns:
        The natural logarithm of each choice's probability, and the probability in [0, 1] that is none of theirs.
    """
    probabilities = [math.fsum(map(math.exp, spellings)) for spellings in logprobs]
    return tuple(map(_log, probabilities)), min(1.0, max(0.0, 1.0 - math.fsum(probabilities)))


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _deciding(positions: Sequence[Position], prefill: str, choices: Sequence[str]) -> Position | None:
    """The first position that is not lead-in; None where there is no such."""
    written = ""
    for position in positions:
        written += position.text
        if spelled_choice(position.text, choices) is not None:
            return position
        if not _letters(prefill).startswith(_letters(written)):
            return position
    return None


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()
