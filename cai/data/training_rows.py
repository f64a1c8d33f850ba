"""What training learns from: preferences and demonstrations, and where each of them came from."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from cai.data.formats import conversation_id
from cai.data.rows import Reject
from cai.records import Message, Record

LabelSource = Literal["ai", "human", "revision", "contrast"]
"""Who or what said which response is better: a judge, a person, the order of a revision, prompts for opposites."""
ReplySource = Literal["revision", "helpful", "human"]
"""What a reply is: a revision, a model's answer to a helpful prompt, or text that came with a file."""


class Preference(Record):
    """Two responses to a prompt, and how likely `chosen` is the better one."""

    id: str
    """Id of the comparison. Two sources, and also two raters of one comparison, may use the same."""
    prompt_id: str
    """Id of the prompt; within a source, all rows about a prompt share it."""
    prompt: tuple[Message, ...]
    """Ends with a user turn."""
    chosen: str
    rejected: str
    p_chosen: float
    """Probability that `chosen` is the better one, in [0, 1]; below 0.5 it says that `rejected` is likelier to be."""
    source: LabelSource
    weight: float
    """Factor of the row's loss; over the train rows its mean is 1, and over the test rows too."""

    @property
    def content_id(self) -> str:
        """Hash of its texts."""
        replies = (Message(role="assistant", content=text) for text in (self.chosen, self.rejected))
        return conversation_id((*self.prompt, *replies))


class Demonstration(Record):
    """A conversation with a reply to learn."""

    id: str
    """Unique in an exported run; two sources may use the same."""
    prompt_id: str
    """Id of the prompt; within a source, all rows about a prompt share it."""
    messages: tuple[Message, ...]
    """The conversation, ending with the reply of the assistant."""
    source: ReplySource
    finish_reason: str | None
    """How the reply ended, such as `stop`; None where that is not known."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation up to the last user turn."""
        return self.messages[:-1]

    @property
    def content_id(self) -> str:
        """Hash of its texts."""
        return conversation_id(self.messages)


ExampleT = TypeVar("ExampleT", Preference, Demonstration)


class SourceFacts(Record):
    """What one source gave. Its `rows` are those used, rejected and left out, and no others."""

    path: str
    for_test: bool
    """Whether it was named as a source of test rows alone."""
    sha256: str
    """Of the file's bytes; of a run, of its exported files'; of a hub data set, of the rows taken, in order."""
    rows: int
    """Rows read; what lies behind the limit is not."""
    used: int
    """Those that are among the train rows or the test rows."""
    rejects: Mapping[str, int]
    """Rows that cannot be used, by reason."""
    left_out: Mapping[str, int]
    """Rows that could be used and are not, by reason; see `TrainingRows.left_out`."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""
    constitution_sha256s: tuple[str, ...]
    """Hashes of the constitutions that the rows in use name, sorted."""
    weight: float | None = None
    """Of a source of preferences: the factor that was asked for."""
    ratio: float | None = None
    """Of a source of demonstrations: the ratio that was asked for, if any."""
    missing: int = 0
    """Rows that the ratio asks for and the source lacks."""


@dataclass(frozen=True)
class TrainingRows(Generic[ExampleT]):
    """The rows of a training run. No prompt stands among both the train and the test rows."""

    train: tuple[ExampleT, ...]
    """At least one, in the order of the sources."""
    test: tuple[ExampleT, ...]
    """May be empty."""
    sources: tuple[SourceFacts, ...]
    """Those of train rows, then those of test rows alone."""
    rejects: tuple[Reject, ...]
    """Every row that cannot be used."""
    duplicates: int
    """Train rows with the same texts as an earlier one. They are kept, so that they weigh as often as they stand."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Rows that could be used and are not, by reason.

        `in_test` (a train row whose prompt stands in the test rows), `own_test` (the test split of a run, where other
        sources give the test rows), `skipped` (before the first row wanted), `over_ratio`, and of demonstrations `cut`
        (the reply ends at the token limit), `earlier_round` and `other_kind`.
        """
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.left_out)
        return dict(total)
