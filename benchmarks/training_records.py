"""What `training.py` and the processes that it starts tell each other. Loads nothing heavy."""

from common import Machine

from cai.records import Record

TRL, PLAIN, GROUPED, PACKED = "trl", "plain", "grouped", "packed"


class Workload(Record):
    """What each arm trains on."""

    model: str
    batch_size: int
    steps: int
    """That are measured, at the beginning of an epoch."""
    max_length: int
    limit: int | None
    """Most rows of an epoch."""
    use_cpu: bool


class Rows(Record):
    """The rows that all arms have."""

    rows: int
    """Of an epoch."""
    mean_tokens: float
    """Of a conversation."""
    longest: int


class Arm(Record):
    """What one process trains."""

    kind: str
    name: str


class Part(Record):
    """The batches that were measured of one part of an epoch's work, and what they say of the whole epoch."""

    tokens: int
    """Real tokens; a pair's prompt counts twice."""
    padding: float
    """Share of padding in what the model read."""
    wall_s: float
    cpu_s: float
    """Processor time."""
    epoch_padding: float
    """Share of padding in all batches of the epoch."""
    wall_us_per_token: float
    """Time of a position in these batches × positions for each real token in those of the epoch."""
    cpu_us_per_token: float


class Measured(Record):
    """One process at work."""

    steps: Part
    reference: Part | None
    """The reference's pass over the rows (DPO)."""
    peak_mib: float
    """Greatest memory: allocated on the CUDA device, or resident."""
    first_loss: float
    bf16: bool
    machine: Machine

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that is done for a token."""
        return (self.steps,) if self.reference is None else (self.steps, self.reference)
