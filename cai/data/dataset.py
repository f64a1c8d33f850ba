"""A data set out: parquet tables, other files beside them, and the card that `datasets.load_dataset` opens them by.

Safe at any byte: the card names every parquet file, and the name of such a file holds a hash of its content, so the
files of two exports stand side by side. An export (1) writes all of itself into `.export/` of the run directory,
(2) moves the parquet files into `data/`, where no card names them yet, (3) replaces other files and then README.md,
each by one rename, (4) deletes the parquet files that the new card does not name. Whoever opens the directory by its
card sees the old export until README.md is replaced and the new one from then on, wherever the process dies; what it
leaves behind goes with the next export.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from pydantic import BaseModel, ConfigDict

from cai.data.parquet import ParquetFile
from cai.journal import write_error
from cai.records import Message, Record

_CARD = "README.md"


class Row(BaseModel):
    """Base of all rows. A row class is the one source of a table's columns: their types and their descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @property
    def chars(self) -> int:
        """Characters of conversation in the row, which is nearly all of its size."""
        raise NotImplementedError


@dataclass(frozen=True)
class Table:
    """A configuration of the exported data set."""

    name: str
    row: type[Row]
    splits: tuple[str, ...]


class SplitFile(Record):
    """A written file: one split of one table."""

    table: str
    split: str
    path: str
    """Relative to the run directory, with forward slashes."""
    rows: int


class DatasetCounts(Record):
    """What an export wrote. Stages add what they left out."""

    files: tuple[SplitFile, ...] = ()
    """A split without rows has no file: `datasets` cannot load one."""

    def rows(self, table: str, split: str | None = None) -> int:
        """Rows of one split of a table, or of the whole table."""
        return sum(file.rows for file in self.files if file.table == table and split in (None, file.split))


class DatasetWriter:
    """A data set in the making. Use as a context manager; without `publish` an earlier data set stays as it was.

    One process at a time may write to a directory: the run directory's lock sees to it.
    """

    def __init__(self, out: Path, tables: Sequence[Table], texts: Sequence[str] = ()) -> None:
        """Write to the run directory `out`.

        `tables` are in the order of the card; `texts` are the names of text files that stand beside it, even if empty.
        """
        self._out = out
        self._tables = tables
        self._staging = out / ".export"
        self._open: dict[tuple[str, str], ParquetFile] = {}
        self._text_names = tuple(texts)
        self._texts: dict[str, TextIO] = {}
        self._files: tuple[SplitFile, ...] = ()

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            RunDirError: the disk is full or `out` cannot be written. Whatever is done within the context raises this.
        """
        try:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir()
            for name in self._text_names:
                self._texts[name] = (self._staging / name).open("w", encoding="utf-8")
        except OSError as error:
            raise write_error(self._out, error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.abandon()
        for text in self._texts.values():
            with suppress(OSError):  # a full disk refuses the last buffer too
                text.close()
        shutil.rmtree(self._staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise write_error(self._out, error) from None

    def add(self, table: Table, split: str, row: Row) -> None:
        """Add a row to a split of a table."""
        key = (table.name, split)
        if key not in self._open:
            self._open[key] = ParquetFile(self._staging / f"{table.name}-{split}.parquet", table.row)
        self._open[key].add(row, row.chars)

    def write_line(self, name: str, line: str) -> None:
        """Add a line to the text file `name`."""
        self._texts[name].write(f"{line}\n")

    def finish(self) -> tuple[SplitFile, ...]:
        """Complete the files of all splits that have rows, in the order of the tables."""
        found = []
        for table in self._tables:
            for split in table.splits:
                if file := self._open.get((table.name, split)):
                    name = f"{table.name}-{split}-{file.finish()[:12]}.parquet"
                    file.path.rename(self._staging / name)
                    found.append(SplitFile(table=table.name, split=split, path=f"data/{name}", rows=file.rows))
        self._files = tuple(found)
        return self._files

    def publish(self, card: str) -> None:
        """Put the finished files in place of an earlier data set; `card` is the text of README.md."""
        self._texts[_CARD] = (self._staging / _CARD).open("w", encoding="utf-8")
        self._texts[_CARD].write(card)
        for text in self._texts.values():
            text.flush()
            os.fsync(text.fileno())
        data = self._out / "data"
        data.mkdir(exist_ok=True)
        for file in self._files:
            (self._staging / Path(file.path).name).replace(self._out / file.path)
        _sync_folder(data)
        for name in self._texts:
            (self._staging / name).replace(self._out / name)
        _sync_folder(self._out)
        named = {Path(file.path).name for file in self._files}
        ours = re.compile(rf"(?:{'|'.join(table.name for table in self._tables)})-\w+-[0-9a-f]{{12}}\.parquet")
        for path in data.iterdir():
            if ours.fullmatch(path.name) and path.name not in named:
                path.unlink()


def conversation_chars(*conversations: tuple[Message, ...]) -> int:
    """Characters of all messages of some conversations; for `Row.chars`."""
    return sum(len(message.content) for messages in conversations for message in messages)


def _sync_folder(path: Path) -> None:
    """Put renames in a folder on disk, so that they cannot overtake one another in a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
