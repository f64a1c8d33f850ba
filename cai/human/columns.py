"""One row of somebody else's data → the comparison in it, and what a person said of it.

| format | columns | the vote |
|---|---|---|
| `hh-rlhf` | `chosen`, `rejected`: transcripts | for `chosen`, by a person without a name |
| `llm-swarm` | `chosen`, `rejected`: lists of messages | for `chosen`: the order of a revision and its draft |
| `pairs` | two responses of which one is chosen | for the chosen one, with its probability where a column holds it |
| `pairs` | two responses, and a preference between them | by what the value of the preference stands for |

Conversations are read as `cai.data.formats` and `cai.data.comparison_rows` say. Two rows are about the same pair when
prompt and responses are the same, in whichever order the responses stand.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Literal, Self

from pydantic import model_validator

from cai.config import StrictModel
from cai.data.comparison_rows import row_comparison
from cai.data.formats import (
    PROMPT_COLUMNS,
    RowContent,
    check_text,
    closest,
    conversation_id,
    listed,
    row_columns,
    type_name,
)
from cai.data.preference_source import row_probability
from cai.errors import RecordError
from cai.human.votes import Vote
from cai.records import Comparison, Message, Record

Meaning = Literal["a", "b", "tie"]
"""What a value of a preference column says is better."""

MEANINGS: Mapping[str, Meaning] = {
    "a": "a",
    "response_a": "a",
    "model_a": "a",
    "b": "b",
    "response_b": "b",
    "model_b": "b",
    "tie": "tie",
}
"""Values that are understood without a mapping, in lower case."""

_P_A: Mapping[Meaning, float] = {"a": 1.0, "b": 0.0, "tie": 0.5}


class PairColumns(StrictModel):
    """Which columns of a file hold what."""

    prompt: str | None = None
    """The prompt. Default: found by its name, see `formats.PROMPT_COLUMNS`; or the beginning of `chosen`."""
    chosen: str | None = None
    """The better response, or a conversation that ends with it. Default: `chosen`."""
    rejected: str | None = None
    """The other response. Default: `rejected`."""
    response_a: str | None = None
    """One response, where another column says which is better. Default then: `response_a`."""
    response_b: str | None = None
    """The other. Default then: `response_b`."""
    preference: str | None = None
    """The column that says which of the two is better. Default then: `preference`."""
    map: Mapping[str, Meaning] = {}
    """What values of `preference` stand for, beside those of `MEANINGS`."""
    annotator: str | None = None
    """Who chose. Rows of several people about one pair become votes. Default: not known, and one row for a pair."""
    p_chosen: str | None = None
    """The probability that `chosen` is the better one. Default: 1."""
    id: str | None = None
    """The id of the pair. Default: `id`, where there is one, else a hash of prompt and responses."""

    @property
    def has_preference(self) -> bool:
        """Whether a column of its own says which response is better."""
        return any((self.response_a, self.response_b, self.preference, self.map))

    @property
    def response_names(self) -> tuple[str, str]:
        """The columns of the two responses."""
        return self.response_a or "response_a", self.response_b or "response_b"

    @property
    def chosen_names(self) -> tuple[str, str]:
        """The columns of the better response and the other one."""
        return self.chosen or "chosen", self.rejected or "rejected"

    @property
    def named(self) -> frozenset[str]:
        """All columns that are read beside those of the prompt."""
        pair = (*self.response_names, self.preference or "preference") if self.has_preference else self.chosen_names
        further = (self.prompt, self.annotator, self.p_chosen, self.id or "id")
        return frozenset(name for name in (*pair, *further) if name is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        unused = [name for name in ("chosen", "rejected", "p_chosen") if getattr(self, name) is not None]
        if self.has_preference and unused:
            raise ValueError(
                f"`{unused[0]}` has no effect beside columns of `response_a`, `response_b` and `preference`; name "
                "either the chosen and the rejected response, or two responses and a preference"
            )
        return self


class Ballot(Record):
    """What one row says of a comparison."""

    comparison: Comparison
    vote: Vote | None
    no_vote: str = ""
    """Why there is no vote, such as `cancelled`."""

    @property
    def id(self) -> str:
        """Id of the comparison."""
        return self.comparison.id

    @property
    def pair(self) -> str:
        """The same for all ballots about the same two responses to the same prompt, in either order."""
        comparison = self.comparison
        replies = (Message(role="assistant", content=text) for text in sorted((comparison.a.text, comparison.b.text)))
        return conversation_id((*comparison.prompt.messages, *replies))


class OneVoteEach:
    """Reads ballots in order, and rejects those of which a pair has one already, and ids that stand for two pairs."""

    def __init__(self, read: Callable[[object], RowContent[Ballot]], *, unnamed_differ: bool) -> None:
        """Take the reader of one row; `unnamed_differ`: people without a name are each another person."""
        self._read = read
        self._unnamed_differ = unnamed_differ
        self._pair_of: dict[str, str] = {}
        self._voted: set[tuple[str, str | None]] = set()

    def __call__(self, row: object) -> RowContent[Ballot]:
        """Read a row.

        Raises:
            RecordError: `duplicate_vote`, `duplicate_comparison`, `duplicate_id`, or as the reader of one row.
        """
        found = self._read(row)
        ballot, pair = found.item, found.item.pair
        if self._pair_of.get(ballot.id, pair) != pair:
            raise RecordError(
                "duplicate_id", f"an earlier row has the id `{ballot.id:.60}` too, with another prompt or responses"
            )
        if ballot.vote is not None and not (ballot.vote.rater is None and self._unnamed_differ):
            voter = (pair, ballot.vote.rater)
            if voter in self._voted:
                raise _voted_before(ballot.vote.rater)
            self._voted.add(voter)
        self._pair_of[ballot.id] = pair
        return found


def _voted_before(rater: str | None) -> RecordError:
    if rater is None:
        return RecordError(
            "duplicate_comparison",
            "an earlier row has the same prompt and responses; where several people rated them, their names must be "
            "in a column of annotators",
        )
    return RecordError("duplicate_vote", f"{rater!r:.60} has voted on the same prompt and responses in an earlier row")


def transcript_ballot(row: object, source: str) -> RowContent[Ballot]:
    """Read a row of hh-rlhf: two conversations that differ in their last reply.

    Raises:
        RecordError: the row holds no usable comparison; `reason` says why.
    """
    cells = row_columns(row)
    shaped = {name: wanted(cells, name) for name in ("chosen", "rejected")}
    found = row_comparison(shaped, column=None, gold_column=None, require_gold=True, source=source)
    return RowContent(Ballot(comparison=found.item, vote=_for_gold(found.item)), own_id=False, note=found.note)


def swarm_ballot(row: object, source: str) -> RowContent[Ballot]:
    """Read a row of an llm-swarm data set: a conversation with a model's revision and with its draft.

    Raises:
        RecordError: the row holds no usable comparison; `reason` says why.
    """
    found = transcript_ballot(row, source)
    comparison = found.item.comparison
    a, b = ("revision", "draft") if comparison.gold == "a" else ("draft", "revision")
    marked = {
        "source": "revision",
        "a": comparison.a.model_copy(update={"origin": a}),
        "b": comparison.b.model_copy(update={"origin": b}),
    }
    ballot = found.item.model_copy(update={"comparison": comparison.model_copy(update=marked)})
    return RowContent(ballot, found.own_id, found.note)


def pair_ballot(row: object, columns: PairColumns, source: str) -> RowContent[Ballot]:
    """Read a row by a mapping of its columns.

    Raises:
        RecordError: the row holds no usable preference; `reason` says why.
    """
    cells = row_columns(row)
    id_column = columns.id or ("id" if "id" in cells else None)
    given = {} if id_column is None else {"id": wanted(cells, id_column)}
    names = columns.response_names if columns.has_preference else columns.chosen_names
    texts = dict(zip(_canonical(columns), (wanted(cells, name) for name in names), strict=True))
    shaped = {**shaped_prompt(cells, columns.prompt, others=columns.named), **texts, **given}
    found = row_comparison(
        shaped,
        column=None if columns.prompt is None else "prompt",
        gold_column=None,
        require_gold=not columns.has_preference,
        source=source,
    )
    rater = None if columns.annotator is None else _annotator(wanted(cells, columns.annotator), columns.annotator)
    if columns.has_preference:
        vote = Vote(rater=rater, p_a=_P_A[_meaning(cells, columns)])
    else:
        p = None if columns.p_chosen is None else row_probability(wanted(cells, columns.p_chosen), columns.p_chosen)
        vote = _for_gold(found.item, rater, 1.0 if p is None else p)
    return RowContent(Ballot(comparison=found.item, vote=vote), found.own_id, found.note)


def wanted(cells: Mapping[str, object], name: str) -> object:
    """The value in a column that must be there.

    Raises:
        RecordError: `missing_column`.
    """
    if name not in cells:
        names = list(map(str, cells))
        raise RecordError("missing_column", f"has no column `{name}`, only {listed(names)}{closest(name, names)}")
    return cells[name]


def shaped_prompt(cells: Mapping[str, object], column: str | None, *, others: Collection[str]) -> dict[str, object]:
    """The prompt of a row under a name that `row_comparison` knows.

    That is the column `prompt` where one is named, and else all columns that may hold one and are none of `others`.

    Raises:
        RecordError: `missing_column`.
    """
    if column is not None:
        return {"prompt": wanted(cells, column)}
    return {name: cells[name] for name in PROMPT_COLUMNS if name in cells and name not in (*others, "chosen")}


def _canonical(columns: PairColumns) -> tuple[str, str]:
    return ("response_a", "response_b") if columns.has_preference else ("chosen", "rejected")


def _for_gold(comparison: Comparison, rater: str | None = None, p: float = 1.0) -> Vote:
    """The vote of someone for whom the gold response is the better one with probability `p`."""
    return Vote(rater=rater, p_a=p if comparison.gold == "a" else 1 - p)


def _meaning(cells: Mapping[str, object], columns: PairColumns) -> Meaning:
    name = columns.preference or "preference"
    text = _as_text(wanted(cells, name))
    if text is None:
        raise RecordError("no_preference", f"`{name}` is empty")
    found = columns.map.get(text) or MEANINGS.get(text.lower())
    if found is None:
        known = ", ".join(dict.fromkeys((*columns.map, *MEANINGS)))
        raise RecordError("unknown_preference", f"`{name}` is {text!r:.40}; known: {known}")
    return found


def _as_text(value: object) -> str | None:
    """A cell as a person would write it; None where it is empty."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # Tables with gaps hold whole numbers as floats, and NaN in the gaps.
        return None if value != value else str(int(value)) if value.is_integer() else str(value)
    if value is None or isinstance(value, str | int):
        return None if value is None else str(value).strip() or None
    raise RecordError("unknown_preference", f"a preference must be text or a number, but is {type_name(value)}")


def _annotator(value: object, column: str) -> str:
    text = _as_text(value) if isinstance(value, str | int | float | None) else None
    if text is None:
        raise RecordError("no_annotator", f"`{column}` names nobody")
    check_text(text, column)
    return text
