"""What people reach on the sets of comparisons that are known by name."""

_HH_CEILING = (
    "people agree with one another in 73% to 77% of comparisons; reported by Lee et al. 2023 (arXiv 2309.00267) for "
    "their data and quoted as context, not measured on this set"
)
_PLANTED_CEILING = "100% by construction: the better response is obvious to any careful reader"


def human_ceiling(set_name: str) -> str | None:
    """What people reach on a set, where that is known; sets are known by their names."""
    if set_name == "planted":
        return _PLANTED_CEILING
    return _HH_CEILING if "hh-rlhf" in set_name.lower() else None
