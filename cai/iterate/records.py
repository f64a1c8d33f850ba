"""What an iteration leaves behind."""

from collections.abc import Mapping
from typing import Literal

from cai.records import Message, PromptKind, Record
from cai.statistics import Mean

Dropped = Literal["held_out", "earlier_round", "duplicate"]
"""Why a failure gives no new prompt: it is held out, an earlier round has the prompt, or another failure has it."""


class FailedReply(Record):
    """A reply that should not have been given."""

    prompt: str
    """Hash of the conversation that the model was asked."""
    goal: str
    """Hash of the prompt that it goes back to, which for an attack is the goal."""
    topic: str | None
    messages: tuple[Message, ...]
    reply: str
    source: str
    """`red-team: STRATEGY` or `evaluate: TASK, QUESTION`."""


class NewPrompt(Record):
    """A line of prompts.jsonl, as `cai critique-revise`, `cai sample` and others read it."""

    id: str
    """Hash of the conversation."""
    kind: PromptKind = "red_team"
    """What is criticised and revised, harmful or not: the model's own reply has failed."""
    topic: str | None
    messages: tuple[Message, ...]
    source: str


class FailedPrinciple(Record):
    """How often replies go against a principle, by the judge."""

    principle: str
    source: Literal["evaluate", "red-team"]
    """All replies to red-team prompts, or those to attacks that succeeded."""
    failing: Mean
    """Share of the replies that go against it; for `evaluate`, their mean probability of doing so."""
    replies: int


class Proposal(Record):
    """One change of the constitution that a person may accept."""

    principle: str
    change: Literal["weight", "added"]
    reason: str
    """The evidence, for people."""


class Round(Record):
    """One round, in the table of all."""

    runs: tuple[str, ...]
    figures: Mapping[str, Mean]
    """By name; success of attacks on held-out goals is what to compare."""
    failures: int
    prompts: int
    """New prompts."""
    dropped: Mapping[Dropped, int]
    proposals: tuple[Proposal, ...]


class Iteration(Record):
    """`iteration.json`: all that `cai iterate` found."""

    rounds: tuple[Round, ...]
    """Earlier rounds first; the last one is this."""
    principles: tuple[FailedPrinciple, ...]
    """Those that failed most first; those of evaluations, which look at all replies, before those of attacks."""
    constitution: str | None
    """File that the edit changes; None where no run names a constitution."""
    notes: tuple[str, ...]
    """What could not be done, and why."""
    prompts: frozenset[str]
    """Ids of the prompts of all rounds."""
    held_out: frozenset[str]
    """Hashes of the prompts and goals that any round held out."""
    trained: frozenset[str]
    """Hashes of the prompts and goals that the prompts of all rounds go back to."""
