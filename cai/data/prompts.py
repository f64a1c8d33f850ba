"""Prompts in: any file of `files.py`, any row of `formats.py`, every row that is not used counted with its reason."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from cai.config import StrictModel
from cai.data.files import file_sha256, find_file, read_rows
from cai.data.formats import RowContent, conversation_id, row_prompt
from cai.data.rows import Reject, RowNote, RowTally, SeenIds, SourceScan, ignore, used_rows
from cai.records import Prompt, PromptKind

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


class PromptScan(SourceScan):
    """What a source of prompts holds."""

    prompts: int
    kinds: Mapping[PromptKind, int]
    """Prompts of each kind that occurs."""


def read_prompts(
    source: PromptSource,
    *,
    kind: PromptKind,
    on_reject: Callable[[Reject], None],
    on_note: Callable[[RowNote], None] = ignore,
    seen: SeenIds | None = None,
) -> Iterator[Prompt]:
    """Read the prompts of a source one at a time, in order; every other row goes to `on_reject`.

    Ids in the rows are kept. `kind` is for prompts whose kind neither source nor row gives. Pass one `seen` to all
    readings of sources whose ids must differ.

    Raises:
        DataError: at the first prompt or a later one: the source cannot be read, has no rows, or only rejected ones.
            `scan_prompts` finds this out before any work.
    """

    def read(row: object) -> RowContent[Prompt]:
        return row_prompt(row, column=source.column, kind=source.kind, default_kind=kind, source=source.path)

    rows = read_rows(source.path, source.column)
    seen = SeenIds() if seen is None else seen
    yield from used_rows(source.path, rows, read, on_reject=on_reject, on_note=on_note, seen=seen)


def scan_prompts(
    source: PromptSource,
    *,
    kind: PromptKind,
    on_reject: Callable[[Reject], None] = ignore,
    seen: SeenIds | None = None,
) -> PromptScan:
    """Read a source once from end to end and count what it holds, so that faults show before any work.

    Raises:
        DataError: as `read_prompts` does.
    """
    kinds: Counter[PromptKind] = Counter()
    content = hashlib.sha256()
    tally = RowTally(on_reject)
    on_hub = source.path.startswith("hub:")
    for prompt in read_prompts(source, kind=kind, on_reject=tally.reject, on_note=tally.note, seen=seen):
        kinds[prompt.kind] += 1
        if on_hub:
            content.update(f"{prompt.id}\0{conversation_id(prompt.messages)}".encode())
    return PromptScan(
        source=source.path,
        sha256=content.hexdigest() if on_hub else file_sha256(find_file(source.path)),
        total=kinds.total() + tally.rejects.total(),
        prompts=kinds.total(),
        kinds=dict(kinds),
        rejects=dict(tally.rejects),
        notes=dict(tally.notes),
    )
