"""What raters say of comparisons; everything that reads or writes ratings speaks in these records."""

from collections.abc import Mapping
from typing import Literal

from cai.records import Record, Side

Scale = Literal["four", "two"]
"""`four` tells clearly from slightly better, `two` asks only which one is better."""

Answer = Literal["a", "rather_a", "rather_b", "b", "both_bad", "skipped"]
"""`a`: response a is (clearly) better, `rather_a`: slightly; `both_bad` and `skipped` prefer neither."""

ANSWERS: Mapping[Scale, tuple[Answer, ...]] = {
    "four": ("a", "rather_a", "rather_b", "b"),
    "two": ("a", "b"),
}
"""The answers of each scale that prefer a response, from a to b."""

SLIGHT = 0.75
"""What a slight preference counts as, where a clear one is 1. Nothing in the literature fixes it."""


class Rating(Record):
    """One rater's answer to one comparison. A file of ratings has one on each line."""

    comparison_id: str
    rater: str
    """Name of the rater."""
    answer: Answer
    first: Side
    """The response that stood first (on the left, or above) on this rater's page."""
    seconds: float
    """Time for which the rater had the comparison before them."""
    comment: str = ""
    at: str
    """When it was given: ISO 8601, UTC."""
    check: Side | None = None
    """In an attention check, the response that is known to be better. Checks are no data."""

    @property
    def preferred(self) -> Side | None:
        """The response that the rater prefers, if one."""
        return preferred_side(self.answer)

    @property
    def fails_check(self) -> bool:
        """Whether it is the answer to an attention check and does not prefer the better response."""
        return self.check is not None and self.preferred != self.check

    def p_a(self, slight: float = SLIGHT) -> float | None:
        """The answer as a probability that a is better; None where neither is preferred."""
        return {"a": 1.0, "rather_a": slight, "rather_b": 1 - slight, "b": 0.0}.get(self.answer)


def preferred_side(answer: Answer) -> Side | None:
    """The response that an answer prefers, if one."""
    sides: Mapping[Answer, Side] = {"a": "a", "rather_a": "a", "rather_b": "b", "b": "b"}
    return sides.get(answer)
