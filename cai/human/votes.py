"""Several people's answers to one comparison → one label; and what is known of each rater."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self

from cai.human.records import SLIGHT, Rating
from cai.records import Record

MIN_CHECKS = 4
"""So many attention checks a rater must have had before their share of failures says anything."""


class Vote(Record):
    """One person's preference between the responses of a comparison."""

    rater: str | None
    """Name of the person; None where it is not known."""
    p_a: float
    """How likely a is the better one by this vote: 0 or 1 where the preference is clear."""

    def swap(self) -> Self:
        """The same vote on the comparison with its responses in the other order."""
        return self.model_copy(update={"p_a": 1 - self.p_a})


class HumanLabel(Record):
    """What people say of a comparison."""

    p_a: float
    """Mean of the votes' p_a."""
    votes: int
    raters: tuple[str, ...]
    """Names of those who voted, as far as they are known, in alphabetical order."""
    disputed: bool
    """Whether some prefer a and others b."""

    @property
    def annotator_id(self) -> str | None:
        """The raters' names with a comma between them; None where no name is known."""
        return ",".join(self.raters) or None


def human_label(votes: Sequence[Vote]) -> HumanLabel:
    """The label that one or more votes come to."""
    return HumanLabel(
        p_a=math.fsum(vote.p_a for vote in votes) / len(votes),
        votes=len(votes),
        raters=tuple(sorted({vote.rater for vote in votes if vote.rater is not None})),
        disputed=any(vote.p_a > 0.5 for vote in votes) and any(vote.p_a < 0.5 for vote in votes),
    )


def rating_votes(
    ratings: Iterable[Rating], *, slight: float = SLIGHT, leave_out: Collection[str] = ()
) -> Mapping[str, Sequence[Vote]]:
    """The votes among ratings by the id of their comparison.

    Attention checks, `both_bad`, `skipped` and the ratings of raters in `leave_out` are no votes.
    """
    found: dict[str, list[Vote]] = {}
    for rating in ratings:
        p_a = rating.p_a(slight)
        if rating.check is None and p_a is not None and rating.rater not in leave_out:
            found.setdefault(rating.comparison_id, []).append(Vote(rater=rating.rater, p_a=p_a))
    return found


class RaterFacts(Record):
    """What one rater did. Each of their answers is a vote, `both_bad`, `skipped`, or to an attention check."""

    name: str
    votes: int
    both_bad: int
    skipped: int
    checks: int
    """Attention checks that they have answered."""
    checks_failed: int
    """How many of those do not prefer the response that is known to be better."""
    left_out: bool
    """Whether their ratings are left out of the labels."""

    @property
    def ratings(self) -> int:
        """Answers that are not to attention checks."""
        return self.votes + self.both_bad + self.skipped

    @property
    def fails_checks(self) -> bool:
        """Whether they failed more than half of at least `MIN_CHECKS` attention checks."""
        return self.checks >= MIN_CHECKS and 2 * self.checks_failed > self.checks


def rater_facts(
    ratings: Iterable[Rating], raters: Iterable[str], *, leave_out: Collection[str] = ()
) -> tuple[RaterFacts, ...]:
    """What each of `raters`, and each who has rated, did; by name. `ratings` may hold attention checks."""
    by_rater: dict[str, list[Rating]] = {name: [] for name in raters}
    for rating in ratings:
        by_rater.setdefault(rating.rater, []).append(rating)
    return tuple(_facts(name, by_rater[name], name in leave_out) for name in sorted(by_rater))


def _facts(name: str, ratings: Sequence[Rating], left_out: bool) -> RaterFacts:
    checks = [rating for rating in ratings if rating.check is not None]
    data = [rating for rating in ratings if rating.check is None]
    return RaterFacts(
        name=name,
        votes=sum(rating.preferred is not None for rating in data),
        both_bad=sum(rating.answer == "both_bad" for rating in data),
        skipped=sum(rating.answer == "skipped" for rating in data),
        checks=len(checks),
        checks_failed=sum(rating.fails_check for rating in checks),
        left_out=left_out,
    )
