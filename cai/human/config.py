"""How a collection of ratings is made."""

from typing import Annotated

from pydantic import Field

from cai.config import Positive, Share, StrictModel
from cai.human.records import Scale

Count = Annotated[int, Field(ge=0)]


class RatingConfig(StrictModel):
    """What raters are asked, and which comparisons each of them gets."""

    scale: Scale = "four"
    """The answers that prefer a response: `four` tells clearly from slightly better, `two` does not."""
    overlap: Share = 0.1
    """Share of the comparisons that several raters get; all others get one."""
    overlap_raters: Positive = 2
    """How many raters get each of those."""
    check_every: Count = 20
    """One attention check among so many items of a rater; 0: none."""
    hold_minutes: Positive = 60
    """An item that was handed out and left is handed to another rater after this time."""
    seed: int = 0
    """Fixes which comparisons overlap, the order they are handed out in, and which response stands first."""
