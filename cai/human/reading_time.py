"""Answers whose time does not fit their text: too fast for anyone to read it, or odd for the rater who gave them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cai.human.records import Rating
from cai.records import Comparison, Record
from cai.statistics import Floats

MAX_RATE = 100.0
"""Characters of the two responses a second that nobody reads. Adults read English at 238 words a minute (Brysbaert
2019, "How many words do we read per minute?"), some 24 characters a second; this is four times that."""
MIN_TIMED = 10
"""With fewer timed answers, nothing is odd for a rater."""
MAX_DEVIATIONS = 3.5
"""Robust standard deviations of the logarithm beyond which a time is odd (Iglewicz and Hoaglin 1993)."""
MIN_FACTOR = 2.0
"""And the time is at least so many times off: raters who are very steady have no odd answers for that."""

_NORMAL = 1.4826
"""Standard deviations of a normal distribution for each median absolute deviation."""

RULE = (
    f"An answer is too fast to be read where the two responses together have more than {MAX_RATE:g} characters for "
    "each second, four times the usual speed of reading. It is unusually fast or slow for its rater where the "
    f"logarithm of its seconds is more than {MAX_DEVIATIONS:g} robust standard deviations, and at least a factor of "
    f"{MIN_FACTOR:g}, off the rater's own median for texts of that length."
)
"""What the lists of answers mean."""


class TimeFigures(Record):
    """How long one rater takes. The lists hold ids of comparisons; see `RULE`."""

    timed: int
    """Ratings with a time above 0 seconds; others have none that is known, and are in no figure here."""
    readable: int
    """Those of them that prefer a response or find both bad, of comparisons whose text is known."""
    median_seconds: float | None
    too_fast: tuple[str, ...]
    """Out of `readable`: skipping needs no reading."""
    unusually_fast: tuple[str, ...]
    unusually_slow: tuple[str, ...]


def time_figures(ratings: Sequence[Rating], comparisons: Mapping[str, Comparison]) -> TimeFigures:
    """The times of one rater's ratings."""
    timed = [rating for rating in ratings if rating.seconds > 0]
    answered = [rating for rating in timed if rating.answer != "skipped"]
    readable = [rating for rating in answered if rating.comparison_id in comparisons]
    lengths = {rating.comparison_id: _length(comparisons[rating.comparison_id]) for rating in readable}
    odd = np.zeros(len(answered))
    if len(answered) >= MIN_TIMED:
        known = len(readable) == len(answered)
        logs = np.log([rating.seconds for rating in answered])
        sizes = np.log([lengths[rating.comparison_id] for rating in answered]) if known else np.zeros(len(answered))
        odd = oddness(logs, sizes)
    return TimeFigures(
        timed=len(timed),
        readable=len(readable),
        median_seconds=float(np.median([rating.seconds for rating in timed])) if timed else None,
        too_fast=tuple(
            rating.comparison_id for rating in readable if lengths[rating.comparison_id] > MAX_RATE * rating.seconds
        ),
        unusually_fast=tuple(answered[place].comparison_id for place in np.flatnonzero(odd < 0)),
        unusually_slow=tuple(answered[place].comparison_id for place in np.flatnonzero(odd > 0)),
    )


def oddness(log_seconds: Floats, log_lengths: Floats) -> Floats:
    """-1 for each time that is unusually short, 1 for long ones, else 0. Shape (n,)."""
    rest = log_seconds - resistant_slope(log_lengths, log_seconds) * log_lengths
    rest = rest - np.median(rest)
    limit = max(MAX_DEVIATIONS * _NORMAL * float(np.median(np.abs(rest))), math.log(MIN_FACTOR))
    return np.where(np.abs(rest) > limit, np.sign(rest), 0.0)


def resistant_slope(x: Floats, y: Floats) -> float:
    """Slope of y by x between the medians of the lowest and the highest third of x (Tukey's resistant line).

    Kept in [0, 1]: longer texts take longer, but not more than in proportion. 0 where x hardly varies.
    """
    order = np.argsort(x, kind="stable")
    third = max(1, len(x) // 3)
    low, high = order[:third], order[-third:]
    width = float(np.median(x[high]) - np.median(x[low]))
    if width <= 0:
        return 0.0
    return float(np.clip((np.median(y[high]) - np.median(y[low])) / width, 0.0, 1.0))


def _length(comparison: Comparison) -> int:
    return len(comparison.a.text) + len(comparison.b.text)
