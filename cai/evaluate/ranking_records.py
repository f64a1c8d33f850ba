"""What a ranking came to: the records of ranking.json. Intervals are of 95%, over prompts."""

from collections.abc import Mapping
from typing import Literal

from pydantic import ConfigDict

from cai.records import Record
from cai.statistics import Mean

AxisName = Literal["all", "helpfulness", "harmlessness"]
Labels = Literal["judge", "people"]
CertificateGrade = Literal["pass", "weak", "fail", "absent", "unknown"]
"""`unknown`: which judge it was cannot be told any more, so no certificate can be looked up."""


class RankedRun(Record):
    """A run whose comparisons were counted."""

    path: str
    stage: str
    sha256: str
    """Of the comparisons and labels that were read."""
    labels: Labels
    """Who says which reply is better."""
    judge: str | None
    """The judge's model; None where people labelled."""
    certificate: CertificateGrade | None
    """What the judge's certificate says; None where people labelled."""
    state: str
    """Of the run; it is read as far as it is."""
    comparisons: int
    """Labelled comparisons that were read."""
    used: int
    within_policy: int
    """Comparisons of two replies of one policy; they say nothing here."""
    rejects: Mapping[str, int]
    """Comparisons that cannot be used, by reason."""
    unlabelled: Mapping[str, int]
    """Comparisons without a label, by reason."""


class PolicyRating(Record):
    """One policy on an axis."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    policy: str
    rating: Mean
    """Elo points (400 / ln 10 for each nat) above the baseline, or above the mean of the group where none is named."""
    win_rate: Mean
    """Mean probability of its reply to be the better one, over all its comparisons."""
    comparisons: int
    prompts: int
    group: int
    """Policies of one group are linked by comparisons; ratings of different groups cannot be compared."""


class PolicyPair(Record):
    """Two policies that were compared."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    first: str
    second: str
    comparisons: int
    prompts: int
    win_rate: Mean
    """Mean probability of the first one's reply to be the better one."""
    expected: float
    """The same by the ratings; far off, strength is no single number here."""
    difference: Mean
    """Rating of the first less that of the second in Elo points."""
    longer: float
    """Share of the comparisons in which the first one's reply is the longer one; equal lengths count half."""
    length_controlled: Mean | None
    """Win rate were both equally long: see `length_control`, measure `difference`."""
    length_corrected: Mean | None
    """The same by the ratio of the lengths."""


class LengthEffect(Record):
    """What the labels make of length on an axis."""

    effect: Mean | None
    """φ: change in the log-odds of a win where the reply is longer by far."""
    scale: float | None
    """Characters that count as `far`: root mean square of the differences."""
    ratio_effect: Mean | None
    """Change in the log-odds where the reply is e times as long."""
    reason: str | None
    """Why there is none."""


class Axis(Record):
    """Ratings by one set of runs."""

    name: AxisName
    runs: tuple[RankedRun, ...]
    comparisons: int
    prompts: int
    policies: tuple[PolicyRating, ...]
    """The best first, group by group."""
    pairs: tuple[PolicyPair, ...]
    length: LengthEffect
    notes: tuple[str, ...]
    """What has to be known of the figures, in sentences."""

    @property
    def groups(self) -> int:
        """Groups of policies whose ratings can be compared."""
        return len({one.group for one in self.policies})

    def policy(self, name: str) -> PolicyRating | None:
        """The rating of a policy; None where it is not on this axis."""
        return next((one for one in self.policies if one.policy == name), None)


class Ranking(Record):
    """`ranking.json`: all that `cai rank` found."""

    seed: int
    baseline: str | None
    axes: tuple[Axis, ...]
    warnings: tuple[str, ...]
    """Why not to trust the figures, in sentences."""

    def axis(self, name: AxisName) -> Axis | None:
        """The axis of that name, where there is one."""
        return next((one for one in self.axes if one.name == name), None)

    @property
    def plane(self) -> tuple[tuple[PolicyRating, PolicyRating], ...]:
        """Helpfulness and harmlessness of the policies that have both; empty where ratings cannot be compared."""
        helpful, harmless = self.axis("helpfulness"), self.axis("harmlessness")
        if helpful is None or harmless is None or helpful.groups > 1 or harmless.groups > 1:
            return ()
        both = ((one, harmless.policy(one.policy)) for one in helpful.policies)
        return tuple((one, other) for one, other in both if other is not None)
