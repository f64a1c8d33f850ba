"""The rows of a source → what they hold, one at a time; every row that is not used is counted with its reason."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from cai.data.files import Row
from cai.data.formats import RowContent
from cai.errors import DataError, RecordError
from cai.records import Prompt, Record


class Item(Protocol):
    """What a row holds."""

    @property
    def id(self) -> str: ...


ItemT = TypeVar("ItemT", bound=Item)


class RowNote(Record):
    """Something odd about a row that is used all the same: `empty_reply`, `later_turns`, `gold_tie`."""

    source: str
    row: int
    """1-based line of a text file, or position in any other."""
    reason: str
    """Stable code."""
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.row}: {self.reason}: {self.message}"


class Reject(RowNote):
    """A row that cannot be used, and why.

    `reason` is one of `not_json`, `too_long`, `cell_count` (the row cannot be read), `not_an_object`,
    `no_prompt_column`, `not_text`, `bad_message`, `unknown_role`, `not_a_transcript`, `prompts_differ`,
    `empty_prompt`, `empty_turn`, `last_turn_not_user`, `bad_turn_order`, `bad_id`, `unknown_kind`, `bad_topic`,
    `duplicate_id` (an earlier row has this id) and `duplicate_prompt` or `duplicate_comparison` (rows without ids, same
    content). Comparisons have `missing_response`, `empty_response`, `identical_responses`, `unknown_gold`, `gold_tie`
    and `no_gold` (a gold label is wanted), `bad_record`, and as chains `helpful` and `unrevised`. Preferences have
    all of these and `bad_p`; demonstrations `missing_response` and `empty_response`. Imports of human data add
    `missing_column`, `unknown_preference`, `no_preference`, `no_annotator`, `duplicate_vote`, `not_a_task` and
    `bad_annotation`.
    """


class SourceScan(Record):
    """What a source holds. Prompts and comparisons add their numbers."""

    source: str
    sha256: str
    """Of the file's bytes; of chains and a hub data set, which have none: of the items, in order."""
    total: int
    """Rows: items and rejects."""
    rejects: Mapping[str, int]
    """Rejected rows by reason."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""


@dataclass(frozen=True)
class RowTally:
    """Counts rejects and notes by reason, as they come, and passes the rejects on."""

    on_reject: Callable[[Reject], None]
    rejects: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def reject(self, reject: Reject) -> None:
        """Count a row that cannot be used."""
        self.rejects[reject.reason] += 1
        self.on_reject(reject)

    def note(self, note: RowNote) -> None:
        """Count an odd row."""
        self.notes[note.reason] += 1


class SeenIds:
    """The ids met so far, as 64-bit hashes in one flat table: 16 to 32 bytes for each.

    Two different ids among a million have the same hash with a probability below 1e-7.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, id_: str) -> bool:
        """Note an id; False where it is known already."""
        key = int.from_bytes(hashlib.blake2b(id_.encode(), digest_size=8).digest(), "big") or 1  # 0 is a free slot
        if not _insert(self._slots, key):
            return False
        self._count += 1
        if 2 * self._count > len(self._slots):
            old, self._slots = self._slots, array("Q", bytes(2 * 8 * len(self._slots)))
            for known in filter(None, old):
                _insert(self._slots, known)
        return True


def _insert(slots: "array[int]", key: int) -> bool:
    """Put a key into a table whose length is a power of two; False where it is there."""
    place = key & (len(slots) - 1)
    while slots[place]:
        if slots[place] == key:
            return False
        place = (place + 1) & (len(slots) - 1)
    slots[place] = key
    return True


def ignore(_: RowNote) -> None:
    """Take no notice."""


def used_rows(
    source: str,
    rows: Iterable[Row],
    read: Callable[[Any], RowContent[ItemT]],
    *,
    on_reject: Callable[[Reject], None],
    on_note: Callable[[RowNote], None],
    seen: SeenIds | None,
) -> Iterator[ItemT]:
    """What `read` makes of the rows that can be used, in order; every other row goes to `on_reject`.

    A row whose id is in `seen` is a reject. None: ids may stand twice.

    Raises:
        DataError: after the last row: there was none, or only rejected ones.
    """
    reasons: Counter[str] = Counter()
    first: Reject | None = None
    used = 0
    for row in rows:
        try:
            if row.fault is not None:
                raise RecordError(*row.fault)
            found = read(row.data)
            if seen is not None and not seen.add(found.item.id):
                raise _duplicate(found)
        except RecordError as error:
            reject = Reject(source=source, row=row.number, reason=error.reason, message=_writable(str(error)))
            first = first or reject
            reasons[error.reason] += 1
            on_reject(reject)
            continue
        if found.note is not None:
            on_note(RowNote(source=source, row=row.number, reason=found.note.reason, message=found.note.message))
        used += 1
        yield found.item
    if first is None and not used:
        raise DataError(f"{source}: has no rows")
    if first is not None and not used:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise DataError(f"{source}: no row can be used ({counts}); the first: row {first.row} {first.message}")


def _writable(message: str) -> str:
    """A message may quote a column name with half of a surrogate pair, which no file could take."""
    return message.encode(errors="backslashreplace").decode()


def _duplicate(found: RowContent[ItemT]) -> RecordError:
    if found.own_id:
        return RecordError("duplicate_id", f"an earlier row has the id `{found.item.id:.60}` too")
    if isinstance(found.item, Prompt):
        return RecordError(
            "duplicate_prompt", "an earlier row has the same conversation, and neither has an id of its own"
        )
    return RecordError(
        "duplicate_comparison", "an earlier row has the same prompt and responses, and neither has an id of its own"
    )
