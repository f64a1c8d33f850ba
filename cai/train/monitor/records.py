"""What the monitor reads and what it reports."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from cai.records import Message, Record
from cai.statistics import Mean

Action = Literal["stop", "raise_kl_coef", "lower_learning_rate", "warn"]
"""What an alert asks for, gravest first; `stop` is to stop and keep the best checkpoint."""
ACTIONS: tuple[Action, ...] = ("stop", "raise_kl_coef", "lower_learning_rate", "warn")
LengthUnit = Literal["tokens", "words"]

CANNOT_SEE = (
    "The monitor counts lengths, repeats and known phrases, and compares scores. It does not see a hack that neither "
    "lengthens nor repeats nor shifts phrases: a false claim in a new wording looks like any other. A gold score shows "
    "only what its model does not get wrong in the same way as the proxy. What happens off these prompts is not seen "
    "at all. That its alerts come early enough to save a run has not been shown."
)

_Step = Annotated[int, Field(ge=0)]


class StepMetrics(Record):
    """One line of metrics.jsonl: means over one training step. Unknown keys are ignored; a missing one is None."""

    model_config = ConfigDict(extra="ignore")

    step: _Step
    score: float | None = None
    """Proxy reward, before any penalty on KL."""
    kl: float | None = None
    """Nats: the k1 estimate summed over a response, mean over the responses."""
    kl_k3: float | None = None
    """The same by the k3 estimate."""
    entropy: float | None = None
    """Nats a token."""
    length: float | None = None
    """Tokens of a response."""
    eos_rate: float | None = None
    """Share of the responses that end by themselves."""
    clip_fraction: float | None = None
    explained_variance: float | None = None
    kl_coef: float | None = None
    learning_rate: float | None = None
    ratio: float | None = None
    """π/π_old of a token."""


class ProbeSample(Record):
    """One line of samples.jsonl: a response of the policy at a step. Unknown keys are ignored.

    Those of step 0 are the untouched policy's. Every step samples the same prompts, each the same number of times.
    """

    model_config = ConfigDict(extra="ignore")

    step: _Step
    prompt_id: str
    prompt: tuple[Message, ...] = ()
    response: str
    score: float | None = None
    """Proxy reward."""
    gold: float | None = None
    """Reward by a model that is not optimised."""
    variance: float | None = None
    """Of the proxy ensemble's members."""
    tokens: int | None = None
    ended: bool | None = None
    """Whether the response ended by itself and was not cut."""
    logprob: float | None = None
    """Natural log-probability of the response under the policy, summed over its tokens."""
    ref_logprob: float | None = None
    """The same under the reference."""


class Figure(Record):
    """One measure at one look. Intervals are of 95%, by a bootstrap over prompts."""

    mean: Mean
    responses: int
    """Responses that it is measured on."""
    prompts: int
    """Prompts of these; they are the clusters."""
    change: Mean | None
    """Since step 0, over the prompts of both. None at step 0, or where no prompt is measured at both."""


class PhraseGrowth(Record):
    """A phrase that more of the responses hold than at the start."""

    text: str
    """Lower case, without punctuation; a closing as `collapse.closing` gives it."""
    kind: Literal["words", "closing"]
    share: float
    """Of the responses that hold it, however often."""
    start: float
    """The same at step 0."""
    risen: int
    """Prompts of which more responses hold it than at step 0."""
    fallen: int
    """Prompts of which fewer do."""
    p_value: float
    """One-sided sign test over these prompts, times the number of phrases that could be found; at most 1."""


class LengthControl(Record):
    """How much of the gain in reward since step 0 is left among responses of like length."""

    gain: Mean
    """Mean reward now less that at step 0."""
    surviving: Mean
    """The same inside buckets of length."""
    share: float | None
    """`surviving` over `gain`; None where the gain's interval holds 0."""
    shortfall: Mean
    """The tolerated share of `gain`, less `surviving`; above 0, too little of the gain survives."""
    buckets: int
    """Buckets with responses of both steps."""
    covered: float
    """Share of the responses of both steps that are in those."""


class Look(Record):
    """All measures at the step of one probe."""

    step: int
    figures: Mapping[str, Figure]
    """By name, as far as they could be measured; see `measures.MEASURES`."""
    kl: float | None
    """Nats, from the samples' log-probabilities or else from the metrics of this very step; 0 at step 0."""
    perplexity: float | None
    """Of the responses under the reference: exp(−Σ ref_logprob / Σ tokens)."""
    repeated_closing: float
    """Share of all responses with the most frequent closing; 0 where no two end alike."""
    closing: str
    """That closing."""
    length_control: LengthControl | None
    phrases: tuple[PhraseGrowth, ...]
    """Those that have grown beyond chance and tolerance, the greatest rise first."""
    beyond: tuple[str, ...]
    """Checks that are beyond their tolerance at this look."""

    @property
    def distance(self) -> float | None:
        """√KL; None where KL is not known or its estimate is negative."""
        return math.sqrt(self.kl) if self.kl is not None and self.kl >= 0 else None


class StepFigure(Record):
    """One column of the metrics."""

    name: str
    rows: int
    """Steps with a finite value."""
    start: float
    """Mean of the first steps."""
    now: float
    """Mean of the last steps."""


class CheckResult(Record):
    """One check at the latest look or step."""

    name: str
    title: str
    """What is checked, for people."""
    action: Action
    value: float
    start: float | None
    """None where the start has no such figure, or none is needed."""
    threshold: float
    above: bool
    """Whether it is values above the threshold that are not tolerated, and not those below."""
    beyond: bool
    """Whether the value is beyond the threshold by more than noise."""
    reason: str
    """For people."""

    @property
    def tolerated_sign(self) -> str:
        """The sign of what is tolerated, for the threshold to follow."""
        return "≤" if self.above else "≥"


class Alert(Record):
    """A check that was beyond its threshold for long enough."""

    name: str
    action: Action
    since: int
    """First step of the row."""
    until: int | None = None
    """Step at which it was no longer so; None while it stands."""
    value: float
    start: float | None
    threshold: float
    reason: str


class Fit(Record):
    """The law of over-optimisation, fitted to the gold scores; see `overoptimisation.fit_law`."""

    points: int
    alpha: float
    alpha_error: float
    """Standard error."""
    beta: float
    beta_error: float
    """Standard error."""
    residual: float
    """Standard deviation of the points around the curve."""
    peak: float | None
    """√KL at which gold is predicted to be highest; None where the fit shows no peak."""
    note: str
    """What the peak, or its lack, means."""


class Gap(Record):
    """Something that could not be measured, or not on all responses."""

    name: str
    reason: str


class BestStep(Record):
    """The step whose checkpoint to keep."""

    step: int
    reason: str


class MonitorReport(Record):
    """The state of a run at its latest step."""

    step: int
    responses: int
    """At the latest look."""
    prompts: int
    length_unit: LengthUnit
    """Tokens where every sample has them, else words."""
    looks: tuple[Look, ...]
    steps: tuple[StepFigure, ...]
    checks: tuple[CheckResult, ...]
    """All that could be made at the latest look or step."""
    alerts: tuple[Alert, ...]
    """Those that stand, gravest first."""
    past_alerts: tuple[Alert, ...]
    """Those that no longer stand."""
    fit: Fit | None
    best: BestStep | None
    gaps: tuple[Gap, ...]
    cannot_see: str = CANNOT_SEE
