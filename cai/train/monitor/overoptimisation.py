"""The law of reward over-optimisation (Gao et al. 2022, arXiv 2210.10760), with d = √KL(policy‖initial policy).

R is the gold score less the initial policy's. For reinforcement learning R(d) = d (α − β ln d), which peaks at
d* = e^(α/β − 1).
"""

import math
from collections.abc import Sequence

import numpy as np

from cai.statistics import Floats
from cai.train.monitor.records import Fit

MIN_POINTS = 4
"""Of two unknowns; fewer leave next to nothing to tell the errors by."""
_ERRORS = 2.0
"""Standard errors by which β has to be above 0 for a peak."""


def gold_rl(d: Floats, alpha: float, beta: float) -> Floats:
    """Gold score after reinforcement learning to d (n,), which may be 0."""
    logs = np.log(d, out=np.zeros_like(d), where=d > 0)
    scores: Floats = d * (alpha - beta * logs)
    return scores


def peak_rl(alpha: float, beta: float) -> float | None:
    """d*; None where the curve has no maximum, or one beyond all numbers."""
    if beta <= 0 or alpha / beta > 700:
        return None
    return math.exp(alpha / beta - 1)


def fit_law(d: Sequence[float], gold: Sequence[float]) -> Fit | str:
    """Least squares of the recentred gold scores on d, both (n,), or why there is none. Points at d = 0 say nothing.

    The law is linear in α and β. The errors come from how far the points lie off the curve, as if independently.
    All points are recentred by the same start, though, so the noise of the start is not in them.
    """
    points = [(x, y) for x, y in zip(d, gold, strict=True) if x > 0]
    if len(points) < MIN_POINTS:
        return f"there are {len(points)} looks with a gold score and a KL above 0, and a fit takes {MIN_POINTS}"
    x, y = np.array(points).T
    columns = np.stack([x, -x * np.log(x)], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(columns, y, rcond=1e-9)
    if rank < 2:
        return "the KL of the looks hardly differs, so no curve can be told from another"
    alpha, beta = map(float, solution)
    variance = float(((y - columns @ solution) ** 2).sum()) / (len(x) - 2)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(columns.T @ columns)))
    alpha_error, beta_error = map(float, errors)
    peak = peak_rl(alpha, beta) if beta > _ERRORS * beta_error else None
    nearest, furthest = float(x.min()), float(x.max())
    if peak is None:
        note = "the points show no peak: the fitted curve does not bend down by more than its error"
    elif peak < nearest:
        note = f"the predicted peak, √KL {peak:.3g}, lies before the first look at √KL {nearest:.3g}; none has shown it"
    elif peak < furthest:
        note = f"the predicted peak, √KL {peak:.3g}, has been passed: the looks reach √KL {furthest:.3g}"
    else:
        note = f"the predicted peak, √KL {peak:.3g}, lies beyond the looks, which reach √KL {furthest:.3g}"
    return Fit(
        points=len(x),
        alpha=alpha,
        alpha_error=alpha_error,
        beta=beta,
        beta_error=beta_error,
        residual=math.sqrt(variance),
        peak=peak,
        note=note,
    )
