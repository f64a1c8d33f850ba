"""One source after the other → train rows and test rows that share no prompt; whatever is not used is counted."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Generic

from pydantic import Field

from cai.config import Positive, StrictModel
from cai.data.files import Row, file_sha256
from cai.data.formats import RowContent, check_text, conversation_id, type_name
from cai.data.rows import Reject, RowNote, used_rows
from cai.data.tables import split_of
from cai.data.training_rows import ExampleT, SourceFacts, TrainingRows
from cai.errors import DataError, RecordError
from cai.records import Message, Prompt

PROVENANCE = ("id", "prompt_id", "source", "constitution_sha256")
"""Columns that say where a row comes from."""


class TrainingSource(StrictModel):
    """What all sources of training rows have."""

    path: str
    """Where the rows are."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Pass over so many of the rows that can be used. Of a run, these are rows of its train split."""
    limit: Positive | None = None
    """Use so many of the rows behind those. Of a run, these are rows of its train split; its test split stays whole."""


@dataclass(frozen=True)
class Splitting:
    """How the rows of the sources become train rows and test rows."""

    test_share: float
    """Share of the prompts of files whose rows are test rows, where no source is named for these."""
    seed: int
    tests_named: bool
    """Whether sources are named for the test rows; then all others give train rows alone."""


@dataclass(frozen=True)
class SourceRow(Generic[ExampleT]):
    """A row that can be used, unless it is not wanted."""

    item: ExampleT
    constitution_sha256: str | None
    unwanted: str | None = None
    """Why it is left out: a reason of `TrainingRows.left_out`."""

    @property
    def id(self) -> str:
        """Id of the item."""
        return self.item.id


@dataclass
class SourceRows(Generic[ExampleT]):
    """What one source gives, while its rows are sorted."""

    source: TrainingSource
    for_test: bool
    files: Mapping[str, Path]
    """The parquet files of a run by split; else empty."""
    read: Callable[[str], Iterator[Row]]
    """Reads the rows of a file, or of the source's own path."""
    content: Callable[[object], RowContent[SourceRow[ExampleT]]]
    """What is in a row."""
    file: Path | None = None
    """The source's file; None of a run or a hub data set."""
    train: list[SourceRow[ExampleT]] = field(default_factory=list)
    test: list[SourceRow[ExampleT]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    sha256: str = ""

    def collect(self, how: Splitting) -> None:
        """Read the source.

        Raises:
            DataError: it cannot be read, has no rows, only rejected ones, or none that is wanted.
        """
        rows = self._wanted(self._places(), self.source.skip, self.source.limit)
        if self.for_test:
            self.test = rows
        elif self.files:
            self.train = rows
            self.test = self._wanted([path for split, path in self.files.items() if split == "test"], 0, None)
        else:
            for row in rows:
                prompt = Prompt(id=row.item.prompt_id, messages=row.item.prompt)
                held = not how.tests_named and split_of(prompt, how.test_share, how.seed) == "test"
                (self.test if held else self.train).append(row)
        if not self.train and not self.test:
            raise DataError(f"{self.source.path}: no row is left of those that can be used ({counts(self.left_out)})")
        self.sha256 = self._sha256(rows)
        if how.tests_named and not self.for_test:
            self.left_out["own_test"] += len(self.test)
            self.test.clear()

    def facts(self, weight: float | None, ratio: float | None) -> SourceFacts:
        """What the source gave in the end."""
        used = (*self.train, *self.test)
        return SourceFacts(
            path=self.source.path,
            for_test=self.for_test,
            sha256=self.sha256,
            rows=len(used) + len(self.rejects) + self.left_out.total(),
            used=len(used),
            rejects=dict(Counter(reject.reason for reject in self.rejects)),
            left_out=dict(+self.left_out),
            notes=dict(self.notes),
            constitution_sha256s=tuple(sorted({row.constitution_sha256 for row in used if row.constitution_sha256})),
            weight=weight,
            ratio=ratio,
            missing=self.missing,
        )

    def _places(self) -> Sequence[str | Path]:
        """Where the rows are that `skip` and `limit` speak of."""
        if self.files:
            return [path for split, path in self.files.items() if self.for_test or split != "test"]
        return [self.file or self.source.path]

    def _rows(self, place: str | Path) -> Iterator[SourceRow[ExampleT]]:
        """Rows of one id are all used: two raters' choices are two observations."""
        rows = self.read(str(place))
        return used_rows(str(place), rows, self.content, on_reject=self.rejects.append, on_note=self._note, seen=None)

    def _note(self, note: RowNote) -> None:
        self.notes[note.reason] += 1

    def _wanted(self, places: Iterable[str | Path], skip: int, limit: int | None) -> list[SourceRow[ExampleT]]:
        taken: list[SourceRow[ExampleT]] = []
        skipped = 0
        for row in chain.from_iterable(map(self._rows, places)):
            if row.unwanted is not None:
                self.left_out[row.unwanted] += 1
            elif skipped < skip:
                skipped += 1
            else:
                taken.append(row)
                if len(taken) == limit:
                    break
        self.left_out["skipped"] += skipped
        return taken

    def _sha256(self, rows: Sequence[SourceRow[ExampleT]]) -> str:
        if self.file is not None:
            return file_sha256(self.file)
        content = hashlib.sha256()
        for split, path in self.files.items():
            content.update(f"{split} {file_sha256(path)}\n".encode())
        if not self.files:
            for row in rows:
                content.update(row.item.model_dump_json().encode() + b"\n")
        return content.hexdigest()


def leave_out_tested(sources: Sequence[SourceRows[ExampleT]]) -> None:
    """Leave out the train rows whose prompt stands in the test rows of any source."""
    tested = {_prompt_key(row.item.prompt) for source in sources for row in source.test}
    for source in sources:
        kept = [row for row in source.train if _prompt_key(row.item.prompt) not in tested]
        source.left_out["in_test"] += len(source.train) - len(kept)
        source.train = kept


def combined(sources: Sequence[SourceRows[ExampleT]], facts: Sequence[SourceFacts]) -> TrainingRows[ExampleT]:
    """Put the rows of all sources together, in order.

    Raises:
        DataError: there is no train row.
    """
    train = tuple(row.item for source in sources for row in source.train)
    found = TrainingRows(
        train=train,
        test=tuple(row.item for source in sources for row in source.test),
        sources=tuple(facts),
        rejects=tuple(reject for source in sources for reject in source.rejects),
        duplicates=len(train) - len({item.content_id for item in train}),
    )
    if not train:
        why = (
            f"{len(found.test)} test rows; left out: {counts(found.left_out)}"
            if sources
            else "no source is named: give one with --data, or under `data` in the config file"
        )
        raise DataError(f"no row is left to train on ({why})")
    return found


def counts(reasons: Mapping[str, int]) -> str:
    """Numbers by reason, for messages."""
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number) or "none"


def row_prompt_id(columns: Mapping[str, object], default: str) -> str:
    """The id of its prompt that a row names, or `default`.

    Raises:
        RecordError: `bad_id`, `not_text`.
    """
    value = columns.get("prompt_id")
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError("bad_id", f"`prompt_id` must be text or a whole number, but is {type_name(value)}")
    check_text(str(value), "prompt_id")
    return str(value)


def row_constitution(columns: Mapping[str, object]) -> str | None:
    """The hash of a constitution that a row names."""
    value = columns.get("constitution_sha256")
    return value if isinstance(value, str) and value else None


def _prompt_key(prompt: Sequence[Message]) -> str:
    """White space at the ends of a turn does not make another prompt of it: some formats keep it, others do not."""
    return conversation_id(tuple(Message(role=turn.role, content=turn.content.strip()) for turn in prompt))
