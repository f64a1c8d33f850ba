"""How the rewards of an ensemble become one; numpy is all it takes, so that a configuration loads no torch."""

from typing import Literal

from cai.errors import ConfigError
from cai.statistics import Floats

PENALTY = 0.1
"""Default penalty on disagreement: the mildest of those that Coste et al. 2023 use, 0.1 to 0.5."""

Combination = Literal["mean", "worst", "uncertainty"]


def combine(rewards: Floats, how: Combination, penalty: float = PENALTY) -> Floats:
    """One reward out of those of an ensemble (Coste et al. 2023, arXiv 2310.02743, section 4), shapes (n, m) → (n,).

    `mean` over the members; the `worst` one, min over the members; or by `uncertainty`, mean − penalty · variance. It
    is the variance of the m members (divided by m, not m − 1). The penalty is in units of 1 / reward. Unscored rows
    (NaN) stay so.

    Raises:
        ConfigError: there is one member, and so nothing to combine but by `mean`.
    """
    check_combination(how, rewards.shape[1])
    combined: Floats = rewards.min(axis=1) if how == "worst" else rewards.mean(axis=1)
    return combined - penalty * rewards.var(axis=1) if how == "uncertainty" else combined


def check_combination(how: Combination, members: int) -> None:
    """Check that there is something to combine.

    Raises:
        ConfigError: there is not.
    """
    if members == 1 and how != "mean":
        raise ConfigError(
            f"ensemble_by: {how} is for an ensemble, and this is one reward model; leave the option out, or train "
            "several with `cai train reward --ensemble 4`"
        )
