"""Which tokens spell a choice: the option `A` may come as `A`, ` A`, `(A`, `A)` or `**A`, each a token of its own."""

import math
import re
from collections.abc import Sequence

from cai.errors import EngineError

_AROUND = re.compile(r"""^[\s("'`*_\[{«“‘▁]+|[\s)"'`*_\]}»”’.,:;!]+$""")
"""What may stand before and after an option within its token."""


def spelled_choice(text: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that a token's text spells; None where it spells none.

    White space, brackets, quotation marks, asterisks and a closing punctuation mark around it do not count. Words count
    in any case (`YES`), single letters only as they are: `a` is an article and not the option A.
    """
    bare = _AROUND.sub("", text)
    for index, choice in enumerate(choices):
        if bare == choice or (len(choice) > 1 and bare.lower() == choice.lower()):
            return index
    return None


def choice_tokens(vocabulary: Sequence[str], choices: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Ids of the tokens that spell each choice; `vocabulary` is the decoded text of every token, by id.

    A choice that begins with another one, as 10 does with 1, may have none: many vocabularies know single digits only.
    What follows the other choice then tells the two apart, and the caller has to ask for that.

    Raises:
        EngineError: no token spells one of the choices, so that the vocabulary splits it.
    """
    found: list[list[int]] = [[] for _ in choices]
    for token, text in enumerate(vocabulary):
        index = spelled_choice(text, choices)
        if index is not None:
            found[index].append(token)
    for choice, tokens in zip(choices, found, strict=True):
        if not tokens and not goes_on(choice, choices):
            raise EngineError(
                f"the model's vocabulary splits the option {choice!r} into several tokens, so its probability cannot "
                "be read from one; take another protocol or another judge"
            )
    return tuple(map(tuple, found))


def goes_on(choice: str, choices: Sequence[str]) -> bool:
    """Whether a choice begins with another one, as 10 does with 1."""
    return any(choice != other and choice.startswith(other) for other in choices)


def over_spellings(logprobs: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], float]:
    """Sum up each choice's probability over the tokens that spell it, given as natural logarithms.

    Returns:
        The natural logarithm of each choice's probability, and the probability in [0, 1] that is none of theirs.
    """
    probabilities = [math.fsum(map(math.exp, spellings)) for spellings in logprobs]
    return tuple(map(natural_log, probabilities)), min(1.0, max(0.0, 1.0 - math.fsum(probabilities)))


def natural_log(probability: float) -> float:
    """Natural logarithm; minus infinity of 0 and below."""
    return math.log(probability) if probability > 0 else -math.inf
