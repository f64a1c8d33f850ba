"""Prompts in: any file of `files.py`, any row of `formats.py`, every row that is not used counted with its reason."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from cai.config import StrictModel
from cai.data.files import file_sha256, find_file, read_rows
from cai.data.formats import Finding, conversation_id, row_prompt
from cai.errors import DataError, RecordError
from cai.records import Prompt, PromptKind, Record

__all__ = ["PromptScan", "PromptSource", "Reject", "RowNote", "SeenIds", "file_sha256", "read_prompts", "scan_prompts"]


class PromptSource(StrictModel):
    """Where prompts are read from."""

    path: str
    """A file (.jsonl, .json, .csv, .txt, each also with .gz, or .parquet), the name of a shipped prompt set, or
    `hub:owner/name[@config][:split]`."""
    kind: PromptKind | None = None
    """What all prompts are, whatever their rows say."""
    column: str | None = None
    """The column that holds the prompt. Default: the first that is known, see `formats.PROMPT_COLUMNS`."""


class RowNote(Record):
    """Something odd about a row whose prompt is used all the same: `empty_reply`, `later_turns`."""

    source: str
    row: int
    """1-based line of a text file, or position in any other."""
    reason: str
    """Stable code."""
    message: str

    def __str__(self) -> str:
        return f"{self.source}:{self.row}: {self.reason}: {self.message}"


class Reject(RowNote):
    """A row that holds no usable prompt, and why.

    `reason` is one of `not_json`, `too_long`, `cell_count` (the row cannot be read), `not_an_object`,
    `no_prompt_column`, `not_text`, `bad_message`, `unknown_role`, `not_a_transcript`, `prompts_differ`,
    `empty_prompt`, `empty_turn`, `last_turn_not_user`, `bad_turn_order`, `bad_id`, `unknown_kind`, `bad_topic`,
    `duplicate_id` (an earlier row has this id) and `duplicate_prompt` (rows without ids, same conversation).
    """


class PromptScan(Record):
    """What a source holds."""

    source: str
    sha256: str
    """Of the file's bytes; of a hub data set, which has none: of its prompts' ids and conversations, in order."""
    total: int
    """Rows: prompts and rejects."""
    prompts: int
    kinds: Mapping[PromptKind, int]
    """Prompts of each kind that occurs."""
    rejects: Mapping[str, int]
    """Rejected rows by reason."""
    notes: Mapping[str, int]
    """Odd rows that are used all the same, by reason."""


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


def _ignore(_: RowNote) -> None:
    pass


def read_prompts(
    source: PromptSource,
    *,
    kind: PromptKind,
    on_reject: Callable[[Reject], None],
    on_note: Callable[[RowNote], None] = _ignore,
    seen: SeenIds | None = None,
) -> Iterator[Prompt]:
    """Read the prompts of a source one at a time, in order; every other row goes to `on_reject`.

    Ids in the rows are kept. `kind` is for prompts whose kind neither source nor row gives. Pass one `seen` to all
    readings of sources whose ids must differ.

    Raises:
        DataError: at the first prompt or a later one: the source cannot be read, has no rows, or only rejected ones.
            `scan_prompts` finds this out before any work.
    """
    seen = SeenIds() if seen is None else seen
    reasons: Counter[str] = Counter()
    first: Reject | None = None
    used = 0
    for row in read_rows(source.path, source.column):
        try:
            if row.fault is not None:
                raise RecordError(*row.fault)
            found = row_prompt(row.data, column=source.column, kind=source.kind, default_kind=kind, source=source.path)
            if not seen.add(found.prompt.id):
                raise RecordError(*_duplicate(found.prompt.id, found.own_id))
        except RecordError as error:
            reject = Reject(source=source.path, row=row.number, reason=error.reason, message=_writable(str(error)))
            first = first or reject
            reasons[error.reason] += 1
            on_reject(reject)
            continue
        if found.note is not None:
            on_note(RowNote(source=source.path, row=row.number, reason=found.note.reason, message=found.note.message))
        used += 1
        yield found.prompt
    if first is None and not used:
        raise DataError(f"{source.path}: has no rows")
    if first is not None and not used:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise DataError(f"{source.path}: no row can be used ({counts}); the first: row {first.row} {first.message}")


def scan_prompts(
    source: PromptSource,
    *,
    kind: PromptKind,
    on_reject: Callable[[Reject], None] = _ignore,
    seen: SeenIds | None = None,
) -> PromptScan:
    """Read a source once from end to end and count what it holds, so that faults show before any work.

    Raises:
        DataError: as `read_prompts` does.
    """
    kinds: Counter[PromptKind] = Counter()
    rejects: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    content = hashlib.sha256()

    def count_reject(reject: Reject) -> None:
        rejects[reject.reason] += 1
        on_reject(reject)

    def count_note(note: RowNote) -> None:
        notes[note.reason] += 1

    on_hub = source.path.startswith("hub:")
    for prompt in read_prompts(source, kind=kind, on_reject=count_reject, on_note=count_note, seen=seen):
        kinds[prompt.kind] += 1
        if on_hub:
            content.update(f"{prompt.id}\0{conversation_id(prompt.messages)}".encode())
    return PromptScan(
        source=source.path,
        sha256=content.hexdigest() if on_hub else file_sha256(find_file(source.path)),
        total=kinds.total() + rejects.total(),
        prompts=kinds.total(),
        kinds=dict(kinds),
        rejects=dict(rejects),
        notes=dict(notes),
    )


def _writable(message: str) -> str:
    """A message may quote a column name with half of a surrogate pair, which no file could take."""
    return message.encode(errors="backslashreplace").decode()


def _duplicate(id_: str, own_id: bool) -> Finding:
    if own_id:
        return Finding("duplicate_id", f"an earlier row has the id `{id_:.60}` too")
    return Finding("duplicate_prompt", "an earlier row has the same conversation, and neither has an id of its own")
