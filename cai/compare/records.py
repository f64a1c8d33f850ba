"""What a comparison of the two paths came to: the records of comparison.json. Intervals are of 95%, over prompts."""

from collections.abc import Mapping

from pydantic import ConfigDict

from cai.compare.config import LabelSide
from cai.evaluate.ranking_records import Ranking
from cai.records import Record
from cai.statistics import CHANCE, Mean


class SideFacts(Record):
    """What one source of labels gave."""

    path: str
    sha256: str
    rows: int
    """Rows read."""
    rejects: Mapping[str, int]
    """Rows that cannot be used, by reason."""
    left_out: Mapping[str, int]
    """Rows that could be used and are not, by reason; `other_source` has a label of the other kind."""
    marks: Mapping[str, int]
    """Rows in use by who gave their label, as they say; a file without such a column says `human`."""
    merged: int
    """Rows that say something of a comparison that an earlier row is about; their labels are averaged."""
    comparisons: int
    prompts: int
    alone: int
    """Comparisons that the other side lacks; they are left out."""


class Matching(Record):
    """Which comparisons are compared. Both sides learn from the same ones, and no prompt is held out and learned."""

    ai: SideFacts
    human: SideFacts
    test: SideFacts | None
    matched: int
    """Comparisons with a label of each side."""
    matched_prompts: int
    in_test: int
    """Matched comparisons that are left out because their prompt stands in the source of the test."""
    unfit: Mapping[str, int]
    """Comparisons that no reward model could read, by reason, such as `too_long`."""
    shortened: int
    """Comparisons that lost their oldest turns to fit."""
    train: int
    train_prompts: int
    held_out: int
    held_out_prompts: int
    held_out_ai: int
    """Held-out comparisons with an AI label."""


class LabelAgreement(Record):
    """How far the two sides' labels agree on the matched comparisons."""

    comparisons: int
    prompts: int
    human_ties: int
    """Human labels of 0.5; they are left out of the shares."""
    ai_ties: int
    """AI labels of 0.5; they agree by half."""
    agreement: Mean | None
    """Share of comparisons in which both prefer the same response."""
    ai_longer: Mean | None
    """Share of the AI labels, without ties, that prefer the longer response; equal lengths count half."""
    human_longer: Mean | None
    """The same of the human labels."""


class Spread(Record):
    """One figure over models that differ by their seed alone."""

    values: tuple[float, ...]
    """In the order of the seeds."""
    mean: float
    deviation: float | None
    """Standard deviation; None for a single seed."""

    @property
    def low(self) -> float:
        """The least value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest value."""
        return max(self.values)


class Figure(Record):
    """A mean over pairs and seeds: what other prompts would change, and what other seeds would."""

    mean: Mean
    """Over pairs, of each pair's mean over the seeds; the interval is over prompts."""
    seeds: Spread


class Cell(Record):
    """Reward models trained on one side's labels and tested on the held-out labels of one side."""

    trained_on: LabelSide
    tested_on: LabelSide
    labels: int
    """Labels that each model learned from."""
    accuracy: Figure | None
    """Share of pairs whose higher reward goes to the response that the label prefers; None if all labels are ties."""
    log_loss: Figure
    ece: Spread
    """Expected calibration error. It has no interval, as resampling raises it."""


class HeldOutLabels(Record):
    """One side's held-out labels, and what can be reached on them without a reward model."""

    tested_on: LabelSide
    pairs: int
    prompts: int
    ties: int
    """Labels of 0.5; they are left out of accuracies."""
    longer_wins: Mean | None
    """Accuracy of taking the longer response."""
    gap: Mean | None
    """Accuracy after training on human labels minus that after AI labels, paired by pair, mean over seeds."""
    label_entropy: float
    """Log loss of a model that says each label exactly: the least that is possible on these labels."""
    human_ceiling: str | None
    """What people reach on such comparisons, where it is known."""


class AiEffort(Record):
    """What the judge's labels took, by the manifest of their run."""

    model: str
    labels: int
    prompt_tokens: float
    """For each label."""
    cached_tokens: float
    """Those of them that a prefix cache served."""
    completion_tokens: float
    """For each label."""
    seconds: float
    """For each label, as the run went; depends on the machine."""


class HumanEffort(Record):
    """What people's labels took, by their ratings."""

    raters: int
    ratings: int
    """All of them: skipped comparisons and attention checks take time too."""
    labels: int
    """Those of the export, which leaves raters and ties out; of a file, comparisons with an answer that prefers a
    response."""
    seconds: float
    """For each label: the seconds of all ratings divided by the labels."""
    median_seconds: float
    """Of one rating. Where `seconds` is far above, pages were left open."""


class Costs(Record):
    """What labels took, and what they cost by the prices stated."""

    ai: AiEffort | None
    """None where no run of `cai label` says so."""
    human: HumanEffort | None
    """None where no ratings are there."""
    currency: str | None
    """None where no price was stated."""
    ai_label: float | None
    """Cost of one AI label."""
    human_label: float | None
    """Cost of one human label."""

    def of(self, side: LabelSide) -> float | None:
        """Cost of one label of a side."""
        return self.ai_label if side == "ai" else self.human_label


class SizePoint(Record):
    """Reward models trained on so many labels of one side, tested on the human held-out labels."""

    trained_on: LabelSide
    labels: int
    accuracy: Figure
    cost: float | None
    """Of these labels; None where no price of the side was stated."""


class PathComparison(Record):
    """The AI path beside the human path. Only times are left out, so that the same inputs give the same file."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    start: str
    """The model that every training starts from."""
    start_sha256: str
    seed: int
    seeds: tuple[int, ...]
    """Of the reward models."""
    chance: float = CHANCE
    matching: Matching
    agreement: LabelAgreement
    held_out: tuple[HeldOutLabels, ...]
    """The human held-out labels, then the AI's where there are any."""
    cross: tuple[Cell, ...]
    efficiency: tuple[SizePoint, ...]
    """By side, then by size; the last of a side are all labels."""
    costs: Costs
    ranking: Ranking | None = None
    """Of policies that were trained on either side's labels, where one was named."""

    def cell(self, trained_on: LabelSide, tested_on: LabelSide) -> Cell | None:
        """The cell of the cross table; None where there are no such held-out labels."""
        return next((one for one in self.cross if (one.trained_on, one.tested_on) == (trained_on, tested_on)), None)

    def labels(self, tested_on: LabelSide) -> HeldOutLabels | None:
        """The held-out labels of a side, where there are any."""
        return next((one for one in self.held_out if one.tested_on == tested_on), None)
