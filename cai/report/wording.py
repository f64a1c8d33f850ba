"""Numbers in words, as all chapters write them."""

import math
from collections.abc import Mapping

from cai.statistics import Mean, percent

NOTHING = "–"


def share(mean: Mean | None) -> str:
    """A share and its interval."""
    return NOTHING if mean is None else percent(mean)


def amount(mean: Mean | None) -> str:
    """A mean that is no share, and its interval."""
    if mean is None:
        return NOTHING
    if math.isinf(mean.low) or math.isinf(mean.high):
        return f"{mean.value:.3f} (no interval)"
    return f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"


def points(mean: Mean | None) -> str:
    """A difference of shares in percentage points, and its interval."""
    if mean is None:
        return NOTHING
    return f"{100 * mean.value:+.1f} points ({100 * mean.low:+.1f} to {100 * mean.high:+.1f})"


def change(mean: Mean | None) -> str:
    """A difference of means that are no shares, and its interval."""
    if mean is None:
        return NOTHING
    if math.isinf(mean.low) or math.isinf(mean.high):
        return f"{mean.value:+.3f} (no interval)"
    return f"{mean.value:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"


def number(value: float | None) -> str:
    """A figure without an interval."""
    return NOTHING if value is None else f"{value:.3g}"


def part(count: int, whole: int) -> str:
    """A count and what share of the whole it is."""
    return f"{count:,} of {whole:,} ({count / whole:.1%})" if whole else f"{count:,}"


def reasons(counts: Mapping[str, int]) -> str:
    """Counts by reason, or `none`."""
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.items() if number) or "none"
