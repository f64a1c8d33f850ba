"""The records that cross from one stage to the next: frozen, with stable ids, one JSON line each."""

import hashlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
PromptKind = Literal["red_team", "helpful"]


class Record(BaseModel):
    """Base of all records: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageRecord(Record):
    """What one item of a stage's input became. These two fields come first in its JSON line; `rundir` relies on it."""

    id: str
    index: int
    """Position of the item in the run's input."""


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Prompt(Record):
    """A conversation that waits for the assistant's next reply."""

    id: str
    """Stable: the row's own id, or a hash of the conversation."""
    messages: tuple[Message, ...]
    """Ends with a user turn."""
    kind: PromptKind = "red_team"
    """`red_team` prompts are answered, criticised and revised; `helpful` prompts are only answered."""
    topic: str | None = None
    source: str = ""
    """The file or data set it was read from."""


class Usage(Record):
    """Token counts of one or more model calls."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of `prompt_tokens` that a prefix cache served."""
    completion_tokens: int = 0

    def __add__(self, other: Self) -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class Sampling(Record):
    """How one reply is sampled. Temperature 1 and top-p 1 are the paper's (Bai et al. 2022, section 3.2)."""

    max_tokens: int = 256
    temperature: float = 1.0
    """0 takes the most likely token at each step."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """The reply ends before the first of these strings."""
    seed: int | None = None
    """Engines that can honour a seed for each request do; see `EngineInfo.seeded`."""


class Generation(Record):
    """One reply of a model."""

    text: str
    finish_reason: FinishReason
    """`length` when the reply was cut at `max_tokens`."""
    usage: Usage


class Step(Record):
    """One model call of a chain: what was written, and what was taken off it."""

    text: str
    removed: str = ""
    """Preamble or wrapping that was cut from the model's raw reply."""
    finish_reason: FinishReason
    usage: Usage
    seed: int


class RevisionRound(Record):
    """One critique and the revision that follows it."""

    principle_id: str
    critique: Step | None
    """None when the run leaves critiques out (`--no-critique`)."""
    revision: Step | None
    """None when the critique found nothing and the run stops there (`--stop-when-clean`)."""


class RevisionChain(StageRecord):
    """draft → (critique → revision) × n for one prompt (Bai et al. 2022, section 3.1).

    A helpful prompt has a draft and no rounds.
    """

    prompt: Prompt
    draft: Step
    rounds: tuple[RevisionRound, ...]
    constitution_sha256: str
    templates_sha256: str
    model: str
    seed: int
    """Seed of the run; each step's own seed is derived from it."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """All model calls of the chain, in order."""
        found = [self.draft]
        for round_ in self.rounds:
            found += [step for step in (round_.critique, round_.revision) if step is not None]
        return tuple(found)

    @property
    def revisions(self) -> tuple[Step, ...]:
        """The revisions in order of rounds."""
        return tuple(round_.revision for round_ in self.rounds if round_.revision is not None)

    @property
    def final(self) -> Step:
        """The last revision, or the draft where there is none."""
        return self.revisions[-1] if self.revisions else self.draft

    @property
    def usage(self) -> Usage:
        """Tokens of all steps."""
        return sum((step.usage for step in self.steps), Usage())


class Failure(StageRecord):
    """A record that could not be finished, and why."""

    step: str
    """The step that failed, such as `draft` or `revision 2`."""
    reason: str
    """Stable code, such as `context_overflow`."""
    message: str


def stable_seed(*parts: str | int) -> int:
    """Derive a 32-bit seed from `parts`, the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
